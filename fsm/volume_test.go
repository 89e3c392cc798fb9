package fsm_test

import (
	"strings"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// ready makes a volume on node1, reports it ready at its size, and returns it.
func (c *cluster) ready(epoch uint64, v api.Volume) api.Volume {
	c.tb.Helper()
	v.Tenant, v.Pool = api.DefaultTenant, fsm.DefaultPool
	if v.Source == "" {
		v.Node = "node1"
	}
	if out := put(c, fsm.Volumes.Put, v); out.Err != nil {
		c.tb.Fatal(out.Err)
	}
	made := *fsm.Volumes.Get(c.f.Read(), api.Key(v.Tenant, v.Name))
	c.do(fsm.ReportReplica.Entry(fsm.ReplicaReport{Kind: api.KindVolume, OfID: made.ID, Node: "node1", Epoch: epoch, Pool: fsm.DefaultPool,
		State: api.ReplicaReady, SizeBytes: made.SizeBytes}))
	return made
}

func (c *cluster) free(epoch uint64, bytes int64) {
	c.do(fsm.ReportNode.Entry(fsm.NodeReport{Node: "node1", Epoch: epoch, Capacity: api.Capacity{CPUs: 4, MemoryBytes: api.GiB},
		Pools: []api.PoolStatus{{Pool: fsm.DefaultPool, TotalBytes: 100 * api.GiB, FreeBytes: bytes}}}))
}

func refused(t *testing.T, what string, out fsm.Outcome, code api.Code, word string) {
	t.Helper()
	if out.Err == nil || out.Err.Code != code || !strings.Contains(out.Err.Error()+out.Err.Next, word) {
		t.Errorf("%s: got %v, want %s with %q", what, out.Err, code, word)
	}
}

func TestVolumesGrowIntoWhatIsFreeAndNeverShrink(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	epoch := c.live()
	c.free(epoch, 10*api.GiB)
	data := c.ready(epoch, api.Volume{Meta: api.Meta{Name: "data"}, SizeBytes: 2 * api.GiB})
	sized := func(bytes int64) api.Volume { v := data; v.SizeBytes = bytes; return v }
	refused(t, "shrinking", put(c, fsm.Volumes.Put, sized(api.GiB)), api.CodeInvalid, "shrinking")
	refused(t, "more than is free", put(c, fsm.Volumes.Put, sized(13*api.GiB)), api.CodeLimit, "10 GiB")
	if out := put(c, fsm.Volumes.Put, sized(12*api.GiB)); out.Err != nil {
		t.Fatal(out.Err)
	}
	data = *fsm.Volumes.Get(c.f.Read(), "default/data")
	// What was asked for and has not happened can be taken back.
	if out := put(c, fsm.Volumes.Put, sized(3*api.GiB)); out.Err != nil {
		t.Error(out.Err)
	}
	data = *fsm.Volumes.Get(c.f.Read(), "default/data")
	c.do(fsm.SizeReplica.Entry(fsm.ReplicaSize{Replica: api.ReplicaName(data.ID, "node1"), Node: "node1", Epoch: epoch, SizeBytes: 3 * api.GiB}))
	data = *fsm.Volumes.Get(c.f.Read(), "default/data")
	refused(t, "shrinking to the former size", put(c, fsm.Volumes.Put, sized(2*api.GiB)), api.CodeInvalid, "shrinking")
}

func TestClonesNeedASourceThatStandsStill(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	epoch := c.live()
	c.free(epoch, 10*api.GiB)
	if out := put(c, fsm.VMs.Put, vm("web")); out.Err != nil {
		t.Fatal(out.Err)
	}
	clone := func(name, source, mode string) api.Volume {
		return api.Volume{Meta: api.Meta{Name: name, Tenant: api.DefaultTenant}, Pool: fsm.DefaultPool, Source: source, Clone: mode}
	}
	row := fsm.VMs.Get(c.f.Read(), "default/web")
	if len(row.Disks) == 0 {
		t.Fatal("the VM has no disk")
	}
	refused(t, "of a VM that is on", put(c, fsm.Volumes.Put, clone("c", row.Disks[0].Volume, "")), api.CodeConflict, "vm stop web")
	refused(t, "of nothing", put(c, fsm.Volumes.Put, clone("c", "absent", "")), api.CodeInvalid, "source")
	data := c.ready(epoch, api.Volume{Meta: api.Meta{Name: "data"}, SizeBytes: 2 * api.GiB})
	small := clone("c", "data", "")
	small.SizeBytes = api.GiB
	refused(t, "a smaller one", put(c, fsm.Volumes.Put, small), api.CodeInvalid, "source")
	raw := clone("c", "data", api.CloneLinked)
	raw.Format = api.FormatRaw
	refused(t, "a raw linked one", put(c, fsm.Volumes.Put, raw), api.CodeInvalid, "raw")
	both := clone("c", "data", "")
	both.Image = "tiny"
	refused(t, "one of an image too", put(c, fsm.Volumes.Put, both), api.CodeInvalid, "image")

	linked := c.ready(epoch, clone("linked", "data", api.CloneLinked))
	if linked.SizeBytes != 2*api.GiB {
		t.Errorf("the clone has %d bytes", linked.SizeBytes)
	}
	same := linked
	same.SizeBytes = 0
	if out := put(c, fsm.Volumes.Put, same); out.Err != nil || fsm.Volumes.Get(c.f.Read(), "default/linked").SizeBytes != 2*api.GiB {
		t.Errorf("a size that is left out: %v", out.Err)
	}
	linked = *fsm.Volumes.Get(c.f.Read(), "default/linked")
	gone := func(v api.Volume) fsm.Outcome { return c.propose(fsm.Volumes.Delete(v.Tenant, v.Name, v.Modified)) }
	refused(t, "deleting the source", gone(data), api.CodeConflict, "needs it")
	moved := linked
	moved.Source = "other"
	refused(t, "another source", put(c, fsm.Volumes.Put, moved), api.CodeInvalid, "fixed")
	if out := gone(linked); out.Err != nil {
		t.Fatal(out.Err)
	}
	if out := put(c, fsm.Volumes.Put, clone("full", "data", api.CloneFull)); out.Err != nil {
		t.Fatal(out.Err)
	}
	refused(t, "deleting the source of a copy under way", gone(data), api.CodeConflict, "needs it")
	full := *fsm.Volumes.Get(c.f.Read(), "default/full")
	c.do(fsm.ReportReplica.Entry(fsm.ReplicaReport{Kind: api.KindVolume, OfID: full.ID, Node: "node1", Epoch: epoch, Pool: fsm.DefaultPool, State: api.ReplicaReady}))
	if out := gone(data); out.Err != nil {
		t.Errorf("deleting the source of a finished copy: %v", out.Err)
	}
}

// TestMoveIsCommittedByWhoMayStill: the row changes its pool for the node whose
// task still runs, or that owns the guest, and for nobody else.
func TestMoveIsCommittedByWhoMayStill(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	epoch := c.live()
	c.free(epoch, 10*api.GiB)
	if out := put(c, fsm.Pools.Put, api.Pool{Meta: api.Meta{Name: "fast"}, Driver: api.PoolDir}); out.Err != nil {
		t.Fatal(out.Err)
	}
	data := c.ready(epoch, api.Volume{Meta: api.Meta{Name: "data"}, SizeBytes: 2 * api.GiB})
	submit := func(name, pool string) fsm.Outcome {
		return c.propose(fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: name, Verb: api.TaskMoveVolume, Kind: api.KindVolume, Object: "default/data",
			Args: []byte(`{"pool":"` + pool + `"}`)}))
	}
	refused(t, "to where it is", submit("t0", fsm.DefaultPool), api.CodeConflict, "already")
	refused(t, "to nowhere", submit("t0", "absent"), api.CodeInvalid, "absent")
	if out := submit("t1", "fast"); out.Err != nil {
		t.Fatal(out.Err)
	}
	refused(t, "twice", submit("t2", "fast"), api.CodeConflict, "t1")
	fast := fsm.Pools.Get(c.f.Read(), "fast")
	refused(t, "deleting the pool", c.propose(fsm.Pools.Delete("", "fast", fast.Modified)), api.CodeConflict, "t1")

	moved := fsm.VolumeMoved{Volume: "default/data", ID: data.ID, From: fsm.DefaultPool, To: "fast", Node: "node1", Epoch: epoch, Task: "t1", Attempt: 1, SizeBytes: 2 * api.GiB}
	commit := func(change func(*fsm.VolumeMoved)) fsm.Outcome {
		in := moved
		change(&in)
		return c.propose(fsm.MoveVolume.Entry(in))
	}
	refused(t, "a task that does not run", commit(func(*fsm.VolumeMoved) {}), api.CodeConflict, "pending")
	c.do(fsm.DispatchTask.Entry(fsm.TaskDispatch{Name: "t1", Node: "node1", Epoch: epoch}))
	refused(t, "an earlier attempt", commit(func(in *fsm.VolumeMoved) { in.Attempt = 0 }), api.CodeConflict, "attempt")
	refused(t, "a former epoch", commit(func(in *fsm.VolumeMoved) { in.Epoch-- }), api.CodeConflict, "epoch")
	refused(t, "a guest that is not the node's", commit(func(in *fsm.VolumeMoved) { in.VM = data.ID }), api.CodeNotFound, "instance")
	refused(t, "another volume", commit(func(in *fsm.VolumeMoved) { in.ID = "x" }), api.CodeNotFound, "exist")
	refused(t, "from elsewhere", commit(func(in *fsm.VolumeMoved) { in.From = "x" }), api.CodeConflict, "local")
	if out := commit(func(*fsm.VolumeMoved) {}); out.Err != nil {
		t.Fatal(out.Err)
	}
	if out := commit(func(*fsm.VolumeMoved) {}); out.Err != nil {
		t.Errorf("again: %v", out.Err)
	}
	if v := fsm.Volumes.Get(c.f.Read(), "default/data"); v.Pool != "fast" {
		t.Errorf("the row says %s", v.Pool)
	}
	r := fsm.Replicas.Get(c.f.Read(), api.ReplicaName(data.ID, "node1"))
	if r == nil || r.Pool != "fast" || r.State != api.ReplicaReady || r.SizeBytes != 2*api.GiB {
		t.Errorf("the replica is %+v", r)
	}
}

