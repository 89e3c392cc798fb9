package place

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/api"
)

// request is a VM seen as a list of needs.
type request struct {
	c        *Cluster
	vm       *api.VM
	strategy string
	cpus     int64
	memory   int64
	cpu      string // model; empty: any
	broken   string // why no node at all can run it
	pins     []pin
	pools    []poolNeed
	affinity map[*host]struct{} // nil: anywhere
}

// pin is a volume that lies on certain nodes, or is wanted on one.
type pin struct {
	volume string
	nodes  []string
	wanted bool
}

// poolNeed is a pool that the node must have, and the space in it.
type poolNeed struct {
	pool  *api.Pool
	bytes int64
}

func (c *Cluster) newRequest(vm *api.VM) *request {
	r := &request{c: c, vm: vm, strategy: vm.Placement.Strategy, cpus: int64(vm.CPUs), memory: vm.MostMemory(), cpu: vm.GuestCPU(c.baseline)}
	if r.strategy == "" {
		r.strategy = c.config.PlacementStrategy
	}
	for i := range vm.Disks {
		r.addDisk(&vm.Disks[i])
	}
	c.labels.begin()
	if s := vm.Placement.AntiAffinity; len(s) > 0 {
		c.labels.hosts(vm.Tenant, s, c.labels.mark)
	}
	c.labels.refusing(vm.Tenant, vm.Labels, c.labels.mark)
	if s := vm.Placement.Affinity; len(s) > 0 {
		c.labels.hosts(vm.Tenant, s, func(h *host) {
			// A VM on a lost node does not run: two friends there would
			// otherwise wait for one another for ever.
			if !isLive(nil, h) {
				return
			}
			if r.affinity == nil {
				r.affinity = map[*host]struct{}{}
			}
			r.affinity[h] = struct{}{}
		})
	}
	return r
}

func (r *request) addDisk(d *api.Disk) {
	c, key := r.c, api.Key(r.vm.Tenant, d.Volume)
	name, bytes := poolOf(d), c.diskBytes(d.SizeBytes, r.vm.Tenant, d.Image)
	var volume *api.Volume
	if d.Volume != "" {
		if volume = c.volumes[key]; volume == nil {
			r.broken = fmt.Sprintf("volume %s does not exist", key)
			return
		}
		name, bytes = volume.Pool, c.diskBytes(volume.SizeBytes, volume.Tenant, volume.Image)
	}
	pool := c.pools[name]
	if pool == nil {
		r.broken = fmt.Sprintf("pool %s does not exist", name)
		return
	}
	if volume != nil {
		nodes, assumed := c.located[key], c.assumed[key]
		switch {
		case len(nodes) > 0:
			bytes = 0
		case assumed != nil:
			nodes, bytes = []string{assumed.host.row.Name}, 0
		}
		switch {
		case pool.Shared:
		case len(nodes) > 0:
			r.pins = append(r.pins, pin{volume: d.Volume, nodes: nodes})
		case volume.Node != "":
			r.pins = append(r.pins, pin{volume: d.Volume, nodes: []string{volume.Node}, wanted: true})
		}
	}
	r.needPool(pool, bytes)
}

func (r *request) needPool(pool *api.Pool, bytes int64) {
	for i := range r.pools {
		if r.pools[i].pool == pool {
			r.pools[i].bytes += bytes
			return
		}
	}
	r.pools = append(r.pools, poolNeed{pool: pool, bytes: bytes})
}

// score orders the nodes that fit, 0 to 1. Pack takes the share of the scarcer
// of CPU and memory that is used once the VM is there. Spread takes the number
// of VMs, and among equals the share that is left: with k VMs the score lies
// between 1/(k+2) and 1/(k+1).
func (r *request) score(h *host) float64 {
	used := max(share(h.cpus+r.cpus, h.cpuLimit), share(h.memory+r.memory, h.memoryLimit))
	if r.strategy == api.StrategyPack {
		return used
	}
	low, high := 1/float64(len(h.guests)+2), 1/float64(len(h.guests)+1)
	return low + float64((1-used)*float64(high-low))
}

func share(part, whole int64) float64 {
	if whole <= 0 {
		return 1
	}
	return min(1, float64(part)/float64(whole))
}

// merits says what made the score.
func (r *request) merits(h *host) []string {
	return []string{
		count(len(h.guests), "VM", "VMs") + " there",
		fmt.Sprintf("with it %.0f %% of CPU and %.0f %% of memory taken",
			100*share(h.cpus+r.cpus, h.cpuLimit), 100*share(h.memory+r.memory, h.memoryLimit)),
	}
}

func (r *request) whyBest(h *host, fitting int) string {
	name := h.row.Name
	switch {
	case fitting == 1:
		return fmt.Sprintf("%s is the only one of %s that fits", name, count(len(r.c.nodes), "node", "nodes"))
	case r.strategy == api.StrategyPack:
		return fmt.Sprintf("%s is the fullest of %d nodes that fit", name, fitting)
	}
	return fmt.Sprintf("%s has the fewest VMs (%d) of %d nodes that fit", name, len(h.guests), fitting)
}

// whyNone says in one sentence why no node fits.
func (r *request) whyNone(tally *[filterCount]int) string {
	if len(r.c.nodes) == 0 {
		return "no node fits: the cluster has no nodes"
	}
	if r.broken != "" {
		return "no node fits: " + r.broken
	}
	if s := r.tooLarge(); s != "" {
		return s
	}
	// The most frequent reason first.
	order := make([]int, 0, filterCount)
	for i, n := range tally {
		if n > 0 {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return tally[b] - tally[a] })
	var parts []string
	for _, i := range order {
		parts = append(parts, count(tally[i], filters[i].one, filters[i].many))
	}
	return "no node fits: " + strings.Join(parts, ", ")
}

// tooLarge names the largest node when even an empty one could not hold the
// VM; it is empty otherwise.
func (r *request) tooLarge() string {
	var roomiest, fastest *host
	for _, h := range r.c.nodes {
		if h.row.Witness {
			continue
		}
		if h.cpuLimit >= r.cpus && h.memoryLimit >= r.memory {
			return ""
		}
		if roomiest == nil || h.memoryLimit > roomiest.memoryLimit {
			roomiest = h
		}
		if fastest == nil || h.cpuLimit > fastest.cpuLimit {
			fastest = h
		}
	}
	switch {
	case roomiest == nil:
		return ""
	case r.memory > roomiest.memoryLimit:
		return fmt.Sprintf("the VM is larger than any node: it needs %s of memory; the largest, %s, can give %s",
			api.FormatSize(r.memory), roomiest.row.Name, api.FormatSize(roomiest.memoryLimit))
	case r.cpus > fastest.cpuLimit:
		return fmt.Sprintf("the VM is larger than any node: it needs %d vCPUs; the largest, %s, can give %d",
			r.cpus, fastest.row.Name, fastest.cpuLimit)
	}
	return fmt.Sprintf("the VM is larger than any node: none can give both %d vCPUs and %s of memory; the largest, %s, can give %d and %s",
		r.cpus, api.FormatSize(r.memory), roomiest.row.Name, roomiest.cpuLimit, api.FormatSize(roomiest.memoryLimit))
}

// count writes "1 VM" or "2 VMs".
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// selectorText writes labels in order, as "app=web, tier=front".
func selectorText(labels map[string]string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		parts = append(parts, k+"="+labels[k])
	}
	return strings.Join(parts, ", ")
}
