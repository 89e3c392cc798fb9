package api

import "path/filepath"

// The drivers of pools.
const PoolDir = "dir" // a directory of files on each node, or one that all nodes mount

// Pool is where volumes and cached images live.
type Pool struct {
	Meta
	Driver       string   `json:"driver"`                 // dir
	Path         string   `json:"path,omitzero"`          // absolute; empty: pools/NAME below the node's data directory
	Shared       bool     `json:"shared,omitzero"`        // every node sees the same files (NFS, cluster file system): path is a mount point, or has a file .debvisor-shared
	Nodes        []string `json:"nodes,omitzero"`         // names of the nodes that have it; empty: all
	ReserveBytes int64    `json:"reserve_bytes,omitzero"` // new volumes leave this much free
	Copies       int      `json:"copies,omitzero"`        // volumes that a node copies into it at a time; 0 means 4
	Overcommit   float64  `json:"overcommit,omitzero"`    // the sizes of all its volumes may add up to so many times its size; 0: no limit but free space
}

// Validate implements Object.
func (o *Pool) Validate() error {
	var p problems
	o.check(&p, false)
	if o.Driver != PoolDir {
		p.add("driver", "is %q", o.Driver).Allow(PoolDir)
	}
	if o.Path != "" && (!filepath.IsAbs(o.Path) || filepath.Clean(o.Path) != o.Path || o.Path == "/" || len(o.Path) > 255) {
		p.add("path", "is %q", o.Path).Allow("a clean absolute path below the root, or nothing")
	}
	checkText(&p, "path", o.Path, 255)
	if o.Shared && o.Path == "" {
		p.add("path", "is missing").Allow("the mount point that all nodes share")
	}
	if len(o.Nodes) > NodesMax {
		p.add("nodes", "has %d names", len(o.Nodes)).Allow("at most %d", NodesMax)
	}
	for _, n := range o.Nodes {
		p.addErr(CheckName("nodes", n))
	}
	if o.ReserveBytes < 0 {
		p.add("reserve_bytes", "is %d", o.ReserveBytes).Allow("0 or more")
	}
	if o.Copies < 0 || o.Copies > CopiesMax {
		p.add("copies", "is %d", o.Copies).Allow("0 (the default) to %d", CopiesMax)
	}
	if o.Overcommit != 0 && !(o.Overcommit >= 0.1 && o.Overcommit <= PoolOvercommitMax) {
		p.add("overcommit", "is %v", o.Overcommit).Allow("0 (no limit), or 0.1 to %v", PoolOvercommitMax)
	}
	return p.err()
}

// PoolOvercommitMax is how many times its size a pool may be promised.
const PoolOvercommitMax = 1000.0

// CopiesAtOnce is how many volumes one node copies into the pool at a time.
func (o *Pool) CopiesAtOnce() int {
	if o.Copies == 0 {
		return defaultCopiesPerPool
	}
	return o.Copies
}

// On reports whether the node of that name has the pool.
func (o *Pool) On(node string) bool {
	if len(o.Nodes) == 0 {
		return true
	}
	for _, n := range o.Nodes {
		if n == node {
			return true
		}
	}
	return false
}
