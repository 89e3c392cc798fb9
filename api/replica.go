package api

// The states of a replica.
const (
	ReplicaPending  = "pending" // its node has to make it
	ReplicaReady    = "ready"
	ReplicaFailed   = "failed"   // its node tried and gave a reason; it tries again
	ReplicaLost     = "lost"     // its node was removed with the only copy; nothing is made in its place
	ReplicaDeleting = "deleting" // its node has to remove it; the row goes when it has
)

// Replica is one physical copy of a volume or an image on one node: wanted by
// the leader (Of, Node, Pool), reported by the node (the rest). Its name is
// ReplicaName(Of's ID, Node).
type Replica struct {
	Meta
	Kind      string `json:"kind"`  // volume or image
	Of        string `json:"of"`    // key of the volume or image
	OfID      string `json:"of_id"` // its ID, which survives its row
	Node      string `json:"node"`
	Pool      string `json:"pool"`
	Delete    bool   `json:"delete,omitzero"` // wanted gone
	State     string `json:"state"`
	Reason    string `json:"reason,omitzero"`
	SizeBytes int64  `json:"size_bytes,omitzero"` // virtual size
	UsedBytes int64  `json:"used_bytes,omitzero"` // on disk
	From      string `json:"from,omitzero"`       // node whose migrating guest fills it: no copy of the volume before that is done
	FileBytes int64  `json:"file_bytes,omitzero"` // of an image: the length of its file
}

// ReplicaName is the name of the replica of an object on a node.
func ReplicaName(ofID, node string) string { return ofID + "." + node }

// Validate implements Object.
func (r *Replica) Validate() error {
	var p problems
	checkOneOf(&p, "kind", r.Kind, KindVolume, KindImage)
	checkOneOf(&p, "state", r.State, ReplicaPending, ReplicaReady, ReplicaFailed, ReplicaLost, ReplicaDeleting)
	checkText(&p, "reason", r.Reason, TextLengthMax)
	return p.err()
}
