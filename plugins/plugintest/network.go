package plugintest

import (
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// Networks is one adapter under test and the machine below it.
type Networks struct {
	// Open opens the adapter of the one machine. At most one at a time makes
	// private networks.
	Open func(t testing.TB) plugins.Network
	// Plug gives the bridge a port; it goes away with the test.
	Plug func(t testing.TB, bridge string)
	// Bridge is one that others made, with an uplink; Card is a device that is no
	// bridge.
	Bridge, Card string
	// VLAN skips the test where the kernel has none.
	VLAN func(t testing.TB)
	// Private skips the test where the programs for addresses are missing.
	Private func(t testing.TB)
}

// Network checks one adapter.
func Network(t *testing.T, m Networks) {
	t.Run("BridgesComeAndGo", func(t *testing.T) {
		n := m.Open(t)
		spec := plugins.NetworkSpec{Bridge: "dv-test0"}
		for range 2 {
			ensure(t, n, spec, false)
		}
		owned(t, m.Open(t), "dv-test0")
		for range 2 {
			if err := n.Remove(t.Context(), "dv-test0"); err != nil {
				t.Fatalf("Remove: %v", err)
			}
		}
		owned(t, n)
	})
	t.Run("BridgesWithPortsStay", func(t *testing.T) {
		n := m.Open(t)
		ensure(t, n, plugins.NetworkSpec{Bridge: "dv-test1"}, false)
		m.Plug(t, "dv-test1")
		if err := n.Remove(t.Context(), "dv-test1"); err != nil {
			t.Errorf("Remove of a bridge with a port: %v", err)
		}
		owned(t, n, "dv-test1")
	})
	t.Run("BadNamesAreRefused", func(t *testing.T) {
		n := m.Open(t)
		for _, name := range []string{"", ".", "..", "a/b", "eth0;reboot", "with space", "sixteen-bytes-xx", "new\nline", "col:on", "b\x00"} {
			_, err := n.Ensure(t.Context(), plugins.NetworkSpec{Bridge: name}, true)
			wantCode(t, err, api.CodeInvalid, name)
		}
	})
	t.Run("ParallelMakersAgree", func(t *testing.T) {
		n := m.Open(t)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if _, err := n.Ensure(t.Context(), plugins.NetworkSpec{Bridge: "dv-test2"}, false); err != nil {
					t.Errorf("Ensure: %v", err)
				}
			})
		}
		wg.Wait()
		if err := n.Remove(t.Context(), "dv-test2"); err != nil {
			t.Error(err)
		}
	})
	t.Run("WhatIsNoBridgeIsRefused", func(t *testing.T) { refuseDevices(t, m) })
	t.Run("TheMachineIsDescribed", func(t *testing.T) { probeNetwork(t, m) })
	t.Run("ChangesAreTriedAndKept", func(t *testing.T) { keepTrial(t, m) })
	t.Run("ChangesAreTakenBack", func(t *testing.T) { revertTrial(t, m) })
	t.Run("ATrialDoesNotSurviveItsProcess", func(t *testing.T) { abandonTrial(t, m) })
	t.Run("VLANsAreTriedAndKept", func(t *testing.T) { carryVLAN(t, m) })
	t.Run("OnlyWhatIsDeclaredProtects", func(t *testing.T) { refuseRules(t, m) })
}

func refuseDevices(t *testing.T, m Networks) {
	n := m.Open(t)
	_, err := n.Ensure(t.Context(), plugins.NetworkSpec{Bridge: m.Card}, true)
	wantCode(t, err, api.CodeConflict, m.Card)
	spec := private("", 1)
	spec.Bridge = m.Bridge
	_, err = n.Ensure(t.Context(), spec, true)
	wantCode(t, err, api.CodeConflict, "a private network on the bridge of others")
	_, err = n.Ensure(t.Context(), plugins.NetworkSpec{Bridge: "dv-none", Uplink: true}, true)
	wantCode(t, err, api.CodeUnavailable, "an uplink that is not there")
	_, err = n.Ensure(t.Context(), plugins.NetworkSpec{Bridge: "dv-vlan", Carrier: "dv-none", Trunk: "dv-trunk", VLAN: 5}, true)
	wantCode(t, err, api.CodeUnavailable, "a VLAN on a bridge that is not there")
	_ = n.Remove(t.Context(), "dv-vlan")
}

func carryVLAN(t *testing.T, m Networks) {
	m.VLAN(t)
	n := m.Open(t)
	spec := plugins.NetworkSpec{Bridge: "dv-vlan1", Carrier: m.Bridge, Trunk: "dv-trunk1", VLAN: 100, Uplink: true, Revision: 7}
	ensure(t, n, spec, true)
	settle(t, n, true)
	ensure(t, n, spec, false)
	if err := n.Remove(t.Context(), spec.Bridge); err != nil {
		t.Error(err)
	}
	owned(t, n, "dv-test1")
}

