package sim_test

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/plugintest"
	"github.com/debvisor/debvisor/plugins/sim"
)

func TestMeterKeepsItsContract(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	plugintest.Meter(t, plugintest.Meters{Spec: m.spec, Open: func(t testing.TB) (plugins.Hypervisor, plugins.Meter) {
		h := m.open(t).(*sim.Hypervisor)
		return h, h
	}})
}

func TestWhatGuestsUseNeverFalls(t *testing.T) {
	t.Parallel()
	for _, phase := range []float64{0, 0.1, 0.25, 0.5, 0.9, 1} {
		last := 0.0
		for age := time.Duration(0); age < 20*time.Minute; age += 5 * time.Second {
			now := sim.Wave(age, phase)
			if rate := (now - last) / 5; age > 0 && (rate < 0.1 || rate > 1.9) {
				t.Fatalf("phase %v, age %v: %v a second", phase, age, rate)
			}
			last = now
		}
	}
}

// BenchmarkSample measures one reading of 500 guests.
func BenchmarkSample(b *testing.B) {
	m := newMachine(b)
	h := m.open(b).(*sim.Hypervisor)
	base := m.spec(b)
	for range 500 {
		spec := base
		spec.ID = uuid.NewString()
		spec.Name = "default.vm-" + spec.ID
		if err := h.Start(b.Context(), spec); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if s, err := h.Sample(b.Context()); err != nil || len(s.Domains) != 500 {
			b.Fatalf("%d guests: %v", len(s.Domains), err)
		}
	}
}
