package fsm

import "github.com/debvisor/debvisor/api"

func checkVolume(tx *Tx, before, after *api.Volume) *api.Error {
	if after == nil {
		return dropVolume(tx, before)
	}
	if err := wantTenant(tx, after.Tenant); err != nil {
		return err
	}
	if before != nil {
		return keepVolume(tx, before, after)
	}
	if err := wantNewID(tx, after.ID); err != nil {
		return err
	}
	pool := Pools.Get(tx, after.Pool)
	if pool == nil {
		return missing("pool", api.KindPool, after.Pool)
	}
	if after.Image != "" && Images.Get(tx, api.Key(after.Tenant, after.Image)) == nil {
		return missing("image", api.KindImage, after.Image)
	}
	if after.OwnerVM != "" && !tx.making {
		return api.Invalid("owner_vm", "is set by the cluster").Allow("leave it out")
	}
	if after.Source != "" {
		return settleClone(tx, after)
	}
	if after.Node == "" {
		return nil
	}
	node := Nodes.Get(tx, after.Node)
	if node == nil || node.Witness {
		return missing("node", api.KindNode, after.Node)
	}
	if !pool.On(node.Name) {
		return api.Invalid("node", "%s does not have pool %s", node.Name, pool.Name)
	}
	if err := checkRoom(tx, pool.Name, node.Name, after.SizeBytes); err != nil {
		return err
	}
	wantReplica(tx, after, node.Name)
	return nil
}

// wantNewID refuses the ID of a new volume or image that another one has, or
// whose files are still being removed. Files go by ID: with the ID of another
// tenant's volume came its disk.
func wantNewID(tx *Tx, id string) *api.Error {
	taken := first(Volumes.By(tx, "id_of", id)) != nil || first(Images.By(tx, "id_of", id)) != nil
	if taken || first(Replicas.By(tx, "of_id", id)) != nil {
		return api.Invalid("id", "%s is taken", id).Allow("leave it out")
	}
	return nil
}

// keepVolume refuses what cannot be changed once the volume exists. A size that
// is left out stays.
func keepVolume(tx *Tx, before, after *api.Volume) *api.Error {
	if after.OwnerVM == "" {
		after.OwnerVM = before.OwnerVM
	}
	if after.SizeBytes == 0 {
		after.SizeBytes = before.SizeBytes
	}
	switch {
	case before.Pool != after.Pool:
		return api.Invalid("pool", "is fixed").Allow("%s", before.Pool)
	case before.Image != after.Image:
		return api.Invalid("image", "is fixed").Allow("%q", before.Image)
	case before.Source != after.Source || before.Clone != after.Clone:
		return api.Invalid("source", "is fixed").Allow("%q", before.Source)
	case before.Format != after.Format:
		return api.Invalid("format", "is fixed").Allow("%q", before.Format)
	case before.Node != after.Node:
		return api.Invalid("node", "is fixed").Allow("%q", before.Node)
	case before.OwnerVM != after.OwnerVM:
		return api.Invalid("owner_vm", "is set by the cluster").Allow("leave it out")
	case before.SizeBytes != after.SizeBytes:
		return growVolume(tx, before, after)
	}
	return nil
}

func dropVolume(tx *Tx, volume *api.Volume) *api.Error {
	if clone := dependent(tx, volume); clone != nil {
		return api.Errorf(api.CodeConflict, "volume %s/%s is a clone that needs it", clone.Tenant, clone.Name).Do("delete that volume first")
	}
	for v := range VMs.By(tx, "volume", api.Key(volume.Tenant, volume.Name)) {
		if v.ID != tx.dropping {
			return api.Errorf(api.CodeConflict, "vm %s/%s uses it", v.Tenant, v.Name).Do("take the disk off the VM first, or delete the VM")
		}
	}
	markReplicas(tx, volume.ID)
	return nil
}

// wantReplica asks a node to make the volume.
func wantReplica(tx *Tx, v *api.Volume, node string) {
	name := api.ReplicaName(v.ID, node)
	if Replicas.Get(tx, name) != nil {
		return
	}
	Replicas.put(tx, api.Replica{Meta: api.Meta{Name: name}, Kind: api.KindVolume, Of: api.Key(v.Tenant, v.Name),
		OfID: v.ID, Node: node, Pool: v.Pool, State: api.ReplicaPending})
}

// placeVolume makes sure that the volume will exist on the node: in a shared
// pool one node makes it for all.
func placeVolume(tx *Tx, v *api.Volume, node string) *api.Error {
	pool := Pools.Get(tx, v.Pool)
	for r := range Replicas.By(tx, "of_id", v.ID) {
		if r.Delete || r.From != "" {
			continue
		}
		if r.Node == node || pool != nil && pool.Shared {
			return nil
		}
		return api.Errorf(api.CodeConflict, "volume %s/%s lies on node %s", v.Tenant, v.Name, r.Node).On(api.KindNode, node)
	}
	wantReplica(tx, v, node)
	return nil
}
