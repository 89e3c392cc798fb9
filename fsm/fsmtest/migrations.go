package fsmtest

import (
	"fmt"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// beginMigration moves mostly a guest that runs and that a task is to move.
// Where none is so far it makes what has to come before: few random logs would
// get there by themselves.
func (g *Generator) beginMigration() fsm.Entry {
	if e, lacking := g.towardsMigration(); lacking {
		return e
	}
	moving := map[string]bool{}
	for t := range fsm.Tasks.By(g.view, "state", api.TaskRunning) {
		moving[t.Object] = moving[t.Object] || t.Verb == api.TaskMigrate
	}
	i, epoch := g.owned(func(i *api.Instance) bool { return i.State == api.InstanceRunning && moving[i.VM] || g.chance(20) })
	in := fsm.MigrationBegin{VM: i.Name, Gen: g.revision(i.Gen), Node: i.Owner, Epoch: epoch, Task: g.task(api.TaskRunning)}
	in.To, in.ToEpoch = g.otherNode(i.Owner)
	for t := range fsm.Tasks.By(g.view, "object", api.KindVM+"/"+i.VM) {
		if t.Verb == api.TaskMigrate && t.State == api.TaskRunning {
			in.Task, in.Epoch = t.Name, t.Epoch
		}
	}
	if vm := fsm.VMs.Get(g.view, i.VM); vm != nil {
		for _, d := range vm.Disks {
			v := fsm.Volumes.Get(g.view, api.Key(vm.Tenant, d.Volume))
			if v != nil && fsm.Replicas.Get(g.view, api.ReplicaName(v.ID, i.Owner)) != nil && !g.chance(20) {
				in.Volumes = append(in.Volumes, v.ID)
			}
		}
	}
	return fsm.BeginMigration.Entry(in)
}

// otherNode is mostly a live node that is not the one named.
func (g *Generator) otherNode(not string) (string, uint64) {
	for range 4 {
		if name, epoch := g.liveNode(); name != not {
			return name, epoch
		}
	}
	return g.liveNode()
}

// towardsMigration makes the next entry that leads to a task which migrates a
// VM on its way: two live nodes, a guest on one of them that is reported as
// running, its volumes as ready, a task for it, the task's dispatch. lacking is
// false when nothing is missing, or nothing can be done.
func (g *Generator) towardsMigration() (e fsm.Entry, lacking bool) {
	if g.chance(4) {
		return e, false
	}
	if e, lacking := g.towardsTwoNodes(); lacking {
		return e, true
	}
	var all []*api.Instance
	for i := range fsm.Instances.All(g.view) {
		vm, n := fsm.VMs.Get(g.view, i.VM), fsm.Nodes.Get(g.view, i.Owner)
		if vm != nil && vm.ID == i.Name && vm.On() && n != nil && n.Lease == api.NodeLive && i.Migration == nil {
			all = append(all, i)
		}
	}
	i := row(g, all)
	if i == nil {
		return g.assign(), true
	}
	epoch := fsm.Nodes.Get(g.view, i.Owner).Epoch
	if i.State != api.InstanceRunning {
		return fsm.ReportInstance.Entry(fsm.InstanceReport{VM: i.Name, Gen: i.Gen, Node: i.Owner, Epoch: epoch, State: api.InstanceRunning, StartedAt: g.now}), true
	}
	for r := range fsm.Replicas.By(g.view, "node", i.Owner) {
		if r.Kind == api.KindVolume && r.State == api.ReplicaPending {
			return fsm.ReportReplica.Entry(fsm.ReplicaReport{Kind: r.Kind, OfID: r.OfID, Node: r.Node, Epoch: epoch, Pool: r.Pool, State: api.ReplicaReady, SizeBytes: api.GiB}), true
		}
	}
	for t := range fsm.Tasks.By(g.view, "object", api.KindVM+"/"+i.VM) {
		switch {
		case t.Verb != api.TaskMigrate || t.Ended():
		case t.State == api.TaskPending:
			in := fsm.TaskDispatch{Name: t.Name, Attempt: t.Attempt}
			g.toOwner(t, &in)
			return fsm.DispatchTask.Entry(in), true
		default:
			return e, false
		}
	}
	return fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: fmt.Sprintf("task-%d", g.serial), Verb: api.TaskMigrate, Kind: api.KindVM, Object: i.VM,
		Args: raw(api.MigrateArgs{CopyStorage: true})}), true
}

