package fsm

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/debvisor/debvisor/api"
)

// snapshotsOf yields the snapshots of a VM, in the order of their names.
func snapshotsOf(r Reader, vmID string) []*api.Snapshot {
	var out []*api.Snapshot
	for s := range Snapshots.By(r, "vm_id", vmID) {
		out = append(out, s)
	}
	return out
}

// argsOf reads the arguments of a task; unknown ones are refused.
func argsOf(t *api.Task, into any) *api.Error {
	if err := decodeStrict(t.Args, into); err != nil {
		return api.Invalid("args", "are not understood by %s", t.Verb).On(api.KindTask, t.Name)
	}
	return nil
}

// submitSnapshot makes the row of a snapshot that is to be taken. What a
// schedule asks for is taken without what the guest cannot give at the moment.
func submitSnapshot(tx *Tx, t *api.Task) *api.Error {
	var in api.SnapshotArgs
	if err := argsOf(t, &in); err != nil {
		return err
	}
	vm := VMs.Get(tx, t.Object)
	why := api.SnapshotByUser
	if !in.Slot.IsZero() {
		why = api.SnapshotBySchedule
		in.Memory, in.Quiesce = in.Memory && vm.On(), in.Quiesce && vm.On() && !in.Memory
	}
	switch {
	case in.Memory && in.Quiesce:
		return api.Invalid("quiesce", "does not go with memory: the guest would be restored with its file systems frozen").Allow("one of both")
	case in.Memory && !vm.On():
		return api.Invalid("memory", "the VM is off, so there is none").Do("leave memory out, or start the VM")
	case in.Quiesce && !vm.On():
		return api.Invalid("quiesce", "the VM is off, so its file systems are at rest").Do("leave quiesce out")
	}
	s := api.Snapshot{Memory: in.Memory, Quiesced: in.Quiesce, Why: why, Slot: in.Slot}
	return makeSnapshot(tx, t, vm, in.Name, s)
}

// makeSnapshot puts the row of a snapshot that the task is to take.
func makeSnapshot(tx *Tx, t *api.Task, vm *api.VM, own string, s api.Snapshot) *api.Error {
	if err := api.CheckName("name", own); err != nil {
		return err
	}
	for _, volume := range volumesOf(vm) {
		if other := movedBy(tx, volume); other != nil {
			return api.Errorf(api.CodeConflict, "volume %s is being moved by task %s", volume, other.Name).Do("wait for it, or cancel it")
		}
	}
	s.Name, s.Tenant = api.SnapshotName(vm.Name, own), vm.Tenant
	key := api.Key(vm.Tenant, s.Name)
	if Snapshots.Get(tx, key) != nil {
		return api.Errorf(api.CodeConflict, "exists already").On(api.KindSnapshot, key).Do("choose another name, or delete it first")
	}
	if n := len(snapshotsOf(tx, vm.ID)); n >= api.SnapshotsPerVMMax {
		return api.Errorf(api.CodeLimit, "the VM has %d snapshots", n).Allow("at most %d", api.SnapshotsPerVMMax).
			Do("delete some: debvisor vm snapshot list %s", vm.Name)
	}
	if err := snapshotPlace(tx, vm); err != nil {
		return err
	}
	var err *api.Error
	if s.Disks, err = snapshotDisks(tx, vm); err != nil {
		return err
	}
	if len(s.Disks) == 0 {
		return api.Errorf(api.CodeInvalid, "the VM has no disk that it may write to, so there is nothing to keep").At("disks")
	}
	definition := *vm
	s.VM, s.VMID, s.State, s.Task, s.By, s.Definition = vm.Name, vm.ID, api.SnapshotCreating, t.Name, t.By, &definition
	Snapshots.put(tx, s)
	return nil
}

// snapshotPlace refuses work on the disks of a VM that nobody could do now.
func snapshotPlace(tx *Tx, vm *api.VM) *api.Error {
	i := Instances.Get(tx, vm.ID)
	if i == nil || i.Owner == "" {
		return api.Errorf(api.CodeConflict, "the VM is on no node").Do("see why with: debvisor why vm/%s", vm.Name)
	}
	if i.Migration != nil {
		return api.Errorf(api.CodeConflict, "the VM is migrating").Do("wait until it has arrived, or cancel the migration")
	}
	return nil
}

