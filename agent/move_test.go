package agent_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/agent"
	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// addPool makes a second pool.
func (h *host) addPool(name string) {
	h.t.Helper()
	put(h, fsm.Pools.Put, api.Pool{Meta: api.Meta{Name: name}, Driver: api.PoolDir})
}

// move asks for the move of a volume, and leads its task until it has ended.
func (h *host) move(task, volume, pool string) {
	h.t.Helper()
	h.log.must(h.t, fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: task, Verb: api.TaskMoveVolume, Kind: api.KindVolume, Object: api.Key(api.DefaultTenant, volume),
		Args: fmt.Appendf(nil, `{"pool":%q}`, pool)}))
}

// files lists in which pools the volume has a file.
func (h *host) files(volume string) string {
	h.t.Helper()
	found, err := filepath.Glob(filepath.Join(h.dir, "pools", "*", "volumes", h.volume(volume).ID+".*"))
	if err != nil {
		h.t.Fatal(err)
	}
	var pools []string
	for _, f := range found {
		pools = append(pools, filepath.Base(filepath.Dir(filepath.Dir(f))))
	}
	return strings.Join(pools, ",")
}

func (h *host) wantMoved(volume, pool string) {
	h.t.Helper()
	v := h.volume(volume)
	r := fsm.Replicas.Get(h.log.f.Read(), api.ReplicaName(v.ID, h.name))
	if v.Pool != pool || r == nil || r.Pool != pool || r.State != api.ReplicaReady || h.files(volume) != pool {
		h.t.Errorf("the volume's row says %s, its replica is %+v, its files are in %q; want all in %s", v.Pool, r, h.files(volume), pool)
	}
}

func (h *host) recordOf(id string) string {
	raw, err := os.ReadFile(filepath.Join(h.dir, "guests", id+".json"))
	if err != nil {
		h.t.Fatal(err)
	}
	return string(raw)
}

func TestVolumesMoveWhetherTheirGuestRunsOrNot(t *testing.T) {
	t.Parallel()
	h := one(t)
	h.addPool("fast")
	id := h.run(vm("web"))
	started := h.instance(id).StartedAt
	h.move("t1", "web-root", "fast")
	if task := h.leadTask("t1"); task.State != api.TaskDone {
		t.Fatalf("the task is %+v", task)
	}
	h.wantMoved("web-root", "fast")
	if d, _ := h.domain(id); !d.StartedAt.Equal(started) || d.State != api.InstanceRunning || strings.Contains(h.recordOf(id), "move") {
		t.Errorf("the guest is %+v, its record %s", d, h.recordOf(id))
	}
	h.task("t2", api.TaskRestart, "web", "") // it finds its disk where it is now
	h.untilTask("t2", api.TaskDone)

	h.power("web", api.PowerOff)
	h.untilState(id, api.InstanceStopped)
	h.move("t3", "web-root", fsm.DefaultPool)
	if task := h.leadTask("t3"); task.State != api.TaskDone {
		t.Fatalf("the task is %+v", task)
	}
	h.wantMoved("web-root", fsm.DefaultPool)
	h.power("web", api.PowerOn)
	h.untilState(id, api.InstanceRunning)

	put(h, fsm.Volumes.Put, api.Volume{Meta: api.Meta{Name: "free", Tenant: api.DefaultTenant}, Pool: fsm.DefaultPool, SizeBytes: api.GiB, Node: h.name})
	h.untilSize("free", api.GiB)
	h.move("t4", "free", "fast")
	if task := h.leadTask("t4"); task.State != api.TaskDone {
		t.Fatalf("the task is %+v", task)
	}
	h.wantMoved("free", "fast")

	v := *h.vm("web") // the description of a moved disk has not changed
	v.Description = "edited"
	put(h, fsm.VMs.Put, v)
}

// slow makes copies under guests take long.
func slow(d time.Duration) func(*host) { return func(h *host) { h.copyTime = d } }

