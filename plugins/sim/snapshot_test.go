package sim_test

import (
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/plugintest"
	"github.com/debvisor/debvisor/plugins/sim"
)

func TestSnapshotterKeepsItsContract(t *testing.T) {
	t.Parallel()
	config := sim.Config{Dir: t.TempDir(), ClusterID: uuid.NewString()}
	check := func(t testing.TB, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	plugintest.Snapshotter(t, plugintest.Snapshotters{
		Open: func(t testing.TB) (plugins.Hypervisor, plugins.Snapshotter) {
			h, err := sim.OpenHypervisor(config)
			check(t, err)
			return h, h
		},
		Spec: func(t testing.TB) plugins.DomainSpec {
			storage, err := sim.OpenStorage(config)
			check(t, err)
			spec := plugins.DomainSpec{ID: uuid.NewString(), Name: "default.web", ClusterID: config.ClusterID, CPUs: 1, MemoryBytes: api.GiB}
			for _, name := range []string{"root", "data"} {
				v, err := storage.CreateVolume(t.Context(), plugins.PoolSpec{Name: "local", Path: filepath.Join(config.Dir, "pool")},
					plugins.VolumeSpec{ID: uuid.NewString(), SizeBytes: api.GiB, Format: api.FormatQCOW2})
				check(t, err)
				spec.Disks = append(spec.Disks, plugins.DiskSpec{Name: name, Source: v.Source})
			}
			return spec
		},
		Await: func(testing.TB, plugins.Hypervisor, string) {},
		Write: func(t testing.TB, _ plugins.Hypervisor, spec plugins.DomainSpec, disk int, text string) {
			check(t, sim.WriteVolume(spec.Disks[disk].Source.Path, text))
		},
		Read: func(t testing.TB, _ plugins.Hypervisor, spec plugins.DomainSpec, disk int) string {
			text, err := sim.ReadVolume(spec.Disks[disk].Source.Path)
			check(t, err)
			return text
		},
		Remember: func(t testing.TB, h plugins.Hypervisor, id, text string) {
			check(t, h.(*sim.Hypervisor).Remember(id, text))
		},
		Recall: func(_ testing.TB, h plugins.Hypervisor, id string) string { return h.(*sim.Hypervisor).Memory(id) },
		Names: func(t testing.TB, disk plugins.DiskSpec) []string {
			names, err := sim.SnapshotNames(disk.Source.Path)
			check(t, err)
			return names
		},
	})
}
