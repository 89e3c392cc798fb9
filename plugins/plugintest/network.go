package plugintest

import (
	"slices"
	"sync"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// Networks is one adapter under test and the machine below it.
type Networks struct {
	Open func(t testing.TB) plugins.Network
	// Plug gives the bridge a port; it goes away with the test.
	Plug func(t testing.TB, bridge string)
}

// Network checks one adapter.
func Network(t *testing.T, m Networks) {
	t.Run("BridgesComeAndGo", func(t *testing.T) {
		n := m.Open(t)
		spec := plugins.NetworkSpec{Bridge: "dv-test0"}
		for range 2 {
			if err := n.Ensure(t.Context(), spec); err != nil {
				t.Fatalf("Ensure: %v", err)
			}
		}
		owned(t, m.Open(t), "dv-test0")
		for range 2 {
			if err := n.Remove(t.Context(), spec); err != nil {
				t.Fatalf("Remove: %v", err)
			}
		}
		owned(t, n)
	})
	t.Run("BridgesWithPortsStay", func(t *testing.T) {
		n := m.Open(t)
		spec := plugins.NetworkSpec{Bridge: "dv-test1"}
		if err := n.Ensure(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
		m.Plug(t, spec.Bridge)
		if err := n.Remove(t.Context(), spec); err != nil {
			t.Errorf("Remove of a bridge with a port: %v", err)
		}
		owned(t, n, "dv-test1")
	})
	t.Run("BadNamesAreRefused", func(t *testing.T) {
		n := m.Open(t)
		for _, name := range []string{"", ".", "..", "a/b", "eth0;reboot", "with space", "sixteen-bytes-xx", "new\nline", "col:on", "b\x00"} {
			wantCode(t, n.Ensure(t.Context(), plugins.NetworkSpec{Bridge: name}), api.CodeInvalid, name)
		}
	})
	t.Run("ParallelMakersAgree", func(t *testing.T) {
		n := m.Open(t)
		spec := plugins.NetworkSpec{Bridge: "dv-test2"}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if err := n.Ensure(t.Context(), spec); err != nil {
					t.Errorf("Ensure: %v", err)
				}
			})
		}
		wg.Wait()
		if err := n.Remove(t.Context(), spec); err != nil {
			t.Error(err)
		}
	})
}

func owned(t testing.TB, n plugins.Network, want ...string) {
	t.Helper()
	got, err := n.Owned(t.Context())
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("Owned: %q, %v, want %q", got, err, want)
	}
}
