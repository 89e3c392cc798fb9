package place

import (
	"maps"
	"slices"
	"strconv"

	"github.com/debvisor/debvisor/api"
)

// labelIndex finds the placed VMs that a selector matches, and the selectors
// of placed VMs that match a newcomer, without looking at every VM. Labels
// count within a tenant only: nobody can steer or sense another's VMs.
type labelIndex struct {
	buckets  map[pair]*bucket
	refusals map[pair]map[string]*refusal // by the first pair of the selector, then by the whole of it
	marks    []uint64                     // by host: the question that marked it last
	question uint64
}

// pair is one label in a tenant. The zero key stands for all VMs of a tenant.
type pair struct{ tenant, key, value string }

// bucket holds the VMs that carry a label.
type bucket struct {
	guests map[*guest]struct{}
	hosts  map[*host]int // how many of them are there
}

// refusal is an anti-affinity selector and the hosts on which VMs hold it.
type refusal struct {
	selector map[string]string
	hosts    map[*host]int
}

func newLabelIndex(hosts int) labelIndex {
	return labelIndex{buckets: map[pair]*bucket{}, refusals: map[pair]map[string]*refusal{}, marks: make([]uint64, hosts)}
}

func (x *labelIndex) add(g *guest) {
	x.addTo(pair{tenant: g.vm.Tenant}, g)
	for k, v := range g.vm.Labels {
		x.addTo(pair{g.vm.Tenant, k, v}, g)
	}
	if s := g.vm.Placement.AntiAffinity; len(s) > 0 {
		at, name := anchor(g.vm.Tenant, s), canonical(s)
		if x.refusals[at] == nil {
			x.refusals[at] = map[string]*refusal{}
		}
		r := x.refusals[at][name]
		if r == nil {
			r = &refusal{selector: s, hosts: map[*host]int{}}
			x.refusals[at][name] = r
		}
		r.hosts[g.host]++
	}
}

func (x *labelIndex) addTo(p pair, g *guest) {
	b := x.buckets[p]
	if b == nil {
		b = &bucket{guests: map[*guest]struct{}{}, hosts: map[*host]int{}}
		x.buckets[p] = b
	}
	b.guests[g] = struct{}{}
	b.hosts[g.host]++
}

func (x *labelIndex) remove(g *guest) {
	x.removeFrom(pair{tenant: g.vm.Tenant}, g)
	for k, v := range g.vm.Labels {
		x.removeFrom(pair{g.vm.Tenant, k, v}, g)
	}
	if s := g.vm.Placement.AntiAffinity; len(s) > 0 {
		at, name := anchor(g.vm.Tenant, s), canonical(s)
		r := x.refusals[at][name]
		drop(r.hosts, g.host)
		if len(r.hosts) == 0 {
			delete(x.refusals[at], name)
		}
		if len(x.refusals[at]) == 0 {
			delete(x.refusals, at)
		}
	}
}

func (x *labelIndex) removeFrom(p pair, g *guest) {
	b := x.buckets[p]
	delete(b.guests, g)
	drop(b.hosts, g.host)
	if len(b.guests) == 0 {
		delete(x.buckets, p)
	}
}

func drop(hosts map[*host]int, h *host) {
	if hosts[h]--; hosts[h] == 0 {
		delete(hosts, h)
	}
}

// hosts calls yield for hosts that have a VM of the tenant that the selector
// matches; for some more than once, in no order.
func (x *labelIndex) hosts(tenant string, selector map[string]string, yield func(*host)) {
	smallest, exact := x.buckets[pair{tenant: tenant}], false
	for k, v := range selector {
		// A pair with an empty value also matches VMs without the label.
		if v == "" {
			continue
		}
		b := x.buckets[pair{tenant, k, v}]
		if b == nil {
			return
		}
		if smallest == nil || !exact || len(b.guests) < len(smallest.guests) {
			smallest, exact = b, true
		}
	}
	if smallest == nil {
		return
	}
	if exact && len(selector) == 1 {
		for h := range smallest.hosts {
			yield(h)
		}
		return
	}
	for g := range smallest.guests {
		if api.MatchLabels(g.vm.Labels, selector) {
			yield(g.host)
		}
	}
}

// refusing calls yield for hosts that have a VM whose anti-affinity matches
// labels; for some more than once, in no order.
func (x *labelIndex) refusing(tenant string, labels map[string]string, yield func(*host)) {
	visit := func(p pair) {
		for _, r := range x.refusals[p] {
			if api.MatchLabels(labels, r.selector) {
				for h := range r.hosts {
					yield(h)
				}
			}
		}
	}
	visit(pair{tenant: tenant})
	for k, v := range labels {
		visit(pair{tenant, k, v})
	}
}

// begin starts a new set of marked hosts.
func (x *labelIndex) begin() { x.question++ }

func (x *labelIndex) mark(h *host) { x.marks[h.index] = x.question }

func (x *labelIndex) marked(h *host) bool { return x.marks[h.index] == x.question }

// anchor is the pair under which a selector is found: its first one that a
// matching VM must carry.
func anchor(tenant string, selector map[string]string) pair {
	for _, k := range slices.Sorted(maps.Keys(selector)) {
		if selector[k] != "" {
			return pair{tenant, k, selector[k]}
		}
	}
	return pair{tenant: tenant}
}

func canonical(selector map[string]string) string {
	var b []byte
	for _, k := range slices.Sorted(maps.Keys(selector)) {
		b = strconv.AppendQuote(append(strconv.AppendQuote(b, k), '='), selector[k])
	}
	return string(b)
}
