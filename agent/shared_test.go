package agent_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// TestSharedPoolServesAllNodes: an image and a volume that one node made in a
// pool that all mount are used, grown and moved by the node whose guest has them.
func TestSharedPoolServesAllNodes(t *testing.T) {
	t.Parallel()
	_, hosts := newLog(t, "node1", "node2")
	a, b := hosts["node1"], hosts["node2"]
	a.start()
	b.start()
	path := filepath.Join(t.TempDir(), "nfs")
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	put(a, fsm.Pools.Put, api.Pool{Meta: api.Meta{Name: "nfs"}, Driver: api.PoolDir, Path: path, Shared: true})
	a.upload(a.image("tiny"))
	on := func(h *host, name string) string {
		v := vm(name)
		v.Disks = []api.Disk{{Name: "root", Image: "tiny", Pool: "nfs"}}
		return h.run(v)
	}
	on(a, "here")
	on(b, "there")
	if got := b.fetched.Load(); got != 0 {
		t.Errorf("node2 fetched the image %d times, although the pool had it", got)
	}
	for _, kind := range []string{"images", "volumes"} {
		found, err := filepath.Glob(filepath.Join(path, kind, "*.*"))
		if want := map[string]int{"images": 1, "volumes": 2}[kind]; err != nil || len(found) != want {
			t.Errorf("the pool holds %s %v, %v; want %d", kind, found, err, want)
		}
	}

	// A volume that node1 made, used by a guest of node2.
	put(a, fsm.Volumes.Put, api.Volume{Meta: api.Meta{Name: "data", Tenant: api.DefaultTenant}, Pool: "nfs", SizeBytes: api.GiB, Node: a.name})
	a.untilSize("data", api.GiB)
	v := vm("user")
	v.Disks = []api.Disk{{Name: "data", Volume: "data"}}
	id := b.run(v)
	grown := *a.volume("data")
	grown.SizeBytes = 2 * api.GiB
	put(a, fsm.Volumes.Put, grown)
	a.untilSize("data", 2*api.GiB)

	b.move("t1", "data", fsm.DefaultPool)
	if task := b.leadTask("t1"); task.State != api.TaskDone {
		t.Fatalf("the task is %+v", task)
	}
	b.wantMoved("data", fsm.DefaultPool)
	if r := fsm.Replicas.Get(a.log.f.Read(), api.ReplicaName(grown.ID, a.name)); r != nil {
		t.Errorf("node1 still has the replica %+v", r)
	}
	if left, err := filepath.Glob(filepath.Join(path, "volumes", grown.ID+".*")); err != nil || len(left) != 0 {
		t.Errorf("the former copy is left: %v, %v", left, err)
	}
	b.untilState(id, api.InstanceRunning)
}
