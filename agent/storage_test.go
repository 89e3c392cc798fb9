package agent_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/agent"
	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

func TestImageIsFetchedOnceForManyClones(t *testing.T) {
	t.Parallel()
	_, hosts := newLog(t, "node1", "node2")
	a, b := hosts["node1"], hosts["node2"]
	a.start()
	b.start()
	image := a.image("tiny")
	if err := a.agent.ImportImage(t.Context(), image, 0, bytes.NewReader(imageContent()[1:])); api.CodeOf(err) != api.CodeInvalid {
		t.Fatalf("a file cut short: got %v, want invalid", err)
	}
	a.upload(image)
	a.upload(image) // again is no error
	var ids []string
	for n := range 10 {
		v := vm(fmt.Sprintf("web-%d", n))
		v.Disks = []api.Disk{{Name: "root", Image: "tiny"}}
		ids = append(ids, b.create(v))
	}
	for _, id := range ids {
		b.untilState(id, api.InstanceRunning)
	}
	if got := b.fetched.Load(); got != 1 {
		t.Fatalf("the image was fetched %d times, want once", got)
	}
	r, err := b.agent.OpenImage(t.Context(), image.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, imageContent()) {
		t.Fatalf("node2 serves %d bytes, %v; want the image", len(got), err)
	}
}

func TestPeerThatSendsRubbishIsPassedOver(t *testing.T) {
	t.Parallel()
	_, hosts := newLog(t, "node1", "node2", "node3")
	for _, h := range hosts {
		h.start()
	}
	image := hosts["node1"].image("tiny")
	hosts["node1"].upload(image)
	h := hosts["node2"]
	h.fetch = func(string) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("rubbish")), nil
	}
	v := vm("web")
	v.Disks = []api.Disk{{Name: "root", Image: "tiny"}}
	id := h.create(v)
	h.until("the reason is shown", func(v *fsm.View) bool {
		for r := range fsm.Replicas.By(v, "node", h.name) {
			return r.State == api.ReplicaFailed && strings.Contains(r.Reason, "image from node1") &&
				strings.Contains(fsm.Instances.Get(v, id).Reason, "could not be made")
		}
		return false
	})
	hosts["node3"].upload(image)
	h.end()
	h.fetch = func(node string) (io.ReadCloser, error) {
		if node == "node3" {
			return nil, nil
		}
		return io.NopCloser(strings.NewReader("rubbish")), nil
	}
	h.start()
	h.untilState(id, api.InstanceRunning)
}

func TestVolumeIsKeptWhileAGuestMayWriteToIt(t *testing.T) {
	t.Parallel()
	h := one(t, func(h *host) { h.change = func(c *agent.Config) { c.Updater = nil } }) // so that the guest keeps its disk
	v := vm("web")
	v.Disks = append(v.Disks, api.Disk{Name: "data", SizeBytes: api.GiB})
	id := h.run(v)
	data := fsm.Volumes.Get(h.log.f.Read(), "default/web-data").ID
	after := *h.vm("web")
	after.Disks = after.Disks[:1]
	put(h, fsm.VMs.Put, after) // drops the volume; the guest goes on with it
	kept := func() bool {
		list, err := h.storage.List(t.Context(), plugins.PoolSpec{Name: fsm.DefaultPool, Path: filepath.Join(h.dir, "pools", fsm.DefaultPool)})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list {
			if s.ID == data {
				return true
			}
		}
		return false
	}
	h.end()
	h.start()
	seq := fsm.Leases.Get(h.log.f.Read(), h.name).Seq
	h.until("renewals have passed", func(v *fsm.View) bool { return fsm.Leases.Get(v, h.name).Seq > seq+6 })
	if d, _ := h.domain(id); !kept() || d.State != api.InstanceRunning {
		t.Fatal("the volume was deleted below a running guest")
	}
	h.task("t1", api.TaskRestart, "web", "")
	h.untilTask("t1", api.TaskDone)
	h.until("the volume is gone", func(v *fsm.View) bool {
		return fsm.Replicas.Get(v, api.ReplicaName(data, h.name)) == nil && !kept()
	})
}

func TestMissingFileIsNeverReplacedByAnEmptyOne(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(vm("web"))
	h.power("web", api.PowerOff)
	h.untilState(id, api.InstanceStopped)
	h.end()
	back := h.hide(t)
	h.start()
	h.power("web", api.PowerOn)
	h.until("the reason names the volume", func(v *fsm.View) bool {
		i := fsm.Instances.Get(v, id)
		return i.State == api.InstanceFailed && strings.Contains(i.Reason, "volume/default/web-root") && strings.Contains(i.Reason, "missing")
	})
	back()
	h.untilState(id, api.InstanceRunning)
}

