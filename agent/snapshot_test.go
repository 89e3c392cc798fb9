package agent_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/agent"
	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/sim"
)

// twoDisks is a VM with two disks of its own.
func twoDisks(name string) api.VM {
	v := vm(name)
	v.Disks = append(v.Disks, api.Disk{Name: "data", SizeBytes: api.GiB})
	return v
}

// file is where a volume of the host lies.
func (h *host) file(volume string) string {
	h.t.Helper()
	v := fsm.Volumes.Get(h.log.f.Read(), api.Key(api.DefaultTenant, volume))
	found, err := filepath.Glob(filepath.Join(h.dir, "pools", "*", "volumes", v.ID+".*"))
	if err != nil || len(found) != 1 {
		h.t.Fatalf("volume %s lies in %v: %v", volume, found, err)
	}
	return found[0]
}

func (h *host) write(volume, text string) {
	h.t.Helper()
	if err := sim.WriteVolume(h.file(volume), text); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) read(volume string) string {
	h.t.Helper()
	text, err := sim.ReadVolume(h.file(volume))
	if err != nil {
		h.t.Fatal(err)
	}
	return text
}

func (h *host) snapshot(vm, own string) *api.Snapshot {
	return fsm.Snapshots.Get(h.log.f.Read(), api.Key(api.DefaultTenant, api.SnapshotName(vm, own)))
}

// edit changes a VM as a user would.
func (h *host) edit(name string, change func(*api.VM)) {
	h.t.Helper()
	v := *h.vm(name)
	change(&v)
	put(h, fsm.VMs.Put, v)
}

func TestRevertRestoresDisksMemoryAndDefinition(t *testing.T) {
	t.Parallel()
	for _, memory := range []bool{false, true} {
		t.Run(fmt.Sprintf("memory=%v", memory), func(t *testing.T) {
			t.Parallel()
			h := one(t)
			id := h.run(twoDisks("web"))
			h.write("web-root", "first root")
			h.write("web-data", "first data")
			if err := h.hv.Remember(id, "first thought"); err != nil {
				t.Fatal(err)
			}
			h.task("t1", api.TaskSnapshot, "web", fmt.Sprintf(`{"name":"one","memory":%v}`, memory))
			h.untilTask("t1", api.TaskDone)
			if s := h.snapshot("web", "one"); s.State != api.SnapshotReady || !s.Current || s.Memory != memory || (s.SizeBytes > 0) != memory || len(s.Disks) != 2 {
				t.Fatalf("the snapshot is %+v", s)
			}
			h.write("web-root", "second root")
			h.write("web-data", "second data")
			if err := h.hv.Remember(id, "second thought"); err != nil {
				t.Fatal(err)
			}
			h.edit("web", func(v *api.VM) { v.CPUs, v.Labels = 2, map[string]string{"grown": "yes"} })
			started := h.instance(id).StartedAt
			h.task("t2", api.TaskSnapshotRevert, "web", `{"name":"one","safety":"before"}`)
			h.untilTask("t2", api.TaskDone)
			h.untilState(id, api.InstanceRunning)
			h.until("the guest was started anew", func(v *fsm.View) bool { return fsm.Instances.Get(v, id).StartedAt.After(started) })
			if root, data := h.read("web-root"), h.read("web-data"); root != "first root" || data != "first data" {
				t.Errorf("the disks hold %q and %q", root, data)
			}
			want := ""
			if memory {
				want = "first thought"
			}
			if got := h.hv.Memory(id); got != want {
				t.Errorf("the guest remembers %q, want %q", got, want)
			}
			v, d := h.vm("web"), mustDomain(t, h, id)
			if v.CPUs != 1 || len(v.Labels) != 0 || d.SpecRevision != v.Modified {
				t.Errorf("the VM is %+v, its guest of revision %d", v, d.SpecRevision)
			}
			if before := h.snapshot("web", "before"); before.State != api.SnapshotReady || before.Parent != "one" || before.Current || before.Why != api.SnapshotBySafety {
				t.Errorf("the snapshot that was taken before is %+v", before)
			}
			h.task("t3", api.TaskSnapshotRevert, "web", `{"name":"before"}`)
			h.untilTask("t3", api.TaskDone)
			if root := h.read("web-root"); root != "second root" || h.vm("web").CPUs != 2 {
				t.Errorf("the revert was not undone: %q, %d CPUs", root, h.vm("web").CPUs)
			}
		})
	}
}

