package fsm

import "github.com/debvisor/debvisor/api"

func checkNetwork(tx *Tx, before, after *api.Network) *api.Error {
	if after == nil {
		for v := range VMs.By(tx, "network", api.Key(before.Tenant, before.Name)) {
			return api.Errorf(api.CodeConflict, "vm %s/%s uses it", v.Tenant, v.Name).Do("take the interface off the VM first")
		}
		return nil
	}
	return wantTenant(tx, after.Tenant)
}
