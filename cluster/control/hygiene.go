package control

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// Times and limits of clearing away and comparing.
const (
	trimTokensPause   = time.Minute
	trimTasksPause    = time.Hour
	comparePause      = 10 * time.Second
	compareTimeout    = 5 * time.Second // of one answer
	compareFlightsMax = 8               // nodes asked at once
)

// runHygiene deletes what nobody needs any more.
func (c *Control) runHygiene(ctx context.Context) error {
	var trimmed time.Duration // when tasks were; the first time at once
	for first := true; ; first = false {
		c.trimTokens(ctx)
		if now := c.clock.Elapsed(); first || now-trimmed >= trimTasksPause {
			trimmed = now
			c.trimTasks(ctx)
		}
		if !wait(ctx, trimTokensPause, nil) {
			return nil
		}
	}
}

func (c *Control) trimTokens(ctx context.Context) {
	for t := range fsm.JoinTokens.All(c.cluster.State().Read()) {
		if c.clock.Now().Before(t.Expires) {
			continue
		}
		if _, err := c.propose(ctx, fsm.TrimTokens.Entry(fsm.TokensTrim{})); err != nil && ctx.Err() == nil {
			c.log.Warn("join tokens not trimmed", "error", err)
		}
		return
	}
}

// trimTasks deletes the tasks that are past their retention, one entry's worth
// after the other.
func (c *Control) trimTasks(ctx context.Context) {
	for ctx.Err() == nil {
		view := c.cluster.State().Read()
		floor, old := c.now(view).Add(-fsm.Settings(view).TaskRetention), 0
		for t := range fsm.Tasks.All(view) {
			if t.Ended() && t.EndedAt.Before(floor) {
				old++
			}
		}
		if old == 0 {
			return
		}
		if _, err := c.propose(ctx, fsm.TrimTasks.Entry(fsm.TasksTrim{})); err != nil {
			if ctx.Err() == nil {
				c.log.Warn("tasks not trimmed", "error", err)
			}
			return
		}
		if old <= fsm.TasksTrimMax {
			return
		}
	}
}

// now is the time that Apply goes by: it does not lie before the state's.
func (c *Control) now(view *fsm.View) time.Time {
	if now := c.clock.Now(); now.After(view.Time()) {
		return now
	}
	return view.Time()
}

func (c *Control) runCompare(ctx context.Context) error {
	for {
		if _, err := c.Compare(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("states not compared", "error", err)
		}
		if !wait(ctx, comparePause, nil) {
			return nil
		}
	}
}

// Compare asks every live node for the hash of its state at an index that this
// one has applied, and returns the names of those that differ, after reporting
// each. A node that does not answer in time is passed over. It fails when
// nobody was given to ask, or when ctx ends.
func (c *Control) Compare(ctx context.Context) ([]string, error) {
	if c.hashAt == nil {
		return nil, fmt.Errorf("compare states: no way to ask other nodes")
	}
	state := c.cluster.State()
	view := state.Read()
	index, own := view.Index(), view.StateHash()
	type answer struct {
		node string
		hash api.Hash
	}
	answers := make(chan answer, api.NodesMax)
	var group errgroup.Group
	group.SetLimit(compareFlightsMax)
	for n := range fsm.Nodes.All(view) {
		if n.Name == c.self || n.Lease != api.NodeLive {
			continue
		}
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, compareTimeout)
			defer cancel()
			hash, err := c.hashAt(ctx, n, index)
			if err != nil {
				c.log.Debug("state hash not known", "node", n.Name, "index", index, "error", err)
				return nil
			}
			answers <- answer{n.Name, hash}
			return nil
		})
	}
	_ = group.Wait() // what fails is logged in place
	close(answers)
	var diverged []string
	for a := range answers {
		if a.hash == own {
			continue
		}
		diverged = append(diverged, a.node)
		c.log.Error("the state of a node differs from the leader's: stop that node, empty its data directory and join it again",
			"node", a.node, "index", index, "have", a.hash, "leader", own)
		c.diverged(a.node, index)
	}
	return diverged, ctx.Err()
}
