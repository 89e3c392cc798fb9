package control

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// Doer carries out a task on the leader. It may be run again after a change of
// the leader, or after a failure that may pass (unavailable, no leader, unknown
// outcome, limit); then the task's Step and Percent are what was reported last. It
// returns when ctx ends: the task was cancelled, or this node no longer leads.
type Doer func(ctx context.Context, task *api.Task, report func(percent int, step string)) error

// doing is the tasks that this leader carries out itself.
type doing struct {
	ctx  context.Context // of the leadership
	c    *Control
	term uint64

	mu      sync.Mutex
	cancels map[string]context.CancelFunc // nil value: about to begin; guarded by mu
	group   sync.WaitGroup
}

func newDoing(ctx context.Context, c *Control, term uint64) *doing {
	return &doing{ctx: ctx, c: c, term: term, cancels: map[string]context.CancelFunc{}}
}

// reserve says that the task is about to be dispatched to the leader.
func (d *doing) reserve(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cancels[name] = nil
}

func (d *doing) has(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.cancels[name]
	return ok
}

func (d *doing) cancel(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if cancel := d.cancels[name]; cancel != nil {
		cancel()
	}
}

func (d *doing) forget(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.cancels, name)
}

func (d *doing) wait() { d.group.Wait() }

// begin starts the work on a task that was dispatched to this leader.
func (d *doing) begin(task *api.Task) {
	ctx, cancel := context.WithCancel(d.ctx)
	d.mu.Lock()
	d.cancels[task.Name] = cancel
	d.mu.Unlock()
	d.group.Go(func() {
		defer d.forget(task.Name)
		defer cancel()
		d.do(ctx, task)
	})
}

func (d *doing) do(ctx context.Context, task *api.Task) {
	at := fsm.TaskReport{Name: task.Name, Epoch: d.term, Attempt: task.Attempt}
	err := d.c.doers[task.Verb](ctx, task, func(percent int, step string) {
		progress := at
		progress.Percent, progress.Step = min(max(percent, 0), 100), step
		if _, err := d.c.propose(ctx, fsm.ReportTask.Entry(progress)); err != nil {
			d.c.log.Debug("progress not recorded", "task", task.Name, "error", err)
		}
	})
	if d.ctx.Err() != nil {
		return // the next leader takes it up
	}
	e := fsm.FinishTask
	switch {
	case err == nil:
		at.State = api.TaskDone
	case ctx.Err() != nil:
		at.State = api.TaskCancelled
	default:
		at.State = api.TaskFailed
		at.Error = d.explain(task, err)
		switch at.Error.Code {
		case api.CodeUnavailable, api.CodeNoLeader, api.CodeUnknown, api.CodeLimit:
			e = fsm.ReleaseTask
			at.NotBefore = d.c.now(d.c.cluster.State().Read()).Add(taskBackoff(task.Attempt))
		}
	}
	if _, err := d.c.propose(d.ctx, e.Entry(at)); err != nil && d.ctx.Err() == nil {
		d.c.log.Warn("end of a task not recorded", "task", task.Name, "error", fmt.Errorf("%s: %w", e.Op(), err))
	}
}

// explain is the failure as the task shows it; what nobody should see is logged.
func (d *doing) explain(task *api.Task, err error) *api.Error {
	if _, ok := errors.AsType[*api.Error](err); !ok {
		d.c.log.Error("task failed", "task", task.Name, "verb", task.Verb, "error", err)
	}
	return api.AsError(err)
}
