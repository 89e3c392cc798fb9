package fsm

import "github.com/debvisor/debvisor/api"

// growVolume refuses a size that cuts data off, and one that the pool has no
// room for.
func growVolume(tx *Tx, before, after *api.Volume) *api.Error {
	have := volumeBytes(tx, before)
	if after.SizeBytes < have {
		return api.Invalid("size_bytes", "is %d (%s), less than the volume has: shrinking cuts off what lies behind",
			after.SizeBytes, api.FormatSize(after.SizeBytes)).Allow("%d (%s) or more", have, api.FormatSize(have)).
			Do("make a smaller volume and copy the files in the guest")
	}
	for r := range Replicas.By(tx, "of_id", before.ID) {
		if r.State == api.ReplicaLost || r.Delete {
			continue
		}
		if err := checkRoom(tx, after.Pool, r.Node, after.SizeBytes-have); err != nil {
			return err
		}
	}
	return nil
}

// volumeBytes is how large the volume is: as its copies say, else as wanted. A
// growth that was asked for and has not happened can be taken back.
func volumeBytes(r Reader, v *api.Volume) int64 {
	var bytes int64
	for made := range Replicas.By(r, "of_id", v.ID) {
		bytes = max(bytes, made.SizeBytes)
	}
	if bytes == 0 {
		return v.SizeBytes
	}
	return bytes
}

// checkRoom refuses so many more bytes on a node's pool than it last had free.
func checkRoom(tx *Tx, pool, node string, bytes int64) *api.Error {
	p, n := Pools.Get(tx, pool), Nodes.Get(tx, node)
	if p == nil || n == nil {
		return nil
	}
	if err := checkOvercommit(tx, p, n, bytes); err != nil {
		return err
	}
	for _, s := range n.Pools {
		if s.Pool != pool || s.TotalBytes == 0 {
			continue
		}
		if left := max(0, s.FreeBytes-p.ReserveBytes); bytes > left {
			return api.Errorf(api.CodeLimit, "%s more are asked for, pool %s of node %s has %s above its reserve", api.FormatSize(bytes), pool, node,
				api.FormatSize(left)).Allow("at most %s more", api.FormatSize(left)).Do("free space there, or move the volume to another pool").At("size_bytes")
		}
	}
	return nil
}

// checkOvercommit refuses what lets the sizes of a pool's volumes add up to more
// than the pool may be promised.
func checkOvercommit(tx *Tx, p *api.Pool, n *api.Node, bytes int64) *api.Error {
	if p.Overcommit == 0 {
		return nil
	}
	for _, s := range n.Pools {
		if s.Pool != p.Name || s.TotalBytes == 0 {
			continue
		}
		var virtual int64
		for r := range Replicas.By(tx, "pool", p.Name) {
			if r.Kind == api.KindVolume && (p.Shared || r.Node == n.Name) && !r.Delete {
				virtual += r.SizeBytes
			}
		}
		limit := int64(min(float64(s.TotalBytes)*p.Overcommit, 1<<62))
		if virtual+bytes > limit {
			return api.Errorf(api.CodeLimit, "the volumes of pool %s on %s would add up to %s", p.Name, n.Name, api.FormatSize(virtual+bytes)).
				Allow("up to %s, %v times its size", api.FormatSize(limit), p.Overcommit).Do("raise overcommit of the pool, or use another one").At("size_bytes")
		}
	}
	return nil
}

// growDisk makes the volume of a disk as large as the disk is described to be,
// if that volume was made for the VM. A description that has not changed asks
// for nothing: the volume may have been grown by itself since.
func growDisk(tx *Tx, before, vm *api.VM, d *api.Disk) *api.Error {
	v := Volumes.Get(tx, api.Key(vm.Tenant, d.Volume))
	if v == nil || v.OwnerVM != vm.ID || d.SizeBytes == 0 || d.SizeBytes == v.SizeBytes || before == nil {
		return nil
	}
	for _, had := range before.Disks {
		if had.Name == d.Name && had.SizeBytes == d.SizeBytes {
			return nil
		}
	}
	after := *v
	after.SizeBytes = d.SizeBytes
	_, err := Volumes.applyPut(tx, after)
	return err
}

// ReplicaSize is the body of replica.size.
type ReplicaSize struct {
	Replica   string `json:"replica"` // name of the row
	Node      string `json:"node"`    // that reports: the copy's own, or in a shared pool the one whose guest has it
	Epoch     uint64 `json:"epoch"`
	SizeBytes int64  `json:"size_bytes,omitzero"` // 0: as it was
	UsedBytes int64  `json:"used_bytes,omitzero"`
	Reason    string `json:"reason,omitzero"` // why it is not as large as wanted
}

// SizeReplica records how large a volume has become, or why it has not.
var SizeReplica = transition("replica.size", Replicas, func(tx *Tx, in ReplicaSize) (*api.Replica, *api.Error) {
	if _, err := liveNode(tx, in.Node, in.Epoch); err != nil {
		return nil, err
	}
	have := Replicas.Get(tx, in.Replica)
	if have == nil {
		return nil, api.Errorf(api.CodeNotFound, "does not exist").On(api.KindReplica, in.Replica)
	}
	pool := Pools.Get(tx, have.Pool)
	if have.Node != in.Node && (pool == nil || !pool.Shared) {
		return nil, api.Errorf(api.CodeConflict, "is on node %s", have.Node).On(api.KindReplica, in.Replica)
	}
	if have.State != api.ReplicaReady {
		return nil, api.Errorf(api.CodeConflict, "is %s", have.State).On(api.KindReplica, in.Replica)
	}
	r := *have
	r.Reason = api.CleanText(in.Reason, api.TextLengthMax)
	r.SizeBytes, r.UsedBytes = max(r.SizeBytes, in.SizeBytes), max(r.UsedBytes, in.UsedBytes)
	return Replicas.put(tx, r), nil
}).forAgents()
