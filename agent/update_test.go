package agent_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/debvisor/debvisor/agent"
	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// untilUpdated waits until the guest is started from, or updated to, the VM as
// it is now, with exactly this many edits that wait.
func (h *host) untilUpdated(name string, pending int) *api.Instance {
	h.t.Helper()
	v := h.vm(name)
	h.until("the guest has the edit", func(view *fsm.View) bool {
		i := fsm.Instances.Get(view, v.ID)
		return i.SpecRevision == v.Modified && len(i.Pending) == pending && i.State == api.InstanceRunning
	})
	return h.instance(v.ID)
}

func (h *host) volumeFile(id string) string {
	files, _ := filepath.Glob(filepath.Join(h.dir, "pools", fsm.DefaultPool, "volumes", id+"*"))
	return strings.Join(files, " ")
}

func TestEditsReachARunningGuest(t *testing.T) {
	t.Parallel()
	h := one(t, func(h *host) { h.boot = 500 * time.Millisecond })
	v := vm("web")
	v.CPUsMax = 2
	id := h.run(v)
	started := h.instance(id).StartedAt
	h.edit("web", func(v *api.VM) {
		v.CPUs = 2
		v.Disks = append(slices.Clone(v.Disks), api.Disk{Name: "data", SizeBytes: api.GiB})
		v.Description = "edited"
	})
	h.untilUpdated("web", 0)
	data := fsm.Volumes.Get(h.log.f.Read(), "default/web-data").ID
	if h.volumeFile(data) == "" {
		t.Fatal("the volume of the new disk was not made")
	}
	h.edit("web", func(v *api.VM) { v.RNG = api.Off; v.MemoryBytes *= 2 })
	i := h.untilUpdated("web", 3)
	if all := strings.Join(i.Pending, "\n"); !strings.Contains(all, "memory_bytes: 128 MiB, the guest has 64 MiB; at the next start") || !strings.Contains(all, "rng: off") {
		t.Errorf("the instance does not say what waits: %q", i.Pending)
	}
	h.edit("web", func(v *api.VM) { v.Disks = v.Disks[:1] })
	h.until("the detached volume is gone while the guest runs", func(v *fsm.View) bool {
		return fsm.Replicas.Get(v, api.ReplicaName(data, h.name)) == nil && h.volumeFile(data) == ""
	})
	if i := h.instance(id); !i.StartedAt.Equal(started) || i.Restarts != 0 || i.State != api.InstanceRunning {
		t.Errorf("the guest was started again: %+v", i)
	}
	h.task("t1", api.TaskRestart, "web", "")
	h.untilTask("t1", api.TaskDone)
	h.untilUpdated("web", 0)
}

func TestADetachedVolumeIsKeptUntilTheGuestLetsGo(t *testing.T) {
	t.Parallel()
	h := one(t, func(h *host) { h.boot = time.Hour }) // a guest that boots is deaf
	v := vm("web")
	v.Disks = append(v.Disks, api.Disk{Name: "data", SizeBytes: api.GiB})
	id := h.run(v)
	data := fsm.Volumes.Get(h.log.f.Read(), "default/web-data").ID
	h.edit("web", func(v *api.VM) { v.Disks = v.Disks[:1] })
	i := h.untilUpdated("web", 1)
	if !strings.HasPrefix(i.Pending[0], "disks.data: ") {
		t.Errorf("the instance says %q", i.Pending)
	}
	h.end()
	h.start() // the new agent knows it as well
	seq := fsm.Leases.Get(h.log.f.Read(), h.name).Seq
	h.until("renewals have passed", func(v *fsm.View) bool { return fsm.Leases.Get(v, h.name).Seq > seq+6 })
	if d, _ := h.domain(id); !d.Holding || h.volumeFile(data) == "" {
		t.Fatalf("the volume was deleted below a guest that has it: %+v", d)
	}
	h.power("web", api.PowerOff)
	h.until("the volume is gone", func(v *fsm.View) bool {
		i := fsm.Instances.Get(v, id)
		return i.State == api.InstanceStopped && len(i.Pending) == 0
	})
}

func TestTheDiskThatAGuestBootedFromIsNotTakenAway(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(vm("web"))
	v := *h.vm("web")
	v.Disks = nil
	e, err := fsm.VMs.Put(&v)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.log.apply(e); api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), "booted from disk root") {
		t.Errorf("got %v, want a conflict that names the disk", err)
	}
	h.power("web", api.PowerOff)
	h.untilState(id, api.InstanceStopped)
	h.edit("web", func(v *api.VM) { v.Disks = nil })
}

// deafUpdater fails as long as it is told to.
type deafUpdater struct {
	plugins.Updater
	deaf atomic.Bool
}

func (d *deafUpdater) Update(ctx context.Context, spec plugins.DomainSpec) error {
	if d.deaf.Load() {
		return api.Errorf(api.CodeUnavailable, "the machine is busy")
	}
	return d.Updater.Update(ctx, spec)
}

func TestAFailedUpdateIsShownAndTriedAgain(t *testing.T) {
	t.Parallel()
	d := &deafUpdater{}
	d.deaf.Store(true)
	h := one(t, func(h *host) {
		h.change = func(c *agent.Config) { d.Updater, c.Updater = c.Updater, d }
	})
	id := h.run(vm("web"))
	before := h.vm("web").Modified
	h.edit("web", func(v *api.VM) { v.NICs = nil; v.Description = "edited" })
	h.until("the failure shows", func(v *fsm.View) bool {
		i := fsm.Instances.Get(v, id)
		return len(i.Pending) == 1 && strings.Contains(i.Pending[0], "the machine is busy") && i.SpecRevision == before && i.State == api.InstanceRunning
	})
	d.deaf.Store(false)
	h.untilUpdated("web", 0)
}

func TestDiscsComeToRunningGuests(t *testing.T) {
	t.Parallel()
	h := one(t)
	v := vm("web")
	v.CDROMs = []api.CDROM{{Name: "cd"}}
	h.run(v)
	image := h.image("installer")
	h.edit("web", func(v *api.VM) { v.CDROMs = []api.CDROM{{Name: "cd", Image: "installer"}} })
	h.upload(image)
	h.untilUpdated("web", 0)
	if _, err := h.log.apply(fsm.Images.Delete(image.Tenant, image.Name, image.Modified)); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("the image of a disc in a drive was deleted: %v", err)
	}
	h.edit("web", func(v *api.VM) { v.CDROMs = []api.CDROM{{Name: "cd"}} })
	h.untilUpdated("web", 0)
	h.log.must(t, fsm.Images.Delete(image.Tenant, image.Name, image.Modified))
	h.until("the image is gone", func(v *fsm.View) bool {
		_, err := os.Stat(filepath.Join(h.dir, "pools", fsm.DefaultPool, "images", image.ID+".raw"))
		return os.IsNotExist(err)
	})
}
