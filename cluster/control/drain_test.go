package control_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// movers plays the agents: a migration that was given out takes a few seconds.
type movers struct {
	c       *cluster
	refuses map[string]bool // names of VMs that cannot move
	begun   map[string]time.Time
	most    map[string]int // migrations that a node took part in at a time, at most
	order   []string       // VMs in the order in which their migrations began
}

const migrationTakes = 3 * time.Second

func newMovers(c *cluster) *movers {
	return &movers{c: c, refuses: map[string]bool{}, begun: map[string]time.Time{}, most: map[string]int{}}
}

// step does what is due.
func (m *movers) step() {
	view := m.c.f.Read()
	busy := map[string]int{}
	for t := range fsm.Tasks.By(view, "state", api.TaskRunning) {
		if t.Verb != api.TaskMigrate {
			continue
		}
		_, name := api.SplitKey(t.Object)
		i, at := m.c.instance(name), fsm.TaskReport{Name: t.Name, Node: t.Node, Epoch: t.Epoch, Attempt: t.Attempt}
		switch {
		case t.Cancel:
			if i.Migration != nil {
				m.c.do(fsm.AbortMigration.Entry(fsm.MigrationAbort{VM: i.Name, Gen: i.Gen, Node: i.Owner, Epoch: i.OwnerEpoch}))
			}
			at.State = api.TaskCancelled
			m.c.do(fsm.FinishTask.Entry(at))
		case m.refuses[name]:
			at.State, at.Error = api.TaskFailed, api.Errorf(api.CodeConflict, "its device cannot move")
			m.c.do(fsm.FinishTask.Entry(at))
		case i.Migration == nil:
			to := m.destination(view, t, i.Owner)
			m.c.do(fsm.BeginMigration.Entry(fsm.MigrationBegin{VM: i.Name, Gen: i.Gen, Node: i.Owner, Epoch: i.OwnerEpoch, To: to.Name, ToEpoch: to.Epoch, Task: t.Name}))
			m.begun[t.Name] = time.Now()
			m.order = append(m.order, name)
			busy[i.Owner]++
			busy[to.Name]++
		case time.Since(m.begun[t.Name]) >= migrationTakes:
			m.c.do(fsm.CommitMigration.Entry(fsm.MigrationCommit{VM: i.Name, Gen: i.Gen, Node: i.Owner, Epoch: i.OwnerEpoch, To: i.Migration.To, ToEpoch: i.Migration.ToEpoch}))
		default:
			busy[i.Owner]++
			busy[i.Migration.To]++
		}
	}
	for n, k := range busy {
		m.most[n] = max(m.most[n], k)
	}
}

func (m *movers) destination(view *fsm.View, t *api.Task, from string) *api.Node {
	var args api.MigrateArgs
	if err := json.Unmarshal(t.Args, &args); err != nil {
		m.c.tb.Fatal(err)
	}
	if args.Node != "" {
		return fsm.Nodes.Get(view, args.Node)
	}
	var best *api.Node
	for n := range fsm.Nodes.All(view) {
		if n.Name != from && !n.Unschedulable && (best == nil || owned(view, n.Name) < owned(view, best.Name)) {
			best = n
		}
	}
	return best
}

func owned(view *fsm.View, node string) int {
	return len(slices.Collect(fsm.Instances.By(view, "owner", node)))
}

// runningOn makes VMs that run on node n.
func (c *cluster) runningOn(n int, names ...string) {
	c.tb.Helper()
	for k, name := range names {
		c.create(name, func(v *api.VM) { v.Priority = k })
		vm, node := c.vm(name), c.node(n)
		c.do(fsm.AssignInstance.Entry(fsm.Assignment{VM: vm.ID, Node: node.Name, Epoch: node.Epoch, Decision: api.Decision{Node: node.Name, Summary: "test"}}))
		c.do(fsm.ReportInstance.Entry(fsm.InstanceReport{VM: vm.ID, Gen: c.instance(name).Gen, Node: node.Name, Epoch: node.Epoch, State: api.InstanceRunning}))
	}
}

