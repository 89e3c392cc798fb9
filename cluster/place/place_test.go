package place_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster/place"
	"github.com/google/go-cmp/cmp"
)

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// node makes a healthy node with 4 CPUs, 8 GiB and 100 GiB free in pool local.
func node(name string, change ...func(*api.Node)) *api.Node {
	n := &api.Node{
		Meta: api.Meta{Name: name}, Lease: api.NodeLive,
		Hypervisor: api.HypervisorInfo{Healthy: true},
		Capacity:   api.Capacity{CPUs: 4, MemoryBytes: 8 * api.GiB},
		Pools:      []api.PoolStatus{{Pool: "local", FreeBytes: 100 * api.GiB}, {Pool: "nfs", FreeBytes: 100 * api.GiB}},
	}
	for _, f := range change {
		f(n)
	}
	return n
}

func vm(name string, change ...func(*api.VM)) *api.VM {
	v := &api.VM{Meta: api.Meta{ID: "id-" + name, Name: name, Tenant: "default"}, CPUs: 1, MemoryBytes: api.GiB}
	for _, f := range change {
		f(v)
	}
	return v
}

func labelled(k, v string) func(*api.VM) {
	return func(m *api.VM) { m.Labels = map[string]string{k: v} }
}

func apart(k, v string) func(*api.VM) {
	return func(m *api.VM) { m.Placement.AntiAffinity = map[string]string{k: v} }
}

func near(k, v string) func(*api.VM) {
	return func(m *api.VM) { m.Placement.Affinity = map[string]string{k: v} }
}

func disk(d api.Disk) func(*api.VM) {
	return func(m *api.VM) { m.Disks = append(m.Disks, d) }
}

// input is three equal nodes with a local and a shared pool.
func input(nodes ...*api.Node) place.Input {
	if len(nodes) == 0 {
		nodes = []*api.Node{node("n1"), node("n2"), node("n3")}
	}
	return place.Input{
		Nodes: nodes,
		Pools: map[string]*api.Pool{
			"local": {Meta: api.Meta{Name: "local"}, ReserveBytes: 10 * api.GiB},
			"nfs":   {Meta: api.Meta{Name: "nfs"}, Shared: true},
		},
		Volumes: map[string]*api.Volume{},
		Images:  map[string]*api.Image{},
	}
}

// refusal is a change to a cluster of one node, and why the node then refuses.
type refusal struct {
	name    string
	node    func(*api.Node)
	vm      []func(*api.VM)
	in      func(*place.Input)
	summary string
	reason  string
}

