package api

// ForeignMax is how many domains of others one listing of a node shows.
const ForeignMax = 1000

// ForeignDomain is a domain of a node's hypervisor that debvisor does not
// manage: somebody else made it. It is never touched.
type ForeignDomain struct {
	ID          string        `json:"id"` // UUID
	Name        string        `json:"name"`
	State       string        `json:"state"` // running, paused, stopped or failed
	CPUs        int           `json:"cpus"`
	MemoryBytes int64         `json:"memory_bytes"`
	Disks       []ForeignDisk `json:"disks"`
	NICs        []ForeignNIC  `json:"nics"`
}

// ForeignDisk is one disk of such a domain.
type ForeignDisk struct {
	Device string `json:"device"` // as vda
	Path   string `json:"path,omitzero"`
	Format string `json:"format,omitzero"`
}

// ForeignNIC is one interface of such a domain.
type ForeignNIC struct {
	MAC    string `json:"mac"`
	Bridge string `json:"bridge,omitzero"`
}

// ForeignDomains is what a node shows; More says that there are others.
type ForeignDomains struct {
	Items []ForeignDomain `json:"items"`
	More  bool            `json:"more,omitzero"`
}
