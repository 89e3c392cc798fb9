package api

import "fmt"

// TenantDepthMax is how deep tenants may lie in one another.
const TenantDepthMax = 8

// Quota bounds what a tenant and the tenants below it may have together. A
// field that is left out bounds nothing; 0 allows none.
type Quota struct {
	VMs         *int64 `json:"vms,omitzero"`
	CPUs        *int64 `json:"cpus,omitzero"`         // virtual CPUs of all VMs, whether they run or not
	MemoryBytes *int64 `json:"memory_bytes,omitzero"` // of all VMs, whether they run or not
	DiskBytes   *int64 `json:"disk_bytes,omitzero"`   // size of all volumes; each must then say its size
	Volumes     *int64 `json:"volumes,omitzero"`
	Snapshots   *int64 `json:"snapshots,omitzero"`
	Keys        *int64 `json:"keys,omitzero"` // API keys whose role counts in this tenant only
}

// Usage is what is counted against quotas.
type Usage struct {
	VMs         int64 `json:"vms"`
	CPUs        int64 `json:"cpus"`
	MemoryBytes int64 `json:"memory_bytes"`
	DiskBytes   int64 `json:"disk_bytes"`
	Volumes     int64 `json:"volumes"`
	Snapshots   int64 `json:"snapshots"`
	Keys        int64 `json:"keys"`
}

// Amount is one thing that is counted: how much of it there is, and the bound.
type Amount struct {
	Name  string // as in JSON
	Used  int64
	Bound *int64 // nil: none
	Bytes bool
}

// Text is an amount of this thing for people.
func (a *Amount) Text(n int64) string {
	if a.Bytes {
		return FormatSize(n)
	}
	return fmt.Sprint(n)
}

// Amounts pairs usage and quota, in the order of the fields. A nil quota bounds
// nothing.
func (u *Usage) Amounts(q *Quota) []Amount {
	if q == nil {
		q = &Quota{}
	}
	return []Amount{
		{"vms", u.VMs, q.VMs, false}, {"cpus", u.CPUs, q.CPUs, false}, {"memory_bytes", u.MemoryBytes, q.MemoryBytes, true},
		{"disk_bytes", u.DiskBytes, q.DiskBytes, true}, {"volumes", u.Volumes, q.Volumes, false}, {"snapshots", u.Snapshots, q.Snapshots, false},
		{"keys", u.Keys, q.Keys, false},
	}
}

// Add adds other to u, by times.
func (u *Usage) Add(other Usage, by int64) {
	u.VMs += by * other.VMs
	u.CPUs += by * other.CPUs
	u.MemoryBytes += by * other.MemoryBytes
	u.DiskBytes += by * other.DiskBytes
	u.Volumes += by * other.Volumes
	u.Snapshots += by * other.Snapshots
	u.Keys += by * other.Keys
}

// TenantUsage is what a tenant has, and what it may have.
type TenantUsage struct {
	Tenant string `json:"tenant"`
	Own    Usage  `json:"own"`            // of the tenant alone
	Total  Usage  `json:"total"`          // with the tenants below it: what counts
	Quota  *Quota `json:"quota,omitzero"` // of the tenant itself; those above it count as well
}

func (q *Quota) check(p *problems) {
	if q == nil {
		return
	}
	var u Usage
	for _, a := range u.Amounts(q) {
		if a.Bound != nil && *a.Bound < 0 {
			p.add("quota."+a.Name, "is %d", *a.Bound).Allow("0 or more; left out: no bound")
		}
	}
}
