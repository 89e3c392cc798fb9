package place_test

import (
	"fmt"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster/place"
)

// BenchmarkPlace10000VMsOn1000Nodes places a whole cluster, with labels, anti-
// affinity in groups of 20 and a disk each. The figure to reach is 2,000
// placements a second.
func BenchmarkPlace10000VMsOn1000Nodes(b *testing.B) {
	const nodes, vms = 1000, 10000
	for _, strategy := range []string{api.StrategySpread, api.StrategyPack} {
		b.Run(strategy, func(b *testing.B) {
			in := input()
			in.Nodes = nil
			for i := range nodes {
				in.Nodes = append(in.Nodes, node(fmt.Sprintf("n%04d", i), func(n *api.Node) {
					n.Capacity = api.Capacity{CPUs: 32, MemoryBytes: 64 * api.GiB}
					n.Pools = append(n.Pools, api.PoolStatus{Pool: "fast", FreeBytes: api.TiB})
				}))
			}
			all := make([]*api.VM, vms)
			for i := range all {
				all[i] = vm(fmt.Sprintf("vm%d", i), disk(api.Disk{Name: "root", SizeBytes: 5 * api.GiB}), func(v *api.VM) {
					v.Labels = map[string]string{"app": fmt.Sprintf("app%d", i/20), "name": v.Name, "env": "production"}
					v.Placement.Strategy = strategy
					if i%2 == 0 {
						v.Placement.AntiAffinity = map[string]string{"app": v.Labels["app"]}
					}
				})
			}
			b.ReportAllocs()
			for b.Loop() {
				c := place.New(in)
				for _, v := range all {
					d := c.Decide(v, noon)
					if d.Node == "" {
						b.Fatalf("%s: %s", v.Name, d.Summary)
					}
					c.Place(v, d.Node)
				}
			}
			b.ReportMetric(float64(vms*b.N)/b.Elapsed().Seconds(), "placements/s")
		})
	}
}
