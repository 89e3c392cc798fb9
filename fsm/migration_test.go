package fsm_test

import (
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// moving is a cluster of three nodes with a VM that runs on node1, has a local
// disk, and is the subject of a task that is to migrate it.
type moving struct {
	*cluster
	id, volume string
	epochs     map[string]uint64
}

func newMoving(t testing.TB) *moving {
	t.Helper()
	c := newCluster(t)
	m := &moving{cluster: c, epochs: map[string]uint64{"node1": c.live()}}
	for n, name := range []string{"node2", "node3"} {
		hash := strings.Repeat("0", 63) + name[4:]
		c.do(fsm.CreateToken.Entry(fsm.TokenCreate{Name: name, Hash: hash, Expires: c.f.Read().Time().Add(time.Hour)}))
		c.do(fsm.JoinNode.Entry(fsm.NodeJoin{ID: nodeID(n + 2), Name: name, Address: "127.0.0.1:7443", TokenHash: hash}))
		c.do(fsm.RegisterNode.Entry(fsm.NodeRegister{ID: nodeID(n + 2), Nonce: "n", Address: "127.0.0.1:7443"}))
		m.epochs[name] = 1
	}
	web := vm("web")
	web.Disks = []api.Disk{{Name: "root", SizeBytes: api.GiB}}
	if out := put(c, fsm.VMs.Put, web); out.Err != nil {
		t.Fatal(out.Err)
	}
	m.id = fsm.VMs.Get(c.f.Read(), "default/web").ID
	m.volume = fsm.Volumes.Get(c.f.Read(), "default/web-root").ID
	c.do(fsm.AssignInstance.Entry(fsm.Assignment{VM: m.id, Node: "node1", Epoch: m.epochs["node1"]}))
	m.copied("node1")
	c.do(fsm.ReportInstance.Entry(fsm.InstanceReport{VM: m.id, Gen: m.row().Gen, Node: "node1", Epoch: m.epochs["node1"], State: api.InstanceRunning}))
	c.do(fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: "t1", Verb: api.TaskMigrate, Kind: api.KindVM, Object: "default/web"}))
	c.do(fsm.DispatchTask.Entry(fsm.TaskDispatch{Name: "t1", Node: "node1", Epoch: m.epochs["node1"], Decision: &api.Decision{Node: "node2", Summary: "it has room"}}))
	return m
}

func (m *moving) row() *api.Instance { return fsm.Instances.Get(m.f.Read(), m.id) }

func (m *moving) replica(node string) *api.Replica {
	return fsm.Replicas.Get(m.f.Read(), api.ReplicaName(m.volume, node))
}

// copied reports the volume as ready on a node.
func (m *moving) copied(node string) {
	m.do(fsm.ReportReplica.Entry(fsm.ReplicaReport{Kind: api.KindVolume, OfID: m.volume, Node: node, Epoch: m.epochs[node], Pool: "local", State: api.ReplicaReady, SizeBytes: api.GiB}))
}

func (m *moving) begin(change ...func(*fsm.MigrationBegin)) *api.Error {
	in := fsm.MigrationBegin{VM: m.id, Gen: m.row().Gen, Node: "node1", Epoch: m.epochs["node1"], To: "node2", ToEpoch: m.epochs["node2"], Task: "t1", Volumes: []string{m.volume}}
	for _, f := range change {
		f(&in)
	}
	return m.propose(fsm.BeginMigration.Entry(in)).Err
}

func (m *moving) commit(change ...func(*fsm.MigrationCommit)) *api.Error {
	in := fsm.MigrationCommit{VM: m.id, Gen: m.row().Gen, Node: "node1", Epoch: m.epochs["node1"], To: "node2", ToEpoch: m.epochs["node2"]}
	for _, f := range change {
		f(&in)
	}
	return m.propose(fsm.CommitMigration.Entry(in)).Err
}

func (m *moving) abort(node string, epoch uint64) *api.Error {
	return m.propose(fsm.AbortMigration.Entry(fsm.MigrationAbort{VM: m.id, Gen: m.row().Gen, Node: node, Epoch: epoch, Reason: "test"})).Err
}