func mustDomain(t *testing.T, h *host, id string) plugins.Domain {
	t.Helper()
	d, ok := h.domain(id)
	if !ok {
		t.Fatal("there is no domain")
	}
	return d
}

func TestDeletedSnapshotLeavesItsChildren(t *testing.T) {
	t.Parallel()
	h := one(t)
	h.run(vm("web"))
	for i, own := range []string{"a", "b", "c"} {
		h.write("web-root", own)
		h.task(fmt.Sprint("t", i), api.TaskSnapshot, "web", fmt.Sprintf(`{"name":%q}`, own))
		h.untilTask(fmt.Sprint("t", i), api.TaskDone)
	}
	h.task("d1", api.TaskSnapshotDelete, "web", `{"name":"b"}`)
	h.untilTask("d1", api.TaskDone)
	if h.snapshot("web", "b") != nil || h.snapshot("web", "c").Parent != "a" || !h.snapshot("web", "c").Current {
		t.Fatalf("after the deletion: b %+v, c %+v", h.snapshot("web", "b"), h.snapshot("web", "c"))
	}
	h.task("d2", api.TaskSnapshotDelete, "web", `{"name":"c"}`)
	h.untilTask("d2", api.TaskDone)
	if !h.snapshot("web", "a").Current {
		t.Error("the VM descends from nothing")
	}
	h.task("r", api.TaskSnapshotRevert, "web", `{"name":"a"}`)
	h.untilTask("r", api.TaskDone)
	if got := h.read("web-root"); got != "a" {
		t.Errorf("the disk holds %q", got)
	}
}

func TestDeletedVMLeavesNoSnapshotInVolumesThatStay(t *testing.T) {
	t.Parallel()
	h := one(t)
	put(h, fsm.Volumes.Put, api.Volume{Meta: api.Meta{Name: "kept", Tenant: api.DefaultTenant}, Pool: fsm.DefaultPool, SizeBytes: api.GiB})
	v := vm("web")
	v.Disks = append(v.Disks, api.Disk{Name: "kept", Volume: "kept"})
	id := h.run(v)
	h.task("t1", api.TaskSnapshot, "web", `{"name":"one"}`)
	h.untilTask("t1", api.TaskDone)
	h.drop("web")
	h.until("the guest is gone", func(v *fsm.View) bool { return fsm.Instances.Get(v, id) == nil })
	if n := fsm.Snapshots.Len(h.log.f.Read()); n != 0 {
		t.Errorf("%d snapshots outlive their VM", n)
	}
	names, err := sim.SnapshotNames(h.file("kept"))
	if err != nil || len(names) != 0 {
		t.Errorf("the volume holds %v: %v", names, err)
	}
}

// failing is a snapshotter one of whose calls fails.
type failing struct {
	plugins.Snapshotter
	err error
}

func (f failing) Snapshot(context.Context, plugins.SnapshotSpec) (plugins.SnapshotTaken, error) {
	return plugins.SnapshotTaken{}, f.err
}

func TestSnapshotThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	h := one(t, func(h *host) {
		h.change = func(c *agent.Config) {
			c.Snapshots = failing{c.Snapshots, api.Invalid("disks", "root is made of cheese")}
		}
	})
	h.run(vm("web"))
	h.task("t1", api.TaskSnapshot, "web", `{"name":"one"}`)
	h.untilTask("t1", api.TaskFailed)
	if s := h.snapshot("web", "one"); s != nil {
		t.Errorf("a row is left: %+v", s)
	}
	if err := fsm.Tasks.Get(h.log.f.Read(), "t1").Error; err == nil || !strings.Contains(err.Message, "cheese") {
		t.Errorf("the task says %v", err)
	}
}

