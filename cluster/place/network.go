package place

import (
	"fmt"
	"slices"

	"github.com/debvisor/debvisor/api"
)

func hasNetworks(r *request, h *host) bool {
	if len(r.vm.NICs) == 0 {
		return true // the usual question of a benchmark, and of a cluster without networks
	}
	return whyNetworks(r, h) == ""
}

// whyNetworks is what the node lacks for the first interface that it cannot
// give, or "". A network that is not in the picture asks for nothing: that it
// is missing is said elsewhere.
func whyNetworks(r *request, h *host) string {
	found := &h.row.Network
	for i := range r.vm.NICs {
		nic := &r.vm.NICs[i]
		key := api.Key(r.vm.Tenant, nic.Network)
		if n := r.c.networks[key]; n != nil {
			if why := whyNetwork(n, found); why != "" {
				return fmt.Sprintf("network %s: %s", nic.Network, why)
			}
		}
		for _, p := range found.Problems {
			if p.Network == key {
				return fmt.Sprintf("network %s: %s", nic.Network, p.Reason)
			}
		}
		if len(nic.Firewalls) > 0 && !found.Stateful {
			why := found.Reason
			if why == "" {
				why = "the node has not reported yet whether it can filter"
			}
			return fmt.Sprintf("firewall %s: %s", nic.Firewalls[0], why)
		}
	}
	return ""
}

func whyNetwork(n *api.Network, found *api.NodeNetwork) string {
	if n.Bridge == "" {
		return ""
	}
	bridge, there := found.Bridge(n.Bridge)
	switch {
	case slices.Contains(found.Devices, n.Bridge):
		return fmt.Sprintf("device %s of the node is no bridge", n.Bridge)
	case !there && n.Driver == api.NetworkVLAN:
		return fmt.Sprintf("the node has no bridge %s that could carry VLAN %d", n.Bridge, n.VLAN)
	case n.Uplink && !there:
		return fmt.Sprintf("the node has no bridge %s", n.Bridge)
	case n.Uplink && len(bridge.Uplinks) == 0:
		return fmt.Sprintf("bridge %s of the node has no port to the outside", n.Bridge)
	}
	return ""
}
