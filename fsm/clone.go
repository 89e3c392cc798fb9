package fsm

import "github.com/debvisor/debvisor/api"

// settleClone checks what a new volume is cloned from, gives it the size of its
// source, and asks the node that has the source to make it.
func settleClone(tx *Tx, v *api.Volume) *api.Error {
	key := api.Key(v.Tenant, v.Source)
	source := Volumes.Get(tx, key)
	if source == nil {
		return missing("source", api.KindVolume, v.Source)
	}
	if vm := VolumeUser(tx, source); vm != nil {
		return api.Errorf(api.CodeConflict, "%s is in use by vm %s, which is not off", v.Source, vm.Name).
			Do("stop the VM first: debvisor vm stop %s", vm.Name).At("source")
	}
	made := madeReplica(tx, source)
	if made == nil {
		return api.Errorf(api.CodeConflict, "%s has not been made yet", v.Source).Do("wait until its replica is ready").At("source")
	}
	have := volumeBytes(tx, source)
	if v.SizeBytes == 0 {
		v.SizeBytes = have
	}
	if v.SizeBytes < have {
		return api.Invalid("size_bytes", "is %d (%s), less than the source has", v.SizeBytes, api.FormatSize(v.SizeBytes)).
			Allow("%d (%s) or more, or nothing for the source's own", have, api.FormatSize(have))
	}
	if v.Clone == api.CloneLinked && v.Pool != source.Pool {
		return api.Invalid("clone", "is linked, and the source lies in pool %s, not %s", source.Pool, v.Pool).Allow("full, or the same pool")
	}
	if v.Clone == api.CloneLinked && (source.Format == api.FormatRaw || v.Format == api.FormatRaw) {
		return api.Invalid("clone", "is linked, and raw volumes share nothing").Allow(api.CloneFull)
	}
	if v.Clone == api.CloneLinked {
		if s := snapshotWithin(tx, source); s != nil {
			return api.Errorf(api.CodeConflict, "%s holds snapshot %s, which a linked clone would take from it", v.Source, s.Name).
				Do("make a full clone, or delete its snapshots first").At("source")
		}
	}
	node := cloneNode(tx, source, made)
	if pool := Pools.Get(tx, v.Pool); !pool.On(node) {
		return api.Invalid("pool", "%s is not on node %s, which has the source", v.Pool, node).Do("clone within pool %s and move the clone", source.Pool)
	}
	if v.Node != "" && v.Node != node {
		return api.Invalid("node", "is %s, and the source is on %s", v.Node, node).Allow("leave it out, or %s", node)
	}
	if v.Clone != api.CloneLinked {
		if err := checkRoom(tx, v.Pool, node, made.UsedBytes); err != nil {
			return err
		}
	}
	wantReplica(tx, v, node)
	return nil
}

// snapshotWithin is a snapshot that lies within the volume; nil: there is none.
func snapshotWithin(tx *Tx, v *api.Volume) *api.Snapshot {
	for s := range Snapshots.Prefix(tx, api.Key(v.Tenant, "")) {
		for _, d := range s.Disks {
			if d.VolumeID == v.ID {
				return s
			}
		}
	}
	return nil
}

// VolumeUser is a VM whose guest may write to the volume now; nil: there is
// none.
func VolumeUser(r Reader, v *api.Volume) *api.VM {
	for vm := range VMs.By(r, "volume", api.Key(v.Tenant, v.Name)) {
		i := Instances.Get(r, vm.ID)
		if vm.On() || i != nil && i.Owner != "" && i.State != api.InstanceStopped && i.State != api.InstanceAssigned {
			return vm
		}
	}
	return nil
}

// madeReplica is a copy of the volume that is ready.
func madeReplica(r Reader, v *api.Volume) *api.Replica {
	for made := range Replicas.By(r, "of_id", v.ID) {
		if made.State == api.ReplicaReady && !made.Delete && made.From == "" {
			return made
		}
	}
	return nil
}

// cloneNode is where a clone is made: with the source's guest, so that one
// agent sees to both, or where the source was made.
func cloneNode(tx *Tx, source *api.Volume, made *api.Replica) string {
	if pool := Pools.Get(tx, source.Pool); pool == nil || !pool.Shared {
		return made.Node
	}
	for vm := range VMs.By(tx, "volume", api.Key(source.Tenant, source.Name)) {
		if i := Instances.Get(tx, vm.ID); i != nil && i.Owner != "" {
			return i.Owner
		}
	}
	return made.Node
}

// dependent is a volume that cannot do without this one: a linked clone, or one
// that is still being copied.
func dependent(tx Reader, source *api.Volume) *api.Volume {
	for v := range Volumes.By(tx, "source", api.Key(source.Tenant, source.Name)) {
		if v.Clone == api.CloneLinked || madeReplica(tx, v) == nil {
			return v
		}
	}
	return nil
}