func TestCancelledMoveLeavesTheDiskWhereItWas(t *testing.T) {
	t.Parallel()
	h := one(t, slow(time.Hour))
	h.addPool("fast")
	id := h.run(vm("web"))
	h.move("t1", "web-root", "fast")
	h.dispatch("t1")
	h.until("the copy is under way", func(v *fsm.View) bool { return strings.Contains(fsm.Tasks.Get(v, "t1").Step, "while the guest runs") })
	h.log.must(t, fsm.CancelTask.Entry(fsm.TaskName{Name: "t1"}))
	h.untilTask("t1", api.TaskCancelled)
	h.wantMoved("web-root", fsm.DefaultPool)
	if d, _ := h.domain(id); d.State != api.InstanceRunning || strings.Contains(h.recordOf(id), "move") {
		t.Errorf("the guest is %+v, its record %s", d, h.recordOf(id))
	}
}

func TestStoppedVMIsMovedOnceItIsOff(t *testing.T) {
	t.Parallel()
	h := one(t, slow(time.Hour))
	h.addPool("fast")
	id := h.run(vm("web"))
	h.move("t1", "web-root", "fast")
	h.dispatch("t1")
	h.until("the copy is under way", func(v *fsm.View) bool { return strings.Contains(fsm.Tasks.Get(v, "t1").Step, "while the guest runs") })
	h.power("web", api.PowerOff)
	h.untilState(id, api.InstanceStopped)
	if task := h.leadTask("t1"); task.State != api.TaskDone {
		t.Fatalf("the task is %+v", task)
	}
	h.wantMoved("web-root", "fast")
}

func TestTaskThatEndsWhileTheAgentIsAwayIsUndone(t *testing.T) {
	t.Parallel()
	h := one(t, slow(time.Hour))
	h.addPool("fast")
	h.run(vm("web"))
	h.move("t1", "web-root", "fast")
	h.dispatch("t1")
	h.until("the copy is under way", func(v *fsm.View) bool { return strings.Contains(fsm.Tasks.Get(v, "t1").Step, "while the guest runs") })
	h.end()
	task := fsm.Tasks.Get(h.log.f.Read(), "t1")
	h.log.must(t, fsm.FinishTask.Entry(fsm.TaskReport{Name: "t1", Node: task.Node, Epoch: task.Epoch, Attempt: task.Attempt, State: api.TaskFailed}))
	h.start()
	h.until("the copy is gone", func(*fsm.View) bool { return h.files("web-root") == fsm.DefaultPool })
	h.wantMoved("web-root", fsm.DefaultPool)
}

func TestLeftoverOfAMoveIsRemoved(t *testing.T) {
	t.Parallel()
	h := one(t)
	h.addPool("fast")
	h.run(vm("web"))
	h.end()
	spec := plugins.PoolSpec{Name: "fast", Path: filepath.Join(h.dir, "pools", "fast")}
	if _, err := h.storage.CreateVolume(t.Context(), spec, plugins.VolumeSpec{ID: h.volume("web-root").ID, SizeBytes: api.GiB, Format: api.FormatQCOW2}); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.until("the leftover is gone", func(*fsm.View) bool { return h.files("web-root") == fsm.DefaultPool })
}

type fusedVolumes struct {
	plugins.Volumes
	fuse *fuse
}

func (s fusedVolumes) CopyVolume(ctx context.Context, pool plugins.PoolSpec, v plugins.VolumeSpec, from plugins.Stored, progress func(int)) (plugins.Stored, error) {
	return around(s.fuse, func() (plugins.Stored, error) { return s.Volumes.CopyVolume(ctx, pool, v, from, progress) })
}

func (s fusedVolumes) CloneVolume(ctx context.Context, pool plugins.PoolSpec, source string, v plugins.VolumeSpec) (plugins.Stored, error) {
	return around(s.fuse, func() (plugins.Stored, error) { return s.Volumes.CloneVolume(ctx, pool, source, v) })
}

func (s fusedVolumes) GrowVolume(ctx context.Context, pool plugins.PoolSpec, id string, bytes int64) (plugins.Stored, error) {
	return around(s.fuse, func() (plugins.Stored, error) { return s.Volumes.GrowVolume(ctx, pool, id, bytes) })
}

type fusedDisks struct {
	plugins.Disks
	fuse *fuse
}

func (d fusedDisks) GrowDisk(ctx context.Context, id string, disk plugins.Source, bytes int64) error {
	return try(d.fuse, func() error { return d.Disks.GrowDisk(ctx, id, disk, bytes) })
}

