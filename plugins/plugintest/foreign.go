package plugintest

import (
	"slices"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// ForeignGuests is one adapter under test on a machine where others make guests
// too.
type ForeignGuests struct {
	Open func(t testing.TB) interface {
		plugins.Hypervisor
		plugins.Foreign
	}
	// Spec describes a guest of ours.
	Spec func(t testing.TB) plugins.DomainSpec
	// Make makes a running guest of somebody else, without the adapter.
	Make func(t testing.TB, name string) (id string)
}

// Foreign checks one adapter.
func Foreign(t *testing.T, m ForeignGuests) {
	h := m.Open(t)
	t.Cleanup(func() { _ = h.Close() })
	ours := m.Spec(t)
	if err := h.Start(t.Context(), ours); err != nil {
		t.Fatal(err)
	}
	second, first := m.Make(t, "theirs-b"), m.Make(t, "theirs-a")
	list, err := h.ForeignDomains(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := slices.Collect(func(yield func(string) bool) {
		for _, d := range list.Items {
			yield(d.ID)
		}
	}); !slices.Equal(got, []string{first, second}) || list.More {
		t.Fatalf("listed %q, want %q and %q in this order", got, first, second)
	}
	d := list.Items[0]
	if d.Name != "theirs-a" || d.State != api.InstanceRunning || d.CPUs < 1 || d.MemoryBytes < api.MiB {
		t.Errorf("the first is %+v", d)
	}
	if all, err := h.Domains(t.Context()); err != nil || len(all) != 1 || all[0].ID != ours.ID {
		t.Errorf("ours are %+v: %v", all, err)
	}
}
