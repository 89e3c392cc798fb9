package fsm_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// cluster drives an FSM as the log would.
type cluster struct {
	tb    testing.TB
	f     *fsm.FSM
	index uint64
	now   time.Time
}

func newCluster(tb testing.TB) *cluster {
	tb.Helper()
	c := &cluster{tb: tb, f: fsm.New(), now: epoch}
	c.do(fsm.InitCluster.Entry(fsm.ClusterInit{
		ClusterID: "11111111-1111-4111-8111-111111111111", Region: "here", Version: fsm.VersionMin,
		Node: fsm.NodeJoin{ID: nodeID(1), Name: "node1", Address: "127.0.0.1:7443"},
		Key:  fsm.KeyCreate{Name: "root", Hash: fmt.Sprintf("%064d", 1), Role: api.RoleAdmin},
	}))
	return c
}

func nodeID(n int) string { return fmt.Sprintf("%08d-0000-4000-8000-000000000000", n) }

// propose applies one entry and returns what became of it.
func (c *cluster) propose(e fsm.Entry) fsm.Outcome {
	c.tb.Helper()
	c.index++
	if e.Time.IsZero() {
		e.Time = c.now
	}
	raw, err := e.Encode()
	if err != nil {
		c.tb.Fatal(err)
	}
	out, _, err := c.f.ApplyBatch([]fsm.Committed{{Index: c.index, Term: 1, Data: raw}})
	if err != nil {
		c.tb.Fatalf("%s: %v", e.Op, err)
	}
	return out[0]
}

func (c *cluster) do(e fsm.Entry) fsm.Outcome {
	c.tb.Helper()
	out := c.propose(e)
	if out.Err != nil {
		c.tb.Fatalf("%s: %v", e.Op, out.Err)
	}
	return out
}

func put[T any](c *cluster, entry func(*T) (fsm.Entry, error), v T) fsm.Outcome {
	c.tb.Helper()
	e, err := entry(&v)
	if err != nil {
		c.tb.Fatal(err)
	}
	return c.propose(e)
}

func vm(name string) api.VM {
	return api.VM{Meta: api.Meta{Name: name, Tenant: "default"}, CPUs: 1, MemoryBytes: 128 * api.MiB,
		Disks: []api.Disk{{Name: "root", SizeBytes: api.GiB}}}
}

func TestPutIsCompareAndSet(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	if out := put(c, fsm.VMs.Put, vm("web")); out.Err != nil {
		t.Fatal(out.Err)
	}
	if out := put(c, fsm.VMs.Put, vm("web")); out.Err == nil || out.Err.Code != api.CodeConflict {
		t.Fatalf("a second create: got %v, want conflict", out.Err)
	}
	have := fsm.VMs.Get(c.f.Read(), "default/web")
	change := *have
	change.CPUs = 2
	if out := put(c, fsm.VMs.Put, change); out.Err != nil {
		t.Fatal(out.Err)
	}
	if out := put(c, fsm.VMs.Put, change); out.Err == nil || out.Err.Code != api.CodeConflict {
		t.Fatalf("a put of an old revision: got %v, want conflict", out.Err)
	}
}

func TestRefusedEntryLeavesNoRow(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	before := c.f.Read().StateHash()
	bad := vm("web")
	bad.Disks = append(bad.Disks, api.Disk{Name: "data", Volume: "missing"})
	out := put(c, fsm.VMs.Put, bad)
	if out.Err == nil || out.Err.Code != api.CodeInvalid || out.Err.Field != "disks[1].volume" {
		t.Fatalf("got %v, want invalid disks[1].volume", out.Err)
	}
	v := c.f.Read()
	if fsm.Volumes.Len(v) != 0 || fsm.VMs.Len(v) != 0 || v.StateHash() != before {
		t.Fatalf("rows stayed behind: %d volumes, %d vms", fsm.Volumes.Len(v), fsm.VMs.Len(v))
	}
}

