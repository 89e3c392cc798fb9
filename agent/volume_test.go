package agent_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

func (h *host) volume(name string) *api.Volume {
	return fsm.Volumes.Get(h.log.f.Read(), api.Key(api.DefaultTenant, name))
}

// untilSize waits until the volume's copy is ready at a size.
func (h *host) untilSize(name string, bytes int64) {
	h.t.Helper()
	h.until(name+" is ready", func(v *fsm.View) bool {
		volume := fsm.Volumes.Get(v, api.Key(api.DefaultTenant, name))
		for r := range fsm.Replicas.By(v, "of_id", volume.ID) {
			return r.State == api.ReplicaReady && r.SizeBytes == bytes && r.Reason == ""
		}
		return false
	})
}

func TestVolumesGrowWhetherTheirGuestRunsOrNot(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(vm("web"))
	started := h.instance(id).StartedAt
	after := *h.vm("web")
	after.Disks = slices.Clone(after.Disks)
	after.Disks[0].SizeBytes = 2 * api.GiB // as a file describes it, with the disk's volume named or not
	put(h, fsm.VMs.Put, after)
	h.untilSize("web-root", 2*api.GiB)
	if d, _ := h.domain(id); !d.StartedAt.Equal(started) || d.State != api.InstanceRunning {
		t.Errorf("the guest is %+v, want the one that started at %v", d, started)
	}

	h.power("web", api.PowerOff)
	h.untilState(id, api.InstanceStopped)
	grown := *h.volume("web-root")
	grown.SizeBytes = 3 * api.GiB
	put(h, fsm.Volumes.Put, grown)
	h.untilSize("web-root", 3*api.GiB)

	put(h, fsm.Volumes.Put, api.Volume{Meta: api.Meta{Name: "free", Tenant: api.DefaultTenant}, Pool: fsm.DefaultPool, SizeBytes: api.GiB, Node: h.name})
	h.untilSize("free", api.GiB)
	free := *h.volume("free")
	free.SizeBytes = 5 * api.GiB
	put(h, fsm.Volumes.Put, free)
	h.untilSize("free", 5*api.GiB)

	v := *h.vm("web") // its description still says 2 GiB: nothing new is asked for
	v.Description = "edited"
	put(h, fsm.VMs.Put, v)
	if got := h.volume("web-root").SizeBytes; got != 3*api.GiB {
		t.Errorf("the volume's row says %d after an edit of the VM, want 3 GiB", got)
	}
}

func TestVolumeGrowsAfterTheAgentDiedBetween(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(vm("web"))
	h.end()
	grown := *h.volume("web-root")
	grown.SizeBytes = 3 * api.GiB
	put(h, fsm.Volumes.Put, grown)
	h.start()
	h.untilSize("web-root", 3*api.GiB)
	h.untilState(id, api.InstanceRunning)
}

func (h *host) clone(name, source, mode string) {
	h.t.Helper()
	put(h, fsm.Volumes.Put, api.Volume{Meta: api.Meta{Name: name, Tenant: api.DefaultTenant}, Pool: fsm.DefaultPool, Source: source, Clone: mode})
}

func TestFiftyClonesOfOneVolumeAtOnce(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(vm("template"))
	h.power("template", api.PowerOff)
	h.untilState(id, api.InstanceStopped)
	for n := range 50 {
		h.clone(fmt.Sprintf("c%d", n), "template-root", []string{api.CloneFull, api.CloneLinked}[n%2])
	}
	for n := range 50 {
		h.untilSize(fmt.Sprintf("c%d", n), api.GiB)
	}
	h.power("template", api.PowerOn)
	h.untilState(id, api.InstanceRunning)
}

// TestManyAtOnce: 100 VMs that clone an image and 20 full copies of a volume,
// asked for at once. None fails in between, and no more copies run than may.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	h := one(t)
	h.upload(h.image("tiny"))
	put(h, fsm.Volumes.Put, api.Volume{Meta: api.Meta{Name: "data", Tenant: api.DefaultTenant}, Pool: fsm.DefaultPool, SizeBytes: api.GiB, Node: h.name})
	h.untilSize("data", api.GiB)
	before := h.log.f.Index()
	var ids []string
	for n := range 100 {
		v := vm(fmt.Sprintf("vm%d", n))
		v.Disks = []api.Disk{{Name: "root", Image: "tiny"}}
		ids = append(ids, h.create(v))
		if n%5 == 0 {
			h.clone(fmt.Sprintf("copy%d", n), "data", api.CloneFull)
		}
	}
	for _, id := range ids {
		h.untilState(id, api.InstanceRunning)
	}
	for n := 0; n < 100; n += 5 {
		h.untilSize(fmt.Sprintf("copy%d", n), api.GiB)
	}
	records, ok := h.log.f.Recent(before, 1<<20)
	if !ok {
		t.Fatal("the records have left the window")
	}
	for _, r := range records {
		for _, c := range r.Changes {
			if (c.Kind == api.KindReplica || c.Kind == api.KindInstance) && strings.Contains(string(c.After), `"failed"`) {
				t.Errorf("failed in between: %s", c.After)
			}
		}
	}
}

func TestClonesOfAVMAreGuestsOfTheirOwn(t *testing.T) {
	t.Parallel()
	h := one(t)
	put(h, fsm.Networks.Put, api.Network{Meta: api.Meta{Name: "lan", Tenant: api.DefaultTenant}, Driver: api.NetworkBridge, Bridge: "dv-lan"})
	v := vm("web")
	v.NICs, v.CloudInit = []api.NIC{{Network: "lan"}}, &api.CloudInit{Hostname: "web"}
	id := h.run(v)
	h.power("web", api.PowerOff)
	h.untilState(id, api.InstanceStopped)
	copied := h.vm("web").CloneAs("web2", api.CloneLinked)
	copied.Power = api.PowerOn
	other := h.run(copied)
	got := h.vm("web2")
	if other == id || got.NICs[0].MAC == h.vm("web").NICs[0].MAC || got.NICs[0].MAC == "" || got.CloudInit.Hostname != "" || got.Disks[0].Volume != "web2-root" {
		t.Errorf("the clone is %+v", got)
	}
	h.drop("web2")
	h.until("the clone is gone", func(v *fsm.View) bool { return fsm.Instances.Get(v, other) == nil && fsm.Replicas.Len(v) == 1 })
	h.power("web", api.PowerOn)
	h.untilState(id, api.InstanceRunning)
}

// TestCloneThatFailsHoldsNobody: a source whose file is gone lets its clone fail
// with the reason, and starts again once it is back; the clone follows when
// the guest is off.
func TestCloneThatFailsHoldsNobody(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(vm("web"))
	h.power("web", api.PowerOff)
	h.untilState(id, api.InstanceStopped)
	back := h.hide(t)
	h.clone("copy", "web-root", api.CloneFull)
	h.until("the clone says why", func(v *fsm.View) bool {
		for r := range fsm.Replicas.By(v, "of_id", h.volume("copy").ID) {
			return r.State == api.ReplicaFailed && strings.Contains(r.Reason, "missing")
		}
		return false
	})
	back()
	h.power("web", api.PowerOn)
	h.untilState(id, api.InstanceRunning)
	h.power("web", api.PowerOff)
	h.untilState(id, api.InstanceStopped)
	h.untilSize("copy", api.GiB)
}