func TestACommitHandsEverythingOnInOneEntry(t *testing.T) {
	t.Parallel()
	m := newMoving(t)
	gen := m.row().Gen
	if err := m.begin(); err != nil {
		t.Fatal(err)
	}
	if i := m.row(); i.Owner != "node1" || i.Gen != gen || i.Migration == nil || i.Migration.To != "node2" || m.replica("node2").From != "node1" {
		t.Fatalf("after the beginning: %+v, %+v", i, m.replica("node2"))
	}
	if err := m.commit(); err == nil {
		t.Fatal("it was committed before the destination had the volume")
	}
	m.copied("node2")
	if err := m.commit(); err != nil {
		t.Fatal(err)
	}
	i, task := m.row(), fsm.Tasks.Get(m.f.Read(), "t1")
	if i.Owner != "node2" || i.Gen != gen+1 || i.OwnerEpoch != 1 || i.Migration != nil || i.Decision.Summary != "it has room" || task.State != api.TaskDone {
		t.Errorf("after the commit: %+v, %+v", i, task)
	}
	if here, there := m.replica("node2"), m.replica("node1"); here.From != "" || here.Delete || !there.Delete {
		t.Errorf("the volume is %+v and %+v", here, there)
	}
	if m.commit() == nil || m.abort("node1", m.epochs["node1"]) == nil {
		t.Error("it was decided twice")
	}
}

func TestABeginningThatCouldNotEndWellIsRefused(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		before func(m *moving)
		change func(in *fsm.MigrationBegin)
	}{
		"another gen":        {change: func(in *fsm.MigrationBegin) { in.Gen++ }},
		"not the owner":      {change: func(in *fsm.MigrationBegin) { in.Node, in.Epoch = "node3", 1 }},
		"a former epoch":     {change: func(in *fsm.MigrationBegin) { in.Epoch-- }},
		"to itself":          {change: func(in *fsm.MigrationBegin) { in.To, in.ToEpoch = in.Node, in.Epoch }},
		"to a former epoch":  {change: func(in *fsm.MigrationBegin) { in.ToEpoch = 9 }},
		"to nowhere":         {change: func(in *fsm.MigrationBegin) { in.To = "node9" }},
		"another task":       {change: func(in *fsm.MigrationBegin) { in.Task = "t2" }},
		"a disk left behind": {change: func(in *fsm.MigrationBegin) { in.Volumes = nil }},
		"a volume twice":     {change: func(in *fsm.MigrationBegin) { in.Volumes = append(in.Volumes, in.Volumes[0]) }},
		"an unknown volume":  {change: func(in *fsm.MigrationBegin) { in.Volumes = []string{nodeID(7)} }},
		"a cancelled task":   {before: func(m *moving) { m.do(fsm.CancelTask.Entry(fsm.TaskName{Name: "t1"})) }},
		"a VM that is off": {before: func(m *moving) {
			m.do(fsm.PowerVM.Entry(fsm.VMPower{Tenant: "default", Name: "web", Power: api.PowerOff}))
		}},
		"a closed node":       {before: func(m *moving) { m.do(fsm.ScheduleNode.Entry(fsm.NodeSchedule{Node: "node2", Unschedulable: true})) }},
		"one under way":       {before: func(m *moving) { _ = m.begin() }},
		"a copy being remove": {before: func(m *moving) { _ = m.begin(); _ = m.abort("node1", m.epochs["node1"]) }},
	} {
		m := newMoving(t)
		if test.before != nil {
			test.before(m)
		}
		if test.change == nil {
			test.change = func(*fsm.MigrationBegin) {}
		}
		if err := m.begin(test.change); err == nil {
			t.Errorf("%s: it was begun", name)
		}
	}
}