func threeNodes(t *testing.T) *cluster {
	t.Helper()
	c := newCluster(t)
	c.join(2, "", false)
	c.join(3, "", false)
	for n := 1; n <= 3; n++ {
		c.register(n, 64)
	}
	return c
}

// until lets time go by until holds, and plays the agents meanwhile.
func (m *movers) until(l leader, what string, holds func() bool) {
	m.c.tb.Helper()
	for range 600 {
		if holds() {
			return
		}
		l.pass(500 * time.Millisecond)
		m.step()
	}
	m.c.tb.Fatalf("not within five minutes: %s; the moves were %v", what, m.order)
}

func submitDrain(c *cluster, name, node, args string) {
	c.tb.Helper()
	c.do(fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: name, Verb: api.TaskDrain, Kind: api.KindNode, Object: node, Args: json.RawMessage(args)}))
}

func TestADrainMovesTheImportantFirstAndFewAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := threeNodes(t)
		c.runningOn(2, "a", "b", "c", "d", "e", "f")
		c.create("off", func(v *api.VM) { v.Power = api.PowerOff })
		off, node := c.vm("off"), c.node(2)
		c.do(fsm.AssignInstance.Entry(fsm.Assignment{VM: off.ID, Node: node.Name, Epoch: node.Epoch}))
		m := newMovers(c)
		l := lead(t, c, newControl(t, c, nil), 2)
		defer l.stop()
		submitDrain(c, "drain", "node2", `{"parallel":2}`)
		m.until(l, "the drain is done", func() bool { return c.task("drain").Ended() })
		task := c.task("drain")
		if task.State != api.TaskDone || !strings.Contains(task.Step, "1 are off and stay") {
			t.Fatalf("got %+v", task)
		}
		if got := m.most["node2"]; got != 2 {
			t.Errorf("%d moves at a time, want 2", got)
		}
		first := slices.Sorted(slices.Values(m.order[:2]))
		if want := []string{"e", "f"}; !slices.Equal(first, want) {
			t.Errorf("the moves were %v, want the most important first", m.order)
		}
		if left := owned(c.f.Read(), "node2"); left != 1 || c.owner("off") != "node2" {
			t.Errorf("%d VMs are left", left)
		}
		if n := c.node(2); !n.Unschedulable || n.Maintenance == "" {
			t.Errorf("the node is open again: %+v", n)
		}
	})
}

func TestADrainNamesWhatCannotLeave(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := threeNodes(t)
		c.runningOn(2, "a", "stuck")
		m := newMovers(c)
		m.refuses["stuck"] = true
		l := lead(t, c, newControl(t, c, nil), 2)
		defer l.stop()
		submitDrain(c, "drain", "node2", `{}`)
		m.until(l, "the drain has ended", func() bool { return c.task("drain").Ended() })
		task := c.task("drain")
		if task.State != api.TaskFailed || !strings.Contains(task.Error.Message, "vm default/stuck: its device cannot move") || task.Error.Next == "" {
			t.Fatalf("got %+v, %v", task, task.Error)
		}
		if c.owner("a") == "node2" || c.owner("stuck") != "node2" {
			t.Fatal("the one that can leave did not, or the other one did")
		}
		if tries := len(slices.Collect(fsm.Tasks.By(c.f.Read(), "object", api.KindVM+"/default/stuck"))); tries != 3 {
			t.Errorf("it was tried %d times, want 3", tries)
		}
	})
}

