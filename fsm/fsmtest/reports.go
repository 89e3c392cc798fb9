package fsmtest

import (
	"fmt"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

func clusterMakers() map[string]func(*Generator) fsm.Entry {
	return map[string]func(*Generator) fsm.Entry{
		fsm.InitCluster.Op():   (*Generator).First,
		fsm.RehomeCluster.Op(): (*Generator).rehome,
		fsm.ActivateVersion.Op(): func(g *Generator) fsm.Entry {
			return fsm.ActivateVersion.Entry(fsm.VersionActivate{Version: uint32(g.source.IntN(3))})
		},
		fsm.ApplyMany.Op(): (*Generator).apply,
		fsm.PutSeal.Op(): func(g *Generator) fsm.Entry {
			return fsm.PutSeal.Entry(api.Seal{Meta: api.Meta{Name: g.name("seal", 2)}, Ciphertext: make([]byte, g.source.IntN(64)), KeyID: "k"})
		},
		fsm.RecordCertificate.Op(): func(g *Generator) fsm.Entry {
			return fsm.RecordCertificate.Entry(api.Certificate{Meta: api.Meta{Name: hash(g.source.IntN(8))}, Role: pick(g, "node", "node", "king"),
				Subject: g.uuid(100), NotAfter: g.now.Add(time.Duration(g.source.IntN(60)-10) * time.Minute)})
		},
		fsm.CreateKey.Op(): func(g *Generator) fsm.Entry {
			return fsm.CreateKey.Entry(fsm.KeyCreate{Name: pick(g, "root", g.name("key", 3)), Hash: hash(g.source.IntN(99)), Role: pick(g, api.RoleAdmin, api.RoleAdmin, api.RoleViewer, g.name("role", 3), "nobody"),
				Tenants: pick(g, nil, nil, []string{g.tenant()}), Expires: pick(g, time.Time{}, g.now.Add(time.Minute))})
		},
		fsm.RotateKey.Op(): func(g *Generator) fsm.Entry {
			return fsm.RotateKey.Entry(fsm.KeyRotate{Name: pick(g, "root", g.name("key", 3)), Hash: hash(g.source.IntN(99)),
				Overlap: pick(g, 0, int64(time.Minute), int64(time.Hour), -1), Expires: pick(g, time.Time{}, g.now.Add(time.Minute))})
		},
		fsm.DeleteKey.Op(): func(g *Generator) fsm.Entry {
			return fsm.DeleteKey.Entry(fsm.Named{Name: pick(g, "root", g.name("key", 3))})
		},
		fsm.CreateToken.Op(): func(g *Generator) fsm.Entry {
			return fsm.CreateToken.Entry(fsm.TokenCreate{Name: g.name("tok", 9), Hash: hash(1000 + g.source.IntN(20)),
				Expires: g.now.Add(time.Duration(g.source.IntN(30)) * time.Hour), Witness: g.chance(4)})
		},
		fsm.DeleteToken.Op(): func(g *Generator) fsm.Entry { return fsm.DeleteToken.Entry(fsm.Named{Name: g.name("tok", 9)}) },
		fsm.TrimTokens.Op():  func(*Generator) fsm.Entry { return fsm.TrimTokens.Entry(fsm.TokensTrim{}) },
	}
}

func (g *Generator) rehome() fsm.Entry {
	n := g.source.IntN(1000)
	return fsm.RehomeCluster.Entry(fsm.ClusterRehome{Node: fsm.NodeJoin{ID: g.uuid(10000 + n), Name: g.name("n", 6), Address: pick(g, "127.0.0.1:1", "")}, Reason: "restored " + g.text()})
}

// apply carries several operations of users; some are refused and take the
// others with them.
func (g *Generator) apply() fsm.Entry {
	ops := []string{fsm.VMs.Kind() + ".put", fsm.VMs.Kind() + ".delete", fsm.Volumes.Kind() + ".put", fsm.Networks.Kind() + ".put", fsm.PowerVM.Op(), fsm.Images.Kind() + ".put"}
	var in fsm.Operations
	for range 1 + g.source.IntN(4) {
		e := g.makers[pick(g, ops...)](g)
		in.Operations = append(in.Operations, fsm.Operation{Op: e.Op, Body: e.Body})
	}
	if g.chance(10) {
		in.Operations = append(in.Operations, fsm.Operation{Op: pick(g, fsm.ApplyMany.Op(), fsm.ExpireNode.Op()), Body: raw(struct{}{})})
	}
	if vm := row(g, list(fsm.VMs, g.view)); vm != nil && g.chance(3) {
		in.Revisions = map[string]uint64{api.KindVM + "/" + api.Key(vm.Tenant, vm.Name): g.revision(vm.Modified), api.KindPool + "/missing": 0}
	}
	return fsm.ApplyMany.Entry(in)
}

func nodeMakers() map[string]func(*Generator) fsm.Entry {
	return map[string]func(*Generator) fsm.Entry{
		fsm.JoinNode.Op():     (*Generator).join,
		fsm.RegisterNode.Op(): (*Generator).register,
		fsm.ReportNode.Op():   (*Generator).reportNode,
		fsm.RenewNodes.Op():   (*Generator).renew,
		fsm.ExpireNode.Op():   (*Generator).expire,
		fsm.ConfirmOffNode.Op(): func(g *Generator) fsm.Entry {
			name, epoch := g.liveNode()
			return fsm.ConfirmOffNode.Entry(fsm.NodeConfirmOff{Node: name, Epoch: epoch, Reason: g.text()})
		},
		fsm.ScheduleNode.Op(): func(g *Generator) fsm.Entry {
			return fsm.ScheduleNode.Entry(fsm.NodeSchedule{Node: g.node(), Unschedulable: g.chance(2), Labels: g.labels()})
		},
		fsm.SetVoter.Op(): func(g *Generator) fsm.Entry {
			return fsm.SetVoter.Entry(fsm.NodeVoter{Node: g.node(), Voter: g.chance(2)})
		},
		fsm.RemoveNode.Op(): func(g *Generator) fsm.Entry {
			return fsm.RemoveNode.Entry(fsm.NodeRemove{Node: g.node(), Reason: g.text(), Force: g.chance(2)})
		},
	}
}

func (g *Generator) join() fsm.Entry {
	in := fsm.NodeJoin{ID: g.uuid(100 + g.source.IntN(300)), Name: g.name("n", 6), Address: pick(g, "127.0.0.1:7443", "127.0.0.1:7443", ""),
		Zone: pick(g, "", "z0", "z1"), Witness: g.chance(4), TokenHash: hash(1000 + g.source.IntN(20))}
	if t := row(g, list(fsm.JoinTokens, g.view)); t != nil {
		in.TokenHash = t.Hash
	}
	return fsm.JoinNode.Entry(in)
}

func (g *Generator) register() fsm.Entry {
	in := fsm.NodeRegister{ID: g.uuid(100), Nonce: fmt.Sprint(g.serial), Address: "127.0.0.1:7443", Version: "v1", ClusterVersion: fsm.VersionMax}
	if n := row(g, list(fsm.Nodes, g.view)); n != nil {
		in.ID, in.PrevEpoch = n.ID, g.revision(n.Epoch)
	}
	return fsm.RegisterNode.Entry(in)
}

func (g *Generator) reportNode() fsm.Entry {
	name, epoch := g.liveNode()
	return fsm.ReportNode.Entry(fsm.NodeReport{Node: name, Epoch: epoch,
		Hypervisor: api.HypervisorInfo{Driver: "sim", Simulated: true, Healthy: true, Reason: g.text()},
		CPUModels:  pick(g, nil, []string{api.CPULevel1, api.CPULevel2}, []string{"no model"}),
		Capacity:   api.Capacity{CPUs: g.source.IntN(64), MemoryBytes: int64(g.source.IntN(64)) * api.GiB},
		Pools:      []api.PoolStatus{{Pool: fsm.DefaultPool, FreeBytes: int64(g.source.IntN(1000))}},
		Network:    api.NodeNetwork{Bridges: []api.BridgeStatus{{Name: "br0", Uplinks: []string{"eth0"}}}, Stateful: g.chance(2), Reason: g.text()}})
}

func (g *Generator) renew() fsm.Entry {
	var in fsm.Renewals
	for l := range fsm.Leases.All(g.view) {
		if !g.chance(3) {
			in.Renewals = append(in.Renewals, fsm.Renewal{Node: l.Name, Epoch: g.revision(l.Epoch), Seq: l.Seq + uint64(g.source.IntN(2))})
		}
	}
	return fsm.RenewNodes.Entry(in)
}

func (g *Generator) expire() fsm.Entry {
	in := fsm.NodeExpire{Node: g.node(), Epoch: 1}
	if l := row(g, list(fsm.Leases, g.view)); l != nil {
		in = fsm.NodeExpire{Node: l.Name, Epoch: g.revision(l.Epoch), Seq: g.revision(l.Seq)}
	}
	return fsm.ExpireNode.Entry(in)
}

func workMakers() map[string]func(*Generator) fsm.Entry {
	return map[string]func(*Generator) fsm.Entry{
		fsm.PowerVM.Op():        (*Generator).power,
		fsm.AssignInstance.Op(): (*Generator).assign,
		fsm.HoldInstance.Op(): func(g *Generator) fsm.Entry {
			id, gen := g.instance(func(i *api.Instance) bool { return i.Owner == "" })
			return fsm.HoldInstance.Entry(fsm.Hold{VM: id, Gen: gen, Decision: api.Decision{Summary: "no node fits: " + g.text()}})
		},
		fsm.ReportInstance.Op():  (*Generator).reportInstance,
		fsm.ForgetInstance.Op():  (*Generator).forgetInstance,
		fsm.BeginMigration.Op():  (*Generator).beginMigration,
		fsm.CommitMigration.Op(): (*Generator).commitMigration,
		fsm.AbortMigration.Op():  (*Generator).abortMigration,
		fsm.ReportReplica.Op():   (*Generator).reportReplica,
		fsm.ForgetReplica.Op():   (*Generator).forgetReplica,
		fsm.MakeImage.Op():       (*Generator).makeImage,
		fsm.SubmitTask.Op():      (*Generator).submit,
		fsm.DispatchTask.Op():    (*Generator).dispatch,
		fsm.ReportTask.Op():      func(g *Generator) fsm.Entry { return fsm.ReportTask.Entry(g.taskReport()) },
		fsm.ReleaseTask.Op():     func(g *Generator) fsm.Entry { return fsm.ReleaseTask.Entry(g.taskReport()) },
		fsm.FinishTask.Op():      func(g *Generator) fsm.Entry { return fsm.FinishTask.Entry(g.taskReport()) },
		fsm.CancelTask.Op():      func(g *Generator) fsm.Entry { return fsm.CancelTask.Entry(fsm.TaskName{Name: g.task()}) },
		fsm.ExpireTask.Op():      func(g *Generator) fsm.Entry { return fsm.ExpireTask.Entry(fsm.TaskName{Name: g.task()}) },
		fsm.TrimTasks.Op():       func(*Generator) fsm.Entry { return fsm.TrimTasks.Entry(fsm.TasksTrim{}) },
	}
}

func (g *Generator) power() fsm.Entry {
	in := fsm.VMPower{Tenant: g.tenant(), Name: g.name("vm", 8), Power: pick(g, api.PowerOn, api.PowerOff, api.PowerOn, api.PowerOff, "half")}
	if vm := row(g, list(fsm.VMs, g.view)); vm != nil {
		in.Tenant, in.Name = vm.Tenant, vm.Name
	}
	return fsm.PowerVM.Entry(in)
}

// instance is the ID of a VM and the gen of its instance; mostly of one that
// matches, or that has none.
func (g *Generator) instance(match func(*api.Instance) bool) (string, uint64) {
	var ids []string
	for vm := range fsm.VMs.All(g.view) {
		if i := fsm.Instances.Get(g.view, vm.ID); i == nil || match(i) || g.chance(10) {
			ids = append(ids, vm.ID)
		}
	}
	if len(ids) == 0 {
		return g.uuid(200), 0
	}
	id := pick(g, ids...)
	if i := fsm.Instances.Get(g.view, id); i != nil {
		return id, g.revision(i.Gen)
	}
	return id, 0
}

func (g *Generator) assign() fsm.Entry {
	id, gen := g.instance(func(i *api.Instance) bool { return i.Owner == "" })
	name, epoch := g.liveNode()
	return fsm.AssignInstance.Entry(fsm.Assignment{VM: id, Gen: gen, Node: name, Epoch: epoch, Decision: api.Decision{Node: name, Summary: g.text(),
		Candidates: []api.Candidate{{Node: name, Fits: true, Score: 0.25, Reasons: []string{g.text()}}}}})
}

// owned is an instance that a node owns, and the owner's epoch.
func (g *Generator) owned(match func(*api.Instance) bool) (i api.Instance, epoch uint64) {
	var owned []*api.Instance
	for i := range fsm.Instances.All(g.view) {
		if i.Owner != "" && match(i) {
			owned = append(owned, i)
		}
	}
	if r := row(g, owned); r != nil {
		i = *r
	}
	if n := fsm.Nodes.Get(g.view, i.Owner); n != nil {
		epoch = g.revision(n.Epoch)
	}
	return i, epoch
}

func (g *Generator) reportInstance() fsm.Entry {
	i, epoch := g.owned(func(*api.Instance) bool { return true })
	return fsm.ReportInstance.Entry(fsm.InstanceReport{VM: i.Name, Gen: g.revision(i.Gen), Node: i.Owner, Epoch: epoch,
		State: pick(g, api.InstanceRunning, api.InstanceStopped, api.InstanceStarting, "dancing"), Reason: g.text(), Addresses: []string{"10.0.0.1"},
		StartedAt: g.now, Restarts: uint64(g.source.IntN(3)), Drift: pick(g, nil, []string{g.text()})})
}

func (g *Generator) forgetInstance() fsm.Entry {
	i, epoch := g.owned(func(i *api.Instance) bool { return fsm.VMs.Get(g.view, i.VM) == nil || g.chance(20) })
	return fsm.ForgetInstance.Entry(fsm.InstanceEnd{VM: i.Name, Gen: i.Gen, Node: i.Owner, Epoch: epoch})
}

func (g *Generator) reportReplica() fsm.Entry {
	name, epoch := g.liveNode()
	in := fsm.ReplicaReport{Kind: api.KindImage, OfID: g.uuid(1), Node: name, Epoch: epoch, Pool: fsm.DefaultPool,
		State: pick(g, api.ReplicaReady, api.ReplicaFailed, api.ReplicaReady, "lost"), SizeBytes: api.GiB, Reason: g.text()}
	if i := row(g, list(fsm.Images, g.view)); i != nil {
		in.OfID = i.ID
	}
	if r := row(g, list(fsm.Replicas, g.view)); r != nil && g.chance(2) {
		in.Kind, in.OfID, in.Node = r.Kind, r.OfID, r.Node
		if n := fsm.Nodes.Get(g.view, r.Node); n != nil {
			in.Epoch = n.Epoch
		}
	}
	return fsm.ReportReplica.Entry(in)
}

func (g *Generator) forgetReplica() fsm.Entry {
	name, epoch := g.liveNode()
	in := fsm.ReplicaEnd{OfID: g.uuid(1), Node: name, Epoch: epoch}
	var marked []*api.Replica
	for r := range fsm.Replicas.All(g.view) {
		if r.Delete || g.chance(20) {
			marked = append(marked, r)
		}
	}
	if r := row(g, marked); r != nil {
		in.OfID, in.Node = r.OfID, r.Node
		if n := fsm.Nodes.Get(g.view, r.Node); n != nil {
			in.Epoch = n.Epoch
		}
	}
	return fsm.ForgetReplica.Entry(in)
}

func (g *Generator) submit() fsm.Entry {
	if g.chance(14) {
		return g.submitMove()
	}
	in := fsm.TaskSubmit{Name: fmt.Sprintf("task-%d", g.serial), Verb: pick(g, api.TaskRestart, api.TaskStop, api.TaskApply, api.TaskMigrate, api.TaskMigrate, api.TaskFetch, api.TaskTemplate, "vm.fly"), Args: pick(g, nil, raw(map[string]bool{"force": true}))}
	if vm := row(g, list(fsm.VMs, g.view)); vm != nil && in.Verb != api.TaskApply {
		in.Kind, in.Object = api.KindVM, api.Key(vm.Tenant, vm.Name)
	}
	if g.chance(8) {
		in = g.submitMoves(in.Name)
	}
	g.imageTask(&in)
	if in.Verb == api.TaskMigrate {
		in.Args = pick(g, nil, raw(api.MigrateArgs{Node: g.node(), CopyStorage: true}), raw(api.MigrateArgs{BandwidthBytesMax: -1}))
	}
	if vm := g.snapshotVM(); vm != nil && g.chance(2) {
		in.Verb = pick(g, api.TaskSnapshot, api.TaskSnapshot, api.TaskSnapshotRevert, api.TaskSnapshotDelete)
		in.Kind, in.Object, in.Args = api.KindVM, api.Key(vm.Tenant, vm.Name), raw(g.snapshotTask(in.Verb, vm))
	}
	if g.chance(3) {
		in.Deadline = g.now.Add(pick(g, time.Duration(g.source.IntN(26))*time.Hour, 2*time.Second)) // the short ones expire
	}
	return fsm.SubmitTask.Entry(in)
}

// submitMoves asks for a drain or for moves.
func (g *Generator) submitMoves(name string) fsm.TaskSubmit {
	if g.chance(2) {
		return fsm.TaskSubmit{Name: name, Verb: api.TaskDrain, Kind: api.KindNode, Object: g.node(), Args: pick(g, nil, raw(api.DrainArgs{Reason: "dust", Parallel: g.source.IntN(40)}))}
	}
	move := api.Move{VM: api.Key(g.tenant(), g.name("vm", 8)), From: g.node(), To: g.node()}
	return fsm.TaskSubmit{Name: name, Verb: api.TaskBalance, Args: raw(api.BalanceArgs{Moves: []api.Move{move}})}
}

// task is the name of a task; mostly it has not ended.
func (g *Generator) task(states ...string) string {
	var names []string
	for t := range fsm.Tasks.All(g.view) {
		if !t.Ended() && (len(states) == 0 || t.State == states[0]) || g.chance(20) {
			names = append(names, t.Name)
		}
	}
	if len(names) == 0 {
		return "task-0"
	}
	return pick(g, names...)
}

func (g *Generator) dispatch() fsm.Entry {
	in := fsm.TaskDispatch{Name: g.task(api.TaskPending), Epoch: 1}
	if g.chance(2) {
		in.Node, in.Epoch = g.liveNode()
	}
	if t := fsm.Tasks.Get(g.view, in.Name); t != nil {
		in.Attempt = t.Attempt
		g.toOwner(t, &in)
		if node, epoch := g.ownerOf(t.Object); node != "" && !g.chance(4) {
			in.Node, in.Epoch = node, epoch
		}
	}
	return fsm.DispatchTask.Entry(in)
}

func (g *Generator) taskReport() fsm.TaskReport {
	in := fsm.TaskReport{Name: g.task(api.TaskRunning), Percent: g.source.IntN(105), Step: g.text(),
		State: pick(g, api.TaskDone, api.TaskFailed, api.TaskCancelled, api.TaskPending), NotBefore: g.now.Add(time.Minute)}
	if t := fsm.Tasks.Get(g.view, in.Name); t != nil {
		in.Node, in.Epoch, in.Attempt = t.Node, g.revision(t.Epoch), t.Attempt
	}
	if g.chance(2) {
		in.Error = api.Errorf(api.CodeUnavailable, "%s", g.text()).On(api.KindTask, in.Name)
	}
	return in
}
