package fsm

import (
	"slices"

	"github.com/debvisor/debvisor/api"
)

// quotaTenants is under which name the tenants that have a quota are counted.
const quotaTenants = "tenant with quota"

// usageOf is what one row counts against the quota of its tenant.
func usageOf(counted anyRow) (tenant string, u api.Usage, ok bool) {
	switch r := counted.(type) {
	case *row[api.VM]:
		return r.value.Tenant, api.Usage{VMs: 1, CPUs: int64(r.value.CPUs), MemoryBytes: r.value.MemoryBytes}, true
	case *row[api.Volume]:
		return r.value.Tenant, api.Usage{Volumes: 1, DiskBytes: r.value.SizeBytes}, true
	case *row[api.Snapshot]:
		return r.value.Tenant, api.Usage{Snapshots: 1}, true
	case *row[api.APIKey]:
		if len(r.value.Tenants) == 1 {
			return r.value.Tenants[0], api.Usage{Keys: 1}, true
		}
	}
	return "", u, false
}

// OwnUsage is what belongs to a tenant itself.
func OwnUsage(r Reader, tenant string) api.Usage { return r.used(tenant) }

// TotalUsage is what belongs to a tenant and to those below it.
func TotalUsage(r Reader, tenant string) api.Usage {
	total := r.used(tenant)
	for child := range Tenants.By(r, "parent", tenant) {
		total.Add(TotalUsage(r, child.Name), 1)
	}
	return total
}

// checkQuotas refuses an entry that takes a tenant, or one above it, beyond its
// quota. What does not grow is not looked at: a quota that is lowered below what
// is there takes nothing away and forbids nothing but more.
func checkQuotas(tx *Tx) *api.Error {
	if tx.counted(quotaTenants) == 0 {
		return nil
	}
	grown := map[string]api.Usage{}
	var order []string
	for i := range tx.changes {
		for _, side := range []struct {
			row anyRow
			by  int64
		}{{tx.changes[i].before, -1}, {tx.changes[i].after, 1}} {
			tenant, u, ok := usageOf(side.row)
			if !ok {
				continue
			}
			if !slices.Contains(order, tenant) {
				order = append(order, tenant)
			}
			sum := grown[tenant]
			sum.Add(u, side.by)
			grown[tenant] = sum
		}
	}
	above := map[string]api.Usage{}
	var names []string
	for _, tenant := range order {
		for name, depth := tenant, 0; name != "" && depth <= api.TenantDepthMax; depth++ {
			t := Tenants.Get(tx, name)
			if t == nil {
				break
			}
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
			sum := above[name]
			sum.Add(grown[tenant], 1)
			above[name] = sum
			name = t.Parent
		}
	}
	for _, name := range names {
		if err := checkQuota(tx, Tenants.Get(tx, name), above[name]); err != nil {
			return err
		}
	}
	return nil
}

func checkQuota(tx *Tx, t *api.Tenant, grown api.Usage) *api.Error {
	if t.Quota == nil {
		return nil
	}
	if t.Quota.DiskBytes != nil && grown.Volumes > 0 {
		if err := checkSizes(tx); err != nil {
			return err
		}
	}
	total := TotalUsage(tx, t.Name)
	growth := grown.Amounts(t.Quota)
	for i, a := range total.Amounts(t.Quota) {
		if a.Bound == nil || growth[i].Used <= 0 || a.Used <= *a.Bound {
			continue
		}
		return api.Errorf(api.CodeLimit, "the quota of %s is used up: it would have %s", a.Name, a.Text(a.Used)).At("quota."+a.Name).On(api.KindTenant, t.Name).
			Allow("%s, of which %s are left", a.Text(*a.Bound), a.Text(max(0, *a.Bound-(a.Used-growth[i].Used)))).
			Do("delete something, or ask for a larger quota; see: debvisor tenant usage %s", t.Name)
	}
	return nil
}

// checkSizes refuses a new volume that leaves its size to its image: it could
// not be counted.
func checkSizes(tx *Tx) *api.Error {
	for i := range tx.changes {
		r, ok := tx.changes[i].after.(*row[api.Volume])
		if ok && tx.changes[i].before == nil && r.value.SizeBytes == 0 {
			return api.Invalid("size_bytes", "is missing, and a quota counts it").On(api.KindVolume, r.key).Do("give the size, at least that of the image")
		}
	}
	return nil
}
