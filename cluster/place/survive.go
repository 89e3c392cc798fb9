package place

import (
	"cmp"
	"slices"

	"github.com/debvisor/debvisor/api"
)

// Bounds of Survives.
const (
	// SurviveLossesMax is the most nodes that are imagined to be lost together.
	SurviveLossesMax = 2
	// SurviveWorkMax is how many nodes are looked at for VMs in one call; some
	// 100 ns each.
	SurviveWorkMax = 4_000_000
)

// Survives tells, for the loss of any one node and of any two together, whether
// every VM that runs on them finds a place on the others and whether a majority
// of the voters is left. VMs are placed again as the leader would: the most
// important first. Where looking at every set of that size would cost more
// than SurviveWorkMax, the answer is not known. The picture stays as it was.
func (c *Cluster) Survives() []api.Survival {
	var carriers, voters []*host
	for _, h := range c.nodes {
		if !isLive(nil, h) {
			continue
		}
		if h.row.Voter {
			voters = append(voters, h)
		}
		if !h.row.Witness {
			carriers = append(carriers, h)
		}
	}
	var out []api.Survival
	work := 0
	for lost := 1; lost <= SurviveLossesMax && lost < len(c.nodes); lost++ {
		s := api.Survival{Nodes: lost, Known: true, Quorum: len(voters)-min(lost, len(voters)) > c.voters()/2}
		work += c.survivalWork(carriers, lost)
		if work > SurviveWorkMax {
			s.Known = false
		} else {
			c.eachLoss(carriers, lost, func(hosts []*host) { c.judge(&s, hosts) })
		}
		s.Survives = s.Known && s.Quorum && s.VMs == 0
		out = append(out, s)
	}
	return out
}

// voters is how many voters the cluster has, up or not.
func (c *Cluster) voters() int {
	n := 0
	for _, h := range c.nodes {
		if h.row.Voter {
			n++
		}
	}
	return n
}

// survivalWork is how many nodes are looked at for all sets of that size.
func (c *Cluster) survivalWork(carriers []*host, lost int) int {
	guests := 0
	for _, h := range carriers {
		guests += len(h.guests)
	}
	sets := 1 // of those with one certain node in them
	if lost == 2 {
		sets = len(carriers) - 1
	}
	return guests * sets * len(c.nodes)
}

func (c *Cluster) eachLoss(carriers []*host, lost int, judge func([]*host)) {
	for i, first := range carriers {
		if lost == 1 {
			judge([]*host{first})
			continue
		}
		for _, second := range carriers[i+1:] {
			judge([]*host{first, second})
		}
	}
}

// judge imagines the loss of the hosts, and notes it if it is the worst so far.
func (c *Cluster) judge(s *api.Survival, hosts []*host) {
	var moved []*guest
	for _, h := range hosts {
		h.lost = true
		for g := range h.guests {
			moved = append(moved, g)
		}
	}
	slices.SortFunc(moved, func(a, b *guest) int {
		return cmp.Or(cmp.Compare(b.vm.Priority, a.vm.Priority), cmp.Compare(a.vm.Created, b.vm.Created), cmp.Compare(a.id, b.id))
	})
	homes := make([]*host, len(moved))
	for i, g := range moved {
		homes[i] = g.host
		c.detach(g)
	}
	var placed []*guest
	var down []string
	for _, g := range moved {
		if !g.vm.On() {
			continue // nobody misses it
		}
		h, _ := c.best(g.vm)
		if h == nil {
			down = append(down, api.Key(g.vm.Tenant, g.vm.Name))
			continue
		}
		g.host = h
		c.attach(g)
		placed = append(placed, g)
	}
	for _, g := range placed {
		c.detach(g)
	}
	for i, g := range moved {
		g.host = homes[i]
		c.attach(g)
	}
	for _, h := range hosts {
		h.lost = false
	}
	if len(down) > s.VMs {
		s.VMs, s.Down, s.Worst = len(down), down[:min(len(down), api.SurvivalDownMax)], nil
		for _, h := range hosts {
			s.Worst = append(s.Worst, h.row.Name)
		}
	}
}
