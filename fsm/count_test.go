package fsm_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

func TestRowsAreCountedThroughRefusalsPlansAndSnapshots(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	same := func(when string, v *fsm.View, want int) {
		t.Helper()
		n := 0
		for range fsm.VMs.All(v) {
			n++
		}
		if got := fsm.VMs.Len(v); got != n || n != want {
			t.Errorf("%s: Len is %d, there are %d, want %d", when, got, n, want)
		}
	}
	for n := range 3 {
		put(c, fsm.VMs.Put, vm(fmt.Sprintf("vm%d", n)))
	}
	before := c.f.Read()
	put(c, fsm.VMs.Put, vm("vm0")) // refused
	bad := vm("vm9")
	bad.Disks = append(bad.Disks, api.Disk{Name: "data", Volume: "missing"})
	put(c, fsm.VMs.Put, bad) // refused late
	same("after refusals", c.f.Read(), 3)
	c.do(fsm.VMs.Delete("default", "vm1", fsm.VMs.Get(c.f.Read(), "default/vm1").Modified))
	same("after a deletion", c.f.Read(), 2)
	same("in an older view", before, 3)
	more := vm("more")
	e, err := fsm.VMs.Put(&more)
	if err != nil {
		t.Fatal(err)
	}
	_, planned, err := c.f.Plan([]fsm.Entry{e})
	if err != nil {
		t.Fatal(err)
	}
	same("in a plan", planned, 3)
	same("after a plan", c.f.Read(), 2)
	var snapshot bytes.Buffer
	if _, err := c.f.Snapshot().WriteTo(&snapshot); err != nil {
		t.Fatal(err)
	}
	if err := c.f.Restore(&snapshot); err != nil {
		t.Fatal(err)
	}
	same("after a restore", c.f.Read(), 2)
	put(c, fsm.VMs.Put, vm("last"))
	same("at the end", c.f.Read(), 3)
}

func TestTheOldestTasksThatEndedAreTrimmedFirst(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	for n := range 3 {
		name := fmt.Sprintf("t%d", 9-n) // the order of names is another one
		c.do(fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: name, Verb: api.TaskApply}))
		c.do(fsm.CancelTask.Entry(fsm.TaskName{Name: name}))
		c.now = c.now.Add(24 * time.Hour)
	}
	c.do(fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: "t0", Verb: api.TaskApply, Deadline: c.now.Add(time.Hour)}))
	c.now = c.now.Add(7*24*time.Hour - 36*time.Hour)
	c.do(fsm.TrimTasks.Entry(fsm.TasksTrim{}))
	var left []string
	for task := range fsm.Tasks.All(c.f.Read()) {
		left = append(left, task.Name)
	}
	if fmt.Sprint(left) != "[t0 t7]" {
		t.Errorf("left are %v", left)
	}
}

func TestTheWindowOfRecordsIsBoundedInBytes(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	fsm.KeepRecent(c.f, 20_000)
	for n := range 200 {
		put(c, fsm.VMs.Put, vm(fmt.Sprintf("vm%d", n)))
	}
	last := c.f.Index()
	if _, ok := c.f.Recent(1, 1000); ok {
		t.Error("all records are still there")
	}
	kept := 0
	for ; kept < 200; kept++ {
		records, ok := c.f.Recent(last-uint64(kept), 1000)
		if !ok {
			break
		}
		if len(records) != kept || kept > 0 && records[0].Index != last-uint64(kept)+1 {
			t.Fatalf("the last %d: got %d", kept, len(records))
		}
	}
	if kept < 5 || kept > 60 {
		t.Errorf("%d records are kept", kept)
	}
}

// BenchmarkKeyAmongMany creates a key beside 50,000 others.
func BenchmarkKeyAmongMany(b *testing.B) {
	c := newCluster(b)
	add := func(n int) {
		c.do(fsm.CreateKey.Entry(fsm.KeyCreate{Name: fmt.Sprintf("k%d", n), Hash: fmt.Sprintf("%064d", n+2), Role: api.RoleAdmin}))
	}
	const many = 50_000
	for n := range many {
		add(n)
	}
	n := many
	for b.Loop() {
		add(n)
		n++
	}
}
