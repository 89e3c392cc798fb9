package fsm

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/api"
)

// MigrationObstacles lists, all at once, what keeps the guest of a VM from
// moving wherever it should go; nothing when it may. Placement tells the rest.
func MigrationObstacles(r Reader, vm *api.VM) []*api.Error {
	var out []*api.Error
	add := func(format string, args ...any) *api.Error {
		e := api.Errorf(api.CodeConflict, format, args...).On(api.KindVM, api.Key(vm.Tenant, vm.Name))
		out = append(out, e)
		return e
	}
	if !vm.On() {
		add("is off").Do("start it where it should run, or start it first: only a guest that runs is migrated")
	}
	i := Instances.Get(r, vm.ID)
	if i == nil || i.Owner == "" {
		add("runs nowhere").Do("wait until it has a place: debvisor why vm/%s", vm.Name)
		return out
	}
	if m := i.Migration; m != nil {
		add("migrates from %s to %s already", i.Owner, m.To).Do("wait for task %s, or cancel it", m.Task)
	}
	if vm.On() && i.State != api.InstanceRunning {
		add("is %s on %s", i.State, i.Owner).Allow("a VM that is running").Do("wait until it runs: debvisor why vm/%s", vm.Name)
	}
	if n := len(snapshotsOf(r, vm.ID)); n > 0 {
		add("has %d snapshots, which stay behind with its hypervisor", n).Do("delete them first")
	}
	for _, d := range vm.Disks {
		v := Volumes.Get(r, api.Key(vm.Tenant, d.Volume))
		if v == nil {
			continue
		}
		if pool := Pools.Get(r, v.Pool); pool == nil || pool.Shared {
			continue
		}
		if other := dependent(r, v); other != nil {
			add("volume %s has the linked clone %s, which lies with it", v.Name, other.Name).Do("delete the clone, or clone it in full")
		}
	}
	if n := Nodes.Get(r, i.Owner); n == nil || n.Lease != api.NodeLive {
		add("its node %s is not live", i.Owner).Do("wait until the node is back; a VM of a lost node cannot be moved while it may run there")
	}
	return out
}

// OneError makes one refusal of several reasons.
func OneError(reasons []*api.Error, format string, args ...any) *api.Error {
	switch len(reasons) {
	case 0:
		return nil
	case 1:
		return reasons[0]
	}
	e := api.Errorf(api.CodeConflict, format, args...)
	e.Details = reasons
	return e
}

// migrationReasonsMax is how many nodes a refusal names.
const migrationReasonsMax = 20

// MoveRefusal is a decision without a node as an error: all reasons at once.
func MoveRefusal(vm string, d api.Decision) *api.Error {
	e := api.Errorf(api.CodeConflict, "%s", d.Summary).On(api.KindVM, vm).Do("mend what is named, or choose another node")
	for _, c := range d.Candidates {
		if len(e.Details) < migrationReasonsMax {
			e.Details = append(e.Details, api.Errorf(api.CodeConflict, "%s", strings.Join(c.Reasons, "; ")).On(api.KindNode, c.Node))
		}
	}
	return e
}

// submitMigration is the rule of a vm.migrate task.
func submitMigration(tx *Tx, t *api.Task) *api.Error {
	args, err := migrateArgs(t)
	if err != nil {
		return err
	}
	vm := VMs.Get(tx, t.Object)
	reasons := MigrationObstacles(tx, vm)
	if args.Node != "" {
		if n := Nodes.Get(tx, args.Node); n == nil {
			reasons = append(reasons, api.Errorf(api.CodeNotFound, "is not a member").On(api.KindNode, args.Node).Do("see: debvisor node list"))
		} else if i := Instances.Get(tx, vm.ID); i != nil && i.Owner == args.Node {
			reasons = append(reasons, api.Errorf(api.CodeConflict, "the VM is there already").On(api.KindNode, args.Node))
		}
	}
	for other := range Tasks.By(tx, "object", api.KindVM+"/"+t.Object) {
		if other.Verb == api.TaskMigrate && !other.Ended() && Instances.Get(tx, vm.ID).Migration == nil {
			reasons = append(reasons, api.Errorf(api.CodeConflict, "task %s is to migrate it already", other.Name).On(api.KindVM, t.Object).Do("wait for it, or cancel it"))
		}
	}
	return OneError(reasons, "cannot be migrated, for %d reasons", len(reasons))
}

