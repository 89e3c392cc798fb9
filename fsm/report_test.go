package fsm_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// live registers node1 and returns its epoch.
func (c *cluster) live() uint64 {
	c.tb.Helper()
	c.do(fsm.RegisterNode.Entry(fsm.NodeRegister{ID: nodeID(1), Nonce: "n", Address: "127.0.0.1:7443"}))
	return fsm.Nodes.Get(c.f.Read(), "node1").Epoch
}

const dirty = "no\nspace\x1b[2J\u202e\u0085"

// A report is not refused for its words: the state would stay as it was before.
func TestTextsOfMachinesAreCleanedAndCut(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	epoch := c.live()
	long := dirty + strings.Repeat("é", api.TextLengthMax)
	c.do(fsm.ReportNode.Entry(fsm.NodeReport{Node: "node1", Epoch: epoch, Hypervisor: api.HypervisorInfo{Version: long, Reason: long},
		Capacity: api.Capacity{CPUs: 4, MemoryBytes: api.GiB}, Pools: []api.PoolStatus{{Pool: "local", Reason: long, FreeBytes: -5}}}))
	if out := put(c, fsm.VMs.Put, vm("web")); out.Err != nil {
		t.Fatal(out.Err)
	}
	id := fsm.VMs.Get(c.f.Read(), "default/web").ID
	c.do(fsm.AssignInstance.Entry(fsm.Assignment{VM: id, Node: "node1", Epoch: epoch}))
	i := fsm.Instances.Get(c.f.Read(), id)
	c.do(fsm.ReportInstance.Entry(fsm.InstanceReport{VM: id, Gen: i.Gen, Node: "node1", Epoch: epoch, State: api.InstanceFailed, Reason: long,
		Addresses: []string{"10.0.0.1", long}, Drift: []string{long}, Acceleration: long}))
	r := fsm.Replicas.By(c.f.Read(), "node", "node1")
	for have := range r {
		c.do(fsm.ReportReplica.Entry(fsm.ReplicaReport{Kind: have.Kind, OfID: have.OfID, Node: "node1", Epoch: epoch, Pool: "local",
			State: api.ReplicaFailed, Reason: long, UsedBytes: -1}))
	}
	c.do(fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: "t1", Verb: api.TaskApply}))
	c.do(fsm.DispatchTask.Entry(fsm.TaskDispatch{Name: "t1", Epoch: 1}))
	c.do(fsm.FinishTask.Entry(fsm.TaskReport{Name: "t1", Epoch: 1, Attempt: 1, State: api.TaskFailed, Step: long,
		Error: &api.Error{Code: api.CodeInternal, Message: long, Details: []*api.Error{{Message: long}, nil}}}))

	v := c.f.Read()
	node, task := fsm.Nodes.Get(v, "node1"), fsm.Tasks.Get(v, "t1")
	i = fsm.Instances.Get(v, id)
	texts := []string{node.Hypervisor.Version, node.Hypervisor.Reason, node.Pools[0].Reason, i.Reason, i.Addresses[1], i.Drift[0], i.Acceleration,
		task.Step, task.Error.Message, task.Error.Details[0].Message}
	for r := range fsm.Replicas.All(v) {
		texts = append(texts, r.Reason)
		if r.UsedBytes < 0 {
			t.Errorf("%d bytes are used", r.UsedBytes)
		}
	}
	for n, s := range texts {
		if len(s) > api.TextLengthMax || s == "" || strings.ContainsAny(s, "\n\x1b\u202e\u0085\ufffd") {
			t.Errorf("text %d: %d bytes, %.20q", n, len(s), s)
		}
	}
	if i.Addresses[0] != "10.0.0.1" || node.Pools[0].FreeBytes != 0 {
		t.Errorf("got %+v, %+v", i.Addresses, node.Pools)
	}
	for _, capacity := range []api.Capacity{{CPUs: -1}, {CPUs: 1 << 62}, {MemoryBytes: 1 << 62}} {
		out := c.propose(fsm.ReportNode.Entry(fsm.NodeReport{Node: "node1", Epoch: epoch, Capacity: capacity}))
		if out.Err == nil || out.Err.Code != api.CodeInvalid {
			t.Errorf("capacity %+v: got %v, want invalid", capacity, out.Err)
		}
	}
}

func TestATaskIsAboutWhatItsVerbIsAbout(t *testing.T) {
	t.Parallel()
	for _, in := range []fsm.TaskSubmit{
		{Name: "t", Verb: api.TaskStop},
		{Name: "t", Verb: api.TaskRestart, Kind: api.KindNode, Object: "node1"},
		{Name: "t", Verb: api.TaskApply, Kind: api.KindVM, Object: "default/web"},
		{Name: "t", Verb: api.TaskApply, Object: strings.Repeat("x", 1<<16)},
	} {
		c := newCluster(t)
		if out := put(c, fsm.VMs.Put, vm("web")); out.Err != nil {
			t.Fatal(out.Err)
		}
		if out := c.propose(fsm.SubmitTask.Entry(in)); out.Err == nil || out.Err.Field != "kind" {
			t.Errorf("%s of %q: got %v, want that kind is refused", in.Verb, in.Kind, out.Err)
		}
	}
}