func TestACancelledDrainStopsItsMigrations(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := threeNodes(t)
		c.runningOn(2, "a", "b", "c", "d")
		m := newMovers(c)
		l := lead(t, c, newControl(t, c, nil), 2)
		defer l.stop()
		submitDrain(c, "drain", "node2", `{"parallel":1}`)
		m.until(l, "one VM has left", func() bool { return owned(c.f.Read(), "node2") == 3 && len(m.order) == 2 })
		c.do(fsm.CancelTask.Entry(fsm.TaskName{Name: "drain"}))
		m.until(l, "all tasks have ended", func() bool {
			for task := range fsm.Tasks.All(c.f.Read()) {
				if !task.Ended() {
					return false
				}
			}
			return true
		})
		if c.task("drain").State != api.TaskCancelled || owned(c.f.Read(), "node2") != 3 {
			t.Fatalf("got %+v", c.task("drain"))
		}
		for i := range fsm.Instances.All(c.f.Read()) {
			if i.Migration != nil {
				t.Errorf("%s still migrates", i.VM)
			}
		}
	})
}

func TestTheNextLeaderGoesOnWithADrain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := threeNodes(t)
		c.runningOn(2, "a", "b", "c", "d")
		m := newMovers(c)
		first := lead(t, c, newControl(t, c, nil), 2)
		submitDrain(c, "drain", "node2", `{"parallel":1}`)
		m.until(first, "a migration is under way", func() bool { return len(m.order) == 2 })
		first.stop()
		second := lead(t, c, newControl(t, c, nil), 3)
		defer second.stop()
		m.until(second, "the drain is done", func() bool { return c.task("drain").Ended() })
		if c.task("drain").State != api.TaskDone || len(m.order) != 4 {
			t.Fatalf("got %+v after the moves %v", c.task("drain"), m.order)
		}
	})
}

func TestADrainEndsWhenTheNodeIsOpened(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := threeNodes(t)
		c.runningOn(2, "a", "b", "c", "d")
		m := newMovers(c)
		l := lead(t, c, newControl(t, c, nil), 2)
		defer l.stop()
		submitDrain(c, "drain", "node2", `{"parallel":1}`)
		m.until(l, "one VM has left", func() bool { return owned(c.f.Read(), "node2") == 3 })
		c.do(fsm.ScheduleNode.Entry(fsm.NodeSchedule{Node: "node2"}))
		m.until(l, "the drain has ended", func() bool { return c.task("drain").Ended() })
		if task := c.task("drain"); task.State != api.TaskFailed || !strings.Contains(task.Error.Message, "opened") {
			t.Fatalf("got %+v", task)
		}
	})
}

func TestBalanceCarriesOutWhatStillHolds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := threeNodes(t)
		c.runningOn(1, "a", "b", "c", "moved")
		c.runningOn(2, "stranger")
		m := newMovers(c)
		m.refuses["c"] = true
		moves := map[string][2]string{"a": {"node1", "node2"}, "b": {"node1", "node3"}, "c": {"node1", "node3"}, "moved": {"node3", "node2"}}
		var args api.BalanceArgs
		for _, name := range slices.Sorted(maps.Keys(moves)) {
			args.Moves = append(args.Moves, api.Move{VM: "default/" + name, ID: c.vm(name).ID, From: moves[name][0], To: moves[name][1]})
		}
		raw, err := json.Marshal(args)
		if err != nil {
			t.Fatal(err)
		}
		l := lead(t, c, newControl(t, c, nil), 2)
		defer l.stop()
		c.do(fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: "balance", Verb: api.TaskBalance, Args: raw}))
		m.until(l, "it has ended", func() bool { return c.task("balance").Ended() })
		task := c.task("balance")
		if task.State != api.TaskFailed || !strings.Contains(fmt.Sprint(task.Error), "default/c") || !strings.Contains(task.Step, "2 moved, 1 left out") {
			t.Fatalf("got %+v %v", task, task.Error)
		}
		if c.owner("a") != "node2" || c.owner("b") != "node3" || c.owner("moved") != "node1" || m.most["node1"] > 2 {
			t.Fatalf("a on %s, b on %s, moved on %s; %v", c.owner("a"), c.owner("b"), c.owner("moved"), m.most)
		}
	})
}