// migrateArgs reads the arguments of a vm.migrate task.
func migrateArgs(t *api.Task) (api.MigrateArgs, *api.Error) {
	var args api.MigrateArgs
	if len(t.Args) > 0 {
		if err := json.Unmarshal(t.Args, &args); err != nil {
			return args, api.Invalid("args", "are not understood: %v", err).On(api.KindTask, t.Name)
		}
	}
	if err := args.Validate(); err != nil {
		return args, api.AsError(err).OnMissing(api.KindTask, t.Name)
	}
	return args, nil
}

// MigrationBegin is the body of instance.migrate.begin, which the owner proposes.
type MigrationBegin struct {
	VM      string   `json:"vm"` // the VM's ID
	Gen     uint64   `json:"gen"`
	Node    string   `json:"node"` // the owner
	Epoch   uint64   `json:"epoch"`
	To      string   `json:"to"`
	ToEpoch uint64   `json:"to_epoch"`
	Task    string   `json:"task"`
	Volumes []string `json:"volumes,omitzero"` // IDs of those to be copied
}

// BeginMigration says that the guest is about to move. The owner stays the
// owner; the destination is to make the volumes that are copied along.
var BeginMigration = transition("instance.migrate.begin", Instances, beginMigration).forAgents()

func beginMigration(tx *Tx, in MigrationBegin) (*api.Instance, *api.Error) {
	have, err := ownedInstance(tx, in.VM, in.Gen, in.Node, in.Epoch)
	if err != nil {
		return nil, err
	}
	vm := first(VMs.By(tx, "id_of", in.VM))
	if vm == nil {
		return nil, api.Errorf(api.CodeNotFound, "there is no such VM").On(api.KindInstance, in.VM)
	}
	if reasons := MigrationObstacles(tx, vm); len(reasons) > 0 {
		return nil, OneError(reasons, "cannot be migrated, for %d reasons", len(reasons))
	}
	to, err := liveNode(tx, in.To, in.ToEpoch)
	if err != nil {
		return nil, err
	}
	if to.Name == in.Node || to.Witness || to.Unschedulable {
		return nil, api.Errorf(api.CodeConflict, "takes no VM from %s", in.Node).On(api.KindNode, in.To)
	}
	task, err := migrationTask(tx, in, vm)
	if err != nil {
		return nil, err
	}
	if err := checkMovedVolumes(tx, in, vm); err != nil {
		return nil, err
	}
	if err := snapshotsStay(tx, vm, in.Volumes); err != nil {
		return nil, err
	}
	for _, id := range in.Volumes {
		source := *Replicas.Get(tx, api.ReplicaName(id, in.Node))
		Replicas.put(tx, api.Replica{Meta: api.Meta{Name: api.ReplicaName(id, in.To)}, Kind: api.KindVolume, Of: source.Of, OfID: id, Node: in.To,
			Pool: source.Pool, State: api.ReplicaPending, SizeBytes: source.SizeBytes, From: in.Node})
	}
	i := *have
	i.MigrationNote = ""
	i.Migration = &api.Migration{To: in.To, ToEpoch: in.ToEpoch, FromEpoch: in.Epoch, Task: in.Task, Volumes: slices.Clone(in.Volumes),
		Decision: task.Decision, StartedAt: tx.Time}
	return Instances.put(tx, i), nil
}

// migrationTask is the running task that begins the migration.
func migrationTask(tx *Tx, in MigrationBegin, vm *api.VM) (*api.Task, *api.Error) {
	t, err := taskIn(tx, in.Task, api.TaskRunning)
	if err != nil {
		return nil, err
	}
	if t.Verb != api.TaskMigrate || t.Node != in.Node || t.Epoch != in.Epoch || t.Object != api.Key(vm.Tenant, vm.Name) || t.Cancel {
		return nil, api.Errorf(api.CodeConflict, "is not the one that migrates vm %s/%s", vm.Tenant, vm.Name).On(api.KindTask, in.Task)
	}
	return t, nil
}

