package place_test

import (
	"fmt"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster/place"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var (
	someLabels = rapid.MapOfN(rapid.SampledFrom([]string{"a", "b", "c"}), rapid.SampledFrom([]string{"", "x", "y"}), 0, 2)
	mostlyYes  = rapid.SampledFrom([]bool{true, true, true, true, false})
	strategies = rapid.SampledFrom([]string{"", api.StrategySpread, api.StrategyPack})
	oftenNone  = rapid.SampledFrom([]bool{false, false, true})
)

func drawInput(t *rapid.T) place.Input {
	in := input()
	in.Config.CPUOvercommit = rapid.SampledFrom([]float64{0, 0.5, 1, 2.3}).Draw(t, "cpu overcommit")
	in.Config.MemoryOvercommit = rapid.SampledFrom([]float64{0, 0.5, 1.5}).Draw(t, "memory overcommit")
	in.Config.MemoryReserve = rapid.SampledFrom([]int64{0, api.GiB}).Draw(t, "reserve")
	in.Config.PlacementStrategy = strategies.Draw(t, "cluster strategy")
	in.Nodes = nil
	for i := range rapid.IntRange(0, 5).Draw(t, "nodes") {
		in.Nodes = append(in.Nodes, node(fmt.Sprintf("n%d", i), func(n *api.Node) {
			n.Labels = someLabels.Draw(t, "node labels")
			n.Capacity.CPUs = rapid.IntRange(0, 8).Draw(t, "cpus")
			n.Capacity.MemoryBytes = rapid.Int64Range(0, 8).Draw(t, "memory") * api.GiB
			n.Hypervisor.Healthy = mostlyYes.Draw(t, "healthy")
			n.Unschedulable = !mostlyYes.Draw(t, "schedulable")
			n.Witness = !mostlyYes.Draw(t, "guests")
			if !mostlyYes.Draw(t, "live") {
				n.Lease = api.NodeFenced
			}
			if !mostlyYes.Draw(t, "pool") {
				n.Pools = n.Pools[1:]
			}
		}))
	}
	for _, name := range []string{"v0", "v1"} {
		v := &api.Volume{Meta: api.Meta{Name: name, Tenant: "default"}, Pool: rapid.SampledFrom([]string{"local", "nfs"}).Draw(t, "pool"), SizeBytes: 20 * api.GiB}
		in.Volumes["default/"+name] = v
		if n := rapid.IntRange(-3, 4).Draw(t, "replica on"); n >= 0 {
			in.Replicas = append(in.Replicas, &api.Replica{Kind: api.KindVolume, Of: "default/" + name, Node: fmt.Sprintf("n%d", n), Pool: v.Pool,
				State: rapid.SampledFrom([]string{api.ReplicaReady, api.ReplicaPending}).Draw(t, "state")})
		}
	}
	return in
}

func drawVM(t *rapid.T, name string) *api.VM {
	return vm(name, func(v *api.VM) {
		v.CPUs = rapid.IntRange(1, 4).Draw(t, "cpus")
		v.MemoryBytes = rapid.Int64Range(1, 4).Draw(t, "memory") * api.GiB / 2
		v.Labels = someLabels.Draw(t, "labels")
		v.Placement.Strategy = strategies.Draw(t, "strategy")
		if oftenNone.Draw(t, "has anti-affinity") {
			v.Placement.AntiAffinity = someLabels.Draw(t, "anti-affinity")
		}
		if oftenNone.Draw(t, "has affinity") {
			v.Placement.Affinity = someLabels.Draw(t, "affinity")
		}
		if oftenNone.Draw(t, "has node labels") {
			v.Placement.Nodes = someLabels.Draw(t, "nodes")
		}
		if oftenNone.Draw(t, "has disk") {
			v.Disks = append(v.Disks, api.Disk{Name: "d", SizeBytes: rapid.Int64Range(1, 60).Draw(t, "size") * api.GiB})
		}
		if oftenNone.Draw(t, "has volume") {
			v.Disks = append(v.Disks, api.Disk{Name: "v", Volume: rapid.SampledFrom([]string{"v0", "v1"}).Draw(t, "volume")})
		}
	})
}

