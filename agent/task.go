package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// reconcileTask carries out a task of this node and epoch, or hands it to the
// job of its VM. One that has no VM here ends, or goes back to the leader.
func (a *Agent) reconcileTask(ctx context.Context, name string) error {
	view := a.view()
	t := fsm.Tasks.Get(view, name)
	if t == nil || !a.mineNow(t) {
		return nil
	}
	verb, known := api.LookupTaskVerb(t.Verb)
	if do := a.nodeOperations()[t.Verb]; do != nil && (verb.At == api.TaskAtNode || verb.At == api.TaskAtAny) {
		return a.operate(ctx, keyTask+name, &operation{a: a, view: view, task: t}, do)
	}
	if known && verb.At == api.TaskAtVolume {
		return a.reconcileVolumeTask(ctx, view, t)
	}
	if !known || verb.At != api.TaskAtOwner {
		return a.finish(ctx, t, api.TaskFailed, api.Errorf(api.CodeInvalid, "a node cannot carry out %q", t.Verb))
	}
	vm := fsm.VMs.Get(view, t.Object)
	if vm == nil {
		return a.finish(ctx, t, api.TaskFailed, api.Errorf(api.CodeNotFound, "does not exist any more").On(api.KindVM, t.Object))
	}
	if row := fsm.Instances.Get(view, vm.ID); row == nil || row.Owner != a.config.Name {
		return a.release(ctx, t, api.Errorf(api.CodeConflict, "is not on node %s any more", a.config.Name).On(api.KindVM, t.Object))
	}
	a.queue.touch(keyInstance + vm.ID)
	return nil
}

// mineNow reports whether the task was dispatched to this registration.
func (a *Agent) mineNow(t *api.Task) bool {
	return t.State == api.TaskRunning && t.Node == a.config.Name && t.Epoch == a.epoch()
}

// tasksFor lists the tasks of that verb which this node has for the VM, oldest
// first.
func (a *Agent) tasksFor(s *sight, verb string) []*api.Task {
	var out []*api.Task
	for t := range fsm.Tasks.By(s.view, "object", api.KindVM+"/"+api.Key(s.vm.Tenant, s.vm.Name)) {
		if t.Verb == verb && a.mineNow(t) {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(x, y *api.Task) int { return int(int64(x.Created) - int64(y.Created)) })
	return out
}

func (a *Agent) taskReport(t *api.Task) fsm.TaskReport {
	return fsm.TaskReport{Name: t.Name, Node: t.Node, Epoch: t.Epoch, Attempt: t.Attempt, Percent: t.Percent, Step: t.Step}
}

// finish ends a task. One that is another's by now is not ours to end.
func (a *Agent) finish(ctx context.Context, t *api.Task, state string, reason *api.Error) error {
	r := a.taskReport(t)
	r.State, r.Error = state, reason
	return a.proposeTask(ctx, fsm.FinishTask.Entry(r))
}

// release gives a task back to the leader, to be tried again.
func (a *Agent) release(ctx context.Context, t *api.Task, reason *api.Error) error {
	r := a.taskReport(t)
	r.Error, r.NotBefore = reason, a.config.Clock().Add(backoff(t.Attempt+2, backoffMax)).UTC()
	return a.proposeTask(ctx, fsm.ReleaseTask.Entry(r))
}

func (a *Agent) proposeTask(ctx context.Context, e fsm.Entry) error {
	var err error
	a.apart(func() { _, err = a.propose(ctx, e) })
	if code := api.CodeOf(err); code == api.CodeConflict || code == api.CodeNotFound {
		return nil
	}
	return err
}

func (a *Agent) progress(ctx context.Context, t *api.Task, percent int, step string) error {
	if t.Percent == percent && t.Step == step {
		return nil
	}
	r := a.taskReport(t)
	r.Percent, r.Step = percent, step
	return a.proposeTask(ctx, fsm.ReportTask.Entry(r))
}

type restartArgs struct {
	Force bool `json:"force"`
}

// restart carries out a restart task one step. The record says which start of
// the guest is to be stopped, so that after a crash of the agent the guest is
// not stopped a second time. busy is set while the VM is the task's.
func (a *Agent) restart(ctx context.Context, j job, s *sight, t *api.Task) (busy bool, err error) {
	if s.row.RestartedTask == t.Name {
		return false, a.finish(ctx, t, api.TaskDone, nil)
	}
	var args restartArgs
	if len(t.Args) > 0 {
		if err := json.Unmarshal(t.Args, &args); err != nil {
			return false, a.finish(ctx, t, api.TaskFailed, api.Invalid("args", "is not understood: %v", err).Allow(`{"force": true}`))
		}
	}
	one, _ := a.records.find(s.id)
	begun := one.Restart == t.Name
	old := s.executing() && (!begun || s.domain.StartedAt.Equal(one.RestartFrom))
	if t.Cancel && (old || !begun) {
		return false, a.finish(ctx, t, api.TaskCancelled, nil)
	}
	if !begun {
		one.Gen, one.Restart, one.RestartFrom = max(one.Gen, s.row.Gen), t.Name, s.domain.StartedAt
		if err := a.records.put(s.id, one); err != nil {
			return false, err
		}
		s.guest.notBefore = time.Time{} // whoever asks does not wait for a backoff
	}
	if old {
		if err := a.progress(ctx, t, 10, "stopping the guest"); err != nil {
			return true, err
		}
		grace := a.config.Timings.StopGrace
		if args.Force {
			grace = 0
		}
		if err := a.askToStop(ctx, j, s, grace); err != nil {
			return true, err
		}
		return true, a.settle(ctx)
	}
	if s.executing() {
		s.guest.runs(s.domain.StartedAt, a.config.Clock())
		r := a.runningReport(s)
		r.RestartedTask = t.Name
		if err := a.report(ctx, s.row, r); err != nil {
			return true, err
		}
		return true, errAgain
	}
	return false, nil // it is off: the start is that of any VM
}

// releaseRestarts gives restarts back whose start failed.
func (a *Agent) releaseRestarts(ctx context.Context, s *sight, why error) {
	for _, t := range a.tasksFor(s, api.TaskRestart) {
		reason := api.Errorf(api.CodeUnavailable, "%s", printable(why.Error())).On(api.KindVM, s.row.VM)
		if err := a.release(ctx, t, reason); err != nil {
			a.log.Debug("task not released", "task", t.Name, "error", err)
		}
	}
}

// finishRestarts ends restarts of a VM that was switched off meanwhile.
func (a *Agent) finishRestarts(ctx context.Context, s *sight) error {
	for _, t := range a.tasksFor(s, api.TaskRestart) {
		reason := api.Errorf(api.CodeConflict, "was switched off meanwhile").On(api.KindVM, s.row.VM)
		if err := a.finish(ctx, t, api.TaskCancelled, reason); err != nil {
			return fmt.Errorf("end restart: %w", err)
		}
	}
	return nil
}