// snapshotsStay refuses to copy volumes that hold snapshots to another node:
// only what the guest sees would arrive.
func snapshotsStay(tx *Tx, vm *api.VM, volumes []string) *api.Error {
	if n := len(snapshotsOf(tx, vm.ID)); n > 0 && len(volumes) > 0 {
		return api.Errorf(api.CodeConflict, "has %d snapshots, which do not move with disks that are copied", n).On(api.KindVM, api.Key(vm.Tenant, vm.Name)).
			Do("delete them first: debvisor vm snapshot list %s; disks in a shared pool keep them", vm.Name)
	}
	return nil
}

// snapshotDisks is the disks that a snapshot of the VM holds: those that the
// guest may write to. It refuses what cannot be kept.
func snapshotDisks(tx *Tx, vm *api.VM) ([]api.SnapshotDisk, *api.Error) {
	var out []api.SnapshotDisk
	for i, d := range vm.Disks {
		if d.ReadOnly {
			continue
		}
		at := fmt.Sprintf("disks[%d]", i)
		v := Volumes.Get(tx, api.Key(vm.Tenant, d.Volume))
		if v == nil {
			return nil, missing(at+".volume", api.KindVolume, d.Volume)
		}
		if v.Format == api.FormatRaw {
			return nil, api.Invalid(at, "%s is raw, which cannot hold snapshots", d.Name).Allow("disks of format qcow2, and read-only ones").
				Do("make its volume anew with format qcow2")
		}
		if p := Pools.Get(tx, v.Pool); p != nil && p.Driver != api.PoolDir {
			return nil, api.Invalid(at, "%s lies in pool %s of driver %s, whose disks cannot be snapshot yet", d.Name, p.Name, p.Driver).
				Allow("disks in pools of driver %s", api.PoolDir)
		}
		out = append(out, api.SnapshotDisk{Name: d.Name, Volume: v.Name, VolumeID: v.ID, SizeBytes: v.SizeBytes})
	}
	return out, nil
}

// snapshotIn finds a snapshot of the VM in one of the states.
func snapshotIn(tx *Tx, vm *api.VM, own string, states ...string) (*api.Snapshot, *api.Error) {
	key := api.Key(vm.Tenant, api.SnapshotName(vm.Name, own))
	s := Snapshots.Get(tx, key)
	if s == nil || s.VMID != vm.ID {
		return nil, api.Errorf(api.CodeNotFound, "does not exist").On(api.KindSnapshot, key).Do("see: debvisor vm snapshot list %s", vm.Name)
	}
	for _, state := range states {
		if s.State == state {
			copied := *s
			return &copied, nil
		}
	}
	err := api.Errorf(api.CodeConflict, "is %s", s.State).On(api.KindSnapshot, key)
	if s.Reason != "" {
		err.Message += ": " + s.Reason
	}
	return nil, err
}

// submitRevert refuses a revert that could not be carried out, and makes the
// row of the snapshot that is taken before.
func submitRevert(tx *Tx, t *api.Task) *api.Error {
	var in api.SnapshotRevertArgs
	if err := argsOf(t, &in); err != nil {
		return err
	}
	vm := VMs.Get(tx, t.Object)
	s, err := snapshotIn(tx, vm, in.Name, api.SnapshotReady)
	if err != nil {
		return err
	}
	if other := reverting(tx, t.Object, t.Name); other != nil {
		return api.Errorf(api.CodeConflict, "is being reverted already, by task %s", other.Name).Do("wait for it, or cancel it")
	}
	if err := snapshotPlace(tx, vm); err != nil {
		return err
	}
	if err := sameDisks(tx, vm, s); err != nil {
		return err.On(api.KindSnapshot, api.Key(s.Tenant, s.Name))
	}
	after := restored(vm, s)
	if err := checkVM(tx, vm, &after); err != nil {
		err.Message = "what the VM was then cannot be had now: " + err.Message
		return err
	}
	if in.Safety == "" {
		return nil
	}
	return makeSnapshot(tx, t, vm, in.Safety, api.Snapshot{Why: api.SnapshotBySafety})
}

// restored is the VM as it was at the snapshot. Whether it runs, and how often
// snapshots are taken, are no part of that.
func restored(vm *api.VM, s *api.Snapshot) api.VM {
	after := *s.Definition
	after.Meta = vm.Meta
	after.Labels, after.Power, after.Snapshots = s.Definition.Labels, vm.Power, vm.Snapshots
	if s.Memory {
		after.Power = api.PowerOn
	}
	return after
}

