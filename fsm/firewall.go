package fsm

import (
	"fmt"

	"github.com/debvisor/debvisor/api"
)

func checkFirewall(tx *Tx, before, after *api.Firewall) *api.Error {
	if after == nil {
		key := api.Key(before.Tenant, before.Name)
		for v := range VMs.By(tx, "firewall", key) {
			return api.Errorf(api.CodeConflict, "vm %s has it on an interface", v.Name).Do("take it off the VM first")
		}
		for f := range Firewalls.By(tx, "group", key) {
			if f.Name != before.Name {
				return api.Errorf(api.CodeConflict, "firewall %s names it as a group", f.Name).Do("change its rules first")
			}
		}
		return nil
	}
	for i := range after.Rules {
		for j, name := range after.Rules[i].Groups {
			if name != after.Name && Firewalls.Get(tx, api.Key(after.Tenant, name)) == nil {
				return missing(fmt.Sprintf("rules[%d].groups[%d]", i, j), api.KindFirewall, name)
			}
		}
	}
	return wantTenant(tx, after.Tenant)
}

// wantFirewalls refuses a VM with a firewall that does not exist.
func wantFirewalls(tx *Tx, vm *api.VM) *api.Error {
	for i := range vm.NICs {
		for j, name := range vm.NICs[i].Firewalls {
			if Firewalls.Get(tx, api.Key(vm.Tenant, name)) == nil {
				return missing(fmt.Sprintf("nics[%d].firewalls[%d]", i, j), api.KindFirewall, name)
			}
		}
	}
	return nil
}

func firewallsOf(v *api.VM) []string {
	var out []string
	for i := range v.NICs {
		for _, name := range v.NICs[i].Firewalls {
			out = append(out, api.Key(v.Tenant, name))
		}
	}
	return out
}

func groupsOf(f *api.Firewall) []string {
	var out []string
	for i := range f.Rules {
		for _, name := range f.Rules[i].Groups {
			out = append(out, api.Key(f.Tenant, name))
		}
	}
	return out
}
