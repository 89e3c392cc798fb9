package control

import (
	"encoding/json"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// routeMigration sends a migration to the VM's owner, with the destination that
// placement chose or agreed to. A refusal ends it before anything has moved.
func (t *tasks) routeMigration(s *survey, task *api.Task) route {
	out := t.routeToOwner(s.view, task)
	if out.end != "" || out.wait {
		return out
	}
	vm := fsm.VMs.Get(s.view, task.Object)
	i := fsm.Instances.Get(s.view, vm.ID)
	switch {
	case !vm.On():
		return route{end: api.TaskFailed, err: api.Errorf(api.CodeConflict, "is off").On(api.KindVM, task.Object).Do("start it where it should run")}
	case i.State == api.InstanceStopped || i.State == api.InstanceFailed:
		return route{end: api.TaskFailed, err: api.Errorf(api.CodeConflict, "is %s on %s", i.State, i.Owner).On(api.KindVM, task.Object).
			Do("wait until it runs: debvisor why vm/%s", vm.Name)}
	case i.Migration != nil || i.State != api.InstanceRunning:
		return route{wait: true} // a former try is being given up, or the guest starts
	}
	var args api.MigrateArgs
	if len(task.Args) > 0 {
		if err := json.Unmarshal(task.Args, &args); err != nil {
			return route{end: api.TaskFailed, err: api.Invalid("args", "are not understood: %v", err).On(api.KindTask, task.Name)}
		}
	}
	if task.NotBefore.After(s.now) {
		return out // not yet: nothing is decided before its time
	}
	if s.round == nil {
		s.round = t.c.placer.Begin(s.view)
	}
	d := s.round.Move(vm, i.Owner, args, s.now)
	if d.Node == "" {
		return route{end: api.TaskFailed, err: fsm.MoveRefusal(task.Object, d)}
	}
	out.decision = &d
	return out
}
