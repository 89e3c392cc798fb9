package control_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster/control"
	"github.com/debvisor/debvisor/fsm"
)

func (c *cluster) submit(name, verb, vm string) {
	c.tb.Helper()
	c.do(fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: name, Verb: verb, Kind: api.KindVM, Object: api.Key(api.DefaultTenant, vm)}))
}

func (c *cluster) task(name string) *api.Task {
	c.tb.Helper()
	t := fsm.Tasks.Get(c.f.Read(), name)
	if t == nil {
		c.tb.Fatalf("no task %s", name)
	}
	return t
}

// finish ends a task as the node that it was given to.
func (c *cluster) finish(t *api.Task, state string) error {
	return c.try(fsm.FinishTask.Entry(fsm.TaskReport{Name: t.Name, Node: t.Node, Epoch: t.Epoch, Attempt: t.Attempt, State: state}))
}

func TestTaskGoesToTheOwnerAtItsEpoch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.register(1, 1)
		epoch := c.register(1, 1)
		c.create("web", nil)
		c.submit("r1", api.TaskRestart, "web")
		l := lead(t, c, newControl(t, c, nil), 2)
		defer l.stop()
		l.pass(time.Second)
		task := c.task("r1")
		if task.State != api.TaskRunning || task.Node != "node1" || task.Epoch != epoch || task.Attempt != 1 {
			t.Fatalf("got %+v", task)
		}
		c.register(1, 1) // the agent restarted: it knows nothing of the task
		l.pass(500 * time.Millisecond)
		if task = c.task("r1"); task.State != api.TaskPending || !task.NotBefore.After(time.Now()) {
			t.Fatalf("after a restart of the node: %+v", task)
		}
		l.pass(2 * time.Second)
		if task = c.task("r1"); task.State != api.TaskRunning || task.Epoch != epoch+1 || task.Attempt != 2 {
			t.Fatalf("after the backoff: %+v", task)
		}
		if err := c.finish(task, api.TaskDone); err != nil {
			t.Fatal(err)
		}
	})
}

func TestTaskOfALostObjectEndsAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.register(1, 1)
		c.create("web", nil)
		c.create("held", nil) // no room for it
		c.submit("waits", api.TaskRestart, "held")
		c.submit("runs", api.TaskRestart, "web")
		l := lead(t, c, newControl(t, c, nil), 2)
		defer l.stop()
		l.pass(time.Second)
		if c.task("waits").State != api.TaskPending || c.task("runs").State != api.TaskRunning {
			t.Fatalf("got %s and %s", c.task("waits").State, c.task("runs").State)
		}
		for _, name := range []string{"web", "held"} {
			vm := c.vm(name)
			c.do(fsm.VMs.Delete(vm.Tenant, vm.Name, vm.Modified))
		}
		l.pass(500 * time.Millisecond)
		for _, name := range []string{"waits", "runs"} {
			if task := c.task(name); task.State != api.TaskFailed || task.Error == nil || task.Error.Code != api.CodeNotFound {
				t.Fatalf("%s: %+v", name, task)
			}
		}
	})
}

func TestStopOfAVMThatRunsNowhereIsDone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.register(1, 1)
		c.create("first", nil)
		c.create("held", nil)
		c.submit("restart", api.TaskRestart, "held")
		l := lead(t, c, newControl(t, c, nil), 2)
		defer l.stop()
		l.pass(time.Second)
		c.submit("stop", api.TaskStop, "held")
		l.pass(500 * time.Millisecond)
		if task := c.task("stop"); task.State != api.TaskDone {
			t.Fatalf("stop: %+v", task)
		}
		if task := c.task("restart"); task.State != api.TaskFailed || task.Error.Code != api.CodeConflict {
			t.Fatalf("restart of what was switched off: %+v", task)
		}
	})
}