func TestRequestIDGivesTheFirstAnswer(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	web, db := vm("web"), vm("db")
	e, err := fsm.VMs.Put(&web)
	if err != nil {
		t.Fatal(err)
	}
	e.RequestID = "r1"
	first := c.do(e)
	again := c.do(e)
	if !again.Replayed || again.Index != first.Index || again.Key != "default/web" {
		t.Fatalf("got %+v, want a replay of %+v", again, first)
	}
	other, _ := fsm.VMs.Put(&db)
	other.RequestID = "r1"
	if out := c.propose(other); out.Err == nil || out.Err.Code != api.CodeInvalid {
		t.Fatalf("another body under the same request ID: got %v, want invalid", out.Err)
	}
	c.now = c.now.Add(2 * fsm.RequestMemory)
	trim := fsm.TrimTokens.Entry(fsm.TokensTrim{})
	trim.RequestID = "r2"
	c.do(trim)
	e.Time = epoch
	if out := c.propose(e); out.Err == nil || out.Err.Code != api.CodeUnknown {
		t.Fatalf("a request that is no longer remembered: got %v, want unknown", out.Err)
	}
}

func TestSnapshotRestoresTheSameState(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	for i := range 50 {
		if out := put(c, fsm.VMs.Put, vm(fmt.Sprintf("vm-%d", i))); out.Err != nil {
			t.Fatal(out.Err)
		}
	}
	var buf bytes.Buffer
	if _, err := c.f.Snapshot().WriteTo(&buf); err != nil {
		t.Fatal(err)
	}
	g := fsm.New()
	watch := fsm.VMs.Watch(g.Read())
	if err := g.Restore(bytes.NewReader(buf.Bytes())); err != nil {
		t.Fatal(err)
	}
	select {
	case <-watch:
	default:
		t.Error("a watcher of the old store was not woken")
	}
	a, b := c.f.Read(), g.Read()
	if a.StateHash() != b.StateHash() || a.Chain() != b.Chain() || a.Index() != b.Index() {
		t.Fatal("the restored state differs")
	}
	for i := 0; i < buf.Len(); i += 97 {
		bad := bytes.Clone(buf.Bytes())
		bad[i] ^= 0x40
		if err := fsm.New().Restore(bytes.NewReader(bad)); err == nil {
			t.Fatalf("a flipped bit at byte %d was not noticed", i)
		}
	}
	if err := fsm.New().Restore(bytes.NewReader(buf.Bytes()[:buf.Len()-1])); err == nil {
		t.Fatal("a snapshot cut short was restored")
	}
}

func TestPlanEqualsApply(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	web := vm("web")
	e, _ := fsm.VMs.Put(&web)
	e.Time = c.now
	plan, after, err := c.f.Plan([]fsm.Entry{e})
	if err != nil {
		t.Fatal(err)
	}
	if fsm.VMs.Len(c.f.Read()) != 0 {
		t.Fatal("the plan changed the state")
	}
	c.do(e)
	if got, want := after.StateHash(), c.f.Read().StateHash(); got != want {
		t.Fatalf("the plan led to %v, the entry to %v", got, want)
	}
	if len(plan.Changes) != 2 {
		t.Fatalf("got %d changes, want the VM and its volume", len(plan.Changes))
	}
	records, ok := c.f.Recent(c.index-1, 10)
	if !ok || len(records) != 1 {
		t.Fatalf("got %d records, want 1", len(records))
	}
	got, _ := json.Marshal(records[0].Changes)
	want, _ := json.Marshal(plan.Changes)
	if !bytes.Equal(got, want) {
		t.Fatalf("the record has\n%s\nthe plan\n%s", got, want)
	}
}

func TestGenIsNeverUsedAgainForAnID(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.do(fsm.RegisterNode.Entry(fsm.NodeRegister{ID: nodeID(1), Address: "127.0.0.1:7443", ClusterVersion: fsm.VersionMax}))
	assign := func() uint64 {
		t.Helper()
		id := fsm.VMs.Get(c.f.Read(), "default/web").ID
		node := fsm.Nodes.Get(c.f.Read(), "node1")
		c.do(fsm.AssignInstance.Entry(fsm.Assignment{VM: id, Node: "node1", Epoch: node.Epoch}))
		return fsm.Instances.Get(c.f.Read(), id).Gen
	}
	put(c, fsm.VMs.Put, vm("web"))
	before := *fsm.VMs.Get(c.f.Read(), "default/web")
	first := assign()
	c.do(fsm.VMs.Delete("default", "web", before.Modified))
	c.do(fsm.ConfirmOffNode.Entry(fsm.NodeConfirmOff{Node: "node1", Epoch: 1}))
	c.do(fsm.RegisterNode.Entry(fsm.NodeRegister{ID: nodeID(1), PrevEpoch: 1, Address: "127.0.0.1:7443", ClusterVersion: fsm.VersionMax}))
	again := vm("web")
	again.ID = before.ID
	if out := put(c, fsm.VMs.Put, again); out.Err != nil {
		t.Fatal(out.Err)
	}
	if second := assign(); second <= first {
		t.Fatalf("gen %d after %d: a guest of the deleted VM could pass for the new one", second, first)
	}
}