// Each condition of the commit is one that a run of the protocol needs: without
// it two hosts would run the guest, or its disk would be half a copy.
func TestACommitHoldsEveryCondition(t *testing.T) {
	t.Parallel()
	register := func(m *moving, n int, name string) {
		m.do(fsm.RegisterNode.Entry(fsm.NodeRegister{ID: nodeID(n), PrevEpoch: m.epochs[name], Nonce: "again", Address: "127.0.0.1:7443"}))
	}
	for name, test := range map[string]struct {
		before func(m *moving)
		change func(in *fsm.MigrationCommit)
	}{
		"another gen":           {change: func(in *fsm.MigrationCommit) { in.Gen++ }},
		"another node":          {change: func(in *fsm.MigrationCommit) { in.Node, in.Epoch = "node3", 1 }},
		"another destination":   {change: func(in *fsm.MigrationCommit) { in.To = "node3" }},
		"another epoch there":   {change: func(in *fsm.MigrationCommit) { in.ToEpoch++ }},
		"the source registered": {before: func(m *moving) { register(m, 1, "node1"); m.epochs["node1"]++ }},
		"the destination did":   {before: func(m *moving) { register(m, 2, "node2") }},
		"the source is off": {before: func(m *moving) {
			m.do(fsm.ConfirmOffNode.Entry(fsm.NodeConfirmOff{Node: "node1", Epoch: m.epochs["node1"]}))
		}},
		"the destination is off":    {before: func(m *moving) { m.do(fsm.ConfirmOffNode.Entry(fsm.NodeConfirmOff{Node: "node2", Epoch: 1})) }},
		"the destination is fenced": {before: func(m *moving) { m.do(fsm.ExpireNode.Entry(fsm.NodeExpire{Node: "node2", Epoch: 1})) }},
		"it was given up there":     {before: func(m *moving) { _ = m.abort("node2", 1) }},
		"it was given up here":      {before: func(m *moving) { _ = m.abort("node1", m.epochs["node1"]) }},
	} {
		m := newMoving(t)
		if err := m.begin(); err != nil {
			t.Fatal(err)
		}
		m.copied("node2")
		if test.before != nil {
			test.before(m)
		}
		if test.change == nil {
			test.change = func(*fsm.MigrationCommit) {}
		}
		if err := m.commit(test.change); err == nil {
			t.Errorf("%s: it was committed: %+v", name, m.row())
		}
	}
}

func TestAMigratingVMIsRecoveredOnlyWhenBothSidesLetGo(t *testing.T) {
	t.Parallel()
	off := func(m *moving, node string) {
		m.do(fsm.ConfirmOffNode.Entry(fsm.NodeConfirmOff{Node: node, Epoch: m.epochs[node]}))
	}
	begun := func() *moving {
		m := newMoving(t)
		if err := m.begin(); err != nil {
			t.Fatal(err)
		}
		m.copied("node2")
		return m
	}
	m := begun()
	off(m, "node1")
	if i := m.row(); i.Owner != "node1" || !i.Migration.FromOff {
		t.Fatalf("the source is off, and the destination may hold the guest: %+v", i)
	}
	if err := m.propose(fsm.AssignInstance.Entry(fsm.Assignment{VM: m.id, Gen: m.row().Gen, Node: "node3", Epoch: 1})).Err; err == nil {
		t.Fatal("it was given to a third node")
	}
	if err := m.propose(fsm.RemoveNode.Entry(fsm.NodeRemove{Node: "node1", Force: true})).Err; err == nil {
		t.Fatal("the source was removed")
	}
	if err := m.abort("node2", 1); err != nil {
		t.Fatal(err)
	}
	if i := m.row(); i.Owner != "" || i.State != api.InstancePending || i.Migration != nil {
		t.Errorf("both let go: %+v", i)
	}
	m = begun()
	off(m, "node1")
	off(m, "node2")
	if i := m.row(); i.Owner != "" || i.Migration != nil {
		t.Errorf("both are off: %+v", i)
	}
	m = begun()
	off(m, "node2")
	if i := m.row(); i.Owner != "node1" || i.Migration != nil || !m.replica("node2").Delete {
		t.Errorf("the destination is off: %+v, %+v", i, m.replica("node2"))
	}
	m = begun()
	m.do(fsm.RemoveNode.Entry(fsm.NodeRemove{Node: "node2", Force: true}))
	if i := m.row(); i.Owner != "node1" || i.Migration != nil || m.replica("node2") != nil {
		t.Errorf("the destination is removed: %+v, %+v", i, m.replica("node2"))
	}
}

func TestAMigrationIsRefusedWithEveryReason(t *testing.T) {
	t.Parallel()
	m := newMoving(t)
	err := m.propose(fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: "t2", Verb: api.TaskMigrate, Kind: api.KindVM, Object: "default/web", Args: []byte(`{"node":"node1"}`)})).Err
	if err == nil || len(err.Details) != 2 || !strings.Contains(err.Error(), "there already") || !strings.Contains(err.Error(), "t1") {
		t.Errorf("got %v, want both reasons", err)
	}
	for _, args := range []string{`{"downtime_limit_ms":-1}`, `{"bandwidth_bytes_max":1}`, `{"node":"No"}`, `[]`} {
		err := m.propose(fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: "t3", Verb: api.TaskMigrate, Kind: api.KindVM, Object: "default/web", Args: []byte(args)})).Err
		if err == nil || err.Code != api.CodeInvalid {
			t.Errorf("%s: got %v, want invalid", args, err)
		}
	}
}
