package sim_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/plugintest"
	"github.com/debvisor/debvisor/plugins/sim"
)

// source makes a file that a disk can name.
func (m *machine) source(t testing.TB, name string) plugins.Source {
	t.Helper()
	path := filepath.Join(m.config.Dir, name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return plugins.Source{Path: path, Format: api.FormatRaw}
}

func TestUpdaterKeepsItsContract(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	plugintest.Updater(t, plugintest.Updates{
		Open: func(t testing.TB) (plugins.Hypervisor, plugins.Updater) { return m.open(t), m.last },
		Spec: func(t testing.TB) plugins.DomainSpec {
			spec := m.spec(t)
			spec.NICs, spec.CDROMs = nil, []plugins.CDROMSpec{{Name: "cd"}}
			spec.CPUsMax, spec.MemoryMaxBytes = 3, 2*spec.MemoryBytes
			return spec
		},
		Ready: "GUEST-READY", Source: m.source, Bridges: [2]string{"br-a", "br-b"},
	})
}

// A guest that boots lets go of nothing; the disk is held until it has.
func TestABootingGuestKeepsItsDisks(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.config.BootTime = 300 * time.Millisecond
	h, err := sim.OpenHypervisor(m.config)
	if err != nil {
		t.Fatal(err)
	}
	spec := m.spec(t)
	root := spec.Disks
	spec.Disks = append(root[:1:1], plugins.DiskSpec{Name: "data", Source: m.source(t, "data")})
	if err := h.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	spec.Disks, spec.SpecRevision = root, 2
	for held := 0; ; held++ {
		if err := h.Update(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
		all, err := h.Domains(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		d := all[0]
		if d.Holding != d.Unsettled || d.Holding != (len(d.Pending) > 0) || d.Holding && !strings.HasPrefix(d.Pending[0], "disks.data: ") {
			t.Fatalf("the guest is %+v", d)
		}
		if d.Holding {
			continue
		}
		if held == 0 && time.Since(d.StartedAt) < m.config.BootTime {
			t.Fatal("a booting guest let go of its disk")
		}
		return
	}
}