// sameDisks refuses a revert that would leave some disk at another time than
// the others.
func sameDisks(tx *Tx, vm *api.VM, s *api.Snapshot) *api.Error {
	now := map[string]string{} // ID of the volume to the disk
	for _, d := range vm.Disks {
		if v := Volumes.Get(tx, api.Key(vm.Tenant, d.Volume)); v != nil && !d.ReadOnly {
			now[v.ID] = d.Name
		}
	}
	for _, d := range s.Disks {
		v := first(Volumes.By(tx, "id_of", d.VolumeID))
		switch {
		case v == nil:
			return api.Errorf(api.CodeConflict, "disk %s (volume %s) was deleted since", d.Name, d.Volume).Do("the snapshot can only be deleted")
		case now[d.VolumeID] == "":
			return api.Errorf(api.CodeConflict, "disk %s (volume %s) was detached since", d.Name, d.Volume).Do("attach volume %s again first", v.Name)
		case v.SizeBytes != d.SizeBytes:
			return api.Errorf(api.CodeConflict, "disk %s was grown since, from %s to %s, and a disk cannot shrink", d.Name,
				api.FormatSize(d.SizeBytes), api.FormatSize(v.SizeBytes)).Do("the snapshot can only be deleted")
		}
		delete(now, d.VolumeID)
	}
	for _, d := range vm.Disks {
		if v := Volumes.Get(tx, api.Key(vm.Tenant, d.Volume)); v != nil && now[v.ID] != "" {
			return api.Errorf(api.CodeConflict, "disk %s (volume %s) was added since", d.Name, d.Volume).Do("detach it first")
		}
	}
	return nil
}

// reverting is the task, other than the one of that name, by which the VM is
// being reverted; nil: none is.
func reverting(r Reader, vmKey, but string) *api.Task {
	for t := range Tasks.By(r, "object", api.KindVM+"/"+vmKey) {
		if t.Verb == api.TaskSnapshotRevert && !t.Ended() && t.Name != but {
			return t
		}
	}
	return nil
}

// Reverting is the task by which the VM is being reverted; nil: none is.
func Reverting(r Reader, vmKey string) *api.Task { return reverting(r, vmKey, "") }

// submitSnapshotDelete marks a snapshot that is to go.
func submitSnapshotDelete(tx *Tx, t *api.Task) *api.Error {
	var in api.SnapshotDeleteArgs
	if err := argsOf(t, &in); err != nil {
		return err
	}
	vm := VMs.Get(tx, t.Object)
	s, err := snapshotIn(tx, vm, in.Name, api.SnapshotReady, api.SnapshotFailed)
	if err != nil {
		return err
	}
	if other := reverting(tx, t.Object, t.Name); other != nil {
		return api.Errorf(api.CodeConflict, "the VM is being reverted, by task %s", other.Name).Do("wait for it, or cancel it")
	}
	if err := snapshotPlace(tx, vm); err != nil {
		return err
	}
	s.State, s.Task = api.SnapshotDeleting, t.Name
	Snapshots.put(tx, *s)
	return nil
}

// SnapshotReport is the body of snapshot.report, snapshot.restore and
// snapshot.forget: what the owner of the VM did for a task.
type SnapshotReport struct {
	Snapshot  string `json:"snapshot"` // key
	Task      string `json:"task"`
	Node      string `json:"node"`
	Epoch     uint64 `json:"epoch"`
	Gen       uint64 `json:"gen"`
	Memory    bool   `json:"memory,omitzero"` // report: what was taken
	Quiesced  bool   `json:"quiesced,omitzero"`
	Reason    string `json:"reason,omitzero"` // why it is less than was asked for
	SizeBytes int64  `json:"size_bytes,omitzero"`
	Machine   string `json:"machine,omitzero"`
}