func TestDamagedFileStopsItsOwnGuestOnly(t *testing.T) {
	t.Parallel()
	h := one(t)
	web, db := h.run(vm("web")), h.run(vm("db"))
	for name, id := range map[string]string{"web": web, "db": db} {
		h.power(name, api.PowerOff)
		h.untilState(id, api.InstanceStopped)
	}
	h.end()
	volume := fsm.Volumes.Get(h.log.f.Read(), "default/web-root")
	file := filepath.Join(h.dir, "pools", fsm.DefaultPool, "volumes", volume.ID+".qcow2")
	if err := os.WriteFile(file, make([]byte, 512), 0o600); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.power("web", api.PowerOn)
	h.power("db", api.PowerOn)
	h.untilState(db, api.InstanceRunning)
	h.until("the reason names the volume", func(v *fsm.View) bool {
		i := fsm.Instances.Get(v, web)
		return i.State == api.InstanceFailed && strings.Contains(i.Reason, "volume/default/web-root") && strings.Contains(i.Reason, "damaged")
	})
}

// hide takes the file of the only volume away, until back is called.
func (h *host) hide(t *testing.T) (back func()) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(h.dir, "pools", fsm.DefaultPool, "volumes", "*.qcow2"))
	if err != nil || len(files) != 1 {
		t.Fatalf("got %v, %v; want one volume", files, err)
	}
	rename := func(from, to string) {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	rename(files[0], files[0]+".away")
	return func() { rename(files[0]+".away", files[0]) }
}

func TestLeftoversAreLeftAlone(t *testing.T) {
	t.Parallel()
	_, hosts := newLog(t, "node1")
	h := hosts["node1"]
	h.open()
	pool := plugins.PoolSpec{Name: fsm.DefaultPool, Path: filepath.Join(h.dir, "pools", fsm.DefaultPool)}
	const stray = "0b7e4a52-5b7c-4f0e-9d0a-3c1f5e1f0a11"
	if _, err := h.storage.CreateVolume(t.Context(), pool, plugins.VolumeSpec{ID: stray, SizeBytes: api.GiB, Format: api.FormatRaw}); err != nil {
		t.Fatal(err)
	}
	h.start()
	id := h.run(vm("web"))
	h.drop("web")
	h.until("the VM is gone", func(v *fsm.View) bool { return fsm.Instances.Get(v, id) == nil && fsm.Replicas.Len(v) == 0 })
	if list, err := h.storage.List(t.Context(), pool); err != nil || len(list) != 1 || list[0].ID != stray {
		t.Fatalf("got %v, %v; want the stray volume only", list, err)
	}
}

func TestDeletedImageGoesAfterItsClones(t *testing.T) {
	t.Parallel()
	h := one(t)
	image := h.image("tiny")
	h.upload(image)
	v := vm("web")
	v.Disks = []api.Disk{{Name: "root", Image: "tiny"}}
	h.run(v)
	h.drop("web")
	row := fsm.Images.Get(h.log.f.Read(), "default/tiny")
	h.log.must(t, fsm.Images.Delete(row.Tenant, row.Name, row.Modified))
	h.until("all is gone", func(v *fsm.View) bool { return fsm.Replicas.Len(v) == 0 && fsm.Instances.Len(v) == 0 })
	if _, err := h.agent.OpenImage(t.Context(), image.ID); api.CodeOf(err) != api.CodeNotFound {
		t.Fatalf("got %v, want not_found", err)
	}
}

func TestUploadThatTheClusterDidNotHearOfIsToldLater(t *testing.T) {
	t.Parallel()
	h := one(t)
	image := h.image("tiny")
	h.log.broken.Store(true)
	if err := h.agent.ImportImage(t.Context(), image, 0, bytes.NewReader(imageContent())); err == nil {
		t.Fatal("an upload without a quorum was acknowledged")
	}
	h.log.broken.Store(false)
	h.until("the copy is known", func(v *fsm.View) bool {
		r := fsm.Replicas.Get(v, api.ReplicaName(image.ID, h.name))
		return r != nil && r.State == api.ReplicaReady
	})
}

func TestBridgesComeAndGoWithTheirNetworks(t *testing.T) {
	t.Parallel()
	h := one(t)
	put(h, fsm.Networks.Put, api.Network{Meta: api.Meta{Name: "lan", Tenant: api.DefaultTenant}, Driver: api.NetworkBridge, Bridge: "dv-lan"})
	v := vm("web")
	v.NICs = []api.NIC{{Network: "lan"}}
	id := h.run(v)
	owned := func() int {
		list, err := h.network.Owned(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	if owned() != 1 || len(h.instance(id).Addresses) != 1 {
		t.Fatalf("%d bridges, addresses %v; want one of each", owned(), h.instance(id).Addresses)
	}
	h.drop("web")
	row := fsm.Networks.Get(h.log.f.Read(), "default/lan")
	h.log.must(t, fsm.Networks.Delete(row.Tenant, row.Name, row.Modified))
	h.until("the bridge is gone", func(*fsm.View) bool { return owned() == 0 })
}
