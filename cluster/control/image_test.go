package control_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

func (c *cluster) imageFromURL(name string) *api.Task {
	c.tb.Helper()
	e, err := fsm.Images.Put(&api.Image{Meta: api.Meta{Name: name, Tenant: api.DefaultTenant}, Format: api.FormatRaw, SHA256: fmt.Sprintf("%064d", 1), URL: "https://example.com/" + name})
	if err != nil {
		c.tb.Fatal(err)
	}
	c.do(e)
	for t := range fsm.Tasks.By(c.f.Read(), "object", api.KindImage+"/default/"+name) {
		return t
	}
	c.tb.Fatal("nobody was asked to fetch the image")
	return nil
}

func TestFetchesAreSpreadAndStayWithTheirNode(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		for n := 1; n <= 3; n++ {
			if n > 1 {
				c.join(n, "", false)
			}
			c.register(n, 1)
		}
		l := lead(t, c, newControl(t, c, nil), 2)
		defer l.stop()
		used := map[string]bool{}
		for i := range 12 {
			name := c.imageFromURL(fmt.Sprintf("image-%d", i)).Name
			l.pass(time.Second)
			task := c.task(name)
			if task.State != api.TaskRunning || task.Node == "" {
				t.Fatalf("got %+v", task)
			}
			used[task.Node] = true
			if i > 0 {
				if err := c.finish(task, api.TaskDone); err != nil {
					t.Fatal(err)
				}
				continue
			}
			// Given back, it comes to the same node, which has what arrived.
			first := task.Node
			c.do(fsm.ReleaseTask.Entry(fsm.TaskReport{Name: name, Node: task.Node, Epoch: task.Epoch, Attempt: task.Attempt}))
			l.pass(10 * time.Second)
			if task = c.task(name); task.State != api.TaskRunning || task.Node != first {
				t.Errorf("the second attempt went to %s, the first to %s", task.Node, first)
			}
			if err := c.finish(task, api.TaskDone); err != nil {
				t.Fatal(err)
			}
		}
		if len(used) < 2 {
			t.Errorf("all fetches went to %v", used)
		}
	})
}
