package fsm

import "github.com/debvisor/debvisor/api"

// ReplicaReport is the body of replica.report. For an image it makes the row;
// a volume's row is made by the leader or the user.
type ReplicaReport struct {
	Kind      string `json:"kind"`
	OfID      string `json:"of_id"`
	Node      string `json:"node"`
	Epoch     uint64 `json:"epoch"`
	Pool      string `json:"pool"`
	State     string `json:"state"`
	Reason    string `json:"reason,omitzero"`
	SizeBytes int64  `json:"size_bytes,omitzero"`
	UsedBytes int64  `json:"used_bytes,omitzero"`
	FileBytes int64  `json:"file_bytes,omitzero"`
}

// ReportReplica records what a node has stored.
var ReportReplica = transition("replica.report", Replicas, func(tx *Tx, in ReplicaReport) (*api.Replica, *api.Error) {
	if _, err := liveNode(tx, in.Node, in.Epoch); err != nil {
		return nil, err
	}
	name := api.ReplicaName(in.OfID, in.Node)
	have := Replicas.Get(tx, name)
	var r api.Replica
	switch {
	case have != nil && have.State == api.ReplicaLost:
		return nil, api.Errorf(api.CodeConflict, "was lost with a node that was removed").On(api.KindReplica, name)
	case have != nil:
		r = *have
	case in.Kind == api.KindImage:
		image := first(Images.By(tx, "id_of", in.OfID))
		if image == nil {
			return nil, api.Errorf(api.CodeNotFound, "there is no such image").On(api.KindReplica, name)
		}
		if Pools.Get(tx, in.Pool) == nil {
			return nil, missing("pool", api.KindPool, in.Pool).On(api.KindReplica, name)
		}
		r = api.Replica{Meta: api.Meta{Name: name}, Kind: api.KindImage, Of: api.Key(image.Tenant, image.Name), OfID: in.OfID, Node: in.Node, Pool: in.Pool}
	default:
		return nil, api.Errorf(api.CodeNotFound, "nobody asked this node for it").On(api.KindReplica, name)
	}
	if r.Delete {
		in.State = api.ReplicaDeleting
	}
	r.State, r.Reason = in.State, api.CleanText(in.Reason, api.TextLengthMax)
	r.SizeBytes, r.UsedBytes, r.FileBytes = max(0, in.SizeBytes), max(0, in.UsedBytes), max(0, in.FileBytes)
	if err := r.Validate(); err != nil {
		return nil, api.AsError(err).OnMissing(api.KindReplica, name)
	}
	return Replicas.put(tx, r), nil
}).forAgents()

// ReplicaEnd is the body of replica.forget.
type ReplicaEnd struct {
	OfID  string `json:"of_id"`
	Node  string `json:"node"`
	Epoch uint64 `json:"epoch"`
}

// ForgetReplica ends a replica that its node was asked to remove, and has.
var ForgetReplica = effect("replica.forget", func(tx *Tx, in ReplicaEnd) *api.Error {
	if _, err := liveNode(tx, in.Node, in.Epoch); err != nil {
		return err
	}
	name := api.ReplicaName(in.OfID, in.Node)
	if r := Replicas.Get(tx, name); r != nil && !r.Delete {
		return api.Errorf(api.CodeConflict, "is still wanted").On(api.KindReplica, name)
	}
	Replicas.delete(tx, name)
	return nil
}).forAgents()
