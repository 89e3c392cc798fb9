package place

import (
	"github.com/debvisor/debvisor/api"
)

// space is a pool as one node sees it.
type space struct {
	free     int64 // bytes, as last measured
	total    int64 // bytes
	virtual  int64 // sizes of the volumes that are there, or are to be
	promised int64 // bytes of volumes that are not in that measure yet
	reason   string
}

// claim is a disk that a placed VM makes necessary and that no replica row
// tells of yet.
type claim struct {
	volume string // key; empty for a disk that has no volume row yet
	pool   string
	shared bool
	bytes  int64
	host   *host // of an assumed volume
	count  int   // VMs that assume it
}

// locate notes where volumes lie, and which of them are not made yet.
func (c *Cluster) locate(replicas []*api.Replica) {
	for _, r := range replicas {
		if r.Delete || r.State == api.ReplicaDeleting {
			continue
		}
		pool := c.pools[r.Pool]
		shared := pool != nil && pool.Shared
		if r.From != "" { // filled by a migration: space, and no copy yet
			c.reserve(c.byName[r.Node], r.Pool, shared, r.SizeBytes)
			continue
		}
		if r.State == api.ReplicaPending {
			c.reserve(c.byName[r.Node], r.Pool, shared, c.replicaBytes(r))
		}
		if r.Kind == api.KindVolume {
			if h := c.byName[r.Node]; h != nil && h.pools[r.Pool] != nil && !shared {
				h.pools[r.Pool].virtual += max(r.SizeBytes, c.replicaBytes(r))
			} else if shared {
				c.virtual[r.Pool] += max(r.SizeBytes, c.replicaBytes(r))
			}
			c.located[r.Of] = append(c.located[r.Of], r.Node)
		}
	}
}

func (c *Cluster) replicaBytes(r *api.Replica) int64 {
	if v := c.volumes[r.Of]; r.Kind == api.KindVolume && v != nil {
		return c.diskBytes(v.SizeBytes, v.Tenant, v.Image)
	}
	if i := c.images[r.Of]; r.Kind == api.KindImage && i != nil {
		return i.SizeBytes
	}
	return r.SizeBytes
}

// diskBytes is what a new disk may come to take: its size, or that of its
// image when it has none of its own.
func (c *Cluster) diskBytes(bytes int64, tenant, image string) int64 {
	if bytes == 0 && image != "" {
		if i := c.images[api.Key(tenant, image)]; i != nil {
			return i.SizeBytes
		}
	}
	return bytes
}

// claimsOf lists the disks of vm that exist nowhere yet.
func (c *Cluster) claimsOf(vm *api.VM) []*claim {
	var claims []*claim
	for i := range vm.Disks {
		d := &vm.Disks[i]
		if d.Volume == "" {
			claims = append(claims, c.newClaim("", poolOf(d), c.diskBytes(d.SizeBytes, vm.Tenant, d.Image)))
			continue
		}
		key := api.Key(vm.Tenant, d.Volume)
		if v := c.volumes[key]; v != nil && len(c.located[key]) == 0 {
			claims = append(claims, c.newClaim(key, v.Pool, c.diskBytes(v.SizeBytes, v.Tenant, v.Image)))
		}
	}
	return claims
}

func (c *Cluster) newClaim(volume, pool string, bytes int64) *claim {
	row := c.pools[pool]
	return &claim{volume: volume, pool: pool, shared: row != nil && row.Shared, bytes: bytes}
}

// promise takes the space of a claim on h. Several VMs may wait for the same
// volume; it is made once, where the first of them is.
func (c *Cluster) promise(cl *claim, h *host) {
	if cl.volume == "" {
		c.reserve(h, cl.pool, cl.shared, cl.bytes)
		return
	}
	a := c.assumed[cl.volume]
	if a == nil {
		copied := *cl
		a = &copied
		a.host = h
		c.assumed[cl.volume] = a
		c.reserve(h, cl.pool, cl.shared, cl.bytes)
	}
	a.count++
}

func (c *Cluster) release(cl *claim, h *host) {
	if cl.volume == "" {
		c.reserve(h, cl.pool, cl.shared, -cl.bytes)
		return
	}
	a := c.assumed[cl.volume]
	if a.count--; a.count == 0 {
		delete(c.assumed, cl.volume)
		c.reserve(a.host, a.pool, a.shared, -a.bytes)
	}
}

func (c *Cluster) reserve(h *host, pool string, shared bool, bytes int64) {
	if shared {
		c.shared[pool] += bytes
		return
	}
	if h != nil && h.pools[pool] != nil {
		h.pools[pool].promised += bytes
	}
}

// left is how many bytes of new disks the pool takes on h: what is free, less
// what is promised and what the pool keeps for itself.
func (c *Cluster) left(h *host, pool *api.Pool) int64 {
	s := h.pools[pool.Name]
	if s == nil {
		return 0
	}
	promised, virtual := s.promised, s.virtual
	if pool.Shared {
		promised, virtual = c.shared[pool.Name], c.virtual[pool.Name]
	}
	left := s.free - promised - pool.ReserveBytes
	if pool.Overcommit > 0 {
		// What is promised and not located yet is in promised alone; what is
		// located and not made yet is in both, which errs on the safe side.
		left = min(left, int64(min(limitMax, float64(s.total)*pool.Overcommit))-virtual-promised)
	}
	return max(0, left)
}

func poolOf(d *api.Disk) string {
	if d.Pool == "" {
		return DefaultPool
	}
	return d.Pool
}
