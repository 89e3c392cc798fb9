package control_test

import (
	"encoding/json"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// snapshotNode does what the node of the VMs would do for their snapshots.
func (c *cluster) snapshotNode() {
	for {
		var task *api.Task
		for t := range fsm.Tasks.By(c.f.Read(), "state", api.TaskRunning) {
			if t.Node != "" {
				task = t
			}
		}
		if task == nil {
			return
		}
		var args struct {
			Name string `json:"name"`
		}
		if err := json.Unmarshal(task.Args, &args); err != nil {
			c.tb.Fatal(err)
		}
		tenant, vm := api.SplitKey(task.Object)
		report := fsm.SnapshotReport{Snapshot: api.Key(tenant, api.SnapshotName(vm, args.Name)), Task: task.Name, Node: task.Node, Epoch: task.Epoch,
			Gen: c.instance(vm).Gen}
		if task.Verb == api.TaskSnapshotDelete {
			c.do(fsm.ForgetSnapshot.Entry(report))
		} else {
			c.do(fsm.ReportSnapshot.Entry(report))
		}
		c.do(fsm.FinishTask.Entry(fsm.TaskReport{Name: task.Name, Node: task.Node, Epoch: task.Epoch, Attempt: task.Attempt, State: api.TaskDone}))
	}
}

// taken is the own names of a VM's snapshots.
func (c *cluster) taken(vm string) []string {
	var out []string
	for s := range fsm.Snapshots.By(c.f.Read(), "vm_id", c.vm(vm).ID) {
		out = append(out, s.OwnName())
	}
	return out
}

// run is pass, with the node at work.
func (l leader) run(d time.Duration) {
	for ; d > 0; d -= 10 * time.Second {
		l.pass(min(d, 10*time.Second))
		l.c.snapshotNode()
	}
}

func TestSchedulesFireEachSlotOnceAndKeepWhatTheyShould(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // begins at midnight, the first of January 2000
		pass(time.Minute)
		c := newCluster(t)
		c.register(1, 8)
		c.create("web", func(vm *api.VM) {
			vm.Disks = []api.Disk{{Name: "root", SizeBytes: api.GiB}}
			vm.Snapshots = &api.SnapshotSchedule{Every: 5 * time.Minute, KeepLast: 2}
		})
		c.create("plain", nil)
		l := lead(t, c, newControl(t, c, nil), 2)
		l.run(3 * time.Minute)
		if got := c.taken("web"); len(got) != 0 {
			t.Fatalf("before its first slot it took %v", got)
		}
		l.run(18 * time.Minute) // until 00:22
		if got, want := c.taken("web"), []string{"auto-20000101-0015", "auto-20000101-0020"}; !slices.Equal(got, want) {
			t.Fatalf("it has %v, want %v", got, want)
		}
		if n := c.count(fsm.DueSnapshot.Op()); n != 5 { // the beginning and four slots
			t.Errorf("the schedule fired %d times", n)
		}
		l.stop()
		pass(20 * time.Minute) // an outage over four slots, until 00:42
		c.register(1, 8)
		l = lead(t, c, newControl(t, c, nil), 3)
		defer l.stop()
		l.run(time.Minute)
		if got, want := c.taken("web"), []string{"auto-20000101-0020", "auto-20000101-0040"}; !slices.Equal(got, want) {
			t.Errorf("after an outage it has %v, want %v", got, want)
		}
		if got := c.taken("plain"); len(got) != 0 {
			t.Errorf("a VM without a schedule has %v", got)
		}
		// A second leader that does not know what the first did asks in vain.
		slot := c.instance("web").SnapshotSlot
		if err := c.try(fsm.DueSnapshot.Entry(fsm.SnapshotDue{VM: c.vm("web").ID, Slot: slot, Task: "again", Name: "again"})); api.CodeOf(err) != api.CodeConflict {
			t.Errorf("a slot fires twice: %v", err)
		}
	})
}

func TestRefusedSlotsAreNotAskedForAllTheTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		pass(time.Minute)
		c := newCluster(t)
		c.register(1, 8)
		c.create("web", func(vm *api.VM) { // nothing to snapshot
			vm.Snapshots = &api.SnapshotSchedule{Every: 5 * time.Minute, KeepLast: 2}
		})
		l := lead(t, c, newControl(t, c, nil), 2)
		defer l.stop()
		l.run(20 * time.Minute)
		if n := c.count(fsm.DueSnapshot.Op()); n > 6 {
			t.Errorf("in 20 minutes it was asked %d times", n)
		}
	})
}

func TestSnapshotsOfPeopleAreNotPruned(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.register(1, 8)
		c.create("web", func(vm *api.VM) {
			vm.Disks = []api.Disk{{Name: "root", SizeBytes: api.GiB}}
			vm.Snapshots = &api.SnapshotSchedule{Every: 5 * time.Minute, KeepLast: 1}
		})
		l := lead(t, c, newControl(t, c, nil), 2)
		defer l.stop()
		l.run(20 * time.Second)
		c.do(fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: "mine", Verb: api.TaskSnapshot, Kind: api.KindVM, Object: "default/web", Args: []byte(`{"name":"mine"}`)}))
		l.run(11 * time.Minute)
		if got, want := c.taken("web"), []string{"auto-20000101-0010", "mine"}; !slices.Equal(got, want) {
			t.Errorf("it has %v, want %v", got, want)
		}
	})
}
