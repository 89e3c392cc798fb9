package sim_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/plugintest"
	"github.com/debvisor/debvisor/plugins/sim"
)

// machine lets a test reach the adapters that are open on one directory.
type machine struct {
	config sim.Config
	last   *sim.Hypervisor
}

func newMachine(t testing.TB) *machine {
	return &machine{config: sim.Config{Dir: t.TempDir(), ClusterID: uuid.NewString()}}
}

func (m *machine) open(t testing.TB) plugins.Hypervisor {
	t.Helper()
	h, err := sim.OpenHypervisor(m.config)
	if err != nil {
		t.Fatal(err)
	}
	m.last = h
	return h
}

func (m *machine) spec(t testing.TB) plugins.DomainSpec {
	t.Helper()
	disk := filepath.Join(m.config.Dir, "disk.qcow2")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	id := uuid.NewString()
	return plugins.DomainSpec{
		ID: id, Name: "default.vm-" + id[:8], ClusterID: m.config.ClusterID, Gen: 1, CPUs: 1, MemoryBytes: 128 * api.MiB,
		Disks: []plugins.DiskSpec{{Name: "root", Source: plugins.Source{Path: disk, Format: api.FormatQCOW2}}},
		NICs:  []plugins.NICSpec{{Bridge: "br-test", MAC: "52:54:00:12:34:56"}},
	}
}

func TestHypervisorKeepsItsContract(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	check := func(t testing.TB, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	plugintest.Hypervisor(t, plugintest.Hypervisors{
		Open: m.open, Spec: m.spec, Ready: "GUEST-READY", Line: "hello", Answer: "simulated guest read: hello",
		Kill:   func(t testing.TB, id string) { check(t, m.last.Crash(id)) },
		Tamper: func(t testing.TB, id string) { check(t, m.last.Tamper(id, 512*api.MiB)) },
		Break:  func(testing.TB) { m.last.Break(errors.New("test")) },
		Heal:   func(testing.TB) { m.last.Heal() },
	})
}

func TestSlowBootDelaysAddressesAndObedience(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.config.BootTime = time.Hour
	h := m.open(t)
	spec := m.spec(t)
	if err := h.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	all, err := h.Domains(t.Context())
	if err != nil || len(all) != 1 || len(all[0].Addresses) != 0 {
		t.Fatalf("a booting guest has addresses: %+v, %v", all, err)
	}
	if err := h.Stop(t.Context(), spec.ID, time.Millisecond); err != nil {
		t.Fatal(err)
	}
	all, err = h.Domains(t.Context())
	if err != nil || all[0].Reason != "destroyed" {
		t.Fatalf("a booting guest obeyed ACPI: %+v, %v", all, err)
	}
}

func TestManyGuestsAreCheapAndSurvive(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	h := m.open(t)
	const guests = 500
	base := m.spec(t)
	for range guests {
		spec := base
		spec.ID = uuid.NewString()
		spec.Name = "default.vm-" + spec.ID
		if err := h.Start(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	all, err := m.open(t).Domains(t.Context())
	if err != nil || len(all) != guests {
		t.Fatalf("%d of %d guests are there after reopening: %v", len(all), guests, err)
	}
}

func TestDamagedRecordIsNamed(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	h := m.open(t)
	spec := m.spec(t)
	if err := h.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(m.config.Dir, "domains", spec.ID+".json")
	if err := os.WriteFile(file, []byte(`{"Spec":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sim.OpenHypervisor(m.config); err == nil || !strings.Contains(err.Error(), spec.ID) {
		t.Fatalf("got %v, want an error that names %s", err, spec.ID)
	}
}

func TestStorageKeepsItsContract(t *testing.T) {
	t.Parallel()
	plugintest.Storage(t, func(t testing.TB) plugins.Storage {
		s, err := sim.OpenStorage(sim.Config{Dir: t.TempDir(), ClusterID: uuid.NewString()})
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

func TestNetworkKeepsItsContract(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	plugintest.Network(t, plugintest.Networks{
		Bridge: "br0", Card: "eth0", VLAN: func(testing.TB) {}, Private: func(testing.TB) {},
		Open: func(t testing.TB) plugins.Network {
			n, err := sim.OpenNetwork(m.config)
			if err != nil {
				t.Fatal(err)
			}
			return n
		},
		Plug: func(t testing.TB, bridge string) {
			spec := m.spec(t)
			spec.NICs[0].Bridge = bridge
			if err := m.open(t).Start(t.Context(), spec); err != nil {
				t.Fatal(err)
			}
		},
	})
}

func TestStagesKeepTheirContract(t *testing.T) {
	t.Parallel()
	plugintest.Stager(t, func(t testing.TB) plugintest.Stages {
		s, err := sim.OpenStorage(sim.Config{Dir: t.TempDir(), ClusterID: "c"})
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

func TestTemplatesKeepTheirContract(t *testing.T) {
	t.Parallel()
	plugintest.Templates(t, func(t testing.TB) plugintest.TemplateStore {
		s, err := sim.OpenStorage(sim.Config{Dir: t.TempDir(), ClusterID: "c"})
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

func TestForeignGuestsAreListed(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	plugintest.Foreign(t, plugintest.ForeignGuests{
		Open: func(t testing.TB) interface {
			plugins.Hypervisor
			plugins.Foreign
		} {
			return m.open(t).(*sim.Hypervisor)
		},
		Spec: m.spec,
		Make: func(t testing.TB, name string) string {
			id := uuid.NewString()
			if err := m.last.AddForeign(api.ForeignDomain{ID: id, Name: name, State: api.InstanceRunning, CPUs: 1, MemoryBytes: api.GiB}); err != nil {
				t.Fatal(err)
			}
			return id
		},
	})
}
