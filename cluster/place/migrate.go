package place

import (
	"fmt"
	"time"

	"github.com/debvisor/debvisor/api"
)

// Move is a live migration that is asked for.
type Move struct {
	From        string // node that the VM runs on
	To          string // wanted destination; empty: the best
	CopyStorage bool   // volumes that only From sees may be copied along
}

// DecideMove finds the best node for the running guest of vm to migrate to, or
// looks at the one that is wanted, and explains it: a candidate that does not fit
// carries every reason. The picture stays as it was; call Place to act on the
// decision.
func (c *Cluster) DecideMove(vm *api.VM, m Move, now time.Time) api.Decision {
	if own := c.guests[identity(vm)]; own != nil {
		c.detach(own)
		defer c.attach(own)
	}
	r := c.newRequest(vm)
	if m.CopyStorage {
		r.copyPins(m.From)
	}
	from := c.byName[m.From]
	var best, rest ranking
	d := api.Decision{Strategy: r.strategy, At: now}
	for _, h := range c.nodes {
		if m.To != "" && h.row.Name != m.To || m.To == "" && h == from {
			continue
		}
		d.Considered++
		if len(r.moveReasons(from, h, m)) == 0 && r.fits(h) {
			best.add(ranked{host: h, score: r.score(h)})
		} else {
			rest.add(ranked{host: h})
		}
	}
	for _, e := range best.list() {
		d.Candidates = append(d.Candidates, api.Candidate{Node: e.host.row.Name, Fits: true, Score: e.score, Reasons: r.merits(e.host)})
	}
	for _, e := range rest.list() {
		if len(d.Candidates) < api.CandidatesMax {
			reasons := append(r.moveReasons(from, e.host, m), r.reasons(e.host)...)
			d.Candidates = append(d.Candidates, api.Candidate{Node: e.host.row.Name, Reasons: reasons})
		}
	}
	switch {
	case best.total > 0 && m.To != "":
		d.Node = m.To
		d.Summary = fmt.Sprintf("migrates from %s to %s as was asked for", m.From, m.To)
	case best.total > 0:
		d.Node = best.top[0].host.row.Name
		d.Summary = fmt.Sprintf("migrates from %s: %s", m.From, r.whyBest(best.top[0].host, best.total))
	case m.To != "" && d.Considered == 0:
		d.Summary = fmt.Sprintf("node %s is not a member", m.To)
	case m.To != "":
		d.Summary = fmt.Sprintf("cannot migrate from %s to %s", m.From, m.To)
	default:
		d.Summary = fmt.Sprintf("no other node than %s takes it", m.From)
	}
	return d
}

// copyPins lets volumes that lie on from alone be somewhere else, where they
// take space.
func (r *request) copyPins(from string) {
	var kept []pin
	for _, p := range r.pins {
		if p.wanted || len(p.nodes) != 1 || p.nodes[0] != from {
			kept = append(kept, p)
			continue
		}
		v := r.c.volumes[api.Key(r.vm.Tenant, p.volume)]
		switch {
		case v == nil:
		case v.Node != "":
			kept = append(kept, pin{volume: p.volume, nodes: []string{v.Node}, wanted: true})
		default:
			if pool := r.c.pools[v.Pool]; pool != nil {
				r.needPool(pool, r.c.diskBytes(v.SizeBytes, v.Tenant, v.Image))
			}
		}
	}
	r.pins = kept
}

// moveReasons lists what keeps a guest of from from going on on h, beside what
// keeps a VM from being placed there.
func (r *request) moveReasons(from, h *host, m Move) []string {
	if from == h {
		return []string{"the VM is there already"}
	}
	if from == nil {
		return []string{fmt.Sprintf("the VM's node %s is not a member", m.From)}
	}
	var out []string
	a, b := from.row.Hypervisor, h.row.Hypervisor
	differs := func(what, here, there string) {
		if here != there {
			out = append(out, fmt.Sprintf("%s: %s on %s, %s here", what, orNone(here), m.From, orNone(there)))
		}
	}
	differs("hypervisor", a.Driver, b.Driver)
	differs("acceleration", a.Acceleration, b.Acceleration)
	differs("architecture", a.Architecture, b.Architecture)
	if a.Acceleration == "kvm" && r.cpu == "" { // the guest sees the machine's own CPU; a model by name is a filter's
		differs("CPU model", a.CPUModel, b.CPUModel)
	}
	if !m.CopyStorage && !hasVolumes(r, h) {
		out = append(out, "its local disks are not copied along unless copy_storage says so")
	}
	return out
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
