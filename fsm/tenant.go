package fsm

import "github.com/debvisor/debvisor/api"

func checkTenant(tx *Tx, before, after *api.Tenant) *api.Error {
	if after != nil {
		return nil
	}
	if before.Name == api.DefaultTenant {
		return api.Errorf(api.CodeForbidden, "the default tenant cannot be deleted")
	}
	inUse := func(kind, name string) *api.Error {
		return api.Errorf(api.CodeConflict, "still has %s/%s", kind, name).Do("delete what belongs to the tenant first")
	}
	for k := range APIKeys.By(tx, "tenant", before.Name) {
		return inUse(api.KindAPIKey, k.Name)
	}
	for v := range VMs.Prefix(tx, before.Name+"/") {
		return inUse(api.KindVM, v.Name)
	}
	for v := range Volumes.Prefix(tx, before.Name+"/") {
		return inUse(api.KindVolume, v.Name)
	}
	for i := range Images.Prefix(tx, before.Name+"/") {
		return inUse(api.KindImage, i.Name)
	}
	for f := range Firewalls.Prefix(tx, before.Name+"/") {
		return inUse(api.KindFirewall, f.Name)
	}
	for n := range Networks.Prefix(tx, before.Name+"/") {
		return inUse(api.KindNetwork, n.Name)
	}
	return nil
}

// wantTenant refuses an object of a tenant that does not exist.
func wantTenant(tx *Tx, name string) *api.Error {
	if Tenants.Get(tx, name) == nil {
		return missing("tenant", api.KindTenant, name)
	}
	return nil
}

// missing is the refusal of a reference to an object that does not exist.
func missing(field, kind, name string) *api.Error {
	return api.Invalid(field, "there is no %s %q", kind, name).Do("create it first, or name one that exists")
}