func (d fusedDisks) CopyDisk(ctx context.Context, id string, from, to plugins.Source) error {
	return try(d.fuse, func() error { return d.Disks.CopyDisk(ctx, id, from, to) })
}

func (d fusedDisks) DiskCopy(ctx context.Context, id string, from, to plugins.Source) (plugins.DiskCopy, error) {
	return around(d.fuse, func() (plugins.DiskCopy, error) { return d.Disks.DiskCopy(ctx, id, from, to) })
}

func (d fusedDisks) PivotDisk(ctx context.Context, id string, from, to plugins.Source) error {
	return try(d.fuse, func() error { return d.Disks.PivotDisk(ctx, id, from, to) })
}

func (d fusedDisks) CancelCopy(ctx context.Context, id string, from, to plugins.Source) error {
	return try(d.fuse, func() error { return d.Disks.CancelCopy(ctx, id, from, to) })
}

// fuseVolumes lets the fuse of wire burn at contacts with volumes and disks too.
func (h *host) fuseVolumes() {
	wired := h.change
	h.change = func(c *agent.Config) {
		wired(c)
		f := c.Cluster.(fusedCluster).fuse
		c.Disks = fusedDisks{c.Disks, f}
		for driver, v := range c.Volumes {
			c.Volumes[driver] = fusedVolumes{v, f}
		}
	}
}

// TestDeathAtAnyPointOfAMove ends the agent before and after each contact with
// the world while a disk moves: under a running guest, of a guest that ends
// while the agent is away, of one that is off, and with a copy that breaks
// meanwhile. The disk ends in one pool, which the row names and the guest uses.
func TestDeathAtAnyPointOfAMove(t *testing.T) {
	t.Parallel()
	points := 34
	if testing.Short() {
		points = 12
	}
	for _, how := range []string{"running", "ending", "off", "breaking"} {
		for n := 1; n <= points; n++ {
			t.Run(fmt.Sprintf("%s/%d", how, n), func(t *testing.T) {
				t.Parallel()
				h := one(t)
				h.addPool("fast")
				id := h.run(vm("web"))
				h.write("web-root", "kept")
				if how == "off" {
					h.power("web", api.PowerOff)
					h.untilState(id, api.InstanceStopped)
				}
				h.move("t1", "web-root", "fast")
				h.end()
				h.wire(int64(n))
				h.fuseVolumes()
				before := h.epoch()
				h.launch()
				h.until("the node is registered, or dead", func(*fsm.View) bool { return h.dead() || h.epoch() > before })
				h.until("the task has ended, or the agent", func(v *fsm.View) bool {
					node, task := fsm.Nodes.Get(v, h.name), fsm.Tasks.Get(v, "t1")
					if task.State == api.TaskPending && node.Epoch > before {
						_, _ = h.log.apply(fsm.DispatchTask.Entry(fsm.TaskDispatch{Name: "t1", Node: h.name, Epoch: node.Epoch, Attempt: task.Attempt}))
					}
					return task.Ended() || h.dead()
				})
				h.change = nil
				h.cancel()
				<-h.ended
				h.open()
				switch how {
				case "ending":
					_ = h.hv.Crash(id)
				case "breaking":
					_ = h.hv.BreakCopies(id)
				}
				_ = h.hv.Close()
				h.start()
				if task := h.leadTask("t1"); task.State != api.TaskDone {
					t.Fatalf("the task is %+v", task)
				}
				h.until("one copy is left", func(*fsm.View) bool { return h.files("web-root") == h.volume("web-root").Pool })
				h.wantMoved("web-root", "fast")
				if got := h.read("web-root"); got != "kept" {
					t.Errorf("the disk holds %q", got)
				}
				h.power("web", api.PowerOn)
				h.untilState(id, api.InstanceRunning)
				h.until("the guest uses the disk where its row says it is", func(*fsm.View) bool { return h.uses(id, "fast") })
			})
		}
	}
}

// uses reports whether the simulated guest's disk lies in the pool.
func (h *host) uses(id, pool string) bool {
	v := h.volume("web-root")
	here := plugins.Source{Path: filepath.Join(h.dir, "pools", pool, "volumes", v.ID+".qcow2"), Format: api.FormatQCOW2}
	return h.hv.GrowDisk(context.Background(), id, here, 0) == nil
}
