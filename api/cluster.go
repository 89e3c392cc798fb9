package api

// ClusterStatus is how the cluster looks from the node that was asked.
type ClusterStatus struct {
	ClusterID      string     `json:"cluster_id"`
	Region         string     `json:"region"`
	Leader         string     `json:"leader"` // name of the leading node; empty when nobody leads
	Term           uint64     `json:"term"`
	Index          uint64     `json:"index"` // last entry that the answering node has applied
	ClusterVersion uint32     `json:"cluster_version"`
	Members        []Member   `json:"members"`
	Healthy        bool       `json:"healthy"`
	Summary        string     `json:"summary"`           // one sentence for people
	Warnings       []string   `json:"warnings,omitzero"` // what fills up, one sentence each
	Survival       []Survival `json:"survival,omitzero"` // what the loss of any one node, and of any two, would do; empty: not computed yet
}

// Member is one node as seen by the node that was asked.
type Member struct {
	Name           string `json:"name"`
	ID             string `json:"id"`
	Address        string `json:"address"`
	Voter          bool   `json:"voter"`
	Witness        bool   `json:"witness,omitzero"`
	Leader         bool   `json:"leader"`
	Lease          string `json:"lease,omitzero"` // NodeLive or NodeFenced
	Version        string `json:"version,omitzero"`
	ClusterVersion uint32 `json:"cluster_version,omitzero"` // highest that its binary understands
	Healthy        bool   `json:"healthy"`
	Reason         string `json:"reason,omitzero"`          // why it is not healthy
	LastContactMS  int64  `json:"last_contact_ms,omitzero"` // milliseconds since the answering node heard of it; 0: itself, or unknown
}

// Version is what a node tells about its binary.
type Version struct {
	Version        string `json:"version"`
	API            string `json:"api"`             // v1
	ClusterVersion uint32 `json:"cluster_version"` // active in the cluster
	Node           string `json:"node"`
}