func TestPoolIsPromisedNoMoreThanItMayBe(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	epoch := c.live()
	pool := *fsm.Pools.Get(c.f.Read(), fsm.DefaultPool)
	pool.Overcommit = 0.5 // of 100 GiB
	if out := put(c, fsm.Pools.Put, pool); out.Err != nil {
		t.Fatal(out.Err)
	}
	c.free(epoch, 90*api.GiB)
	data := c.ready(epoch, api.Volume{Meta: api.Meta{Name: "data"}, SizeBytes: 40 * api.GiB})
	data.SizeBytes = 51 * api.GiB
	refused(t, "growing over it", put(c, fsm.Volumes.Put, data), api.CodeLimit, "50 GiB")
	more := api.Volume{Meta: api.Meta{Name: "more", Tenant: api.DefaultTenant}, Pool: fsm.DefaultPool, Node: "node1", SizeBytes: 11 * api.GiB}
	refused(t, "another one over it", put(c, fsm.Volumes.Put, more), api.CodeLimit, "overcommit")
	more.SizeBytes = 10 * api.GiB
	if out := put(c, fsm.Volumes.Put, more); out.Err != nil {
		t.Error(out.Err)
	}
	more.Name, more.SizeBytes = "huge", 200*api.GiB
	pool = *fsm.Pools.Get(c.f.Read(), fsm.DefaultPool)
	pool.Overcommit = 0
	if out := put(c, fsm.Pools.Put, pool); out.Err != nil {
		t.Fatal(out.Err)
	}
	refused(t, "larger than the pool", put(c, fsm.Volumes.Put, more), api.CodeLimit, "90 GiB")
}
