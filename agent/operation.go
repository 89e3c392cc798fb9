package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// do carries out one task. It may be called again for the same task after a
// crash of the agent, a new registration, or a failure that may pass: it looks
// at what is there, and goes on from it. nil ends the task as done; errAgain
// looks at everything anew; an error that may pass (unavailable, no leader,
// unknown outcome, limit) gives the task back to be tried again later; any other
// fails it. ctx ends when the task was cancelled, was taken away, or is about a
// VM that was deleted or is to be stopped by force.
type do func(ctx context.Context, o *operation) error

// operation is one task being carried out.
type operation struct {
	a    *Agent
	view *fsm.View
	task *api.Task // as last told: step replaces it
	name string    // of the task; it is watched while step replaces the task
	*sight
}

// vmOperations is what this node does with a VM that it owns. One runs at a
// time for each VM, in the VM's own job: nothing else touches the guest
// meanwhile.
func (a *Agent) vmOperations() map[string]do {
	return map[string]do{
		api.TaskSnapshot:       a.onSnapshots(a.takeSnapshot),
		api.TaskSnapshotRevert: a.onSnapshots(a.revertSnapshot),
		api.TaskSnapshotDelete: a.onSnapshots(a.deleteSnapshot),
		api.TaskMigrate:        a.migrate,
		api.TaskTemplate:       a.makeTemplate,
		api.TaskMoveVolume:     a.moveVolume,
	}
}

// nodeOperations is what this node does by itself. Each task has its own job.
func (a *Agent) nodeOperations() map[string]do {
	return map[string]do{api.TaskFetch: a.fetchImage}
}

// nextOperation is the oldest task of this node about the VM that vmOperations
// knows; nil: there is none. A forced stop comes before all of them.
func (a *Agent) nextOperation(s *sight) (*operation, do) {
	if len(a.tasksFor(s, api.TaskStop)) > 0 {
		return nil, nil
	}
	all := a.vmOperations()
	var oldest *api.Task
	about := []string{api.KindVM + "/" + api.Key(s.vm.Tenant, s.vm.Name)}
	for _, d := range s.vm.Disks {
		about = append(about, api.KindVolume+"/"+api.Key(s.vm.Tenant, d.Volume))
	}
	for _, object := range about {
		for t := range fsm.Tasks.By(s.view, "object", object) {
			if all[t.Verb] != nil && a.mineNow(t) && (oldest == nil || t.Created < oldest.Created) {
				oldest = t
			}
		}
	}
	if oldest == nil {
		return nil, nil
	}
	return &operation{a: a, view: s.view, task: oldest, sight: s}, all[oldest.Verb]
}

// operate carries out the task and records what became of it.
func (a *Agent) operate(ctx context.Context, key string, o *operation, do do) error {
	if o.task.Cancel {
		return a.finish(ctx, o.task, api.TaskCancelled, nil)
	}
	o.name = o.task.Name
	within, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { a.untilUnwanted(within, key, o, cancel) })
	err := do(within, o)
	unwanted := within.Err() != nil
	cancel()
	watch.Wait()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil:
		err = a.finish(ctx, o.task, api.TaskDone, nil)
	case errors.Is(err, errAgain):
		return err
	case unwanted:
		return a.giveUp(ctx, o)
	case mayPass(err):
		err = a.release(ctx, o.task, a.explain(o.task, err))
	default:
		err = a.finish(ctx, o.task, api.TaskFailed, a.explain(o.task, err))
	}
	if err == nil && o.sight != nil {
		return errAgain // what the VM wants besides
	}
	return err
}

// giveUp ends a task whose work was broken off, if it is still ours to end.
func (a *Agent) giveUp(ctx context.Context, o *operation) error {
	now := fsm.Tasks.Get(a.view(), o.task.Name)
	if now == nil || !a.mineNow(now) {
		return errAgain
	}
	reason := api.Errorf(api.CodeConflict, "was broken off: the VM was stopped or deleted").On(o.task.Kind, o.task.Object)
	if now.Cancel {
		reason = nil
	}
	if err := a.finish(ctx, now, api.TaskCancelled, reason); err != nil {
		return err
	}
	return errAgain
}

// untilUnwanted cancels the work once nobody wants it any more.
func (a *Agent) untilUnwanted(ctx context.Context, key string, o *operation, cancel context.CancelFunc) {
	for {
		state := a.config.Cluster.State()
		advanced := state.Advanced()
		if o.sight != nil {
			advanced = a.queue.rearm(key) // whatever is about the VM touches its job
		}
		if !a.wanted(o) {
			cancel()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-advanced:
		}
	}
}

// wanted reports whether the task is still to be done by this node.
func (a *Agent) wanted(o *operation) bool {
	view := a.view()
	t := fsm.Tasks.Get(view, o.name)
	if t == nil || t.Cancel || !a.mineNow(t) {
		return false
	}
	if o.sight == nil {
		return true
	}
	vm := vmByID(view, o.id)
	if t.Verb == api.TaskMigrate && vm != nil && !vm.On() {
		return false // it is to stop: here, and now
	}
	return vm != nil && len(a.tasksFor(&sight{view: view, vm: vm}, api.TaskStop)) == 0
}

// mayPass reports whether the same work may succeed later.
func mayPass(err error) bool {
	return slices.Contains([]api.Code{api.CodeUnavailable, api.CodeNoLeader, api.CodeUnknown, api.CodeLimit}, api.CodeOf(err))
}

// explain is the failure as the task shows it; what nobody should see is logged.
func (a *Agent) explain(t *api.Task, err error) *api.Error {
	if _, ok := errors.AsType[*api.Error](err); !ok {
		a.log.Error("task failed", "task", t.Name, "verb", t.Verb, "error", err)
	}
	return api.AsError(err).OnMissing(t.Kind, t.Object)
}

// args reads the task's arguments; unknown ones are refused.
func (o *operation) args(into any) error {
	if len(o.task.Args) == 0 {
		return nil
	}
	decoder := json.NewDecoder(bytes.NewReader(o.task.Args))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return api.Invalid("args", "are not understood: %v", err).On(api.KindTask, o.task.Name)
	}
	return nil
}

// step tells how far the task is. That nobody hears it does not stop the work.
func (o *operation) step(ctx context.Context, percent int, text string) {
	if err := o.a.progress(ctx, o.task, percent, text); err != nil && ctx.Err() == nil {
		o.a.log.Debug("progress not recorded", "task", o.task.Name, "error", err)
		return
	}
	told := *o.task
	told.Percent, told.Step = percent, text
	o.task = &told
}

// tell is step for work that waits beside the workers.
func (o *operation) tell(ctx context.Context, percent int, text string) {
	r := o.a.taskReport(o.task)
	r.Percent, r.Step = percent, text
	if _, err := o.a.propose(ctx, fsm.ReportTask.Entry(r)); err != nil && ctx.Err() == nil {
		o.a.log.Debug("progress not recorded", "task", o.task.Name, "error", err)
	}
}