// commitMigration ends one that is under way, or leads to one.
func (g *Generator) commitMigration() fsm.Entry {
	moving := false
	for i := range fsm.Instances.All(g.view) {
		moving = moving || i.Migration != nil
	}
	if !moving && !g.chance(4) {
		return g.beginMigration()
	}
	for r := range fsm.Replicas.All(g.view) {
		n := fsm.Nodes.Get(g.view, r.Node)
		if r.From != "" && !r.Delete && r.State == api.ReplicaPending && n != nil && !g.chance(4) {
			return fsm.ReportReplica.Entry(fsm.ReplicaReport{Kind: r.Kind, OfID: r.OfID, Node: r.Node, Epoch: n.Epoch, Pool: r.Pool, State: api.ReplicaReady, SizeBytes: api.GiB})
		}
	}
	i, epoch := g.owned(func(i *api.Instance) bool { return i.Migration != nil || g.chance(20) })
	in := fsm.MigrationCommit{VM: i.Name, Gen: g.revision(i.Gen), Node: i.Owner, Epoch: epoch, To: "n1", ToEpoch: 1}
	if m := i.Migration; m != nil {
		in.To, in.ToEpoch = m.To, g.revision(m.ToEpoch)
	}
	return fsm.CommitMigration.Entry(in)
}

func (g *Generator) abortMigration() fsm.Entry {
	i, epoch := g.owned(func(i *api.Instance) bool { return i.Migration != nil || g.chance(20) })
	in := fsm.MigrationAbort{VM: i.Name, Gen: g.revision(i.Gen), Node: i.Owner, Epoch: epoch, Reason: g.text()}
	if m := i.Migration; m != nil && g.chance(2) {
		if n := fsm.Nodes.Get(g.view, m.To); n != nil {
			in.Node, in.Epoch = n.Name, g.revision(n.Epoch)
		}
	}
	return fsm.AbortMigration.Entry(in)
}

// toOwner sends most tasks that migrate a VM where they belong.
func (g *Generator) toOwner(t *api.Task, in *fsm.TaskDispatch) {
	vm := fsm.VMs.Get(g.view, t.Object)
	if t.Verb != api.TaskMigrate || vm == nil || g.chance(10) {
		return
	}
	i := fsm.Instances.Get(g.view, vm.ID)
	if i == nil {
		return
	}
	if n := fsm.Nodes.Get(g.view, i.Owner); n != nil {
		in.Node, in.Epoch = n.Name, n.Epoch
		in.Decision = &api.Decision{Node: g.node(), Summary: g.text()}
	}
}

// towardsTwoNodes makes the next entry that leads to a second live node.
func (g *Generator) towardsTwoNodes() (e fsm.Entry, lacking bool) {
	live := 0
	var fenced *api.Node
	for n := range fsm.Nodes.All(g.view) {
		switch {
		case n.Witness:
		case n.Lease == api.NodeLive:
			live++
		default:
			fenced = n
		}
	}
	if live >= 2 {
		return e, false
	}
	if fenced != nil {
		return fsm.RegisterNode.Entry(fsm.NodeRegister{ID: fenced.ID, PrevEpoch: fenced.Epoch, Nonce: fmt.Sprint(g.serial), Address: "127.0.0.1:7443",
			Version: "v1", ClusterVersion: fsm.VersionMax}), true
	}
	for t := range fsm.JoinTokens.All(g.view) {
		if !t.Witness && g.now.Before(t.Expires) {
			return fsm.JoinNode.Entry(fsm.NodeJoin{ID: g.uuid(100 + g.source.IntN(300)), Name: g.name("n", 6), Address: "127.0.0.1:7443", TokenHash: t.Hash}), true
		}
	}
	return fsm.CreateToken.Entry(fsm.TokenCreate{Name: g.name("tok", 9), Hash: hash(1000 + g.source.IntN(20)), Expires: g.now.Add(time.Hour)}), true
}
