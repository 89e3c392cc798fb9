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
		if t := movingInto(tx, before.Name); t != nil {
			return api.Errorf(api.CodeConflict, "volume %s is being moved into it by task %s", t.Object, t.Name).Do("wait for it, or cancel it")
		}
		dropCached(tx, before.Name)
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
	for r := range Replicas.By(tx, "pool", before.Name) {
		if r.Kind == api.KindVolume && !after.On(r.Node) {
			return api.Invalid("nodes", "node %s holds volume %s", r.Node, r.Of).Do("keep the node, or delete the volume first")
		}
	}
	if before.Path == after.Path && before.Shared == after.Shared && before.Driver == after.Driver {
		return nil
	}
	const fixed = "driver, path and shared are fixed while the pool holds volumes"
	for range Volumes.By(tx, "pool", before.Name) {
		return api.Invalid("path", fixed).Do("make a new pool")
	}
	for r := range Replicas.By(tx, "pool", before.Name) {
		if r.Kind == api.KindVolume {
			return api.Errorf(api.CodeConflict, "a volume is still being removed on %s", r.Node).Do("wait until it is gone")
		}
	}
	dropCached(tx, before.Name)
	return nil
}

// dropCached forgets the copies of images in a pool: they are not where it is
// from now on.
func dropCached(tx *Tx, pool string) {
	var cached []string
	for r := range Replicas.By(tx, "pool", pool) {
		cached = append(cached, r.Name)
	}
	for _, name := range cached {
		Replicas.delete(tx, name)
	}
}
