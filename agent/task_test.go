package agent_test

import (
	"testing"
	"time"

	"github.com/debvisor/debvisor/agent"
	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

func TestRestartHappensOncePerTask(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(vm("web"))
	started := h.instance(id).StartedAt
	h.task("t1", api.TaskRestart, "web", "")
	h.untilTask("t1", api.TaskDone)
	i := h.instance(id)
	if !i.StartedAt.After(started) || i.RestartedTask != "t1" || i.Restarts != 0 {
		t.Fatalf("the guest was not restarted as it should: %+v", i)
	}
	h.end()
	h.start()
	if d, _ := h.domain(id); !d.StartedAt.Equal(i.StartedAt) {
		t.Fatal("it was restarted a second time")
	}
}

func TestRestartGoesOnAfterTheAgentDied(t *testing.T) {
	t.Parallel()
	// The guest answers ACPI once it has booted; until then the agent dies.
	h := one(t, func(h *host) { h.boot, h.timings.StopGrace = time.Hour, time.Hour })
	id := h.run(vm("web"))
	started := h.instance(id).StartedAt
	h.task("t1", api.TaskRestart, "web", "")
	h.until("the guest was asked", func(v *fsm.View) bool { return fsm.Tasks.Get(v, "t1").Step != "" })
	h.end()
	h.open()
	if err := h.hv.PowerOff(id); err != nil { // it obeys meanwhile
		t.Fatal(err)
	}
	h.start()
	task := fsm.Tasks.Get(h.log.f.Read(), "t1") // the leader gives it out again
	h.log.must(t, fsm.ReleaseTask.Entry(fsm.TaskReport{Name: "t1", Node: task.Node, Epoch: task.Epoch, Attempt: task.Attempt}))
	h.dispatch("t1")
	h.untilTask("t1", api.TaskDone)
	if i := h.instance(id); !i.StartedAt.After(started) || i.RestartedTask != "t1" {
		t.Fatalf("the restart was not completed: %+v", i)
	}
}

func TestRestartCanBeCancelledWhileTheGuestIsAsked(t *testing.T) {
	t.Parallel()
	h := one(t, func(h *host) { h.boot, h.timings.StopGrace = time.Hour, time.Hour })
	id := h.run(vm("web"))
	started := h.instance(id).StartedAt
	h.task("t1", api.TaskRestart, "web", "")
	h.until("the guest was asked", func(v *fsm.View) bool { return fsm.Tasks.Get(v, "t1").Step != "" })
	h.log.must(t, fsm.CancelTask.Entry(fsm.TaskName{Name: "t1"}))
	h.untilTask("t1", api.TaskCancelled)
	if d, _ := h.domain(id); !d.StartedAt.Equal(started) || d.State != api.InstanceRunning {
		t.Fatalf("the guest was stopped after all: %+v", d)
	}
}

func TestForcedStopEndsTheGuest(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(vm("web"))
	h.task("t1", api.TaskStop, "web", "")
	h.untilTask("t1", api.TaskDone)
	h.untilState(id, api.InstanceStopped)
}

func TestTaskOfAFormerEpochIsNotDone(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(vm("web"))
	started := h.instance(id).StartedAt
	h.end()
	h.task("t1", api.TaskRestart, "web", "")
	h.start()
	h.task("t2", api.TaskStop, "web", "")
	h.untilTask("t2", api.TaskDone)
	if got := fsm.Tasks.Get(h.log.f.Read(), "t1"); got.State != api.TaskRunning || h.instance(id).StartedAt.After(started) {
		t.Fatalf("the task of the former epoch is %s", got.State)
	}
}

func TestTaskOfADeletedVMFails(t *testing.T) {
	t.Parallel()
	h := one(t, func(h *host) { h.change = func(c *agent.Config) { c.Workers = 2 } })
	h.run(vm("web"))
	h.end()
	h.log.must(t, fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: "t1", Verb: api.TaskRestart, Kind: api.KindVM, Object: "default/web"}))
	h.drop("web")
	h.start()
	h.dispatch("t1")
	h.untilTask("t1", api.TaskFailed)
	if got := fsm.Tasks.Get(h.log.f.Read(), "t1").Error; got == nil || got.Code != api.CodeNotFound {
		t.Fatalf("got %v, want not_found", got)
	}
}