// 24 bits are derived: among 100,000 VMs one in 160 meets an address in use.
func TestADerivedAddressThatIsTakenIsPassedOver(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	put(c, fsm.Networks.Put, api.Network{Meta: api.Meta{Name: "lan", Tenant: "default"}, Driver: "bridge", Bridge: "br0"})
	const id = "44444444-4444-4444-8444-444444444444"
	web := vm("web")
	web.ID, web.NICs = id, []api.NIC{{Network: "lan"}}
	if out := put(c, fsm.VMs.Put, web); out.Err != nil {
		t.Fatal(out.Err)
	}
	have := fsm.VMs.Get(c.f.Read(), "default/web")
	taken := have.NICs[0].MAC
	c.do(fsm.VMs.Delete("default", "web", have.Modified))
	other := vm("other")
	other.NICs = []api.NIC{{Network: "lan", MAC: taken}}
	if out := put(c, fsm.VMs.Put, other); out.Err != nil {
		t.Fatal(out.Err)
	}
	if out := put(c, fsm.VMs.Put, web); out.Err != nil {
		t.Fatalf("the derived address is in use: %v", out.Err)
	}
	have = fsm.VMs.Get(c.f.Read(), "default/web")
	got := have.NICs[0].MAC
	if got == taken || !strings.HasPrefix(got, "52:54:00:") {
		t.Fatalf("got %s", got)
	}
	o := fsm.VMs.Get(c.f.Read(), "default/other")
	c.do(fsm.VMs.Delete("default", "other", o.Modified))
	again := *have
	again.CPUs, again.NICs = 2, []api.NIC{{Network: "lan"}}
	if out := put(c, fsm.VMs.Put, again); out.Err != nil {
		t.Fatal(out.Err)
	}
	if now := fsm.VMs.Get(c.f.Read(), "default/web").NICs[0].MAC; now != got {
		t.Errorf("the address changed from %s to %s when the other VM went", got, now)
	}
}

func TestABridgeStaysWhileVMsUseIt(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	put(c, fsm.Networks.Put, api.Network{Meta: api.Meta{Name: "lan", Tenant: "default"}, Driver: "bridge", Bridge: "br0"})
	web := vm("web")
	web.NICs = []api.NIC{{Network: "lan"}}
	put(c, fsm.VMs.Put, web)
	change := *fsm.Networks.Get(c.f.Read(), "default/lan")
	change.Bridge = "br1"
	if out := put(c, fsm.Networks.Put, change); out.Err == nil || out.Err.Field != "bridge" {
		t.Errorf("got %v, want that bridge is refused", out.Err)
	}
	change.Bridge, change.Description = "br0", "the office"
	if out := put(c, fsm.Networks.Put, change); out.Err != nil {
		t.Error(out.Err)
	}
}

func TestAPoolIsNotTakenFromUnderItsVolumes(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	epoch := c.live()
	hash := fmt.Sprintf("%064d", 7)
	c.do(fsm.CreateToken.Entry(fsm.TokenCreate{Name: "t", Hash: hash, Expires: c.now.Add(1e9)}))
	c.do(fsm.JoinNode.Entry(fsm.NodeJoin{ID: nodeID(2), Name: "node2", Address: "127.0.0.2:7443", TokenHash: hash}))
	put(c, fsm.Images.Put, api.Image{Meta: api.Meta{Name: "img", Tenant: "default"}, Format: "raw", SHA256: sha, SizeBytes: 1})
	image := fsm.Images.Get(c.f.Read(), "default/img")
	c.do(fsm.ReportReplica.Entry(fsm.ReplicaReport{Kind: api.KindImage, OfID: image.ID, Node: "node1", Epoch: epoch, Pool: "local", State: api.ReplicaReady}))
	volume := api.Volume{Meta: api.Meta{Name: "data", Tenant: "default"}, Pool: "local", SizeBytes: api.GiB, Node: "node1"}
	if out := put(c, fsm.Volumes.Put, volume); out.Err != nil {
		t.Fatal(out.Err)
	}
	pool := func() api.Pool { return *fsm.Pools.Get(c.f.Read(), "local") }
	narrow := pool()
	narrow.Nodes = []string{"node2"}
	if out := put(c, fsm.Pools.Put, narrow); out.Err == nil || out.Err.Field != "nodes" {
		t.Errorf("a pool that leaves its volume behind: got %v, want that nodes is refused", out.Err)
	}
	v := fsm.Volumes.Get(c.f.Read(), "default/data")
	c.do(fsm.Volumes.Delete("default", "data", v.Modified))
	moved := pool()
	moved.Path = "/srv/elsewhere"
	if out := put(c, fsm.Pools.Put, moved); out.Err == nil || out.Err.Code != api.CodeConflict {
		t.Errorf("a pool moves while a file is being removed: got %v, want conflict", out.Err)
	}
	c.do(fsm.ForgetReplica.Entry(fsm.ReplicaEnd{OfID: v.ID, Node: "node1", Epoch: epoch}))
	if out := put(c, fsm.Pools.Put, moved); out.Err != nil {
		t.Fatal(out.Err)
	}
	for r := range fsm.Replicas.All(c.f.Read()) {
		t.Errorf("%s %s is still said to be in the pool that moved", r.Kind, r.Of)
	}
}
