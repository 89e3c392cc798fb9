package control_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

func (c *cluster) migrate(task, vm, args string) {
	c.tb.Helper()
	c.do(fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: task, Verb: api.TaskMigrate, Kind: api.KindVM, Object: api.Key(api.DefaultTenant, vm), Args: []byte(args)}))
}

// twoNodes is two live nodes, of which the first executes the VM web.
func twoNodes(t *testing.T) *cluster {
	t.Helper()
	c := newCluster(t)
	c.join(2, "", false)
	c.register(1, 8)
	c.register(2, 8)
	c.runningOn(1, "web")
	return c
}

func TestAMigrationGoesToTheOwnerWithADestination(t *testing.T) {
	t.Parallel()
	for _, args := range []string{`{}`, `{"node":"node2"}`} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := twoNodes(t)
				c.migrate("m1", "web", args)
				l := lead(t, c, newControl(t, c, nil), 2)
				defer l.stop()
				l.pass(time.Second)
				task := c.task("m1")
				if task.State != api.TaskRunning || task.Node != "node1" || task.Decision == nil || task.Decision.Node != "node2" {
					t.Fatalf("got %+v, decision %+v", task, task.Decision)
				}
			})
		})
	}
}

// A migration that no node takes has failed before its owner hears of it.
func TestAMigrationThatNoNodeTakesFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := twoNodes(t)
		node := c.node(2)
		c.do(fsm.ScheduleNode.Entry(fsm.NodeSchedule{Node: node.Name, Unschedulable: true}))
		c.migrate("m1", "web", `{}`)
		l := lead(t, c, newControl(t, c, nil), 2)
		defer l.stop()
		l.pass(time.Second)
		task := c.task("m1")
		if task.State != api.TaskFailed || task.Node != "" || task.Error == nil || len(task.Error.Details) != 1 {
			t.Fatalf("got %+v, error %+v", task, task.Error)
		}
		if d := task.Error.Details[0]; d.Key != "node2" || d.Message != "too small; too slow" {
			t.Errorf("the detail is %+v", d)
		}
	})
}

func TestAMigrationOfAVMThatDoesNotRunFails(t *testing.T) {
	t.Parallel()
	for state, want := range map[string]string{api.InstanceFailed: "is failed on node1", api.PowerOff: "is off"} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := twoNodes(t)
				c.migrate("m1", "web", `{}`)
				node, i := c.node(1), c.instance("web")
				if state == api.PowerOff {
					c.do(fsm.PowerVM.Entry(fsm.VMPower{Tenant: api.DefaultTenant, Name: "web", Power: api.PowerOff}))
				} else {
					c.do(fsm.ReportInstance.Entry(fsm.InstanceReport{VM: i.Name, Gen: i.Gen, Node: "node1", Epoch: node.Epoch, State: state, Reason: "test"}))
				}
				l := lead(t, c, newControl(t, c, nil), 2)
				defer l.stop()
				l.pass(time.Second)
				if task := c.task("m1"); task.State != api.TaskFailed || task.Error == nil || !strings.Contains(fmt.Sprint(task.Error), want) {
					t.Fatalf("got %+v, error %v; want %q", task, task.Error, want)
				}
			})
		})
	}
}

// What migrates, or starts, is waited for: the next try begins when it is over.
func TestAMigrationWaitsForAGuestThatStarts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := twoNodes(t)
		c.migrate("m1", "web", `{}`)
		node, i := c.node(1), c.instance("web")
		report := fsm.InstanceReport{VM: i.Name, Gen: i.Gen, Node: "node1", Epoch: node.Epoch, State: api.InstanceStarting}
		c.do(fsm.ReportInstance.Entry(report))
		l := lead(t, c, newControl(t, c, nil), 2)
		defer l.stop()
		l.pass(2 * time.Second)
		if task := c.task("m1"); task.State != api.TaskPending {
			t.Fatalf("while the guest starts: %+v", task)
		}
		report.State = api.InstanceRunning
		c.do(fsm.ReportInstance.Entry(report))
		l.pass(time.Second)
		if task := c.task("m1"); task.State != api.TaskRunning || task.Decision == nil || task.Decision.Node != "node2" {
			t.Fatalf("once it runs: %+v", task)
		}
	})
}
