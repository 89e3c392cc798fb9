package place

import (
	"fmt"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/api"
)

// filter is one condition that a node must meet.
type filter struct {
	passes func(*request, *host) bool
	why    func(*request, *host) string // called where it does not pass
	one    string                       // for the summary, after "1"
	many   string                       // for the summary, after a number
}

const filterCount = 16

// filters come in the order in which a node's first reason is looked for: what
// an operator must mend first, then what the VM asks, then room.
var filters = [filterCount]filter{
	{passes: isLive, why: whyNotLive, one: "is fenced", many: "are fenced"},
	{passes: runsGuests, why: whyWitness, one: "is a witness", many: "are witnesses"},
	{passes: isSchedulable, why: whyUnschedulable, one: "takes no new VMs", many: "take no new VMs"},
	{passes: isHealthy, why: whyUnhealthy, one: "has no healthy hypervisor", many: "have no healthy hypervisor"},
	{passes: isNamed, why: whyNotNamed, one: "is not the node that the VM names", many: "are not the node that the VM names"},
	{passes: hasLabels, why: whyLabels, one: "lacks the wanted labels", many: "lack the wanted labels"},
	{passes: hasNetworks, why: whyNetworks, one: "lacks a network", many: "lack a network"},
	{passes: hasVolumes, why: whyVolumes, one: "is not where a local volume lies", many: "are not where a local volume lies"},
	{passes: hasPools, why: whyPools, one: "lacks a pool", many: "lack a pool"},
	{passes: meetsAffinity, why: whyAffinity, one: "runs none of the VMs that it must be near", many: "run none of the VMs that it must be near"},
	{passes: meetsAntiAffinity, why: whyAntiAffinity, one: "runs a VM that it must be apart from", many: "run a VM that it must be apart from"},
	{passes: givesCPU, why: whyCPUModel, one: "cannot give the VM's CPU model", many: "cannot give the VM's CPU model"},
	{passes: givesTPM, why: whyTPM, one: "cannot give a TPM", many: "cannot give a TPM"},
	{passes: hasMemory, why: whyMemory, one: "is full (memory)", many: "are full (memory)"},
	{passes: hasCPU, why: whyCPU, one: "is full (CPU)", many: "are full (CPU)"},
	{passes: hasSpace, why: whySpace, one: "has too little space in a pool", many: "have too little space in a pool"},
}

// check returns the first filter that h fails and how many it fails in all.
func (r *request) check(h *host) (first, misses int) {
	if r.broken != "" {
		return 0, filterCount
	}
	for i := range filters {
		if !filters[i].passes(r, h) {
			if misses == 0 {
				first = i
			}
			misses++
		}
	}
	return first, misses
}

// fits reports whether h passes every filter.
func (r *request) fits(h *host) bool {
	if r.broken != "" {
		return false
	}
	for i := range filters {
		if !filters[i].passes(r, h) {
			return false
		}
	}
	return true
}

// reasons lists all filters that h fails, in words.
func (r *request) reasons(h *host) []string {
	if r.broken != "" {
		return []string{r.broken}
	}
	var out []string
	for i := range filters {
		if !filters[i].passes(r, h) {
			out = append(out, filters[i].why(r, h))
		}
	}
	return out
}

func isLive(_ *request, h *host) bool { return h.row.Lease == api.NodeLive && !h.lost }

func whyNotLive(_ *request, h *host) string {
	if h.row.Lease == api.NodeFenced {
		return "fenced: its lease ended and it has not registered again"
	}
	return "not live: it has not registered yet"
}

func runsGuests(_ *request, h *host) bool { return !h.row.Witness }

func whyWitness(*request, *host) string { return "a witness: it votes and runs no VMs" }

func isSchedulable(_ *request, h *host) bool { return !h.row.Unschedulable }

func whyUnschedulable(*request, *host) string { return "unschedulable: it takes no new VMs" }

func isHealthy(_ *request, h *host) bool { return h.row.Hypervisor.Healthy }

func whyUnhealthy(_ *request, h *host) string {
	if h.row.Hypervisor.Reason == "" {
		return "hypervisor is not healthy: it gave no reason"
	}
	return "hypervisor is not healthy: " + h.row.Hypervisor.Reason
}

func isNamed(r *request, h *host) bool {
	return r.vm.Placement.Node == "" || r.vm.Placement.Node == h.row.Name
}

func whyNotNamed(r *request, _ *host) string {
	return fmt.Sprintf("the VM asks for node %s only", r.vm.Placement.Node)
}

func hasLabels(r *request, h *host) bool {
	return len(r.vm.Placement.Nodes) == 0 || api.MatchLabels(h.row.Labels, r.vm.Placement.Nodes)
}

func whyLabels(r *request, _ *host) string {
	return "the VM asks for nodes labelled " + selectorText(r.vm.Placement.Nodes)
}

func hasVolumes(r *request, h *host) bool {
	for i := range r.pins {
		if !slices.Contains(r.pins[i].nodes, h.row.Name) {
			return false
		}
	}
	return true
}