func TestANodeGetsEightTasksAtOnceAndTenantsTakeTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const tasksPerNode = 7
		c := newCluster(t)
		c.register(1, 64)
		config := *fsm.Configs.Get(c.f.Read(), api.ConfigName)
		config.TasksPerNode = tasksPerNode
		limited, err := fsm.Configs.Put(&config)
		if err != nil {
			t.Fatal(err)
		}
		c.do(limited)
		other := api.Tenant{Meta: api.Meta{Name: "other"}}
		e, err := fsm.Tenants.Put(&other)
		if err != nil {
			t.Fatal(err)
		}
		c.do(e)
		for i := range 20 {
			name := fmt.Sprintf("vm%02d", i)
			c.create(name, nil)
		}
		for i := range 3 {
			c.create(fmt.Sprintf("vm%02d", i), func(vm *api.VM) { vm.Tenant = "other" })
		}
		placing := lead(t, c, newControl(t, c, nil), 2)
		placing.pass(time.Second)
		placing.stop()
		for i := range 20 {
			name := fmt.Sprintf("vm%02d", i)
			c.submit("t-"+name, api.TaskRestart, name)
		}
		for i := range 3 {
			name := fmt.Sprintf("vm%02d", i)
			c.do(fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: "o-" + name, Verb: api.TaskRestart, Kind: api.KindVM, Object: "other/" + name}))
		}
		l := lead(t, c, newControl(t, c, nil), 3)
		defer l.stop()
		l.pass(time.Second)
		running, others := 0, 0
		for task := range fsm.Tasks.By(c.f.Read(), "state", api.TaskRunning) {
			running++
			if task.Tenant == "other" {
				others++
			}
		}
		if running != tasksPerNode || others != 3 {
			t.Fatalf("got %d running, %d of the tenant that came last; want %d and 3", running, others, tasksPerNode)
		}
		for task := range fsm.Tasks.By(c.f.Read(), "state", api.TaskRunning) {
			if err := c.finish(task, api.TaskDone); err != nil {
				t.Fatal(err)
			}
			break
		}
		l.pass(100 * time.Millisecond)
		if n := len(collect(c, api.TaskRunning)); n != tasksPerNode {
			t.Fatalf("got %d running after one ended", n)
		}
	})
}

func collect(c *cluster, state string) (out []*api.Task) {
	for task := range fsm.Tasks.By(c.f.Read(), "state", state) {
		out = append(out, task)
	}
	return out
}

func TestTasksThatEndedAreTrimmed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.register(1, 4096)
		const tasks = fsm.TasksTrimMax + 10
		for i := range tasks {
			name := fmt.Sprintf("vm%d", i)
			c.create(name, nil)
			c.submit("t-"+name, api.TaskStop, name)
		}
		config := *fsm.Configs.Get(c.f.Read(), api.ConfigName)
		config.TaskRetention = 5 * time.Minute
		e, err := fsm.Configs.Put(&config)
		if err != nil {
			t.Fatal(err)
		}
		c.do(e)
		l := lead(t, c, newControl(t, c, nil), 2)
		defer l.stop()
		l.pass(2 * time.Second)
		if n := len(collect(c, api.TaskDone)); n != tasks {
			t.Fatalf("got %d tasks done, want %d", n, tasks)
		}
		pass(time.Hour + 10*time.Minute)
		if n := fsm.Tasks.Len(c.f.Read()); n != 0 {
			t.Fatalf("%d tasks are left after their retention", n)
		}
	})
}

func TestLeaderCarriesOutItsTasksAndTheNextLeaderResumes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.register(1, 1)
		begun, release := make(chan int, 10), make(chan error, 10)
		doer := func(ctx context.Context, task *api.Task, report func(int, string)) error {
			begun <- task.Attempt
			report(50, "half way")
			select {
			case err := <-release:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		ctl := newControl(t, c, func(conf *control.Config) { conf.Doers = map[string]control.Doer{api.TaskApply: doer} })
		c.do(fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: "big", Verb: api.TaskApply, Deadline: time.Now().Add(time.Hour)}))
		l := lead(t, c, ctl, 2)
		if a := <-begun; a != 1 {
			t.Fatalf("got attempt %d", a)
		}
		l.pass(time.Second)
		if task := c.task("big"); task.State != api.TaskRunning || task.Node != "" || task.Epoch != 2 || task.Percent != 50 {
			t.Fatalf("got %+v", task)
		}
		l.stop()
		l = lead(t, c, ctl, 3)
		defer l.stop()
		if a := <-begun; a != 2 {
			t.Fatalf("got attempt %d under the next leader", a)
		}
		release <- api.Errorf(api.CodeUnavailable, "later")
		if a := <-begun; a != 3 {
			t.Fatalf("got attempt %d after a failure that passes", a)
		}
		c.do(fsm.CancelTask.Entry(fsm.TaskName{Name: "big"}))
		pass(time.Second)
		if task := c.task("big"); task.State != api.TaskCancelled {
			t.Fatalf("after cancel: %+v", task)
		}
		c.do(fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: "bad", Verb: api.TaskApply}))
		<-begun
		release <- errors.New("secret detail")
		pass(time.Second)
		if task := c.task("bad"); task.State != api.TaskFailed || task.Error.Code != api.CodeInternal || task.Error.Message == "secret detail" {
			t.Fatalf("got %+v", task)
		}
	})
}

func TestTaskThatNobodyCarriesOutFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.do(fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: "orphan", Verb: api.TaskApply}))
		l := lead(t, c, newControl(t, c, nil), 2)
		defer l.stop()
		pass(time.Second)
		if task := c.task("orphan"); task.State != api.TaskFailed || task.Error == nil {
			t.Fatalf("got %+v", task)
		}
	})
}

// TestEveryTaskEnds lets nodes come and go, and agents do what they like.
func TestEveryTaskEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(inBubble{t}, func(rt *rapid.T) {
			c := newCluster(t)
			c.register(1, 3)
			c.join(2, "", false)
			c.register(2, 3)
			for i := range 5 {
				c.create(fmt.Sprintf("vm%d", i), nil)
			}
			ctl, term := newControl(t, c, nil), uint64(2)
			l := lead(t, c, ctl, term)
			defer func() { l.stop() }()
			for i := range rapid.IntRange(1, 25).Draw(rt, "steps") {
				if rapid.IntRange(0, 9).Draw(rt, "election") == 0 {
					l.stop()
					term++
					l = lead(t, c, ctl, term)
				}
				taskChange(rt, c, i)
				l.pass(time.Duration(rapid.IntRange(0, 2000).Draw(rt, "ms"))*time.Millisecond, rapid.IntRange(1, 3).Draw(rt, "silent"))
			}
			l.pass(20 * time.Second)
			pass(api.TaskDefaultDeadline)
			for task := range fsm.Tasks.All(c.f.Read()) {
				if !task.Ended() {
					rt.Fatalf("task %s never ended: %+v", task.Name, task)
				}
				if task.State == api.TaskFailed && task.Error == nil {
					rt.Fatalf("task %s failed without a reason", task.Name)
				}
			}
		})
	})
}

// taskChange does one thing that users or agents may do; Apply may refuse it.
func taskChange(rt *rapid.T, c *cluster, i int) {
	vm := fmt.Sprintf("vm%d", rapid.IntRange(0, 4).Draw(rt, "vm"))
	switch rapid.SampledFrom([]string{"restart", "restart", "stop", "on", "delete", "finish", "release", "cancel", "register"}).Draw(rt, "change") {
	case "restart":
		_ = c.try(fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: fmt.Sprintf("t%d", i), Verb: api.TaskRestart, Kind: api.KindVM, Object: "default/" + vm}))
	case "stop":
		_ = c.try(fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: fmt.Sprintf("t%d", i), Verb: api.TaskStop, Kind: api.KindVM, Object: "default/" + vm}))
	case "on":
		_ = c.try(fsm.PowerVM.Entry(fsm.VMPower{Tenant: api.DefaultTenant, Name: vm, Power: api.PowerOn}))
	case "delete":
		if have := c.vm(vm); have != nil {
			_ = c.try(fsm.VMs.Delete(have.Tenant, have.Name, have.Modified))
		}
	case "finish":
		for _, task := range collect(c, api.TaskRunning) {
			_ = c.finish(task, rapid.SampledFrom([]string{api.TaskDone, api.TaskCancelled}).Draw(rt, "end"))
		}
	case "release":
		for _, task := range collect(c, api.TaskRunning) {
			_ = c.try(fsm.ReleaseTask.Entry(fsm.TaskReport{Name: task.Name, Node: task.Node, Epoch: task.Epoch, Attempt: task.Attempt,
				Error: api.Errorf(api.CodeUnavailable, "busy"), NotBefore: time.Now().Add(time.Second)}))
		}
	case "cancel":
		for _, task := range append(collect(c, api.TaskRunning), collect(c, api.TaskPending)...) {
			_ = c.try(fsm.CancelTask.Entry(fsm.TaskName{Name: task.Name}))
		}
	case "register":
		c.register(rapid.IntRange(1, 2).Draw(rt, "node"), 3)
	}
}