func TestMemoryOfAStoppedGuestIsRefused(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(vm("web"))
	if err := h.hv.PowerOff(id); err != nil {
		t.Fatal(err)
	}
	h.untilState(id, api.InstanceStopped)
	h.task("t1", api.TaskSnapshot, "web", `{"name":"one","memory":true}`)
	h.untilTask("t1", api.TaskFailed)
	slot := time.Now().UTC().Truncate(time.Minute).Format(time.RFC3339)
	h.task("t2", api.TaskSnapshot, "web", fmt.Sprintf(`{"name":"two","memory":true,"slot":%q}`, slot))
	h.untilTask("t2", api.TaskDone)
	if s := h.snapshot("web", "two"); s.Memory || s.Reason == "" || h.snapshot("web", "one") != nil {
		t.Errorf("the schedule's snapshot is %+v", s)
	}
}

// fusedSnapshotter ends the agent at its nth contact, as fusedHypervisor does.
type fusedSnapshotter struct {
	plugins.Snapshotter
	fuse *fuse
}

func (s fusedSnapshotter) Snapshot(ctx context.Context, spec plugins.SnapshotSpec) (plugins.SnapshotTaken, error) {
	return around(s.fuse, func() (plugins.SnapshotTaken, error) { return s.Snapshotter.Snapshot(ctx, spec) })
}

func (s fusedSnapshotter) RevertSnapshot(ctx context.Context, spec plugins.SnapshotSpec) error {
	return try(s.fuse, func() error { return s.Snapshotter.RevertSnapshot(ctx, spec) })
}

func (s fusedSnapshotter) StartSnapshot(ctx context.Context, domain plugins.DomainSpec, spec plugins.SnapshotSpec) error {
	return try(s.fuse, func() error { return s.Snapshotter.StartSnapshot(ctx, domain, spec) })
}

func (s fusedSnapshotter) DeleteSnapshot(ctx context.Context, spec plugins.SnapshotSpec) error {
	return try(s.fuse, func() error { return s.Snapshotter.DeleteSnapshot(ctx, spec) })
}

// leadTask does the leader's part for a task until it has ended.
func (h *host) leadTask(name string) *api.Task {
	h.t.Helper()
	h.until("task "+name+" has ended", func(v *fsm.View) bool {
		node, task := fsm.Nodes.Get(v, h.name), fsm.Tasks.Get(v, name)
		switch {
		case node.Lease == api.NodeLive && task.State == api.TaskRunning && task.Epoch != node.Epoch:
			_, _ = h.log.apply(fsm.ReleaseTask.Entry(fsm.TaskReport{Name: name, Node: task.Node, Epoch: task.Epoch, Attempt: task.Attempt}))
		case node.Lease == api.NodeLive && task.State == api.TaskPending:
			_, _ = h.log.apply(fsm.DispatchTask.Entry(fsm.TaskDispatch{Name: name, Node: h.name, Epoch: node.Epoch, Attempt: task.Attempt}))
		}
		return task.Ended()
	})
	return fsm.Tasks.Get(h.log.f.Read(), name)
}

