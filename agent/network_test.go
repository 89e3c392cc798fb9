package agent_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// natNetwork puts a network whose guests reach out, and returns a VM on it.
func natNetwork(t *testing.T, h *host) api.VM {
	t.Helper()
	put(h, fsm.Networks.Put, api.Network{Meta: api.Meta{Name: "inside", Tenant: "default"}, Driver: api.NetworkNAT, Subnets: []string{"10.80.0.0/24"}})
	v := vm("web")
	v.Disks, v.NICs = nil, []api.NIC{{Network: "inside"}}
	return v
}

func TestGuestsOnANetworkWithSubnetsAreProtectedAndHaveTheirAddresses(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(natNetwork(t, h))
	nic := fsm.VMs.Get(h.log.f.Read(), "default/web").NICs[0]
	p := h.network.Protection()
	if len(p.Ports) != 1 || p.Ports[0].Device != nic.Device() || !p.Ports[0].AntiSpoof ||
		!slices.Equal(p.Ports[0].Addresses, []netip.Addr{netip.MustParseAddr(nic.Addresses[0])}) {
		t.Fatalf("the interface %+v is protected by %+v", nic, p.Ports)
	}
	if len(p.Networks) != 1 || !p.Networks[0].NAT {
		t.Errorf("what passes between the network and the world: %+v", p.Networks)
	}
	h.until("the lease shows", func(view *fsm.View) bool {
		return slices.Contains(fsm.Instances.Get(view, id).Addresses, nic.Addresses[0])
	})
}

func TestAChangeThatCutsTheNodeOffIsTakenBackAndReported(t *testing.T) {
	t.Parallel()
	h := one(t)
	v := natNetwork(t, h)
	h.network.CutWhenTried(func(cut bool) { h.log.broken.Store(cut) })
	h.create(v)
	h.until("the change is taken back and the node says so", func(view *fsm.View) bool {
		problems := fsm.Nodes.Get(view, h.name).Network.Problems
		return len(problems) == 1 && problems[0].Network == "default/inside" && strings.Contains(problems[0].Reason, "taken back")
	})
	h.network.CutWhenTried(nil)
	n := *fsm.Networks.Get(h.log.f.Read(), "default/inside")
	n.Description = "repeated"
	put(h, fsm.Networks.Put, n)
	h.until("another revision is tried, and stays", func(view *fsm.View) bool {
		return len(fsm.Nodes.Get(view, h.name).Network.Problems) == 0
	})
}