func refusals() []refusal {
	volume := func(in *place.Input, v *api.Volume) { in.Volumes[api.Key(v.Tenant, v.Name)] = v }
	data := func(pool, wanted string) *api.Volume {
		return &api.Volume{Meta: api.Meta{Name: "data", Tenant: "default"}, Pool: pool, SizeBytes: 95 * api.GiB, Node: wanted}
	}
	return []refusal{
		{"fenced", func(n *api.Node) { n.Lease = api.NodeFenced }, nil, nil, "1 is fenced", "its lease ended"},
		{"unregistered", func(n *api.Node) { n.Lease = "" }, nil, nil, "1 is fenced", "has not registered yet"},
		{"witness", func(n *api.Node) { n.Witness = true }, nil, nil, "1 is a witness", "runs no VMs"},
		{"unschedulable", func(n *api.Node) { n.Unschedulable = true }, nil, nil, "1 takes no new VMs", "unschedulable"},
		{"unhealthy", func(n *api.Node) { n.Hypervisor = api.HypervisorInfo{Reason: "libvirtd is down"} }, nil, nil, "no healthy hypervisor", "libvirtd is down"},
		{"unhealthy without a reason", func(n *api.Node) { n.Hypervisor = api.HypervisorInfo{} }, nil, nil, "no healthy hypervisor", "no reason"},
		{"named", nil, []func(*api.VM){func(v *api.VM) { v.Placement.Node = "n7" }}, nil, "not the node that the VM names", "node n7 only"},
		{"labels", nil, []func(*api.VM){func(v *api.VM) { v.Placement.Nodes = map[string]string{"gpu": "yes", "arch": "arm"} }}, nil, "lacks the wanted labels", "arch=arm, gpu=yes"},
		{"memory", nil, nil, func(in *place.Input) {
			in.VMs = []place.Placed{{VM: vm("big", func(v *api.VM) { v.MemoryBytes = 15 * api.GiB / 2 }), Node: "n1"}}
		}, "1 is full (memory)", "memory: 1 GiB needed, 512 MiB free of 8 GiB"},
		{"cpu", nil, nil, func(in *place.Input) {
			in.VMs = []place.Placed{{VM: vm("big", func(v *api.VM) { v.CPUs = 16 }), Node: "n1"}}
		}, "1 is full (CPU)", "CPU: 1 vCPU needed, 0 free of 16"},
		{"anti-affinity of the newcomer", nil, []func(*api.VM){apart("app", "db")}, func(in *place.Input) {
			in.VMs = []place.Placed{{VM: vm("db", labelled("app", "db")), Node: "n1"}}
		}, "must be apart from", "VM db with app=db is here"},
		{"anti-affinity of one there", nil, []func(*api.VM){labelled("app", "web")}, func(in *place.Input) {
			in.VMs = []place.Placed{{VM: vm("db", apart("app", "web")), Node: "n1"}}
		}, "must be apart from", "VM db here refuses app=web"},
		{"pool not on node", nil, []func(*api.VM){disk(api.Disk{Name: "d", SizeBytes: api.GiB})}, func(in *place.Input) { in.Pools["local"].Nodes = []string{"n2"} }, "lacks a pool", "pool local is not on this node"},
		{"pool not reported", func(n *api.Node) { n.Pools = nil }, []func(*api.VM){disk(api.Disk{Name: "d", SizeBytes: api.GiB})}, nil, "lacks a pool", "not reported it yet"},
		{"pool broken", func(n *api.Node) { n.Pools[0].Reason = "read-only file system" }, []func(*api.VM){disk(api.Disk{Name: "d", SizeBytes: api.GiB})}, nil, "lacks a pool", "read-only file system"},
		{"pool missing", nil, []func(*api.VM){disk(api.Disk{Name: "d", Pool: "fast", SizeBytes: api.GiB})}, nil, "pool fast does not exist", "pool fast does not exist"},
		{"volume missing", nil, []func(*api.VM){disk(api.Disk{Name: "d", Volume: "data"})}, nil, "volume default/data does not exist", "volume default/data does not exist"},
		{"volume elsewhere", nil, []func(*api.VM){disk(api.Disk{Name: "d", Volume: "data"})}, func(in *place.Input) {
			volume(in, data("local", ""))
			in.Replicas = []*api.Replica{{Kind: api.KindVolume, Of: "default/data", Node: "n9", Pool: "local", State: api.ReplicaReady}}
		}, "not where a local volume lies", "local volume data lies on n9"},
		{"volume wanted elsewhere", nil, []func(*api.VM){disk(api.Disk{Name: "d", Volume: "data"})}, func(in *place.Input) { volume(in, data("local", "n9")) }, "not where a local volume lies", "data is wanted on n9"},
		{"overcommit", func(n *api.Node) { n.Pools[0].TotalBytes = 100 * api.GiB }, []func(*api.VM){disk(api.Disk{Name: "a", SizeBytes: 60 * api.GiB})},
			func(in *place.Input) { in.Pools["local"].Overcommit = 0.5 }, "too little space", "pool local: 60 GiB needed, 50 GiB free"},
		{"space", nil, []func(*api.VM){disk(api.Disk{Name: "a", SizeBytes: 60 * api.GiB}), disk(api.Disk{Name: "b", SizeBytes: 40 * api.GiB})}, nil, "too little space", "pool local: 100 GiB needed, 90 GiB free"},
		{"space of a pending volume", nil, []func(*api.VM){disk(api.Disk{Name: "a", SizeBytes: 60 * api.GiB})}, func(in *place.Input) {
			in.Replicas = []*api.Replica{{Kind: api.KindVolume, Of: "default/x", Node: "n1", Pool: "local", State: api.ReplicaPending, SizeBytes: 50 * api.GiB}}
		}, "too little space", "pool local: 60 GiB needed, 40 GiB free"},
		{"space for an image", nil, []func(*api.VM){disk(api.Disk{Name: "a", Image: "huge"})}, func(in *place.Input) {
			in.Images["default/huge"] = &api.Image{SizeBytes: 91 * api.GiB}
		}, "too little space", "pool local: 91 GiB needed"},
		{"space of an unmade volume", nil, []func(*api.VM){disk(api.Disk{Name: "d", Volume: "data"})}, func(in *place.Input) { volume(in, data("local", "n1")) }, "too little space", "95 GiB needed"},
	}
}

