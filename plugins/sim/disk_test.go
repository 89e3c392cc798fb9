package sim_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/plugintest"
	"github.com/debvisor/debvisor/plugins/sim"
)

func TestVolumesKeepTheirContract(t *testing.T) {
	t.Parallel()
	plugintest.Volumes(t, func(t testing.TB) plugintest.VolumeStore {
		s, err := sim.OpenStorage(sim.Config{Dir: t.TempDir(), ClusterID: "c"})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}, nil, nil)
}

func TestDisksKeepTheirContract(t *testing.T) {
	t.Parallel()
	config := sim.Config{Dir: t.TempDir(), ClusterID: "c", CopyTime: 200 * time.Millisecond}
	h, err := sim.OpenHypervisor(config)
	if err != nil {
		t.Fatal(err)
	}
	s, err := sim.OpenStorage(config)
	if err != nil {
		t.Fatal(err)
	}
	plugintest.Disks(t, plugintest.DiskMachine{
		Hypervisor: h, Disks: h, Store: s,
		Here:   plugins.PoolSpec{Name: "here", Path: filepath.Join(t.TempDir(), "here")},
		There:  plugins.PoolSpec{Name: "there", Path: filepath.Join(t.TempDir(), "there")},
		Spec:   plugins.DomainSpec{ID: uuid.NewString(), Name: "default.web", ClusterID: "c", Gen: 1, CPUs: 1, MemoryBytes: api.GiB},
		Booted: func(testing.TB, string) {}, Grown: func(testing.TB, string, int64) {}, Writes: func(testing.TB, string, string) {},
	})
}
