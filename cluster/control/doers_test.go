package control_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster/control"
	"github.com/debvisor/debvisor/fsm"
)

// The dispatch was committed, and the leader was told that it was not: it must
// not believe that it is at the task.
func TestATaskWhoseDispatchSeemedToFailIsTakenUpAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		done := make(chan int, 10)
		doer := func(_ context.Context, task *api.Task, _ func(int, string)) error {
			done <- task.Attempt
			return nil
		}
		ctl := newControl(t, c, func(conf *control.Config) { conf.Doers = map[string]control.Doer{api.TaskApply: doer} })
		failed := false
		c.setIntercept(func(e fsm.Entry) (bool, error) {
			if e.Op != fsm.DispatchTask.Op() || failed {
				return false, nil
			}
			failed = true
			return false, api.Errorf(api.CodeUnavailable, "the answer was lost")
		})
		c.do(fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: "big", Verb: api.TaskApply, Deadline: time.Now().Add(time.Hour)}))
		l := lead(t, c, ctl, 2)
		defer l.stop()
		l.pass(time.Minute)
		if task := c.task("big"); task.State != api.TaskDone {
			t.Fatalf("got %+v, want it done", task)
		}
		if attempt := <-done; attempt != 2 {
			t.Errorf("it was done at attempt %d, want 2", attempt)
		}
	})
}
