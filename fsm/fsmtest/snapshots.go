package fsmtest

import (
	"fmt"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

func snapshotMakers() map[string]func(*Generator) fsm.Entry {
	return map[string]func(*Generator) fsm.Entry{
		fsm.ReportSnapshot.Op(): func(g *Generator) fsm.Entry {
			return fsm.ReportSnapshot.Entry(g.snapshotReport(api.TaskSnapshot, api.SnapshotCreating))
		},
		fsm.RestoreSnapshot.Op(): func(g *Generator) fsm.Entry {
			return fsm.RestoreSnapshot.Entry(g.snapshotReport(api.TaskSnapshotRevert, api.SnapshotReady))
		},
		fsm.ForgetSnapshot.Op(): func(g *Generator) fsm.Entry {
			return fsm.ForgetSnapshot.Entry(g.snapshotReport(api.TaskSnapshotDelete, api.SnapshotDeleting))
		},
		fsm.DueSnapshot.Op(): (*Generator).due,
		fsm.NoteGuestCall.Op(): func(g *Generator) fsm.Entry {
			in := fsm.GuestCallNote{VM: api.Key(g.tenant(), g.name("vm", 8)), Call: pick(g, api.GuestPassword, api.GuestFreeze, "sing"), Account: pick(g, "", "root")}
			if vm := row(g, list(fsm.VMs, g.view)); vm != nil {
				in.VM = api.Key(vm.Tenant, vm.Name)
			}
			return fsm.NoteGuestCall.Entry(in)
		},
	}
}

// snapshotTask is the arguments of one of the verbs about snapshots, mostly
// of one that exists.
func (g *Generator) snapshotTask(verb string, vm *api.VM) any {
	own := g.name("s", 3)
	for s := range fsm.Snapshots.By(g.view, "vm_id", vm.ID) {
		if verb != api.TaskSnapshot && !g.chance(3) {
			own = s.OwnName()
		}
	}
	switch verb {
	case api.TaskSnapshotRevert:
		return api.SnapshotRevertArgs{Name: own, Safety: pick(g, "", "", g.name("s", 3))}
	case api.TaskSnapshotDelete:
		return api.SnapshotDeleteArgs{Name: own}
	}
	return api.SnapshotArgs{Name: own, Memory: g.chance(4), Quiesce: g.chance(4), Slot: pick(g, time.Time{}, g.now)}
}

// snapshotReport is what the owner of a VM says of a snapshot that a task of
// that verb is about; mostly there is one.
func (g *Generator) snapshotReport(verb, state string) fsm.SnapshotReport {
	in := fsm.SnapshotReport{Snapshot: "default/vm0.s0", Task: g.task(api.TaskRunning), Node: g.node(), Epoch: 1, Memory: g.chance(2),
		Quiesced: g.chance(2), Reason: g.text(), SizeBytes: int64(g.source.IntN(1000)), Machine: pick(g, "", "<domain/>")}
	if t := fsm.Tasks.Get(g.view, in.Task); t != nil {
		in.Node, in.Epoch = t.Node, g.revision(t.Epoch)
	}
	for _, s := range list(fsm.Snapshots, g.view) {
		for t := range fsm.Tasks.By(g.view, "object", api.KindVM+"/"+api.Key(s.Tenant, s.VM)) {
			if t.Verb == verb && t.State == api.TaskRunning && s.State == state {
				in.Snapshot, in.Task, in.Node, in.Epoch = api.Key(s.Tenant, s.Name), t.Name, t.Node, g.revision(t.Epoch)
			}
		}
		if i := fsm.Instances.Get(g.view, s.VMID); i != nil && in.Snapshot == api.Key(s.Tenant, s.Name) {
			in.Gen = g.revision(i.Gen)
		}
	}
	return in
}

func (g *Generator) due() fsm.Entry {
	in := fsm.SnapshotDue{VM: g.uuid(200), Slot: g.now.Truncate(time.Minute), Task: pick(g, "", fmt.Sprintf("due-%d", g.serial)), Name: g.name("s", 3)}
	for vm := range fsm.VMs.All(g.view) {
		if fsm.Instances.Get(g.view, vm.ID) != nil && (vm.Snapshots != nil || g.chance(10)) {
			in.VM = vm.ID
		}
	}
	return fsm.DueSnapshot.Entry(in)
}

func (g *Generator) schedule() *api.SnapshotSchedule {
	return &api.SnapshotSchedule{Every: pick(g, time.Hour, 5*time.Minute, time.Second), KeepLast: g.source.IntN(3), KeepDaily: g.source.IntN(2), Quiesce: g.chance(2)}
}

// snapshotVM is a VM whose disks could be snapshot; mostly there is one. The
// others are left for migrations, which snapshots may forbid.
func (g *Generator) snapshotVM() *api.VM {
	var able []*api.VM
	for vm := range fsm.VMs.All(g.view) {
		if node, _ := g.ownerOf(api.Key(vm.Tenant, vm.Name)); node != "" && len(vm.Disks) > 0 && vm.Name < "vm4" || g.chance(20) {
			able = append(able, vm)
		}
	}
	return row(g, able)
}

// ownerOf is the node that owns the VM of that key, and its epoch; mostly.
func (g *Generator) ownerOf(vmKey string) (string, uint64) {
	vm := fsm.VMs.Get(g.view, vmKey)
	if vm == nil {
		return "", 0
	}
	i := fsm.Instances.Get(g.view, vm.ID)
	if i == nil || i.Owner == "" {
		return "", 0
	}
	if n := fsm.Nodes.Get(g.view, i.Owner); n != nil {
		return n.Name, g.revision(n.Epoch)
	}
	return "", 0
}

// nextOfSnapshots makes the step that should follow for some VM: a task about
// its snapshots is submitted, dispatched to the owner, reported. Chance alone
// would hardly ever meet the whole way. nil: nothing should follow.
func (g *Generator) nextOfSnapshots(view *fsm.View) func(*Generator) fsm.Entry {
	g.view = view
	vm := g.snapshotVM()
	if vm == nil {
		return nil
	}
	key := api.Key(vm.Tenant, vm.Name)
	node, epoch := g.ownerOf(key)
	for t := range fsm.Tasks.By(view, "object", api.KindVM+"/"+key) {
		switch {
		case t.State == api.TaskPending:
			in := fsm.TaskDispatch{Name: t.Name, Node: node, Epoch: epoch, Attempt: t.Attempt}
			return func(*Generator) fsm.Entry { return fsm.DispatchTask.Entry(in) }
		case t.State == api.TaskRunning && t.Verb == api.TaskSnapshot:
			return g.makers[fsm.ReportSnapshot.Op()]
		case t.State == api.TaskRunning && t.Verb == api.TaskSnapshotRevert:
			return g.makers[fsm.RestoreSnapshot.Op()]
		case t.State == api.TaskRunning && t.Verb == api.TaskSnapshotDelete:
			return g.makers[fsm.ForgetSnapshot.Op()]
		}
	}
	verb := pick(g, api.TaskSnapshot, api.TaskSnapshotRevert, api.TaskSnapshotDelete)
	have := 0
	for s := range fsm.Snapshots.By(view, "vm_id", vm.ID) {
		have++
		if s.State == api.SnapshotReady && s.RestoredTask == "" && g.chance(2) {
			verb = api.TaskSnapshotRevert
		}
	}
	if have == 0 {
		verb = api.TaskSnapshot
	}
	return func(g *Generator) fsm.Entry {
		return fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: fmt.Sprintf("task-%d", g.serial), Verb: verb, Kind: api.KindVM, Object: key, Args: raw(g.snapshotTask(verb, vm))})
	}
}