func whyVolumes(r *request, h *host) string {
	for _, p := range r.pins {
		switch {
		case slices.Contains(p.nodes, h.row.Name):
		case p.wanted:
			return fmt.Sprintf("local volume %s is wanted on %s", p.volume, p.nodes[0])
		default:
			return fmt.Sprintf("local volume %s lies on %s", p.volume, strings.Join(slices.Sorted(slices.Values(p.nodes)), ", "))
		}
	}
	return ""
}

func hasPools(r *request, h *host) bool {
	for i := range r.pools {
		if !poolUsable(r.pools[i].pool, h) {
			return false
		}
	}
	return true
}

func poolUsable(p *api.Pool, h *host) bool {
	s := h.pools[p.Name]
	return s != nil && s.reason == "" && p.On(h.row.Name)
}

func whyPools(r *request, h *host) string {
	for _, n := range r.pools {
		name, s := n.pool.Name, h.pools[n.pool.Name]
		switch {
		case poolUsable(n.pool, h):
		case !n.pool.On(h.row.Name):
			return fmt.Sprintf("pool %s is not on this node", name)
		case s == nil:
			return fmt.Sprintf("pool %s: the node has not reported it yet", name)
		default:
			return fmt.Sprintf("pool %s: %s", name, s.reason)
		}
	}
	return ""
}

func meetsAffinity(r *request, h *host) bool {
	if r.affinity == nil {
		return true
	}
	_, near := r.affinity[h]
	return near
}

func whyAffinity(r *request, _ *host) string {
	return "affinity: no VM with " + selectorText(r.vm.Placement.Affinity) + " is here, and elsewhere there is"
}

func meetsAntiAffinity(r *request, h *host) bool { return !r.c.labels.marked(h) }

// whyAntiAffinity names the first VM, by key, that keeps the newcomer away.
func whyAntiAffinity(r *request, h *host) string {
	best, text := "", ""
	for g := range h.guests {
		if g.vm.Tenant != r.vm.Tenant || best != "" && g.vm.Name >= best {
			continue
		}
		ours, theirs := r.vm.Placement.AntiAffinity, g.vm.Placement.AntiAffinity
		switch {
		case len(ours) > 0 && api.MatchLabels(g.vm.Labels, ours):
			best, text = g.vm.Name, fmt.Sprintf("anti-affinity: VM %s with %s is here", g.vm.Name, selectorText(ours))
		case len(theirs) > 0 && api.MatchLabels(r.vm.Labels, theirs):
			best, text = g.vm.Name, fmt.Sprintf("anti-affinity: VM %s here refuses %s", g.vm.Name, selectorText(theirs))
		}
	}
	return text
}

// givesCPU lets a node pass that has not said what it can give: its start
// tells then.
func givesCPU(r *request, h *host) bool {
	return r.cpu == "" || len(h.row.CPUModels) == 0 || slices.Contains(h.row.CPUModels, r.cpu)
}

func whyCPUModel(r *request, h *host) string {
	best := "none of x86-64's levels"
	for _, level := range api.CPULevels() {
		if slices.Contains(h.row.CPUModels, level) {
			best = "up to " + level
		}
	}
	whose := "the VM's"
	if r.vm.CPUModel == "" {
		whose = "the cluster's baseline"
	}
	return fmt.Sprintf("CPU model: %s (%s) is more than its CPU has, which gives %s", r.cpu, whose, best)
}

func givesTPM(r *request, h *host) bool { return !r.vm.TPM || h.row.Hypervisor.TPM }

func whyTPM(*request, *host) string {
	return "TPM: the VM asks for one, and swtpm is not installed there"
}

func hasMemory(r *request, h *host) bool { return h.memory+r.memory <= h.memoryLimit }

func whyMemory(r *request, h *host) string {
	return fmt.Sprintf("memory: %s needed, %s free of %s",
		api.FormatSize(r.memory), api.FormatSize(max(0, h.memoryLimit-h.memory)), api.FormatSize(h.memoryLimit))
}

func hasCPU(r *request, h *host) bool { return h.cpus+r.cpus <= h.cpuLimit }

func whyCPU(r *request, h *host) string {
	return fmt.Sprintf("CPU: %s needed, %d free of %d", count(int(r.cpus), "vCPU", "vCPUs"), max(0, h.cpuLimit-h.cpus), h.cpuLimit)
}

func hasSpace(r *request, h *host) bool {
	for i := range r.pools {
		if n := &r.pools[i]; n.bytes > 0 && poolUsable(n.pool, h) && r.c.left(h, n.pool) < n.bytes {
			return false
		}
	}
	return true
}

func whySpace(r *request, h *host) string {
	for i := range r.pools {
		n := &r.pools[i]
		if free := r.c.left(h, n.pool); n.bytes > 0 && poolUsable(n.pool, h) && free < n.bytes {
			return fmt.Sprintf("pool %s: %s needed, %s free above its reserve", n.pool.Name, api.FormatSize(n.bytes), api.FormatSize(free))
		}
	}
	return ""
}
