package fsm

import (
	"bytes"
	"encoding/json"

	"github.com/debvisor/debvisor/api"
)

// submitMove checks the move of a volume to another pool, and writes down where
// it lies now.
func submitMove(tx *Tx, t *api.Task) *api.Error {
	var args api.VolumeMove
	decoder := json.NewDecoder(bytes.NewReader(t.Args))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&args); err != nil {
		return api.Invalid("args", "are not understood: %v", err).Allow(`{"pool": NAME}`).On(api.KindTask, t.Name)
	}
	v := Volumes.Get(tx, t.Object)
	pool := Pools.Get(tx, args.Pool)
	if pool == nil {
		return missing("pool", api.KindPool, args.Pool)
	}
	if v.Pool == args.Pool {
		return api.Errorf(api.CodeConflict, "lies in pool %s already", v.Pool)
	}
	if other := movedBy(tx, t.Object); other != nil {
		return api.Errorf(api.CodeConflict, "is being moved by task %s", other.Name).Do("wait for it, or cancel it")
	}
	if clone := dependent(tx, v); clone != nil {
		return api.Errorf(api.CodeConflict, "volume %s/%s is a clone that needs it where it is", clone.Tenant, clone.Name).Do("move or delete that volume first")
	}
	if s := snapshotWithin(tx, v); s != nil {
		return api.Errorf(api.CodeConflict, "holds snapshot %s, which does not move with it", s.Name).Do("delete its snapshots first")
	}
	made := madeReplica(tx, v)
	if made == nil {
		return api.Errorf(api.CodeConflict, "has not been made yet").Do("wait until its replica is ready")
	}
	node := MoveNode(tx, v)
	if !pool.On(node) {
		return api.Invalid("pool", "%s is not on node %s, which has the volume", pool.Name, node).Do("choose a pool that this node has")
	}
	if err := checkRoom(tx, pool.Name, node, made.UsedBytes); err != nil {
		return err
	}
	args.From = v.Pool
	raw, err := json.Marshal(args)
	if err != nil {
		return api.Errorf(api.CodeInternal, "encode arguments: %v", err)
	}
	t.Args = raw
	return nil
}

// movedBy is the task that moves the volume of that key; nil: there is none.
func movedBy(tx *Tx, volume string) *api.Task {
	for t := range Tasks.By(tx, "object", api.KindVolume+"/"+volume) {
		if t.Verb == api.TaskMoveVolume && !t.Ended() {
			return t
		}
	}
	return nil
}

// MoveNode is the node that moves a volume: that of the VM that uses it, or
// where it was made; empty: there is none.
func MoveNode(r Reader, v *api.Volume) string {
	for vm := range VMs.By(r, "volume", api.Key(v.Tenant, v.Name)) {
		if i := Instances.Get(r, vm.ID); i != nil && i.Owner != "" {
			return i.Owner
		}
	}
	if made := madeReplica(r, v); made != nil {
		return made.Node
	}
	return ""
}

// VolumeMoved is the body of volume.moved.
type VolumeMoved struct {
	Volume    string `json:"volume"` // key
	ID        string `json:"id"`
	From      string `json:"from"` // pools
	To        string `json:"to"`
	Node      string `json:"node"` // that has both copies
	Epoch     uint64 `json:"epoch"`
	Task      string `json:"task,omitzero"` // of a volume that no guest uses: it must still be this node's
	Attempt   int    `json:"attempt,omitzero"`
	VM        string `json:"vm,omitzero"` // ID of the VM whose guest keeps both copies equal: the node must own it
	Gen       uint64 `json:"gen,omitzero"`
	SizeBytes int64  `json:"size_bytes,omitzero"`
	UsedBytes int64  `json:"used_bytes,omitzero"`
}

// MoveVolume makes a complete copy in another pool the volume. The former one is
// removed afterwards. Who copied it must still have the right to: else a guest
// may have been started elsewhere on what is left behind.
var MoveVolume = transition("volume.moved", Volumes, func(tx *Tx, in VolumeMoved) (*api.Volume, *api.Error) {
	if _, err := liveNode(tx, in.Node, in.Epoch); err != nil {
		return nil, err
	}
	v := Volumes.Get(tx, in.Volume)
	if v == nil || v.ID != in.ID {
		return nil, api.Errorf(api.CodeNotFound, "does not exist").On(api.KindVolume, in.Volume)
	}
	if v.Pool == in.To {
		return v, nil
	}
	pool := Pools.Get(tx, in.To)
	if v.Pool != in.From || pool == nil || !pool.On(in.Node) {
		return nil, api.Errorf(api.CodeConflict, "lies in pool %s, and was moved from %s to %s", v.Pool, in.From, in.To).On(api.KindVolume, in.Volume)
	}
	if made := madeReplica(tx, v); made == nil {
		return nil, api.Errorf(api.CodeConflict, "has no copy").On(api.KindVolume, in.Volume)
	}
	if err := mayMove(tx, v, in); err != nil {
		return nil, err
	}
	moved := *v
	moved.Pool = in.To
	if moved.Node != "" {
		moved.Node = in.Node
	}
	var former []string
	for r := range Replicas.By(tx, "of_id", v.ID) {
		former = append(former, r.Name)
	}
	for _, name := range former {
		Replicas.delete(tx, name)
	}
	Replicas.put(tx, api.Replica{Meta: api.Meta{Name: api.ReplicaName(v.ID, in.Node)}, Kind: api.KindVolume, Of: in.Volume, OfID: v.ID, Node: in.Node,
		Pool: in.To, State: api.ReplicaReady, SizeBytes: max(0, in.SizeBytes), UsedBytes: max(0, in.UsedBytes)})
	return Volumes.put(tx, moved), nil
}).forAgents()

func mayMove(tx *Tx, v *api.Volume, in VolumeMoved) *api.Error {
	if in.VM == "" {
		t, err := taskOf(tx, TaskReport{Name: in.Task, Node: in.Node, Epoch: in.Epoch, Attempt: in.Attempt})
		if err == nil && (t.Verb != api.TaskMoveVolume || t.Object != in.Volume) {
			err = api.Errorf(api.CodeConflict, "is about something else").On(api.KindTask, in.Task)
		}
		return err
	}
	if _, err := ownedInstance(tx, in.VM, in.Gen, in.Node, in.Epoch); err != nil {
		return err
	}
	for vm := range VMs.By(tx, "volume", in.Volume) {
		if vm.ID != in.VM {
			return api.Errorf(api.CodeConflict, "is attached to vm %s", vm.Name).On(api.KindVolume, in.Volume)
		}
	}
	return nil
}

// movingInto is a task that moves a volume into the pool; nil: there is none.
func movingInto(tx *Tx, pool string) *api.Task {
	for _, state := range []string{api.TaskPending, api.TaskRunning} {
		for t := range Tasks.By(tx, "state", state) {
			var args api.VolumeMove
			if t.Verb == api.TaskMoveVolume && json.Unmarshal(t.Args, &args) == nil && args.Pool == pool {
				return t
			}
		}
	}
	return nil
}
