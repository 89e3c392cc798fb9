package plugintest

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/plugins"
)

// Meters is one adapter that reads counters.
type Meters struct {
	// Open opens the adapter anew: both faces of it.
	Open func(t testing.TB) (plugins.Hypervisor, plugins.Meter)
	// Spec describes a guest that can be started.
	Spec func(t testing.TB) plugins.DomainSpec
}

// Meter checks one adapter.
func Meter(t *testing.T, m Meters) {
	h, meter := m.Open(t)
	t.Cleanup(func() { _ = h.Close() })
	s := &hypervisorSuite{Hypervisors{Open: func(t testing.TB) plugins.Hypervisor { h, _ := m.Open(t); return h }}}
	before, err := meter.Sample(t.Context())
	if err != nil {
		t.Fatalf("Sample: %v", err)
	}
	if n := before.Node; n.CPUs < 1 || n.CPUTotal <= 0 || n.MemoryBytes <= 0 || n.MemoryAvailableBytes < 0 || n.MemoryAvailableBytes > n.MemoryBytes {
		t.Errorf("the machine is %+v", n)
	}
	if len(before.Domains) != 0 {
		t.Errorf("guests before any was started: %+v", before.Domains)
	}
	var specs []plugins.DomainSpec
	for range 2 {
		spec := m.Spec(t)
		spec.ID = uuid.NewString()
		spec.Name = "default.vm-" + spec.ID[:8]
		s.removeAtEnd(t, spec.ID)
		if err := h.Start(t.Context(), spec); err != nil {
			t.Fatalf("Start: %v", err)
		}
		specs = append(specs, spec)
	}
	first := worked(t, meter, specs)
	second := worked(t, meter, specs)
	for _, spec := range specs {
		a, b := counters(first, spec.ID), counters(second, spec.ID)
		if b.CPUTime < a.CPUTime {
			t.Errorf("the processor time of %s fell from %v to %v", spec.Name, a.CPUTime, b.CPUTime)
		}
		if b.MemoryBytes <= 0 || b.MemoryBytes > 2*spec.MemoryBytes || b.MemoryRSSBytes <= 0 {
			t.Errorf("the memory of %s is %d, of the machine's %d", spec.Name, b.MemoryBytes, b.MemoryRSSBytes)
		}
		if len(b.Disks) != len(spec.Disks) || len(b.NICs) != len(spec.NICs) {
			t.Errorf("%s has %d disks and %d interfaces, want %d and %d", spec.Name, len(b.Disks), len(b.NICs), len(spec.Disks), len(spec.NICs))
		}
	}
	if second.Node.CPUTotal < first.Node.CPUTotal || second.Node.CPUBusy > second.Node.CPUTotal {
		t.Errorf("the machine went from %+v to %+v", first.Node, second.Node)
	}
	if err := h.Stop(t.Context(), specs[0].ID, 0); err != nil {
		t.Fatal(err)
	}
	after, err := meter.Sample(t.Context())
	if err != nil || len(after.Domains) != 1 || after.Domains[0].ID != specs[1].ID {
		t.Errorf("after one guest ended: %+v, %v", after.Domains, err)
	}
}

// worked samples until every guest has used a processor.
func worked(t *testing.T, meter plugins.Meter, specs []plugins.DomainSpec) plugins.Sample {
	t.Helper()
	for deadline := time.Now().Add(stateTimeout); ; {
		sample, err := meter.Sample(t.Context())
		if err != nil {
			t.Fatalf("Sample: %v", err)
		}
		if !slices.IsSortedFunc(sample.Domains, func(a, b plugins.DomainCounters) int { return strings.Compare(a.ID, b.ID) }) {
			t.Errorf("the guests are not ordered by ID: %+v", sample.Domains)
		}
		busy := 0
		for _, spec := range specs {
			if counters(sample, spec.ID).CPUTime > 0 {
				busy++
			}
		}
		if busy == len(specs) && len(sample.Domains) == len(specs) {
			return sample
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d guests use a processor: %+v", busy, len(specs), sample.Domains)
		}
		<-time.After(pollEvery)
	}
}

func counters(s plugins.Sample, id string) plugins.DomainCounters {
	for _, d := range s.Domains {
		if d.ID == id {
			return d
		}
	}
	return plugins.DomainCounters{}
}
