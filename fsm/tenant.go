package fsm

import "github.com/debvisor/debvisor/api"

func checkTenant(tx *Tx, before, after *api.Tenant) *api.Error {
	if after != nil {
		return checkParent(tx, after)
	}
	if before.Name == api.DefaultTenant {
		return api.Errorf(api.CodeForbidden, "the default tenant cannot be deleted")
	}
	inUse := func(kind, name string) *api.Error {
		return api.Errorf(api.CodeConflict, "still has %s/%s", kind, name).Do("delete what belongs to the tenant first")
	}
	for child := range Tenants.By(tx, "parent", before.Name) {
		return inUse(api.KindTenant, child.Name)
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

// checkParent refuses a parent that does not exist, that lies below the tenant
// itself, or under which tenants would lie too deep.
func checkParent(tx *Tx, t *api.Tenant) *api.Error {
	depth := heightOf(tx, t.Name)
	for name := t.Parent; name != ""; depth++ {
		parent := Tenants.Get(tx, name)
		switch {
		case parent == nil:
			return missing("parent", api.KindTenant, name)
		case name == t.Name:
			return api.Invalid("parent", "%q lies below this tenant", t.Parent).Do("choose a parent elsewhere")
		case depth >= api.TenantDepthMax:
			return api.Errorf(api.CodeLimit, "tenants would lie more than %d deep", api.TenantDepthMax).Allow("at most %d", api.TenantDepthMax).At("parent")
		}
		name = parent.Parent
	}
	return nil
}

// heightOf is how many tenants lie below one another from this one down.
func heightOf(tx *Tx, name string) int {
	height := 1
	for child := range Tenants.By(tx, "parent", name) {
		height = max(height, 1+heightOf(tx, child.Name))
	}
	return height
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