// snapshotOf finds the snapshot that a report is about, and refuses that of a
// node that does not own the VM or does not have the task any more.
func snapshotOf(tx *Tx, in SnapshotReport, states ...string) (*api.Snapshot, *api.Error) {
	s := Snapshots.Get(tx, in.Snapshot)
	if s == nil {
		return nil, api.Errorf(api.CodeNotFound, "does not exist").On(api.KindSnapshot, in.Snapshot)
	}
	if _, err := ownedInstance(tx, s.VMID, in.Gen, in.Node, in.Epoch); err != nil {
		return nil, err
	}
	t, err := taskIn(tx, in.Task, api.TaskRunning)
	if err != nil {
		return nil, err
	}
	if t.Node != in.Node || t.Epoch != in.Epoch || t.Object != api.Key(s.Tenant, s.VM) {
		return nil, api.Errorf(api.CodeConflict, "task %s is not about it, or not of %s at epoch %d", in.Task, in.Node, in.Epoch).On(api.KindSnapshot, in.Snapshot)
	}
	for _, state := range states {
		if s.State == state {
			copied := *s
			return &copied, nil
		}
	}
	return nil, api.Errorf(api.CodeConflict, "is %s", s.State).On(api.KindSnapshot, in.Snapshot)
}

// ReportSnapshot says that a snapshot was taken. The VM descends from it.
var ReportSnapshot = transition("snapshot.report", Snapshots, func(tx *Tx, in SnapshotReport) (*api.Snapshot, *api.Error) {
	s, err := snapshotOf(tx, in, api.SnapshotCreating)
	if err != nil {
		return nil, err
	}
	if s.Task != in.Task {
		return nil, api.Errorf(api.CodeConflict, "is taken by task %s", s.Task).On(api.KindSnapshot, in.Snapshot)
	}
	s.Parent = moveCurrent(tx, s.VMID, "")
	s.State, s.Current, s.TakenAt, s.Task = api.SnapshotReady, true, tx.Time, ""
	s.Memory, s.Quiesced, s.Reason = in.Memory, in.Quiesced, api.CleanText(in.Reason, api.TextLengthMax)
	s.SizeBytes, s.Machine = in.SizeBytes, in.Machine
	if err := s.Validate(); err != nil {
		return nil, api.AsError(err).OnMissing(api.KindSnapshot, in.Snapshot)
	}
	return Snapshots.put(tx, *s), nil
}).forAgents()

// moveCurrent makes the snapshot of that own name the one that the VM descends
// from, and returns the own name of the one that was.
func moveCurrent(tx *Tx, vmID, to string) (from string) {
	for _, s := range snapshotsOf(tx, vmID) {
		if s.Current {
			from = s.OwnName()
		}
		if s.Current != (s.OwnName() == to) {
			moved := *s
			moved.Current = !s.Current
			Snapshots.put(tx, moved)
		}
	}
	return from
}

// RestoreSnapshot puts the VM's definition back to what it was at the snapshot:
// its node has put back the disks. The same task does so once.
var RestoreSnapshot = transition("snapshot.restore", Snapshots, func(tx *Tx, in SnapshotReport) (*api.Snapshot, *api.Error) {
	s, err := snapshotOf(tx, in, api.SnapshotReady)
	if err != nil {
		return nil, err
	}
	if s.RestoredTask == in.Task {
		return s, nil
	}
	vm := VMs.Get(tx, api.Key(s.Tenant, s.VM))
	if vm == nil || vm.ID != s.VMID {
		return nil, api.Errorf(api.CodeNotFound, "does not exist any more").On(api.KindVM, api.Key(s.Tenant, s.VM))
	}
	tx.restoring = true
	_, err = VMs.applyPut(tx, restored(vm, s))
	tx.restoring = false
	if err != nil {
		return nil, err
	}
	moveCurrent(tx, s.VMID, s.OwnName())
	s.Current, s.RestoredTask = true, in.Task
	return Snapshots.put(tx, *s), nil
}).forAgents()

// ForgetSnapshot deletes the row of a snapshot that its node has removed. Those
// that descend from it descend from its parent.
var ForgetSnapshot = effect("snapshot.forget", func(tx *Tx, in SnapshotReport) *api.Error {
	s, err := snapshotOf(tx, in, api.SnapshotDeleting, api.SnapshotCreating)
	if err != nil {
		return err
	}
	if s.Task != in.Task {
		return api.Errorf(api.CodeConflict, "is in the hands of task %s", s.Task).On(api.KindSnapshot, in.Snapshot)
	}
	dropSnapshot(tx, s)
	return nil
}).forAgents()

