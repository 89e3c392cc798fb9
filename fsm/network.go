package fsm

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/debvisor/debvisor/api"
)

func checkNetwork(tx *Tx, before, after *api.Network) *api.Error {
	if after == nil {
		for v := range VMs.By(tx, "network", api.Key(before.Tenant, before.Name)) {
			return api.Errorf(api.CodeConflict, "vm %s/%s uses it", v.Tenant, v.Name).Do("take the interface off the VM first")
		}
		return nil
	}
	if before != nil {
		if err := checkNetworkInUse(tx, before, after); err != nil {
			return err
		}
	}
	if err := checkDevices(tx, after); err != nil {
		return err
	}
	if err := checkOverlap(tx, after); err != nil {
		return err
	}
	return wantTenant(tx, after.Tenant)
}

// checkNetworkInUse refuses what the VMs on the network could not follow.
func checkNetworkInUse(tx *Tx, before, after *api.Network) *api.Error {
	for v := range VMs.By(tx, "network", api.Key(before.Tenant, before.Name)) {
		// Running guests would stay on the old bridge, and no longer reach those
		// that start later.
		fixed := func(field string, old any) *api.Error {
			return api.Invalid(field, "is fixed while vm %s uses the network", v.Name).Allow("%v", old).Do("make a new network")
		}
		switch {
		case before.Driver != after.Driver:
			return fixed("driver", before.Driver)
		case before.Bridge != after.Bridge:
			return fixed("bridge", before.Bridge)
		case before.VLAN != after.VLAN:
			return fixed("vlan", before.VLAN)
		case slices.Equal(before.Subnets, after.Subnets):
			continue
		}
		for i := range v.NICs {
			if n := &v.NICs[i]; n.Network == after.Name {
				for _, text := range n.Addresses {
					if err := checkAddress(after, text); err != nil {
						return api.Errorf(api.CodeConflict, "vm %s has the address %s, which would no longer fit: %s", v.Name, text, err.Message).
							Do("give the VM another address first, or make a new network").At("subnets")
					}
				}
			}
		}
	}
	return nil
}

// checkDevices keeps networks that belong to a node's inside apart from all
// others: their bridge carries addresses of the node.
func checkDevices(tx *Tx, n *api.Network) *api.Error {
	for _, device := range []string{n.Device(), n.Bridge} {
		for other := range Networks.By(tx, "device", device) {
			if other.Tenant == n.Tenant && other.Name == n.Name || !n.Local() && !other.Local() {
				continue
			}
			err := api.Errorf(api.CodeConflict, "%s is the bridge of another network, and one of driver %s or %s shares it with none",
				device, api.NetworkIsolated, api.NetworkNAT)
			return err.Do("choose another bridge, or leave it out on networks of these drivers").At("bridge")
		}
	}
	return nil
}

// checkOverlap refuses a subnet of which the nodes have an address already:
// they would not know where to send to. Names of other tenants' networks are
// not told.
func checkOverlap(tx *Tx, n *api.Network) *api.Error {
	prefixes := n.Prefixes()
	for i, a := range prefixes {
		if slices.ContainsFunc(prefixes[:i], a.Overlaps) {
			return api.Invalid(fmt.Sprintf("subnets[%d]", i), "%s overlaps another one", a)
		}
	}
	if !n.Local() || len(prefixes) == 0 {
		return nil
	}
	for other := range Networks.All(tx) {
		if !other.Local() || other.Tenant == n.Tenant && other.Name == n.Name {
			continue
		}
		for i, a := range prefixes {
			for _, b := range other.Prefixes() {
				if !a.Overlaps(b) {
					continue
				}
				whose := "a network of another tenant"
				if other.Tenant == n.Tenant {
					whose = "network " + other.Name
				}
				return api.Errorf(api.CodeConflict, "%s overlaps a subnet of %s", a, whose).
					Do("choose another subnet").At(fmt.Sprintf("subnets[%d]", i))
			}
		}
	}
	return nil
}

// checkAddress refuses an address that no guest on the network may have.
func checkAddress(n *api.Network, text string) *api.Error {
	ip, err := netip.ParseAddr(text)
	if err != nil {
		return api.Invalid("addresses", "is %q", text).Allow("an address, as 10.80.0.5")
	}
	prefixes := n.Prefixes()
	for _, subnet := range prefixes {
		if subnet.Addr().Is4() != ip.Is4() {
			continue
		}
		switch {
		case !subnet.Contains(ip):
			return api.Invalid("addresses", "%s is outside the subnet", ip).Allow("addresses of %s", subnet).Do("leave it out to have one chosen")
		case n.Local() && ip == api.Gateway(subnet):
			return api.Invalid("addresses", "%s is the gateway's", ip).Allow("another address of %s", subnet).Do("leave it out to have one chosen")
		case ip == subnet.Addr() || ip.Is4() && !subnet.Contains(ip.Next()):
			return api.Invalid("addresses", "%s is the first or last of its subnet", ip).Allow("an address between them").Do("leave it out to have one chosen")
		}
		return nil
	}
	if len(prefixes) > 0 {
		return api.Invalid("addresses", "the network has no subnet for %s", ip).Allow("addresses of %s", prefixes[0]).Do("leave it out, or add a subnet to the network")
	}
	return nil
}