func refuseRules(t *testing.T, m Networks) {
	n := m.Open(t)
	port := plugins.Port{Device: "dv525400000001", Bridge: "dv-test1", MAC: "52:54:00:00:00:01", Filtered: true, Firewalls: []string{"default/none"}}
	wantCode(t, n.Protect(t.Context(), plugins.Protection{Ports: []plugins.Port{port}}), api.CodeInvalid, "a firewall that is not declared")
	port.Device, port.Firewalls, port.Filtered = "eth0;reboot", nil, false
	wantCode(t, n.Protect(t.Context(), plugins.Protection{Ports: []plugins.Port{port}}), api.CodeInvalid, "a device with a bad name")
	if err := n.Protect(t.Context(), plugins.Protection{}); err != nil {
		t.Error(err)
	}
}

// private is a network with an address of the machine.
func private(bridge string, revision uint64) plugins.NetworkSpec {
	return plugins.NetworkSpec{Bridge: bridge, Revision: revision, Private: true, NAT: true, Gateways: []netip.Prefix{netip.MustParsePrefix("10.209.0.1/24")},
		Hosts: []plugins.Host{{MAC: "52:54:00:00:00:09", Name: "web", Addresses: []netip.Addr{netip.MustParseAddr("10.209.0.9")}}}}
}

func probeNetwork(t *testing.T, m Networks) {
	found, err := m.Open(t).Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, there := found.Bridge(m.Bridge)
	if !there || len(b.Uplinks) != 1 || !slices.Contains(found.Devices, m.Card) {
		t.Errorf("the machine has bridge %s with an uplink, and device %s: got %+v", m.Bridge, m.Card, found)
	}
	if !found.Stateful && found.Reason == "" {
		t.Error("why connections cannot be followed is not said")
	}
}

func keepTrial(t *testing.T, m Networks) {
	m.Private(t)
	n := m.Open(t)
	spec := private("dv-test3", 1)
	if needed, err := n.Ensure(t.Context(), spec, false); err != nil || !needed {
		t.Fatalf("Ensure without a trial: %v, %v; want that one is needed", needed, err)
	}
	ensure(t, n, spec, true)
	other := private("dv-test4", 1)
	other.Gateways = []netip.Prefix{netip.MustParsePrefix("10.210.0.1/24")}
	_, err := n.Ensure(t.Context(), other, true)
	wantCode(t, err, api.CodeUnavailable, "a second trial")
	settle(t, n, true)
	ensure(t, n, spec, false)
	n.Close()
	again := m.Open(t)
	ensure(t, again, spec, false)
	if leases, err := again.Leases(t.Context()); err != nil || len(leases) != 0 {
		t.Errorf("nobody asked for an address, and the leases are %v, %v", leases, err)
	}
	for _, name := range []string{spec.Bridge, other.Bridge} {
		if err := again.Remove(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
}

func revertTrial(t *testing.T, m Networks) {
	m.Private(t)
	n := m.Open(t)
	spec := private("dv-test5", 1)
	ensure(t, n, spec, true)
	settle(t, n, false)
	_, err := n.Ensure(t.Context(), spec, true)
	wantCode(t, err, api.CodeConflict, "the same change again")
	n.Close()
	n = m.Open(t)
	_, err = n.Ensure(t.Context(), spec, true)
	wantCode(t, err, api.CodeConflict, "the same change again, after a restart")
	spec.Revision = 2
	ensure(t, n, spec, true)
	settle(t, n, true)
	if err := n.Remove(t.Context(), spec.Bridge); err != nil {
		t.Error(err)
	}
}

func abandonTrial(t *testing.T, m Networks) {
	m.Private(t)
	spec := private("dv-test6", 1)
	n := m.Open(t)
	ensure(t, n, spec, true)
	n.Close() // as kill -9 would, with nothing said about the trial
	n = m.Open(t)
	if needed, err := n.Ensure(t.Context(), spec, false); err != nil || !needed {
		t.Errorf("after a restart within the trial: %v, %v; want that it is needed again", needed, err)
	}
	if err := n.Remove(t.Context(), spec.Bridge); err != nil {
		t.Error(err)
	}
}

// ensure wants the network made, with or without a trial.
func ensure(t testing.TB, n plugins.Network, spec plugins.NetworkSpec, trial bool) {
	t.Helper()
	if needed, err := n.Ensure(t.Context(), spec, trial); err != nil || needed != trial {
		t.Fatalf("Ensure of %s: a trial %v, %v; want %v", spec.Bridge, needed, err, trial)
	}
}

func settle(t testing.TB, n plugins.Network, keep bool) {
	t.Helper()
	if err := n.Settle(t.Context(), keep); err != nil {
		t.Fatalf("Settle: %v", err)
	}
}

func owned(t testing.TB, n plugins.Network, want ...string) {
	t.Helper()
	got, err := n.Owned(t.Context())
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("Owned: %q, %v, want %q", got, err, want)
	}
}
