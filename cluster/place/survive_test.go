package place_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster/place"
)

func voter(n *api.Node) { n.Voter = true }

// full is three voters that hold two VMs of 3 GiB each in 8 GiB: one may be
// lost, as long as the VMs of the lost one find 3 GiB twice.
func survivors(perNode int, memory int64) *place.Cluster {
	in := input(node("n1", voter), node("n2", voter), node("n3", voter))
	for i := range 3 * perNode {
		v := vm(fmt.Sprintf("v%d", i), func(v *api.VM) { v.MemoryBytes = memory })
		in.VMs = append(in.VMs, place.Placed{VM: v, Node: fmt.Sprintf("n%d", i%3+1)})
	}
	return place.New(in)
}

func TestSurvivalCountsVMsThatFindNoPlace(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		vms    int // on each node
		memory int64
		one    bool
		down   [2]int // in the worst case, of one and of two lost nodes
	}{
		{"roomy", 1, 2 * api.GiB, true, [2]int{0, 0}},
		{"one may go", 2, 2 * api.GiB, true, [2]int{0, 2}},
		{"full", 2, 4 * api.GiB, false, [2]int{2, 4}},
	} {
		s := survivors(c.vms, c.memory).Survives()
		if len(s) != 2 || s[0].Survives != c.one || s[0].VMs != c.down[0] || s[1].VMs != c.down[1] {
			t.Errorf("%s: got %+v", c.name, s)
		}
		if !s[0].Quorum || s[1].Quorum || s[1].Survives {
			t.Errorf("%s: of three voters two are the majority: %+v", c.name, s)
		}
	}
}

func TestSurvivalSparesTheImportant(t *testing.T) {
	t.Parallel()
	in := input(node("n1", voter), node("n2", voter), node("n3", voter))
	for i, name := range []string{"n1", "n1", "n2", "n3"} {
		v := vm(fmt.Sprintf("v%d", i), func(v *api.VM) { v.MemoryBytes, v.Priority = 5*api.GiB, i })
		if name == "n1" {
			v.MemoryBytes = 3 * api.GiB
		}
		in.VMs = append(in.VMs, place.Placed{VM: v, Node: name})
	}
	s := place.New(in).Survives()[0]
	if s.VMs != 1 || !slices.Equal(s.Down, []string{"default/v2"}) && !slices.Equal(s.Down, []string{"default/v3"}) {
		t.Fatalf("got %+v", s)
	}
}

func TestAVMOnALocalDiskOrOffIsCountedForWhatItIs(t *testing.T) {
	t.Parallel()
	in := input(node("n1", voter), node("n2", voter), node("n3", voter))
	in.Volumes["default/data"] = &api.Volume{Meta: api.Meta{Name: "data", Tenant: "default"}, Pool: "local", SizeBytes: api.GiB}
	in.Replicas = []*api.Replica{{Kind: api.KindVolume, Of: "default/data", Node: "n1", Pool: "local", State: api.ReplicaReady}}
	in.VMs = []place.Placed{
		{VM: vm("bound", disk(api.Disk{Volume: "data"})), Node: "n1"},
		{VM: vm("off", func(v *api.VM) { v.Power, v.MemoryBytes = api.PowerOff, 8*api.GiB }), Node: "n2"},
	}
	s := place.New(in).Survives()[0]
	if s.VMs != 1 || s.Down[0] != "default/bound" || !slices.Equal(s.Worst, []string{"n1"}) {
		t.Fatalf("got %+v", s)
	}
}

func TestSurvivalLeavesThePictureAsItWas(t *testing.T) {
	t.Parallel()
	c := survivors(2, 3*api.GiB)
	before := c.Decide(vm("new"), noon)
	c.Survives()
	c.Balance(noon, 10)
	if after := c.Decide(vm("new"), noon); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Fatalf("got %+v, want %+v", after, before)
	}
}

func TestSurvivalOfManyIsSaidToBeUnknownRatherThanComputedForLong(t *testing.T) {
	t.Parallel()
	var nodes []*api.Node
	for i := range 200 {
		nodes = append(nodes, node(fmt.Sprintf("n%03d", i), func(n *api.Node) { n.Voter = i < 7 }))
	}
	in := input(nodes...)
	for i := range 400 {
		in.VMs = append(in.VMs, place.Placed{VM: vm(fmt.Sprintf("v%d", i)), Node: nodes[i%200].Name})
	}
	s := place.New(in).Survives()
	if !s[0].Survives || s[1].Known || s[1].Survives {
		t.Fatalf("got %+v", s)
	}
	if text := api.SurvivalText(s); text != "survives the loss of: any 1 node yes, any 2 unknown" {
		t.Fatal(text)
	}
}

func TestASingleNodeSurvivesNothing(t *testing.T) {
	t.Parallel()
	s := place.New(input(node("n1", voter))).Survives()
	if text := api.SurvivalText(s); len(s) != 0 || !strings.HasSuffix(text, "no node") {
		t.Fatalf("%+v %s", s, text)
	}
}

func TestBalanceProposesMovesThatPayOff(t *testing.T) {
	t.Parallel()
	in := input()
	for i := range 4 {
		in.VMs = append(in.VMs, place.Placed{VM: vm(fmt.Sprintf("v%d", i), func(v *api.VM) { v.MemoryBytes = 2 * api.GiB }), Node: "n1"})
	}
	c := place.New(in)
	b := c.Balance(noon, 10)
	if len(b.Moves) != 2 || b.Before != 1 || b.After != 0.25 {
		t.Fatalf("got %+v", b)
	}
	for _, m := range b.Moves {
		if m.From != "n1" || m.To == "n1" || !strings.Contains(m.Reason, "imbalance") {
			t.Errorf("got %+v", m)
		}
	}
	if again := c.Balance(noon, 1); len(again.Moves) != 1 || again.Moves[0] != b.Moves[0] {
		t.Errorf("one move only: got %+v", again)
	}
}

func TestBalanceMovesNothingThatIsBoundOrWorthNothing(t *testing.T) {
	t.Parallel()
	in := input()
	in.Volumes["default/data"] = &api.Volume{Meta: api.Meta{Name: "data", Tenant: "default"}, Pool: "local", SizeBytes: api.GiB}
	in.Replicas = []*api.Replica{{Kind: api.KindVolume, Of: "default/data", Node: "n1", Pool: "local", State: api.ReplicaReady}}
	in.VMs = []place.Placed{
		{VM: vm("bound", disk(api.Disk{Volume: "data"}), func(v *api.VM) { v.MemoryBytes = 4 * api.GiB }), Node: "n1"},
		{VM: vm("pinned", func(v *api.VM) { v.Placement.Node = "n1" }), Node: "n1"},
	}
	if b := place.New(in).Balance(noon, 10); len(b.Moves) != 0 || b.Before == 0 || !strings.Contains(b.Summary, "no move pays off") {
		t.Fatalf("got %+v", b)
	}
	level := input()
	for i := range 3 {
		level.VMs = append(level.VMs, place.Placed{VM: vm(fmt.Sprintf("v%d", i)), Node: fmt.Sprintf("n%d", i+1)})
	}
	if b := place.New(level).Balance(noon, 10); len(b.Moves) != 0 || !strings.Contains(b.Summary, "balanced") {
		t.Fatalf("got %+v", b)
	}
}
