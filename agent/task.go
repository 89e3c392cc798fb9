package agent

import (
	"context"
	"encoding/json"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// findTask is a task of this node's epoch that waits for the instance.
func (s *step) findTask() *api.Task {
	for t := range fsm.Tasks.By(s.v, "object", api.KindVM+"/"+s.instance.VM) {
		if t.State == api.TaskRunning && t.Node == s.a.cfg.Name && t.Epoch == s.a.epoch.Load() {
			return t
		}
	}
	return nil
}

// restartArgs are the arguments of a restart.
type restartArgs struct {
	Force bool `json:"force"`
}

// carryOut takes the next step of the instance's task.
func (s *step) carryOut(ctx context.Context) error {
	t := s.task
	switch {
	case t.Verb == api.TaskStop:
		if s.executing() {
			return s.act(s.a.cfg.Hypervisor.Stop(ctx, s.id, 0))
		}
		if err := s.off(ctx); err != nil {
			return err
		}
		return s.finish(ctx, api.TaskDone, nil)
	case t.Verb != api.TaskRestart:
		return s.finish(ctx, api.TaskFailed, api.Invalid("verb", "%q is not known to node %s", t.Verb, s.a.cfg.Name))
	case s.instance.RestartedTask == t.Name && s.executing():
		if err := s.report(ctx, s.observed()); err != nil {
			return err
		}
		return s.finish(ctx, api.TaskDone, nil)
	case t.Cancel && s.executing() && t.Percent == 0:
		return s.finish(ctx, api.TaskCancelled, nil)
	case !s.vm.On():
		return s.finish(ctx, api.TaskFailed, api.Errorf(api.CodeConflict, "was turned off meanwhile").On(api.KindVM, s.instance.VM))
	}
	return s.restart(ctx)
}

// restart ends the guest and starts it. RestartedTask remembers that the end
// was brought about, so that a crash in between restarts the guest once.
func (s *step) restart(ctx context.Context) error {
	if s.instance.RestartedTask == s.task.Name {
		return s.start(ctx, s.task.Name)
	}
	if s.executing() {
		var args restartArgs
		if len(s.task.Args) > 0 {
			if err := json.Unmarshal(s.task.Args, &args); err != nil {
				return s.finish(ctx, api.TaskFailed, api.Invalid("args", "is not understood").Allow(`{"force": true}`))
			}
		}
		// The row says that a start follows, so that the guest is not taken for
		// one that powered itself off if this task ends half way.
		r := s.observed()
		r.State, r.Reason = api.InstanceStarting, "restarted by task "+s.task.Name
		if err := s.report(ctx, r); err != nil {
			return err
		}
		s.progress(ctx, 10, "the guest is asked to shut down")
		grace := s.a.grace(s.domain)
		if args.Force {
			grace = 0
		}
		return s.act(s.a.cfg.Hypervisor.Stop(ctx, s.id, grace))
	}
	r := s.keep()
	r.State, r.Reason, r.RestartedTask = api.InstanceStarting, "restarted by task "+s.task.Name, s.task.Name
	if err := s.report(ctx, r); err != nil {
		return err
	}
	s.progress(ctx, 50, "the guest is started")
	return s.start(ctx, s.task.Name)
}

// progress is a courtesy: a failure to tell it changes nothing.
func (s *step) progress(ctx context.Context, percent int, text string) {
	t := s.task
	if t.Percent >= percent {
		return
	}
	_, err := s.a.propose(ctx, fsm.ReportTask.Entry(fsm.TaskReport{Name: t.Name, Node: t.Node, Epoch: t.Epoch, Attempt: t.Attempt, Percent: percent, Step: text}))
	if err != nil {
		s.a.log.Debug("progress not told", "task", t.Name, "error", err)
	}
}

func (s *step) finish(ctx context.Context, state string, cause *api.Error) error {
	return s.a.finishTask(ctx, s.task, state, cause)
}

func (a *Agent) finishTask(ctx context.Context, t *api.Task, state string, cause *api.Error) error {
	_, err := a.propose(ctx, fsm.FinishTask.Entry(fsm.TaskReport{Name: t.Name, Node: t.Node, Epoch: t.Epoch, Attempt: t.Attempt, State: state, Error: cause}))
	if err != nil && final(err) {
		return nil
	}
	return err
}

// failTask ends a task that was given to this node for something it has not.
func (a *Agent) failTask(ctx context.Context, name string) error {
	t := fsm.Tasks.Get(a.view(), name)
	if t == nil || t.State != api.TaskRunning || t.Node != a.cfg.Name || t.Epoch != a.epoch.Load() {
		return nil
	}
	return a.finishTask(ctx, t, api.TaskFailed, api.Errorf(api.CodeNotFound, "is not on node %s any more", a.cfg.Name).On(t.Kind, t.Object))
}