func TestVolumeOfARemovedNodeIsLostAndNotMadeAgain(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	register := func(n int) {
		c.do(fsm.RegisterNode.Entry(fsm.NodeRegister{ID: nodeID(n), Address: "127.0.0.1:7443", ClusterVersion: fsm.VersionMax}))
	}
	c.do(fsm.CreateToken.Entry(fsm.TokenCreate{Name: "t", Hash: fmt.Sprintf("%064d", 2), Expires: c.now.Add(time.Minute)}))
	c.do(fsm.JoinNode.Entry(fsm.NodeJoin{ID: nodeID(2), Name: "node2", Address: "127.0.0.1:7444", TokenHash: fmt.Sprintf("%064d", 2)}))
	register(1)
	register(2)
	put(c, fsm.VMs.Put, vm("web"))
	id := fsm.VMs.Get(c.f.Read(), "default/web").ID
	c.do(fsm.AssignInstance.Entry(fsm.Assignment{VM: id, Node: "node2", Epoch: 1}))
	volume := fsm.Volumes.Get(c.f.Read(), "default/web-root")
	c.do(fsm.ReportReplica.Entry(fsm.ReplicaReport{Kind: api.KindVolume, OfID: volume.ID, Node: "node2", Epoch: 1, Pool: "local", State: api.ReplicaReady}))
	c.do(fsm.RemoveNode.Entry(fsm.NodeRemove{Node: "node2", Force: true}))
	if r := fsm.Replicas.Get(c.f.Read(), api.ReplicaName(volume.ID, "node2")); r == nil || r.State != api.ReplicaLost {
		t.Fatalf("got %+v, want a copy that is lost", r)
	}
	out := c.propose(fsm.AssignInstance.Entry(fsm.Assignment{VM: id, Gen: fsm.Instances.Get(c.f.Read(), id).Gen, Node: "node1", Epoch: 1}))
	if out.Err == nil || out.Err.Code != api.CodeConflict {
		t.Fatalf("a VM without its disk was placed: %v", out.Err)
	}
	c.do(fsm.VMs.Delete("default", "web", fsm.VMs.Get(c.f.Read(), "default/web").Modified))
	if n := fsm.Replicas.Len(c.f.Read()); n != 0 {
		t.Fatalf("%d copies stayed behind the volume", n)
	}
}

// BenchmarkApplyPut puts into a table of 100,000 VMs in batches of 64.
func BenchmarkApplyPut(b *testing.B) {
	c := newCluster(b)
	const rows, batch = 100_000, 64
	entries := make([]fsm.Committed, 0, batch)
	flush := func() {
		if _, _, err := c.f.ApplyBatch(entries); err != nil {
			b.Fatal(err)
		}
		entries = entries[:0]
	}
	for i := range rows {
		v := vm(fmt.Sprintf("vm-%06d", i))
		v.Disks = nil
		e, _ := fsm.VMs.Put(&v)
		e.Time = c.now
		raw, _ := e.Encode()
		c.index++
		if entries = append(entries, fsm.Committed{Index: c.index, Term: 1, Data: raw}); len(entries) == batch {
			flush()
		}
	}
	flush()
	encoded := make([][]byte, b.N)
	for i := range encoded {
		v := *fsm.VMs.Get(c.f.Read(), fmt.Sprintf("default/vm-%06d", (i*7919)%rows))
		v.CPUs = 1 + i%4
		e, _ := fsm.VMs.Put(&v)
		e.Time, e.RequestID = c.now, fmt.Sprint("r", i)
		encoded[i], _ = e.Encode()
	}
	b.ResetTimer()
	for i := 0; i < b.N; i += batch {
		for j := i; j < min(i+batch, b.N); j++ {
			c.index++
			entries = append(entries, fsm.Committed{Index: c.index, Term: 1, Data: encoded[j]})
		}
		flush()
	}
}