func TestEachFilterRefusesWithItsReason(t *testing.T) {
	t.Parallel()
	for _, c := range refusals() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := node("n1")
			if c.node != nil {
				c.node(n)
			}
			in := input(n)
			if c.in != nil {
				c.in(&in)
			}
			d := place.New(in).Decide(vm("new", c.vm...), noon)
			if d.Node != "" {
				t.Fatalf("placed on %s, want nowhere", d.Node)
			}
			if !strings.Contains(d.Summary, c.summary) || !strings.HasPrefix(d.Summary, "no node fits: ") {
				t.Errorf("summary %q, want %q in it", d.Summary, c.summary)
			}
			if got := strings.Join(d.Candidates[0].Reasons, " | "); !strings.Contains(got, c.reason) {
				t.Errorf("reasons %q, want %q in them", got, c.reason)
			}
		})
	}
}

func TestSummaryCountsReasons(t *testing.T) {
	t.Parallel()
	in := input(node("n1", func(n *api.Node) { n.Lease = api.NodeFenced }), node("n2"), node("n3"))
	for _, n := range []string{"n2", "n3"} {
		in.VMs = append(in.VMs, place.Placed{VM: vm("big-"+n, func(v *api.VM) { v.MemoryBytes = 8 * api.GiB }), Node: n})
	}
	d := place.New(in).Decide(vm("new"), noon)
	if want := "no node fits: 2 are full (memory), 1 is fenced"; d.Summary != want {
		t.Errorf("summary %q, want %q", d.Summary, want)
	}
	if d := place.New(input([]*api.Node{}...)).Decide(vm("new"), noon); d.Considered != 3 {
		t.Errorf("considered %d, want 3", d.Considered)
	}
	if d := place.New(place.Input{}).Decide(vm("new"), noon); d.Summary != "no node fits: the cluster has no nodes" {
		t.Errorf("summary %q", d.Summary)
	}
}

func TestVMLargerThanAnyNodeNamesTheLargest(t *testing.T) {
	t.Parallel()
	in := input(node("n1"), node("n2", func(n *api.Node) { n.Capacity.MemoryBytes = 16 * api.GiB }),
		node("w", func(n *api.Node) { n.Witness, n.Capacity.MemoryBytes = true, api.TiB }))
	in.Config.MemoryReserve = api.GiB
	c := place.New(in)
	d := c.Decide(vm("new", func(v *api.VM) { v.MemoryBytes = 64 * api.GiB }), noon)
	if want := "the VM is larger than any node: it needs 64 GiB of memory; the largest, n2, can give 15 GiB"; d.Summary != want {
		t.Errorf("summary %q, want %q", d.Summary, want)
	}
	d = c.Decide(vm("new", func(v *api.VM) { v.CPUs = 100 }), noon)
	if !strings.Contains(d.Summary, "it needs 100 vCPUs; the largest, n1, can give 16") {
		t.Errorf("summary %q", d.Summary)
	}
	in.Nodes[0].Capacity.CPUs = 32
	d = place.New(in).Decide(vm("new", func(v *api.VM) { v.CPUs, v.MemoryBytes = 100, 15*api.GiB }), noon)
	if !strings.Contains(d.Summary, "none can give both 100 vCPUs and 15 GiB") {
		t.Errorf("summary %q", d.Summary)
	}
}