// checkMovedVolumes refuses a migration that would leave a disk behind, or for
// which the destination lacks the pool or holds another copy.
func checkMovedVolumes(tx *Tx, in MigrationBegin, vm *api.VM) *api.Error {
	if len(in.Volumes) > api.MigrationVolumesMax {
		return api.Errorf(api.CodeLimit, "%d volumes are to be copied", len(in.Volumes)).Allow("at most %d", api.MigrationVolumesMax).On(api.KindInstance, in.VM)
	}
	for n, id := range in.Volumes {
		v := first(Volumes.By(tx, "id_of", id))
		if v == nil || slices.Contains(in.Volumes[:n], id) {
			return api.Errorf(api.CodeNotFound, "there is no such volume, or it is named twice").On(api.KindVolume, id)
		}
		key := api.Key(v.Tenant, v.Name)
		pool := Pools.Get(tx, v.Pool)
		source := Replicas.Get(tx, api.ReplicaName(id, in.Node))
		switch {
		case pool.Shared || !pool.On(in.To):
			return api.Errorf(api.CodeConflict, "pool %s is shared, or not on node %s", v.Pool, in.To).On(api.KindVolume, key)
		case source == nil || source.Delete || source.State != api.ReplicaReady || source.From != "":
			return api.Errorf(api.CodeConflict, "is not ready on node %s", in.Node).On(api.KindVolume, key)
		case Replicas.Get(tx, api.ReplicaName(id, in.To)) != nil:
			return api.Errorf(api.CodeUnavailable, "an earlier copy on node %s is still being removed", in.To).On(api.KindVolume, key).Do("try again when it is gone")
		case v.Node != "" && v.Node != in.To:
			return api.Errorf(api.CodeConflict, "is wanted on node %s", v.Node).On(api.KindVolume, key)
		}
	}
	return leftBehind(tx, in.Node, in.To, in.Volumes, vm)
}

// leftBehind refuses when a disk of the VM would not be at the destination.
func leftBehind(tx *Tx, from, to string, moved []string, vm *api.VM) *api.Error {
	for _, d := range vm.Disks {
		v := Volumes.Get(tx, api.Key(vm.Tenant, d.Volume))
		if v == nil || slices.Contains(moved, v.ID) {
			continue
		}
		pool := Pools.Get(tx, v.Pool)
		if pool.Shared && pool.On(to) {
			continue
		}
		if r := Replicas.Get(tx, api.ReplicaName(v.ID, from)); pool.Shared || r != nil && !r.Delete {
			return api.Errorf(api.CodeConflict, "disk %s would not be on node %s", d.Name, to).On(api.KindVM, api.Key(vm.Tenant, vm.Name)).
				Do("migrate with copy_storage, or choose a node that has pool %s", v.Pool)
		}
	}
	return nil
}

// MigrationCommit is the body of instance.migrate.commit, which the source
// proposes once its guest is paused and has arrived at the destination, paused.
type MigrationCommit struct {
	VM      string `json:"vm"` // the VM's ID
	Gen     uint64 `json:"gen"`
	Node    string `json:"node"` // the source
	Epoch   uint64 `json:"epoch"`
	To      string `json:"to"`
	ToEpoch uint64 `json:"to_epoch"`
}

// CommitMigration makes the destination the owner: gen grows, the copied
// volumes are its own, those of the source are to be removed, and the task is
// done. Only now may the destination let the guest go on.
var CommitMigration = transition("instance.migrate.commit", Instances, commitMigration).forAgents()

func commitMigration(tx *Tx, in MigrationCommit) (*api.Instance, *api.Error) {
	have, err := ownedInstance(tx, in.VM, in.Gen, in.Node, in.Epoch)
	if err != nil {
		return nil, err
	}
	m := have.Migration
	if m == nil || m.To != in.To || m.ToEpoch != in.ToEpoch || m.FromEpoch != in.Epoch {
		return nil, api.Errorf(api.CodeConflict, "does not migrate from %s at epoch %d to %s at epoch %d", in.Node, in.Epoch, in.To, in.ToEpoch).
			On(api.KindInstance, in.VM)
	}
	if m.FromOff {
		return nil, api.Errorf(api.CodeConflict, "the machine of %s was confirmed to be off", in.Node).On(api.KindInstance, in.VM)
	}
	if _, err := liveNode(tx, in.To, in.ToEpoch); err != nil {
		return nil, err
	}
	vm := first(VMs.By(tx, "id_of", in.VM))
	if vm == nil {
		return nil, api.Errorf(api.CodeNotFound, "there is no such VM any more").On(api.KindInstance, in.VM)
	}
	if err := leftBehind(tx, in.Node, in.To, m.Volumes, vm); err != nil {
		return nil, err
	}
	if err := handVolumesOn(tx, m.Volumes, in.Node, in.To); err != nil {
		return nil, err
	}
	i := *have
	i.Gen, i.Owner, i.OwnerEpoch, i.AssignedAt = have.Gen+1, in.To, in.ToEpoch, tx.Time
	i.Migration, i.MigrationNote = nil, ""
	if m.Decision != nil {
		i.Decision = m.Decision
	}
	if t := Tasks.Get(tx, m.Task); t != nil && t.State == api.TaskRunning {
		done := *t
		done.Step = "the VM is on " + in.To
		endTask(tx, &done, api.TaskDone)
		Tasks.put(tx, done)
	}
	return Instances.put(tx, i), nil
}