func dropSnapshot(tx *Tx, s *api.Snapshot) {
	own := s.OwnName()
	for _, other := range snapshotsOf(tx, s.VMID) {
		child, heir := other.Parent == own, s.Current && other.OwnName() == s.Parent
		if !child && !heir {
			continue
		}
		moved := *other
		if child {
			moved.Parent = s.Parent
		}
		moved.Current = moved.Current || heir
		Snapshots.put(tx, moved)
	}
	Snapshots.delete(tx, api.Key(s.Tenant, s.Name))
}

// dropSnapshots deletes the rows of a deleted VM's snapshots.
func dropSnapshots(tx *Tx, vmID string) {
	for _, s := range snapshotsOf(tx, vmID) {
		Snapshots.delete(tx, api.Key(s.Tenant, s.Name))
	}
}

// endSnapshotTask settles the row of a task that ended without having done its
// work: what no node ever began leaves nothing behind, what one did is there to
// be deleted.
func endSnapshotTask(tx *Tx, t *api.Task) {
	if t.Verb != api.TaskSnapshot && t.Verb != api.TaskSnapshotDelete && t.Verb != api.TaskSnapshotRevert || t.State == api.TaskDone {
		return
	}
	vm := VMs.Get(tx, t.Object)
	if vm == nil {
		return
	}
	for _, s := range snapshotsOf(tx, vm.ID) {
		if s.Task != t.Name {
			continue
		}
		after := *s
		after.Task = ""
		switch {
		case s.State == api.SnapshotCreating && t.StartedAt.IsZero():
			dropSnapshot(tx, s)
			continue
		case s.State == api.SnapshotDeleting && t.StartedAt.IsZero() && s.Reason == "":
			after.State = api.SnapshotReady
		case s.State == api.SnapshotCreating || s.State == api.SnapshotDeleting:
			after.State = api.SnapshotFailed
			after.Reason = fmt.Sprintf("task %s ended %s while the snapshot was %s", t.Name, t.State, s.State)
		default:
			continue
		}
		Snapshots.put(tx, after)
	}
}

// Scheduled is what VMs with a schedule of snapshots have in the index
// "scheduled".
const Scheduled = "yes"

func scheduled(vm *api.VM) []string {
	if vm.Snapshots == nil {
		return nil
	}
	return []string{Scheduled}
}

// SnapshotDue is the body of snapshot.due.
type SnapshotDue struct {
	VM   string    `json:"vm"`            // ID
	Slot time.Time `json:"slot"`          // of the VM's schedule
	Task string    `json:"task,omitzero"` // name of the task that takes the snapshot; empty: the schedule only begins
	Name string    `json:"name,omitzero"` // own name of the snapshot
}

// DueSnapshot fires a slot of a VM's schedule: each at most once, and none that
// is older than one that has fired.
var DueSnapshot = transition("snapshot.due", Instances, func(tx *Tx, in SnapshotDue) (*api.Instance, *api.Error) {
	vm := first(VMs.By(tx, "id_of", in.VM))
	have := Instances.Get(tx, in.VM)
	if vm == nil || have == nil {
		return nil, api.Errorf(api.CodeNotFound, "there is no such instance").On(api.KindInstance, in.VM)
	}
	if vm.Snapshots == nil {
		return nil, api.Errorf(api.CodeConflict, "has no schedule of snapshots").On(api.KindVM, api.Key(vm.Tenant, vm.Name))
	}
	if !in.Slot.After(have.SnapshotSlot) || in.Slot.After(tx.Time) {
		return nil, api.Errorf(api.CodeConflict, "slot %s is not due after %s", in.Slot.Format(time.RFC3339), have.SnapshotSlot.Format(time.RFC3339)).On(api.KindInstance, in.VM)
	}
	i := *have
	i.SnapshotSlot = in.Slot
	stored := Instances.put(tx, i)
	if in.Task == "" {
		return stored, nil
	}
	args, err := json.Marshal(api.SnapshotArgs{Name: in.Name, Memory: vm.Snapshots.Memory, Quiesce: vm.Snapshots.Quiesce, Slot: in.Slot})
	if err != nil {
		return nil, api.AsError(err)
	}
	_, refused := submitTask(tx, TaskSubmit{Name: in.Task, Verb: api.TaskSnapshot, Kind: api.KindVM, Object: api.Key(vm.Tenant, vm.Name), Args: args})
	return stored, refused
})