func TestSpreadTakesFewestVMsAndPackTheFullest(t *testing.T) {
	t.Parallel()
	in := input()
	in.VMs = []place.Placed{{VM: vm("a"), Node: "n1"}, {VM: vm("b"), Node: "n1"}, {VM: vm("c"), Node: "n3"}}
	c := place.New(in)
	pack := func(v *api.VM) { v.Placement.Strategy = api.StrategyPack }
	spread, packed := c.Decide(vm("new"), noon), c.Decide(vm("new", pack), noon)
	if spread.Node != "n2" || packed.Node != "n1" {
		t.Errorf("spread %s, pack %s; want n2, n1", spread.Node, packed.Node)
	}
	if spread.Strategy != api.StrategySpread || packed.Strategy != api.StrategyPack || !spread.At.Equal(noon) {
		t.Errorf("strategies %q and %q at %v", spread.Strategy, packed.Strategy, spread.At)
	}
	if spread.Summary != "n2 has the fewest VMs (0) of 3 nodes that fit" || packed.Summary != "n1 is the fullest of 3 nodes that fit" {
		t.Errorf("summaries %q and %q", spread.Summary, packed.Summary)
	}
	in.Config.PlacementStrategy = api.StrategyPack
	if d := place.New(in).Decide(vm("new"), noon); d.Node != "n1" {
		t.Errorf("with the cluster's strategy pack: %s, want n1", d.Node)
	}
}

func TestSpreadPrefersFreeShareAmongEquals(t *testing.T) {
	t.Parallel()
	d := place.New(input(node("n1"), node("n2", func(n *api.Node) { n.Capacity.MemoryBytes *= 2; n.Capacity.CPUs *= 2 }))).Decide(vm("new"), noon)
	if d.Node != "n2" {
		t.Errorf("placed on %s, want the emptier n2", d.Node)
	}
}

func TestEqualNodesAreTakenByName(t *testing.T) {
	t.Parallel()
	d := place.New(input(node("n3"), node("n1"), node("n2"))).Decide(vm("new"), noon)
	var got []string
	for _, c := range d.Candidates {
		got = append(got, c.Node)
	}
	if want := []string{"n1", "n2", "n3"}; !cmp.Equal(got, want) {
		t.Errorf("candidates %v, want %v", got, want)
	}
}

func TestAffinityHoldsOnlyWhileSomeoneRuns(t *testing.T) {
	t.Parallel()
	in := input()
	friend := near("app", "db")
	if d := place.New(in).Decide(vm("new", friend), noon); d.Node != "n1" {
		t.Errorf("with no friend: %s, want n1", d.Node)
	}
	in.VMs = []place.Placed{{VM: vm("db", labelled("app", "db")), Node: "n3"}}
	if d := place.New(in).Decide(vm("new", friend), noon); d.Node != "n3" || d.Summary != "n3 is the only one of 3 nodes that fits" {
		t.Errorf("with a friend on n3: %q, %s", d.Node, d.Summary)
	}
	in.Nodes[2].Lease = api.NodeFenced
	if d := place.New(in).Decide(vm("new", friend), noon); d.Node != "n1" {
		t.Errorf("with the friend on a lost node: %q, want n1", d.Node)
	}
}

func TestLabelsOfAnotherTenantDoNotCount(t *testing.T) {
	t.Parallel()
	in := input()
	other := func(v *api.VM) { v.Tenant = "other" }
	in.VMs = []place.Placed{{VM: vm("db", labelled("app", "db"), apart("app", "web"), other), Node: "n1"}}
	c := place.New(in)
	d := c.Decide(vm("new", labelled("app", "web"), apart("app", "db"), near("app", "db")), noon)
	if n := len(d.Candidates); n != 3 || !d.Candidates[2].Fits {
		t.Errorf("candidates %+v, want 3 that fit", d.Candidates)
	}
}

func TestOwnPlaceDoesNotStandInTheWay(t *testing.T) {
	t.Parallel()
	in := input(node("n1"))
	self := vm("web", labelled("app", "web"), apart("app", "web"), func(v *api.VM) { v.MemoryBytes = 8 * api.GiB })
	in.VMs = []place.Placed{{VM: self, Node: "n1"}}
	c := place.New(in)
	if d := c.Decide(self, noon); d.Node != "n1" {
		t.Errorf("placed nowhere: %s", d.Summary)
	}
	if d := c.Decide(vm("other"), noon); d.Node != "" {
		t.Errorf("placed on %s although it is full", d.Node)
	}
	c.Remove(self)
	if d := c.Decide(vm("other"), noon); d.Node != "n1" {
		t.Errorf("after removal: %s", d.Summary)
	}
}

