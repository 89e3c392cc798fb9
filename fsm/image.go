package fsm

import "github.com/debvisor/debvisor/api"

func checkImage(tx *Tx, before, after *api.Image) *api.Error {
	if after == nil {
		return dropImage(tx, before)
	}
	if err := wantTenant(tx, after.Tenant); err != nil {
		return err
	}
	if before == nil {
		return wantNewID(tx, after.ID)
	}
	if before.SHA256 != after.SHA256 || before.Format != after.Format || before.SizeBytes != after.SizeBytes {
		return api.Invalid("sha256", "format, checksum and size of an image are fixed").Do("create the new content under a new name")
	}
	return nil
}

// dropImage refuses while something depends on the image, and marks its copies.
func dropImage(tx *Tx, image *api.Image) *api.Error {
	key := api.Key(image.Tenant, image.Name)
	for v := range Volumes.By(tx, "image", key) {
		return api.Errorf(api.CodeConflict, "volume %s/%s is a linked clone of it", v.Tenant, v.Name).Do("delete the volume first")
	}
	for v := range VMs.By(tx, "image", key) {
		return api.Errorf(api.CodeConflict, "vm %s/%s boots from it or has it in a drive", v.Tenant, v.Name).Do("change the VM first")
	}
	markReplicas(tx, image.ID)
	return nil
}

// markReplicas asks the nodes that have a copy of the object to remove it, and
// forgets those that were lost with their node.
func markReplicas(tx *Tx, id string) {
	var marked []api.Replica
	for r := range Replicas.By(tx, "of_id", id) {
		marked = append(marked, *r)
	}
	for _, r := range marked {
		if Nodes.Get(tx, r.Node) == nil {
			Replicas.delete(tx, r.Name) // lost with its node
			continue
		}
		r.Delete, r.State = true, api.ReplicaDeleting
		Replicas.put(tx, r)
	}
}
