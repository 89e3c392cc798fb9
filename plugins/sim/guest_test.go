package sim_test

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/sim"
)

func TestSimulatedGuestsThawByThemselves(t *testing.T) {
	t.Parallel()
	config := sim.Config{Dir: t.TempDir(), ClusterID: uuid.NewString()}
	h, err := sim.OpenHypervisor(config)
	if err != nil {
		t.Fatal(err)
	}
	spec := plugins.DomainSpec{ID: uuid.NewString(), Name: "default.web", ClusterID: config.ClusterID, CPUs: 1, MemoryBytes: api.GiB}
	if _, err := h.FreezeGuest(t.Context(), spec.ID, time.Hour); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("a guest that does not run: %v", err)
	}
	if err := h.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	if n, err := h.FreezeGuest(t.Context(), spec.ID, time.Hour); err != nil || n != 1 {
		t.Fatalf("freeze: %d, %v", n, err)
	}
	if _, err := h.FreezeGuest(t.Context(), spec.ID, time.Hour); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("a second freeze: %v", err)
	}
	if n, err := h.ThawGuest(t.Context(), spec.ID); err != nil || n != 1 {
		t.Errorf("thaw: %d, %v", n, err)
	}
	if n, err := h.FreezeGuest(t.Context(), spec.ID, time.Nanosecond); err != nil || n != 1 {
		t.Fatalf("freeze: %d, %v", n, err)
	}
	_ = h.Close()
	if h, err = sim.OpenHypervisor(config); err != nil { // another process
		t.Fatal(err)
	}
	if info, err := h.GuestInfo(t.Context(), spec.ID); err != nil || info.Frozen {
		t.Errorf("after the limit: %+v, %v", info, err)
	}
	if n, err := h.ThawGuest(t.Context(), spec.ID); err != nil || n != 0 {
		t.Errorf("thaw after the limit: %d, %v", n, err)
	}
}