func TestDeathDuringWorkOnSnapshotsLeadsToTheSameState(t *testing.T) {
	t.Parallel()
	points := 22
	if testing.Short() {
		points = 8
	}
	for n := 1; n <= points; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			h := one(t)
			id := h.run(twoDisks("web"))
			h.write("web-root", "first")
			h.write("web-data", "first")
			_ = h.hv.Remember(id, "first")
			h.task("t1", api.TaskSnapshot, "web", `{"name":"one","memory":true}`)
			h.untilTask("t1", api.TaskDone)
			h.write("web-root", "second")
			h.edit("web", func(v *api.VM) { v.CPUs = 2 })
			h.end()
			h.wire(int64(n))
			before := h.epoch()
			h.launch()
			h.until("the node is registered, or dead", func(*fsm.View) bool { return h.dead() || h.epoch() > before })
			h.task("t2", api.TaskSnapshotRevert, "web", `{"name":"one","safety":"before"}`)
			select {
			case <-h.ended:
			case <-time.After(time.Second): // there were fewer contacts than that
			}
			h.change = nil
			h.cancel()
			<-h.ended
			h.start()
			h.leadTask("t2")
			h.untilState(id, api.InstanceRunning)
			task, v := fsm.Tasks.Get(h.log.f.Read(), "t2"), h.vm("web")
			if task.State != api.TaskDone || v.CPUs != 1 || h.read("web-root") != "first" || h.read("web-data") != "first" || h.hv.Memory(id) != "first" {
				t.Errorf("task %s %v, %d CPUs, disks %q %q, memory %q", task.State, task.Error, v.CPUs, h.read("web-root"), h.read("web-data"), h.hv.Memory(id))
			}
			one, safety := h.snapshot("web", "one"), h.snapshot("web", "before")
			if !one.Current || safety == nil || safety.State != api.SnapshotReady || safety.Parent != "one" {
				t.Errorf("snapshots %+v, %+v", one, safety)
			}
			names, err := sim.SnapshotNames(h.file("web-root"))
			if err != nil || len(names) != 2 {
				t.Errorf("the disk holds snapshots %v: %v", names, err)
			}
			h.task("t3", api.TaskSnapshotRevert, "web", `{"name":"before"}`)
			h.untilTask("t3", api.TaskDone)
			if got := h.read("web-root"); got != "second" {
				t.Errorf("the state before the revert has %q", got)
			}
		})
	}
}

func TestAbandonedRevertIsSettledBeforeTheGuestStarts(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(twoDisks("web"))
	h.write("web-root", "old")
	h.write("web-data", "old")
	h.task("t1", api.TaskSnapshot, "web", `{"name":"one"}`)
	h.untilTask("t1", api.TaskDone)
	h.write("web-root", "new")
	h.write("web-data", "new")
	h.log.must(t, fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: "t2", Verb: api.TaskSnapshotRevert, Kind: api.KindVM, Object: "default/web", Args: []byte(`{"name":"one"}`)}))
	h.end()
	h.dispatch("t2") // to an agent that is dead
	h.open()
	if err := h.hv.Stop(t.Context(), id, 0); err != nil {
		t.Fatal(err)
	}
	// It died when it had put back the first disk.
	for _, volume := range []string{"web-data", "web-root"} {
		if err := sim.TakeSnapshot(h.file(volume), "debvisor-revert"); err != nil {
			t.Fatal(err)
		}
	}
	h.write("web-root", "old")
	started := h.instance(id).StartedAt
	h.start()
	h.until("the guest waits", func(v *fsm.View) bool { return strings.Contains(fsm.Instances.Get(v, id).Reason, "being reverted") })
	if d, _ := h.domain(id); d.State == api.InstanceRunning {
		t.Fatal("the guest runs on disks at different times")
	}
	task := fsm.Tasks.Get(h.log.f.Read(), "t2")
	h.log.must(t, fsm.FinishTask.Entry(fsm.TaskReport{Name: "t2", Node: task.Node, Epoch: task.Epoch, Attempt: task.Attempt, State: api.TaskFailed}))
	h.edit("web", func(v *api.VM) { v.Description = "looked at again" })
	h.until("the guest runs", func(v *fsm.View) bool { return fsm.Instances.Get(v, id).StartedAt.After(started) })
	if root, data := h.read("web-root"), h.read("web-data"); root != "new" || data != "new" {
		t.Errorf("the guest runs on %q and %q", root, data)
	}
}
