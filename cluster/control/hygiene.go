package control

import (
	"context"
	"time"

	"github.com/debvisor/debvisor/fsm"
)

// Times of clearing away.
const (
	trimTokensPause = time.Minute
	trimTasksPause  = time.Hour
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
