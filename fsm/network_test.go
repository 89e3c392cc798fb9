package fsm_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

func natNetwork(name string, subnets ...string) api.Network {
	return api.Network{Meta: api.Meta{Name: name, Tenant: "default"}, Driver: api.NetworkNAT, Subnets: subnets}
}

func onNetwork(name string, nics ...api.NIC) api.VM {
	v := vm(name)
	v.Disks, v.NICs = nil, nics
	return v
}

// mustPut puts the object and fails the test if it is refused.
func mustPut[T any](c *cluster, entry func(*T) (fsm.Entry, error), v T) {
	c.tb.Helper()
	if out := put(c, entry, v); out.Err != nil {
		c.tb.Fatal(out.Err)
	}
}

func (c *cluster) nics(key string) []api.NIC { return fsm.VMs.Get(c.f.Read(), key).NICs }

func TestInterfacesGetAddressesAndKeepThem(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	mustPut(c, fsm.Networks.Put, natNetwork("inside", "10.80.0.0/24", "fd80::/64"))
	mustPut(c, fsm.VMs.Put, onNetwork("web", api.NIC{Network: "inside"}))
	got := c.nics("default/web")[0].Addresses
	if len(got) != 2 || !netip.MustParsePrefix("10.80.0.0/24").Contains(netip.MustParseAddr(got[0])) ||
		!netip.MustParsePrefix("fd80::/64").Contains(netip.MustParseAddr(got[1])) {
		t.Fatalf("the interface has %q", got)
	}
	again := *fsm.VMs.Get(c.f.Read(), "default/web")
	again.CPUs, again.NICs = 2, []api.NIC{{Network: "inside"}}
	mustPut(c, fsm.VMs.Put, again)
	if now := c.nics("default/web")[0].Addresses; !slices.Equal(now, got) {
		t.Errorf("the interface had %q and now has %q", got, now)
	}
}

func TestASubnetIsGivenOutToTheLastAddress(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	n := natNetwork("inside", "10.80.0.0/29")
	mustPut(c, fsm.Networks.Put, n)
	seen := map[string]bool{}
	for i := range 5 { // 8 less the first, the last and the gateway's
		name := fmt.Sprintf("vm%d", i)
		mustPut(c, fsm.VMs.Put, onNetwork(name, api.NIC{Network: "inside"}))
		seen[c.nics("default/" + name)[0].Addresses[0]] = true
	}
	if len(seen) != 5 || seen["10.80.0.1"] || seen["10.80.0.0"] || seen["10.80.0.7"] {
		t.Errorf("5 interfaces have %v", seen)
	}
	if out := put(c, fsm.VMs.Put, onNetwork("late", api.NIC{Network: "inside"})); out.Err == nil || out.Err.Code != api.CodeLimit {
		t.Errorf("the sixth got %v, want CodeLimit", out.Err)
	}
}

func TestRangesBoundWhatIsChosen(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	n := api.Network{Meta: api.Meta{Name: "lan", Tenant: "default"}, Driver: api.NetworkBridge, Bridge: "br0",
		Subnets: []string{"192.0.2.0/24"}, Ranges: []string{"192.0.2.10-192.0.2.10", "192.0.2.20-192.0.2.20"}}
	mustPut(c, fsm.Networks.Put, n)
	mustPut(c, fsm.VMs.Put, onNetwork("web", api.NIC{Network: "lan"}, api.NIC{Network: "lan"}))
	nics := c.nics("default/web")
	got := []string{nics[0].Addresses[0], nics[1].Addresses[0]}
	slices.Sort(got)
	if !slices.Equal(got, []string{"192.0.2.10", "192.0.2.20"}) {
		t.Errorf("two interfaces have %q", got)
	}
	mustPut(c, fsm.VMs.Put, onNetwork("named", api.NIC{Network: "lan", Addresses: []string{"192.0.2.99"}})) // by name, beyond the ranges
}

func TestAddressesThatCannotBeAreRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	mustPut(c, fsm.Networks.Put, natNetwork("inside", "10.80.0.0/24"))
	mustPut(c, fsm.VMs.Put, onNetwork("web", api.NIC{Network: "inside", MAC: "52:54:00:00:00:01", Addresses: []string{"10.80.0.5"}}))
	for text, nics := range map[string][]api.NIC{
		"outside the subnet":               {{Network: "inside", Addresses: []string{"10.81.0.5"}}},
		"the gateway's":                    {{Network: "inside", Addresses: []string{"10.80.0.1"}}},
		"first or last":                    {{Network: "inside", Addresses: []string{"10.80.0.255"}}},
		"no subnet for":                    {{Network: "inside", Addresses: []string{"fd80::5"}}},
		"10.80.0.5 is used by vm web":      {{Network: "inside", Addresses: []string{"10.80.0.5"}}},
		"another interface of this VM":     {{Network: "inside", Addresses: []string{"10.80.0.6"}}, {Network: "inside", Addresses: []string{"10.80.0.6"}}},
		"52:54:00:00:00:01 is used by vm ": {{Network: "inside", MAC: "52:54:00:00:00:01"}},
		`no firewall "closed"`:             {{Network: "inside", Firewalls: []string{"closed"}}},
	} {
		out := put(c, fsm.VMs.Put, onNetwork("bad", nics...))
		if out.Err == nil || !strings.Contains(out.Err.Error(), text) {
			t.Errorf("%+v: got %v, want %q", nics, out.Err, text)
		}
	}
}

func TestNetworksThatWouldMixAreRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	mustPut(c, fsm.Tenants.Put, api.Tenant{Meta: api.Meta{Name: "other"}})
	mustPut(c, fsm.Networks.Put, natNetwork("inside", "10.80.0.0/24"))
	mustPut(c, fsm.Networks.Put, api.Network{Meta: api.Meta{Name: "lan", Tenant: "default"}, Driver: api.NetworkBridge, Bridge: "br0"})
	foreign := natNetwork("secret", "10.80.0.0/16")
	foreign.Tenant = "other"
	inside := natNetwork("inside")
	for text, n := range map[string]api.Network{
		"overlaps a subnet of network inside": natNetwork("more", "10.80.0.128/25"),
		"network of another tenant":           foreign,
		"br0 is the bridge of another":        {Meta: api.Meta{Name: "iso", Tenant: "default"}, Driver: api.NetworkIsolated, Bridge: "br0"},
		"is the bridge of another network":    {Meta: api.Meta{Name: "on", Tenant: "default"}, Driver: api.NetworkVLAN, VLAN: 5, Bridge: inside.Device()},
	} {
		out := put(c, fsm.Networks.Put, n)
		if out.Err == nil || !strings.Contains(out.Err.Error(), text) {
			t.Errorf("%s: got %v, want %q", n.Name, out.Err, text)
		}
		if out.Err != nil && n.Tenant == "other" && strings.Contains(out.Err.Error(), "inside") {
			t.Errorf("the name of another tenant's network is told: %v", out.Err)
		}
	}
	// Subnets of bridges belong to whoever runs them: they may overlap.
	mustPut(c, fsm.Networks.Put, api.Network{Meta: api.Meta{Name: "lan2", Tenant: "default"}, Driver: api.NetworkBridge, Bridge: "br1", Subnets: []string{"10.80.0.0/24"}})
}

func TestANetworkInUseKeepsWhatItsVMsStandOn(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	n := natNetwork("inside", "10.80.0.0/24")
	mustPut(c, fsm.Networks.Put, n)
	mustPut(c, fsm.VMs.Put, onNetwork("web", api.NIC{Network: "inside", Addresses: []string{"10.80.0.200"}}))
	change := func(f func(*api.Network)) *api.Error {
		n := *fsm.Networks.Get(c.f.Read(), "default/inside")
		f(&n)
		return put(c, fsm.Networks.Put, n).Err
	}
	if err := change(func(n *api.Network) { n.Subnets = []string{"10.80.0.0/25"} }); err == nil || !strings.Contains(err.Error(), "10.80.0.200") {
		t.Errorf("a subnet without an address in use: %v", err)
	}
	if err := change(func(n *api.Network) { n.Driver = api.NetworkIsolated }); err == nil || !strings.Contains(err.Error(), "is fixed while vm web") {
		t.Errorf("another driver: %v", err)
	}
	if err := change(func(n *api.Network) { n.Subnets = []string{"10.80.0.0/16"} }); err != nil {
		t.Errorf("a wider subnet: %v", err)
	}
}

func TestFirewallsInUseStay(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	wall := func(name string, groups ...string) api.Firewall {
		return api.Firewall{Meta: api.Meta{Name: name, Tenant: "default"}, Rules: []api.FirewallRule{{Direction: api.Ingress, Groups: groups}}}
	}
	if out := put(c, fsm.Firewalls.Put, wall("db", "web")); out.Err == nil || !strings.Contains(out.Err.Error(), `no firewall "web"`) {
		t.Errorf("a group that does not exist: %v", out.Err)
	}
	mustPut(c, fsm.Firewalls.Put, wall("web", "web"))
	mustPut(c, fsm.Firewalls.Put, wall("db", "web"))
	mustPut(c, fsm.Networks.Put, natNetwork("inside", "10.80.0.0/24"))
	mustPut(c, fsm.VMs.Put, onNetwork("vm1", api.NIC{Network: "inside", Firewalls: []string{"db"}}))
	remove := func(name string) *api.Error {
		return c.propose(fsm.Firewalls.Delete("default", name, fsm.Firewalls.Get(c.f.Read(), "default/"+name).Modified)).Err
	}
	if err := remove("db"); err == nil || !strings.Contains(err.Error(), "vm vm1 has it") {
		t.Errorf("a firewall of a VM: %v", err)
	}
	if err := remove("web"); err == nil || !strings.Contains(err.Error(), "firewall db names it") {
		t.Errorf("a firewall that is a group: %v", err)
	}
	mustPut(c, fsm.VMs.Put, func() api.VM {
		v := *fsm.VMs.Get(c.f.Read(), "default/vm1")
		v.NICs = nil
		return v
	}())
	for _, name := range []string{"db", "web"} {
		if err := remove(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
