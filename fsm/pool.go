package fsm

import "github.com/debvisor/debvisor/api"

func checkPool(tx *Tx, before, after *api.Pool) *api.Error {
	if after == nil {
		for v := range Volumes.By(tx, "pool", before.Name) {
			return api.Errorf(api.CodeConflict, "holds volume %s/%s", v.Tenant, v.Name).Do("delete its volumes first")
		}
		for r := range Replicas.By(tx, "pool", before.Name) {
			if r.Kind == api.KindVolume {
				return api.Errorf(api.CodeConflict, "a volume is still being removed on %s", r.Node).Do("wait until it is gone")
			}
		}
		var cached []string
		for r := range Replicas.By(tx, "pool", before.Name) {
			cached = append(cached, r.Name)
		}
		for _, name := range cached {
			Replicas.delete(tx, name)
		}
		return nil
	}
	for _, n := range after.Nodes {
		if Nodes.Get(tx, n) == nil {
			return missing("nodes", api.KindNode, n)
		}
	}
	if before == nil {
		return nil
	}
	if before.Path != after.Path || before.Shared != after.Shared || before.Driver != after.Driver {
		for range Volumes.By(tx, "pool", before.Name) {
			return api.Invalid("path", "driver, path and shared are fixed while the pool holds volumes").Do("make a new pool")
		}
	}
	return nil
}
