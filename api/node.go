package api

import (
	"fmt"
	"slices"
	"time"
)

// The states of a node's lease.
const (
	NodeLive   = "live"   // its renewals commit; it may own instances
	NodeFenced = "fenced" // its epoch ended; it must register again before it may own anything
)

// NodesMax is how many nodes one cluster holds.
const NodesMax = 1024

// Node is one member of the cluster, reported by transitions only. ID is the
// random identity in its data directory, which is its Raft ID as well.
type Node struct {
	Meta
	Address        string         `json:"address"`                  // host:port of its one port
	Epoch          uint64         `json:"epoch,omitzero"`           // grows with every registration
	Lease          string         `json:"lease,omitzero"`           // NodeLive or NodeFenced
	Witness        bool           `json:"witness,omitzero"`         // votes, runs no guests
	Voter          bool           `json:"voter,omitzero"`           // wanted by the membership controller
	Zone           string         `json:"zone,omitzero"`            // failure zone
	Unschedulable  bool           `json:"unschedulable,omitzero"`   // takes no new instances
	Maintenance    string         `json:"maintenance,omitzero"`     // why it is in maintenance; empty: it is not
	Version        string         `json:"version,omitzero"`         // of its binary
	ClusterVersion uint32         `json:"cluster_version,omitzero"` // highest cluster version its binary understands
	Hypervisor     HypervisorInfo `json:"hypervisor,omitzero"`
	CPUModels      []string       `json:"cpu_models,omitzero"` // that it can give to guests, in order
	Capacity       Capacity       `json:"capacity,omitzero"`
	Pools          []PoolStatus   `json:"pools,omitzero"` // pools this node has, as it last measured them
	Network        NodeNetwork    `json:"network,omitzero"`
	RegisteredAt   time.Time      `json:"registered_at,omitzero"`
}

// HypervisorInfo is what a node found on its machine.
type HypervisorInfo struct {
	Driver       string `json:"driver,omitzero"`       // libvirt or sim
	Version      string `json:"version,omitzero"`      // of the hypervisor, for people
	Acceleration string `json:"acceleration,omitzero"` // kvm, tcg (software emulation) or none
	Architecture string `json:"architecture,omitzero"` // of the machine, as the hypervisor names it
	CPUModel     string `json:"cpu_model,omitzero"`    // of the machine's CPU, as the hypervisor names it
	Simulated    bool   `json:"simulated,omitzero"`    // no real guest runs here
	Healthy      bool   `json:"healthy,omitzero"`
	TPM          bool   `json:"tpm,omitzero"`    // it can give guests a TPM
	Reason       string `json:"reason,omitzero"` // why it is not healthy
}

// NodeNetwork is what a node found of its network.
type NodeNetwork struct {
	Bridges  []BridgeStatus   `json:"bridges,omitzero"`
	Devices  []string         `json:"devices,omitzero"`  // that are no bridges
	Stateful bool             `json:"stateful,omitzero"` // the kernel can follow connections over bridges, which firewalls need
	Reason   string           `json:"reason,omitzero"`   // what is missing, and how to get it
	Problems []NetworkProblem `json:"problems,omitzero"` // networks that this node cannot offer
}

// Limits of what a node reports of its network.
const (
	NodeBridgesMax  = 64
	NodeDevicesMax  = 128
	NodeProblemsMax = 64
)

// BridgeStatus is a bridge on one node.
type BridgeStatus struct {
	Name    string   `json:"name"`
	Uplinks []string `json:"uplinks,omitzero"` // its ports to the outside
}

// NetworkProblem is why a node cannot offer a network.
type NetworkProblem struct {
	Network string `json:"network"` // tenant/name
	Reason  string `json:"reason"`
}

// Equal reports whether two nodes found the same.
func (n *NodeNetwork) Equal(other *NodeNetwork) bool {
	return n.Stateful == other.Stateful && n.Reason == other.Reason && slices.Equal(n.Devices, other.Devices) &&
		slices.Equal(n.Problems, other.Problems) &&
		slices.EqualFunc(n.Bridges, other.Bridges, func(a, b BridgeStatus) bool {
			return a.Name == b.Name && slices.Equal(a.Uplinks, b.Uplinks)
		})
}

// Bridge finds a bridge by its name.
func (n *NodeNetwork) Bridge(name string) (BridgeStatus, bool) {
	for _, b := range n.Bridges {
		if b.Name == name {
			return b, true
		}
	}
	return BridgeStatus{}, false
}

// Capacity is what a machine has in all.
type Capacity struct {
	CPUs        int   `json:"cpus,omitzero"`
	MemoryBytes int64 `json:"memory_bytes,omitzero"`
}

// PoolStatus is a pool as one node sees it, in bytes.
type PoolStatus struct {
	Pool       string `json:"pool"`
	TotalBytes int64  `json:"total_bytes,omitzero"`
	FreeBytes  int64  `json:"free_bytes,omitzero"`
	Reason     string `json:"reason,omitzero"`  // why it cannot be used; empty when it can
	Warning    string `json:"warning,omitzero"` // that it is filling up; empty below the cluster's thresholds
}

// UsedPercent is how much of the pool is used, 0 to 100.
func (s *PoolStatus) UsedPercent() int {
	if s.TotalBytes <= 0 {
		return 0
	}
	return int(100 * (float64(s.TotalBytes-s.FreeBytes) / float64(s.TotalBytes)))
}

// poolCalm is how far a pool must fall below a threshold for its warning to
// end, in percent: one that stands at the threshold is not reported on and on.
const poolCalm = 2

// Pressure says that the pool is filling up, given the cluster's settings with
// their defaults; empty: it is not. before is what it said last.
func (s *PoolStatus) Pressure(c Config, before string) string {
	used, calm := s.UsedPercent(), 0
	if before != "" {
		calm = poolCalm
	}
	switch {
	case s.TotalBytes <= 0 || used < c.PoolWarnPercent-calm:
		return ""
	case used >= c.PoolFullPercent:
		return fmt.Sprintf("nearly full (over %d %%): guests will pause", c.PoolFullPercent)
	}
	return fmt.Sprintf("filling up (over %d %%): free some space", c.PoolWarnPercent)
}

// NodeLease is how often a node has renewed its lease in its epoch. It is a row
// of its own, so that renewals do not wake whoever watches nodes. Its name is
// the node's.
type NodeLease struct {
	Meta
	Epoch uint64 `json:"epoch"`
	Seq   uint64 `json:"seq"` // of the last renewal that was committed
}

// Validate implements Object.
func (l *NodeLease) Validate() error { return nil }

// Validate implements Object.
func (n *Node) Validate() error {
	var p problems
	n.check(&p, false)
	if n.Address == "" || len(n.Address) > 255 {
		p.add("address", "is %q", n.Address).Allow("host:port")
	}
	checkText(&p, "address", n.Address, 255)
	checkText(&p, "maintenance", n.Maintenance, TextLengthMax)
	if n.Zone != "" {
		p.addErr(CheckName("zone", n.Zone))
	}
	return p.err()
}
