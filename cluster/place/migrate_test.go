package place

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
)

func moveNode(name string, change ...func(*api.Node)) *api.Node {
	n := &api.Node{Meta: api.Meta{Name: name}, Lease: api.NodeLive, Capacity: api.Capacity{CPUs: 8, MemoryBytes: 16 * api.GiB},
		Hypervisor: api.HypervisorInfo{Driver: "libvirt", Acceleration: "kvm", Architecture: "x86_64", CPUModel: "EPYC", Healthy: true},
		Pools:      []api.PoolStatus{{Pool: "local", TotalBytes: 100 * api.GiB, FreeBytes: 50 * api.GiB}}}
	for _, f := range change {
		f(n)
	}
	return n
}

func moveInput(nodes ...*api.Node) (Input, *api.VM) {
	vm := &api.VM{Meta: api.Meta{ID: "web", Name: "web", Tenant: "default"}, CPUs: 2, MemoryBytes: 4 * api.GiB, Disks: []api.Disk{{Name: "root", Volume: "root"}}}
	return Input{Nodes: append(nodes, moveNode("a")), VMs: []Placed{{VM: vm, Node: "a"}},
		Pools:    map[string]*api.Pool{"local": {Meta: api.Meta{Name: "local"}, Driver: api.PoolDir}},
		Volumes:  map[string]*api.Volume{"default/root": {Meta: api.Meta{Name: "root", Tenant: "default"}, Pool: "local", SizeBytes: 10 * api.GiB}},
		Replicas: []*api.Replica{{Kind: api.KindVolume, Of: "default/root", Node: "a", Pool: "local", State: api.ReplicaReady}}}, vm
}

func TestAMoveNamesEveryReasonAgainstANode(t *testing.T) {
	t.Parallel()
	in, vm := moveInput(moveNode("b", func(n *api.Node) {
		n.Unschedulable, n.Capacity.MemoryBytes, n.Pools[0].FreeBytes = true, 2*api.GiB, api.GiB
		n.Hypervisor.Driver, n.Hypervisor.Acceleration, n.Hypervisor.CPUModel, n.Hypervisor.Architecture = "sim", "none", "Xeon", "aarch64"
	}))
	d := New(in).DecideMove(vm, Move{From: "a", To: "b", CopyStorage: true}, time.Now())
	if d.Node != "" || len(d.Candidates) != 1 {
		t.Fatalf("got %+v", d)
	}
	all := strings.Join(d.Candidates[0].Reasons, "\n")
	for _, want := range []string{"hypervisor: libvirt on a, sim here", "acceleration: kvm on a", "CPU model: EPYC on a", "architecture: x86_64 on a", "unschedulable", "memory:", "pool local:"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is missing in\n%s", want, all)
		}
	}
	if d := New(in).DecideMove(vm, Move{From: "a", To: "a"}, time.Now()); d.Node != "" || !strings.Contains(d.Candidates[0].Reasons[0], "there already") {
		t.Errorf("to its own node: %+v", d)
	}
	if d := New(in).DecideMove(vm, Move{From: "a", To: "z"}, time.Now()); d.Node != "" || !strings.Contains(d.Summary, "z is not a member") {
		t.Errorf("to nowhere: %+v", d)
	}
}

func TestLocalDisksMoveOnlyWhenTheyAreCopied(t *testing.T) {
	t.Parallel()
	in, vm := moveInput(moveNode("b"), moveNode("c", func(n *api.Node) { n.Pools = nil }))
	stays := New(in).DecideMove(vm, Move{From: "a"}, time.Now())
	if stays.Node != "" || !slices.ContainsFunc(stays.Candidates, func(c api.Candidate) bool { return strings.Contains(strings.Join(c.Reasons, ""), "copy_storage") }) {
		t.Errorf("without copying: %+v", stays)
	}
	moves := New(in).DecideMove(vm, Move{From: "a", CopyStorage: true}, time.Now())
	if moves.Node != "b" {
		t.Errorf("with copying: %+v", moves)
	}
}

// A place is held for a VM that is on its way, and a copy that is being filled
// is no copy yet.
func TestAPlaceIsHeldForWhatArrives(t *testing.T) {
	t.Parallel()
	in, vm := moveInput(moveNode("b", func(n *api.Node) { n.Capacity.MemoryBytes = 8 * api.GiB }))
	other := &api.VM{Meta: api.Meta{ID: "other", Name: "other", Tenant: "default"}, CPUs: 1, MemoryBytes: 6 * api.GiB}
	if d := New(in).Decide(other, time.Now()); !slices.ContainsFunc(d.Candidates, func(c api.Candidate) bool { return c.Node == "b" && c.Fits }) {
		t.Fatalf("b has no room in the first place: %+v", d)
	}
	in.Arriving = []Placed{{VM: vm, Node: "b"}}
	in.Replicas = append(in.Replicas, &api.Replica{Kind: api.KindVolume, Of: "default/root", Node: "b", Pool: "local", State: api.ReplicaReady, From: "a", SizeBytes: api.GiB})
	c := New(in)
	if d := c.Decide(other, time.Now()); slices.ContainsFunc(d.Candidates, func(c api.Candidate) bool { return c.Node == "b" && c.Fits }) {
		t.Errorf("the room on b was given away: %+v", d)
	}
	if d := c.Decide(vm, time.Now()); slices.ContainsFunc(d.Candidates, func(c api.Candidate) bool { return c.Node == "b" && c.Fits }) {
		t.Errorf("the VM would start on a copy that is being filled: %+v", d)
	}
}
