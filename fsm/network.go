package fsm

import "github.com/debvisor/debvisor/api"

func checkNetwork(tx *Tx, before, after *api.Network) *api.Error {
	if after == nil {
		for v := range VMs.By(tx, "network", api.Key(before.Tenant, before.Name)) {
			return api.Errorf(api.CodeConflict, "vm %s/%s uses it", v.Tenant, v.Name).Do("take the interface off the VM first")
		}
		return nil
	}
	if before != nil && (before.Bridge != after.Bridge || before.Driver != after.Driver) {
		// Running guests would stay on the old bridge, and no longer reach those
		// that start later.
		for v := range VMs.By(tx, "network", api.Key(before.Tenant, before.Name)) {
			return api.Invalid("bridge", "is fixed while vm %s uses the network", v.Name).Allow("%s", before.Bridge).Do("make a new network")
		}
	}
	return wantTenant(tx, after.Tenant)
}
