package place

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/debvisor/debvisor/api"
)

// Bounds of Balance.
const (
	balanceGainMin  = 0.02 // of the imbalance, that a move must take away to pay off
	balanceLevel    = 0.05 // of imbalance: below it nothing is moved
	balanceTriesMax = 200  // guests that are considered for one move
)

// Balance proposes moves that even out how full the nodes are, the one that
// gains most first, each judged in the picture that the moves before it leave. A
// node's fullness is the greater of its shares of CPU and memory in use; the
// imbalance is the difference between the fullest and the emptiest node that
// takes new VMs. Guests that are off, that lie on local disks or that are bound
// to their node are not moved. The picture stays as it was.
func (c *Cluster) Balance(now time.Time, movesMax int) api.Balance {
	out := api.Balance{At: now, Before: c.imbalance(), Moves: []api.Move{}}
	out.After = out.Before
	var done []*guest
	var homes []*host
	moved := map[*guest]bool{}
	for len(out.Moves) < min(movesMax, api.BalanceMovesMax) && out.After >= balanceLevel {
		g, to := c.bestMove(moved, out.After)
		if g == nil {
			break
		}
		from, before := g.host, out.After
		done, homes = append(done, g), append(homes, from)
		moved[g] = true
		fromBefore, toBefore := fullness(from), fullness(to)
		c.shift(g, to)
		out.After = c.imbalance()
		out.Moves = append(out.Moves, api.Move{
			VM: api.Key(g.vm.Tenant, g.vm.Name), ID: g.vm.ID, From: from.row.Name, To: to.row.Name, MemoryBytes: g.vm.MemoryBytes,
			Reason: fmt.Sprintf("%s falls from %s to %s full, %s rises from %s to %s; imbalance %s -> %s",
				from.row.Name, percent(fromBefore), percent(fullness(from)), to.row.Name, percent(toBefore), percent(fullness(to)), percent(before), percent(out.After)),
		})
	}
	for i := len(done) - 1; i >= 0; i-- {
		c.shift(done[i], homes[i])
	}
	out.Summary = balanceSummary(&out)
	return out
}

func balanceSummary(b *api.Balance) string {
	switch {
	case len(b.Moves) > 0:
		return fmt.Sprintf("%s would bring the imbalance from %s to %s", count(len(b.Moves), "move", "moves"), percent(b.Before), percent(b.After))
	case b.Before < balanceLevel:
		return fmt.Sprintf("balanced: the fullest and the emptiest node differ by %s", percent(b.Before))
	}
	return fmt.Sprintf("the nodes differ by %s, and no move pays off", percent(b.Before))
}

// bestMove finds the move from the fullest node that leaves the least
// imbalance; nil: none pays off.
func (c *Cluster) bestMove(moved map[*guest]bool, imbalance float64) (*guest, *host) {
	full := c.extreme(func(a, b float64) bool { return a > b })
	if full == nil {
		return nil, nil
	}
	var candidates []*guest
	for g := range full.guests {
		if g.vm.On() && !moved[g] {
			candidates = append(candidates, g)
		}
	}
	slices.SortFunc(candidates, func(a, b *guest) int { return cmp.Compare(a.id, b.id) })
	var bestGuest *guest
	var bestHost *host
	least := imbalance - balanceGainMin
	for _, g := range candidates[:min(len(candidates), balanceTriesMax)] {
		to := c.elsewhere(g)
		if to == nil {
			continue
		}
		c.shift(g, to)
		left := c.imbalance()
		c.shift(g, full)
		if left < least {
			bestGuest, bestHost, least = g, to, left
		}
	}
	return bestGuest, bestHost
}

// elsewhere is the emptiest node other than its own on which g may run.
func (c *Cluster) elsewhere(g *guest) *host {
	home := g.host
	c.detach(g)
	r := c.newRequest(g.vm)
	var best *host
	for _, h := range c.nodes {
		if h != home && r.fits(h) && (best == nil || fullness(h) < fullness(best)) {
			best = h
		}
	}
	g.host = home
	c.attach(g)
	return best
}

func (c *Cluster) shift(g *guest, to *host) {
	c.detach(g)
	g.host = to
	c.attach(g)
}

// imbalance is 0 to 1.
func (c *Cluster) imbalance() float64 {
	full, empty := c.extreme(func(a, b float64) bool { return a > b }), c.extreme(func(a, b float64) bool { return a < b })
	if full == nil {
		return 0
	}
	return fullness(full) - fullness(empty)
}

// extreme is the first of the nodes that take new VMs which no other precedes.
func (c *Cluster) extreme(precedes func(a, b float64) bool) *host {
	var out *host
	for _, h := range c.nodes {
		if isLive(nil, h) && runsGuests(nil, h) && isSchedulable(nil, h) && isHealthy(nil, h) && (out == nil || precedes(fullness(h), fullness(out))) {
			out = h
		}
	}
	return out
}

func fullness(h *host) float64 { return max(share(h.cpus, h.cpuLimit), share(h.memory, h.memoryLimit)) }

func percent(f float64) string { return fmt.Sprintf("%.0f %%", 100*f) }