// permits is a slow second opinion on whether vm may go to the node, given
// where the others are. It looks at rows only.
func permits(in place.Input, others map[string]place.Placed, v *api.VM, n *api.Node) bool {
	cfg := in.Config.WithDefaults()
	cpus, memory, local := v.CPUs, v.MemoryBytes, int64(0)
	lives := map[string]string{} // node by name, of nodes that are live
	for _, m := range in.Nodes {
		if m.Lease == api.NodeLive {
			lives[m.Name] = m.Name
		}
	}
	anyFriend, friendHere, enemy := false, false, false
	for _, o := range others {
		if len(v.Placement.Affinity) > 0 && api.MatchLabels(o.VM.Labels, v.Placement.Affinity) && lives[o.Node] != "" {
			anyFriend, friendHere = true, friendHere || o.Node == n.Name
		}
		if o.Node != n.Name {
			continue
		}
		cpus, memory = cpus+o.VM.CPUs, memory+o.VM.MemoryBytes
		enemy = enemy || len(v.Placement.AntiAffinity) > 0 && api.MatchLabels(o.VM.Labels, v.Placement.AntiAffinity) ||
			len(o.VM.Placement.AntiAffinity) > 0 && api.MatchLabels(v.Labels, o.VM.Placement.AntiAffinity)
		for _, d := range o.VM.Disks {
			if d.Volume == "" {
				local += d.SizeBytes
			}
		}
	}
	healthy := n.Lease == api.NodeLive && !n.Witness && !n.Unschedulable && n.Hypervisor.Healthy
	room := float64(cpus) <= float64(n.Capacity.CPUs)*cfg.CPUOvercommit+1e-6 &&
		float64(memory) <= float64(n.Capacity.MemoryBytes-cfg.MemoryReserve)*cfg.MemoryOvercommit
	return healthy && room && !enemy && (!anyFriend || friendHere) && api.MatchLabels(n.Labels, v.Placement.Nodes) && disksFit(in, others, v, n, local)
}

func disksFit(in place.Input, others map[string]place.Placed, v *api.VM, n *api.Node, local int64) bool {
	has := map[string]bool{}
	for _, p := range n.Pools {
		has[p.Pool] = true
	}
	wanted := int64(0)
	located := map[string]string{}
	for _, r := range in.Replicas {
		located[r.Of] = r.Node
		if r.State == api.ReplicaPending && r.Pool == "local" && r.Node == n.Name {
			local += in.Volumes[r.Of].SizeBytes
		}
	}
	for _, o := range others {
		for _, d := range o.VM.Disks {
			key := "default/" + d.Volume
			if vol := in.Volumes[key]; vol != nil && vol.Pool == "local" && located[key] == "" {
				located[key] = o.Node
				if o.Node == n.Name {
					local += vol.SizeBytes
				}
			}
		}
	}
	for _, d := range v.Disks {
		if d.Volume == "" {
			wanted += d.SizeBytes
			if !has["local"] {
				return false
			}
			continue
		}
		vol, at := in.Volumes["default/"+d.Volume], located["default/"+d.Volume]
		if !has[vol.Pool] || vol.Pool == "local" && at != "" && at != n.Name {
			return false
		}
		if vol.Pool == "local" && at == "" {
			wanted += vol.SizeBytes
		}
	}
	return wanted == 0 || local+wanted+in.Pools["local"].ReserveBytes <= 100*api.GiB
}

// TestDecisionsObeyEveryFilter places, moves and removes VMs at random. After
// each step the answer must be what the rows alone allow, on exactly the nodes
// that they allow, and the same from a picture that is built anew.
func TestDecisionsObeyEveryFilter(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		c, placed := place.New(in), map[string]place.Placed{}
		for i := range rapid.IntRange(1, 12).Draw(t, "steps") {
			v := drawVM(t, fmt.Sprintf("vm%d", rapid.IntRange(0, 7).Draw(t, "vm")))
			delete(placed, v.ID)
			c.Remove(v)
			d := c.Decide(v, noon)
			fits := map[string]bool{}
			for _, cand := range d.Candidates {
				fits[cand.Node] = cand.Fits
			}
			for _, n := range in.Nodes {
				if want := permits(in, placed, v, n); fits[n.Name] != want {
					t.Fatalf("step %d: %s fits %s: %v, want %v; %+v", i, v.Name, n.Name, fits[n.Name], want, d)
				}
			}
			if d.Node != "" {
				if !fits[d.Node] {
					t.Fatalf("step %d: chose %s, which does not fit", i, d.Node)
				}
				placed[v.ID] = place.Placed{VM: v, Node: d.Node}
				c.Place(v, d.Node)
			}
			if again := c.Decide(v, noon); again.Node == "" && d.Node != "" {
				t.Fatalf("step %d: a placed VM no longer fits anywhere: %s", i, again.Summary)
			}
		}
		fresh := in
		for _, p := range placed { // map order: the answer must not depend on it
			fresh.VMs = append(fresh.VMs, p)
		}
		probe := drawVM(t, "probe")
		if diff := cmp.Diff(place.New(fresh).Decide(probe, noon), c.Decide(probe, noon)); diff != "" {
			t.Fatalf("a fresh picture and one that was moved on disagree:\n%s", diff)
		}
	})
}

// TestScoresStayBetweenZeroAndOne and fall from the first candidate on.
func TestScoresStayBetweenZeroAndOne(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c := place.New(drawInput(t))
		for i := range 6 {
			v := drawVM(t, fmt.Sprintf("vm%d", i))
			d, last := c.Decide(v, noon), 1.0
			for _, cand := range d.Candidates {
				if cand.Fits && (cand.Score < 0 || cand.Score > last) {
					t.Fatalf("score %v after %v in %+v", cand.Score, last, d)
				}
				last = cand.Score
			}
			c.Place(v, d.Node)
		}
	})
}