// handVolumesOn makes the filled copies at the destination the volumes, and
// asks the source to remove its own.
func handVolumesOn(tx *Tx, ids []string, from, to string) *api.Error {
	for _, id := range ids {
		filled, source := Replicas.Get(tx, api.ReplicaName(id, to)), Replicas.Get(tx, api.ReplicaName(id, from))
		if filled == nil || filled.Delete || filled.State != api.ReplicaReady || filled.From != from || source == nil || source.Delete {
			return api.Errorf(api.CodeConflict, "its copy on node %s is not wanted any more, or not ready", to).On(api.KindVolume, id)
		}
		now, old := *filled, *source
		now.From = ""
		old.Delete, old.State = true, api.ReplicaDeleting
		Replicas.put(tx, now)
		Replicas.put(tx, old)
	}
	return nil
}

// MigrationAbort is the body of instance.migrate.abort.
type MigrationAbort struct {
	VM     string `json:"vm"` // the VM's ID
	Gen    uint64 `json:"gen"`
	Node   string `json:"node"`  // who gives up: the source, or the destination
	Epoch  uint64 `json:"epoch"` // that node's present one
	Reason string `json:"reason,omitzero"`
}

// AbortMigration leaves the guest where it was: a commit is impossible
// afterwards. If the source's machine is off, only the destination may say so,
// and only once nothing of the guest is left there.
var AbortMigration = transition("instance.migrate.abort", Instances, abortMigration).forAgents()

func abortMigration(tx *Tx, in MigrationAbort) (*api.Instance, *api.Error) {
	i := Instances.Get(tx, in.VM)
	if i == nil {
		return nil, api.Errorf(api.CodeNotFound, "there is no such instance").On(api.KindInstance, in.VM)
	}
	m := i.Migration
	if m == nil || i.Gen != in.Gen || in.Node != i.Owner && in.Node != m.To {
		return nil, api.Errorf(api.CodeConflict, "is at gen %d and does not migrate from or to %s", i.Gen, in.Node).On(api.KindInstance, in.VM)
	}
	if _, err := liveNode(tx, in.Node, in.Epoch); err != nil {
		return nil, err
	}
	if m.FromOff && in.Node != m.To {
		return nil, api.Errorf(api.CodeConflict, "waits for %s: this machine was confirmed to be off", m.To).On(api.KindInstance, in.VM)
	}
	return endMigration(tx, i, in.Reason), nil
}

// endMigration gives the migration up. The instance of a source that is off
// has no owner afterwards; nil: its VM was deleted, and it is gone.
func endMigration(tx *Tx, i *api.Instance, reason string) *api.Instance {
	m := i.Migration
	for _, id := range m.Volumes {
		r := Replicas.Get(tx, api.ReplicaName(id, m.To))
		if r == nil || r.From == "" {
			continue
		}
		gone := *r
		gone.Delete, gone.State = true, api.ReplicaDeleting
		Replicas.put(tx, gone)
	}
	after := *i
	after.Migration = nil
	after.MigrationNote = api.CleanText("the move to "+m.To+" was given up: "+orWord(reason, "no reason was given"), api.TextLengthMax)
	if !m.FromOff {
		return Instances.put(tx, after)
	}
	if first(VMs.By(tx, "id_of", i.Name)) == nil {
		Instances.delete(tx, i.Name)
		return nil
	}
	return Instances.put(tx, ownerless(after, "its host "+i.Owner+" is off"))
}

func orWord(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// ownerless is the instance once its owner is known not to run it any more.
func ownerless(i api.Instance, reason string) api.Instance {
	i.Owner, i.OwnerEpoch, i.State, i.Reason, i.Addresses, i.Migration = "", 0, api.InstancePending, reason, nil, nil
	return i
}

// endArrivals gives up every migration to a node whose machine is off.
func endArrivals(tx *Tx, node string) {
	var arriving []*api.Instance
	for i := range Instances.By(tx, "arriving", node) {
		arriving = append(arriving, i)
	}
	for _, i := range arriving {
		endMigration(tx, i, "the machine of "+node+" is off")
	}
}
