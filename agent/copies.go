package agent

import (
	"context"
	"fmt"
	"sync"

	"github.com/debvisor/debvisor/fsm"
)

// copies limits how many volumes are copied at a time, on this node and in each
// pool: disks that are read and written by many at once serve nobody. Tenants
// take turns, each with its oldest first. Its zero value is ready.
type copies struct {
	mu      sync.Mutex // guards all below
	pools   map[string]int
	tenants map[string]int
	running int
	waiting []*copyTurn
}

// copyTurn is one who waits to copy into a pool.
type copyTurn struct {
	pool, tenant string
	granted      chan struct{} // closed with its turn
}

// copyLimits is how many copies may run at once.
type copyLimits struct{ node, pool int }

func (a *Agent) copyLimits(pool string) copyLimits {
	view := a.view()
	limits := copyLimits{node: fsm.Settings(view).CopiesPerNode}
	if p := fsm.Pools.Get(view, pool); p != nil {
		limits.pool = p.CopiesAtOnce()
	}
	return limits
}

// take blocks until it is this copy's turn, or ctx ends. tell hears why it waits.
func (c *copies) take(ctx context.Context, pool, tenant string, limits func(pool string) copyLimits, tell func(string)) (release func(), err error) {
	turn := &copyTurn{pool: pool, tenant: tenant, granted: make(chan struct{})}
	c.mu.Lock()
	c.waiting = append(c.waiting, turn)
	c.grant(limits)
	why := c.why(turn, limits(pool))
	c.mu.Unlock()
	if why != "" && tell != nil {
		tell(why)
	}
	select {
	case <-turn.granted:
		return func() { c.give(turn, limits) }, nil
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, w := range c.waiting {
		if w == turn {
			c.waiting = append(c.waiting[:i:i], c.waiting[i+1:]...)
			return nil, ctx.Err()
		}
	}
	c.end(turn, limits) // it was granted meanwhile
	return nil, ctx.Err()
}

func (c *copies) give(turn *copyTurn, limits func(pool string) copyLimits) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end(turn, limits)
}

func (c *copies) end(turn *copyTurn, limits func(pool string) copyLimits) {
	c.running--
	c.pools[turn.pool]--
	if c.tenants[turn.tenant]--; c.tenants[turn.tenant] == 0 {
		delete(c.tenants, turn.tenant)
	}
	c.grant(limits)
}

// grant gives turns as long as there is room: first to the tenant that copies
// least, then to who came first. The caller holds the lock.
func (c *copies) grant(limits func(pool string) copyLimits) {
	if c.pools == nil {
		c.pools, c.tenants = map[string]int{}, map[string]int{}
	}
	for {
		best := -1
		for i, w := range c.waiting {
			l := limits(w.pool)
			if c.running < l.node && c.pools[w.pool] < l.pool && (best < 0 || c.tenants[w.tenant] < c.tenants[c.waiting[best].tenant]) {
				best = i
			}
		}
		if best < 0 {
			return
		}
		turn := c.waiting[best]
		c.waiting = append(c.waiting[:best:best], c.waiting[best+1:]...)
		c.running++
		c.pools[turn.pool]++
		c.tenants[turn.tenant]++
		close(turn.granted)
	}
}

// why says why a turn has not come; empty: it has.
func (c *copies) why(turn *copyTurn, l copyLimits) string {
	select {
	case <-turn.granted:
		return ""
	default:
	}
	if n := c.pools[turn.pool]; n >= l.pool {
		return fmt.Sprintf("waits for a place: %d of %d copies run on pool %s", n, l.pool, turn.pool)
	}
	return fmt.Sprintf("waits for a place: %d of %d copies run on this node", c.running, l.node)
}

// inPool is how many copies into the pool run now.
func (c *copies) inPool(pool string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pools[pool]
}

// claims says which volumes are being worked on, so that no guest starts on one
// that is being read, and none is read that a guest is about to write to. Any
// number may read one at a time. Its zero value is ready.
type claims struct {
	mu      sync.Mutex // guards all below
	who     map[string]string
	readers map[string]map[string]int // what for, and how many
	freed   chan struct{}             // closed when something was given back
}

// take claims all of the volumes, or none: then it says what holds one.
func (c *claims) take(what string, ids ...string) (release func(), holder string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		if c.who[id] != "" {
			return nil, c.who[id]
		}
		for reader := range c.readers[id] {
			return nil, reader
		}
	}
	c.begin()
	for _, id := range ids {
		c.who[id] = what
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, id := range ids {
			delete(c.who, id)
		}
		c.free()
	}, ""
}

// share claims a volume together with others that read it. It blocks while one
// holds it alone, or until ctx ends.
func (c *claims) share(ctx context.Context, what, id string) (release func(), err error) {
	for {
		c.mu.Lock()
		c.begin()
		if c.who[id] == "" {
			if c.readers[id] == nil {
				c.readers[id] = map[string]int{}
			}
			c.readers[id][what]++
			c.mu.Unlock()
			return func() { c.unshare(what, id) }, nil
		}
		freed := c.freed
		c.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (c *claims) unshare(what, id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.readers[id][what]--; c.readers[id][what] == 0 {
		delete(c.readers[id], what)
	}
	if len(c.readers[id]) == 0 {
		delete(c.readers, id)
	}
	c.free()
}

func (c *claims) begin() {
	if c.who == nil {
		c.who, c.readers, c.freed = map[string]string{}, map[string]map[string]int{}, make(chan struct{})
	}
}

func (c *claims) free() {
	close(c.freed)
	c.freed = make(chan struct{})
}