func TestVolumesPinAndPromiseSpace(t *testing.T) {
	t.Parallel()
	in := input()
	in.Volumes["default/data"] = &api.Volume{Meta: api.Meta{Name: "data", Tenant: "default"}, Pool: "local", SizeBytes: 60 * api.GiB}
	in.Volumes["default/share"] = &api.Volume{Meta: api.Meta{Name: "share", Tenant: "default"}, Pool: "nfs", SizeBytes: 60 * api.GiB}
	c := place.New(in)
	first := vm("a", disk(api.Disk{Name: "d", Volume: "data"}))
	c.Place(first, "n2")
	if d := c.Decide(vm("b", disk(api.Disk{Name: "d", Volume: "data"})), noon); d.Node != "n2" {
		t.Errorf("the volume goes to n2 with its first VM, its second VM to %q", d.Node)
	}
	big := vm("c", disk(api.Disk{Name: "d", SizeBytes: 40 * api.GiB}), func(v *api.VM) { v.Placement.Node = "n2" })
	if d := c.Decide(big, noon); d.Node != "" {
		t.Errorf("space for data is promised on n2, and still %s was placed", big.Name)
	}
	c.Remove(first)
	if d := c.Decide(big, noon); d.Node != "n2" {
		t.Errorf("after removal of its VM: %s", d.Summary)
	}
	c.Place(vm("s", disk(api.Disk{Name: "d", Volume: "share"})), "n1")
	shared := vm("t", disk(api.Disk{Name: "d", Pool: "nfs", SizeBytes: 50 * api.GiB}))
	if d := c.Decide(shared, noon); d.Node != "" || !strings.Contains(d.Summary, "3 have too little space") {
		t.Errorf("a shared pool has its space once, not on every node: %q, %s", d.Node, d.Summary)
	}
	if d := c.Decide(vm("u", disk(api.Disk{Name: "d", Volume: "share"})), noon); d.Node == "" {
		t.Errorf("a shared volume can be used anywhere: %s", d.Summary)
	}
}

func TestReplicasThatGoDoNotPin(t *testing.T) {
	t.Parallel()
	in := input()
	in.Volumes["default/data"] = &api.Volume{Meta: api.Meta{Name: "data", Tenant: "default"}, Pool: "local", SizeBytes: api.GiB}
	in.Replicas = []*api.Replica{
		{Kind: api.KindVolume, Of: "default/data", Node: "n1", Pool: "local", State: api.ReplicaReady, Delete: true},
		{Kind: api.KindVolume, Of: "default/data", Node: "n3", Pool: "local", State: api.ReplicaFailed},
	}
	if d := place.New(in).Decide(vm("a", disk(api.Disk{Name: "d", Volume: "data"})), noon); d.Node != "n3" {
		t.Errorf("placed on %q, want n3", d.Node)
	}
}

func TestAtMostCandidatesMaxAreKeptAndThoseThatFitComeFirst(t *testing.T) {
	t.Parallel()
	var nodes []*api.Node
	for i := range 40 {
		nodes = append(nodes, node(fmt.Sprintf("n%02d", i), func(n *api.Node) { n.Unschedulable = i < 37 }))
	}
	d := place.New(input(nodes...)).Decide(vm("a"), noon)
	if len(d.Candidates) != api.CandidatesMax || d.Considered != 40 || d.Node != "n37" {
		t.Fatalf("%d candidates, %d considered, on %s", len(d.Candidates), d.Considered, d.Node)
	}
	for i, c := range d.Candidates {
		if c.Fits != (i < 3) || len(c.Reasons) == 0 {
			t.Errorf("candidate %d is %+v", i, c)
		}
	}
	if d.Candidates[3].Node != "n00" {
		t.Errorf("fourth is %s, want n00", d.Candidates[3].Node)
	}
}
