package fsm

import (
	"slices"

	"github.com/debvisor/debvisor/api"
)

// NodeJoin is what a new member says of itself, and the body of node.join.
type NodeJoin struct {
	ID        string `json:"id"` // random, from its data directory
	Name      string `json:"name"`
	Address   string `json:"address"`
	Zone      string `json:"zone,omitzero"`
	Witness   bool   `json:"witness,omitzero"`
	TokenHash string `json:"token_hash,omitzero"` // of the token that admits it
}

// JoinNode admits a node and consumes its token.
var JoinNode = transition("node.join", Nodes, func(tx *Tx, in NodeJoin) (*api.Node, *api.Error) {
	token := first(JoinTokens.By(tx, "hash", in.TokenHash))
	const next = "make a new one with: debvisor node token"
	if in.TokenHash == "" || token == nil {
		return nil, api.Errorf(api.CodeForbidden, "the join token is unknown or was used").Do(next)
	}
	if !tx.Time.Before(token.Expires) {
		return nil, api.Errorf(api.CodeForbidden, "the join token has expired").Do(next)
	}
	if token.Witness && !in.Witness {
		return nil, api.Errorf(api.CodeForbidden, "the join token admits a witness only").Do(next)
	}
	node, err := addNode(tx, in)
	if err != nil {
		return nil, err
	}
	JoinTokens.delete(tx, token.Name)
	return node, nil
})

func addNode(tx *Tx, in NodeJoin) (*api.Node, *api.Error) {
	n := api.Node{Meta: api.Meta{ID: in.ID, Name: in.Name}, Address: in.Address, Zone: in.Zone, Witness: in.Witness, Lease: api.NodeFenced}
	if err := n.Validate(); err != nil {
		return nil, api.AsError(err).OnMissing(api.KindNode, in.Name)
	}
	if !isUUID(in.ID) {
		return nil, api.Invalid("id", "is %q", in.ID).On(api.KindNode, in.Name).Allow("a UUID")
	}
	if Nodes.Get(tx, in.Name) != nil {
		return nil, api.Errorf(api.CodeConflict, "a node of this name is a member").On(api.KindNode, in.Name).Do("choose another name, or remove the old node first")
	}
	if first(Nodes.By(tx, "id_of", in.ID)) != nil || RemovedNodes.Get(tx, in.ID) != nil {
		return nil, api.Errorf(api.CodeConflict, "its identity is or was a member").On(api.KindNode, in.Name).Do("empty its data directory and join again")
	}
	if Nodes.Len(tx) >= api.NodesMax {
		return nil, api.Errorf(api.CodeLimit, "the cluster has %d nodes", api.NodesMax).Allow("at most %d", api.NodesMax)
	}
	return Nodes.put(tx, n), nil
}

// liveNode finds a node whose lease holds at that epoch.
func liveNode(tx *Tx, name string, epoch uint64) (*api.Node, *api.Error) {
	n := Nodes.Get(tx, name)
	if n == nil {
		return nil, api.Errorf(api.CodeNotFound, "is not a member").On(api.KindNode, name)
	}
	if n.Lease != api.NodeLive || n.Epoch != epoch {
		return nil, api.Errorf(api.CodeConflict, "is %s at epoch %d, not live at %d", n.Lease, n.Epoch, epoch).On(api.KindNode, name)
	}
	return n, nil
}

// NodeRegister is the body of node.register.
type NodeRegister struct {
	ID             string `json:"id"`
	PrevEpoch      uint64 `json:"prev_epoch"`
	Nonce          string `json:"nonce"` // random, so that two processes of one identity see each other
	Address        string `json:"address"`
	Version        string `json:"version,omitzero"`
	ClusterVersion uint32 `json:"cluster_version,omitzero"`
}

// RegisterNode begins a new epoch of a node. It is accepted only by one that
// knows the epoch before, so that of two processes with one identity one loses.
var RegisterNode = transition("node.register", Nodes, func(tx *Tx, in NodeRegister) (*api.Node, *api.Error) {
	have, err := nodeByID(tx, in.ID)
	if err != nil {
		return nil, err
	}
	if have.Epoch != in.PrevEpoch {
		return nil, api.Errorf(api.CodeConflict, "is at epoch %d, not %d", have.Epoch, in.PrevEpoch).On(api.KindNode, have.Name).
			Do("make sure that only one machine runs with this identity")
	}
	n := *have
	n.Epoch, n.Lease, n.RegisteredAt = have.Epoch+1, api.NodeLive, tx.Time
	n.Address, n.Version, n.ClusterVersion = in.Address, api.CleanText(in.Version, api.NameLengthMax), in.ClusterVersion
	if err := n.Validate(); err != nil {
		return nil, api.AsError(err).OnMissing(api.KindNode, n.Name)
	}
	Leases.put(tx, api.NodeLease{Meta: api.Meta{Name: n.Name}, Epoch: n.Epoch})
	return Nodes.put(tx, n), nil
}).forAgents()

func nodeByID(tx *Tx, id string) (*api.Node, *api.Error) {
	if removed := RemovedNodes.Get(tx, id); removed != nil {
		return nil, api.Errorf(api.CodeForbidden, "was removed from the cluster: %s", removed.Reason).On(api.KindNode, removed.Node).
			Do("empty its data directory and join again")
	}
	if n := first(Nodes.By(tx, "id_of", id)); n != nil {
		return n, nil
	}
	return nil, api.Errorf(api.CodeNotFound, "is not a member").On(api.KindNode, id)
}

// NodeReport is the body of node.report.
type NodeReport struct {
	Node       string             `json:"node"`
	Epoch      uint64             `json:"epoch"`
	Hypervisor api.HypervisorInfo `json:"hypervisor"`
	Capacity   api.Capacity       `json:"capacity"`
	CPUModels  []string           `json:"cpu_models,omitzero"`
	Pools      []api.PoolStatus   `json:"pools,omitzero"`
	Network    api.NodeNetwork    `json:"network,omitzero"`
}

// PoolsPerNodeMax bounds what a node reports of its pools.
const PoolsPerNodeMax = 64

// ReportNode records what a node found on its machine.
var ReportNode = transition("node.report", Nodes, func(tx *Tx, in NodeReport) (*api.Node, *api.Error) {
	have, err := liveNode(tx, in.Node, in.Epoch)
	if err != nil {
		return nil, err
	}
	if len(in.Pools) > PoolsPerNodeMax {
		return nil, api.Errorf(api.CodeLimit, "reports %d pools", len(in.Pools)).Allow("at most %d", PoolsPerNodeMax).On(api.KindNode, in.Node)
	}
	if len(in.CPUModels) > api.CPUModelsMax {
		return nil, api.Errorf(api.CodeLimit, "lists %d CPU models", len(in.CPUModels)).Allow("at most %d", api.CPUModelsMax).On(api.KindNode, in.Node)
	}
	for _, model := range in.CPUModels {
		if err := api.CheckCPUModel("cpu_models", model); err != nil {
			return nil, err.On(api.KindNode, in.Node)
		}
	}
	if c := in.Capacity; c.CPUs < 0 || c.CPUs > NodeCPUsMax || c.MemoryBytes < 0 || c.MemoryBytes > NodeMemoryMax {
		return nil, api.Invalid("capacity", "is %d CPUs and %d bytes", c.CPUs, c.MemoryBytes).
			Allow("0 to %d CPUs and 0 to %d bytes", NodeCPUsMax, NodeMemoryMax).On(api.KindNode, in.Node)
	}
	n := *have
	h := in.Hypervisor
	h.Driver, h.Acceleration = api.CleanText(h.Driver, api.NameLengthMax), api.CleanText(h.Acceleration, api.NameLengthMax)
	h.Version, h.Reason = api.CleanText(h.Version, api.TextLengthMax), api.CleanText(h.Reason, api.TextLengthMax)
	h.Architecture, h.CPUModel = api.CleanText(h.Architecture, api.NameLengthMax), api.CleanText(h.CPUModel, api.NameLengthMax)
	n.Hypervisor, n.Capacity, n.Pools, n.CPUModels = h, in.Capacity, slices.Clone(in.Pools), in.CPUModels
	for i := range n.Pools {
		p := &n.Pools[i]
		p.Warning = api.CleanText(p.Warning, api.TextLengthMax)
		p.Pool, p.Reason = api.CleanText(p.Pool, api.NameLengthMax), api.CleanText(p.Reason, api.TextLengthMax)
		p.TotalBytes, p.FreeBytes = max(0, p.TotalBytes), max(0, p.FreeBytes)
	}
	n.Network = cleanNetwork(in.Network)
	return Nodes.put(tx, n), nil
}).forAgents()

// cleanNetwork bounds what a node found of its network. It shares no slice
// with what it was made from.
func cleanNetwork(in api.NodeNetwork) api.NodeNetwork {
	name := func(s string) string { return api.CleanText(s, api.NameLengthMax) }
	out := api.NodeNetwork{Stateful: in.Stateful, Reason: api.CleanText(in.Reason, api.TextLengthMax)}
	for _, b := range in.Bridges[:min(len(in.Bridges), api.NodeBridgesMax)] {
		bridge := api.BridgeStatus{Name: name(b.Name)}
		for _, u := range b.Uplinks[:min(len(b.Uplinks), api.NodeBridgesMax)] {
			bridge.Uplinks = append(bridge.Uplinks, name(u))
		}
		out.Bridges = append(out.Bridges, bridge)
	}
	for _, d := range in.Devices[:min(len(in.Devices), api.NodeDevicesMax)] {
		out.Devices = append(out.Devices, name(d))
	}
	for _, p := range in.Problems[:min(len(in.Problems), api.NodeProblemsMax)] {
		out.Problems = append(out.Problems, api.NetworkProblem{Network: api.CleanText(p.Network, 2*api.NameLengthMax+1), Reason: api.CleanText(p.Reason, api.TextLengthMax)})
	}
	return out
}

// What one machine has at most. Placement multiplies it by the overcommit: the
// product must stay an integer that every architecture computes alike.
const (
	NodeCPUsMax   = 1 << 20
	NodeMemoryMax = 1 << 53 // bytes
)

// Renewal is one node's renewal of its lease.
type Renewal struct {
	Node  string `json:"node"`
	Epoch uint64 `json:"epoch"`
	Seq   uint64 `json:"seq"`
}

// Renewals is the body of node.renew: those of all nodes in one entry.
type Renewals struct {
	Renewals []Renewal `json:"renewals"`
}

// RenewNodes renews the leases it names; those of a fenced node, a former
// epoch or an old sequence number are passed over. The rows of Leases tell
// which held.
var RenewNodes = effect("node.renew", func(tx *Tx, in Renewals) *api.Error {
	for _, r := range in.Renewals {
		if _, err := liveNode(tx, r.Node, r.Epoch); err != nil {
			continue
		}
		if l := Leases.Get(tx, r.Node); l != nil && l.Epoch == r.Epoch && r.Seq > l.Seq {
			renewed := *l
			renewed.Seq = r.Seq
			Leases.put(tx, renewed)
		}
	}
	return nil
}).asDigest()

// NodeExpire is the body of node.expire.
type NodeExpire struct {
	Node  string `json:"node"`
	Epoch uint64 `json:"epoch"`
	Seq   uint64 `json:"seq"`
}

// ExpireNode fences a node of which nothing was heard since that renewal.
var ExpireNode = transition("node.expire", Nodes, func(tx *Tx, in NodeExpire) (*api.Node, *api.Error) {
	have, err := liveNode(tx, in.Node, in.Epoch)
	if err != nil {
		return nil, err
	}
	if l := Leases.Get(tx, in.Node); l == nil || l.Seq != in.Seq {
		return nil, api.Errorf(api.CodeConflict, "has renewed its lease since").On(api.KindNode, in.Node)
	}
	n := *have
	n.Lease = api.NodeFenced
	return Nodes.put(tx, n), nil
})

// NodeConfirmOff is the body of node.confirm_off.
type NodeConfirmOff struct {
	Node   string `json:"node"`
	Epoch  uint64 `json:"epoch"` // that the operator saw
	Reason string `json:"reason,omitzero"`
}

// ConfirmOffNode says that the machine has no power: the node is fenced, and
// everything that it owned waits for a new place.
var ConfirmOffNode = transition("node.confirm_off", Nodes, func(tx *Tx, in NodeConfirmOff) (*api.Node, *api.Error) {
	have := Nodes.Get(tx, in.Node)
	if have == nil {
		return nil, api.Errorf(api.CodeNotFound, "is not a member").On(api.KindNode, in.Node)
	}
	if have.Epoch != in.Epoch {
		return nil, api.Errorf(api.CodeConflict, "has registered again: it is on").On(api.KindNode, in.Node).Do("look at it again")
	}
	n := *have
	n.Lease = api.NodeFenced
	endArrivals(tx, n.Name)
	disown(tx, n.Name, "its host "+n.Name+" is off", true)
	return Nodes.put(tx, n), nil
}).forUsers()

// disown takes every instance from its owner. The instances of deleted VMs go.
// With arrivals, one that migrates keeps its owner until the destination is
// known to have let go of it as well.
func disown(tx *Tx, node, reason string, arrivals bool) {
	var owned []api.Instance
	for i := range Instances.By(tx, "owner", node) {
		owned = append(owned, *i)
	}
	for _, i := range owned {
		if i.Migration != nil && arrivals {
			m := *i.Migration
			m.FromOff = true
			i.Migration, i.Reason = &m, reason
			Instances.put(tx, i)
			continue
		}
		if first(VMs.By(tx, "id_of", i.Name)) == nil {
			Instances.delete(tx, i.Name)
			continue
		}
		Instances.put(tx, ownerless(i, reason))
	}
}

// NodeSchedule is the body of node.schedule. A nil Labels leaves them.
type NodeSchedule struct {
	Node          string            `json:"node"`
	Unschedulable bool              `json:"unschedulable"`
	Labels        map[string]string `json:"labels,omitzero"`
	Maintenance   string            `json:"maintenance,omitzero"` // goes with unschedulable
}

// ScheduleNode sets what users may set of a node.
var ScheduleNode = transition("node.schedule", Nodes, func(tx *Tx, in NodeSchedule) (*api.Node, *api.Error) {
	have := Nodes.Get(tx, in.Node)
	if have == nil {
		return nil, api.Errorf(api.CodeNotFound, "is not a member").On(api.KindNode, in.Node)
	}
	n := *have
	if in.Maintenance != "" && !in.Unschedulable {
		return nil, api.Invalid("maintenance", "goes with unschedulable only").On(api.KindNode, in.Node)
	}
	n.Unschedulable, n.Maintenance = in.Unschedulable, in.Maintenance
	if in.Labels != nil {
		n.Labels = in.Labels
	}
	if err := n.Validate(); err != nil {
		return nil, api.AsError(err).OnMissing(api.KindNode, in.Node)
	}
	return Nodes.put(tx, n), nil
}).forUsers()

// NodeVoter is the body of node.voter.
type NodeVoter struct {
	Node  string `json:"node"`
	Voter bool   `json:"voter"`
}

// SetVoter records whether the membership controller wants the node to vote.
var SetVoter = transition("node.voter", Nodes, func(tx *Tx, in NodeVoter) (*api.Node, *api.Error) {
	have := Nodes.Get(tx, in.Node)
	if have == nil {
		return nil, api.Errorf(api.CodeNotFound, "is not a member").On(api.KindNode, in.Node)
	}
	n := *have
	n.Voter = in.Voter
	return Nodes.put(tx, n), nil
})

// NodeRemove is the body of node.remove.
type NodeRemove struct {
	Node   string `json:"node"`
	Reason string `json:"reason,omitzero"`
	Force  bool   `json:"force,omitzero"` // although it owns instances or the only copy of a volume; its machine must be off for good
}

// RemovedNodesMax is how many removed nodes are remembered.
const RemovedNodesMax = 4096

// RemoveNode ends a membership for good. The identity may not come back.
var RemoveNode = effect("node.remove", func(tx *Tx, in NodeRemove) *api.Error {
	n := Nodes.Get(tx, in.Node)
	if n == nil {
		return api.Errorf(api.CodeNotFound, "is not a member").On(api.KindNode, in.Node)
	}
	if Nodes.Len(tx) == 1 {
		return api.Errorf(api.CodeConflict, "is the last node").On(api.KindNode, in.Node)
	}
	for i := range Instances.By(tx, "owner", in.Node) {
		if i.Migration != nil {
			return api.Errorf(api.CodeConflict, "vm %s migrates from it to %s", i.VM, i.Migration.To).On(api.KindNode, in.Node).
				Do("wait until the migration has ended; if the machine is off for good, confirm that first: debvisor node confirm-off %s", in.Node)
		}
	}
	if !in.Force {
		for i := range Instances.By(tx, "arriving", in.Node) {
			return api.Errorf(api.CodeConflict, "vm %s migrates to it", i.VM).On(api.KindNode, in.Node).Do("wait until the migration has ended, or cancel it")
		}
		for i := range Instances.By(tx, "owner", in.Node) {
			return api.Errorf(api.CodeConflict, "owns vm %s", i.VM).On(api.KindNode, in.Node).
				Do("delete or move its VMs first; if the machine is off for good, repeat with force")
		}
		for r := range Replicas.By(tx, "node", in.Node) {
			if r.Kind == api.KindVolume && !r.Delete {
				return api.Errorf(api.CodeConflict, "holds volume %s", r.Of).On(api.KindNode, in.Node).
					Do("delete or move its volumes first; if they are lost anyway, repeat with force")
			}
		}
	}
	reason := in.Reason
	if reason == "" {
		reason = "removed by an operator"
	}
	return removeNode(tx, in.Node, reason)
}).forUsers()

func removeNode(tx *Tx, name, reason string) *api.Error {
	n := Nodes.Get(tx, name)
	endArrivals(tx, name)
	disown(tx, name, "its host "+name+" was removed", false)
	loseReplicas(tx, name)
	if RemovedNodes.Len(tx) >= RemovedNodesMax {
		return api.Errorf(api.CodeLimit, "%d removed nodes are remembered", RemovedNodesMax)
	}
	removed := api.RemovedNode{Meta: api.Meta{Name: n.ID}, Node: name, Reason: reason, By: tx.By}
	if err := removed.Validate(); err != nil {
		return api.AsError(err)
	}
	RemovedNodes.put(tx, removed)
	Nodes.delete(tx, name)
	Leases.delete(tx, name)
	return nil
}

// loseReplicas ends the copies that a removed node had. A volume that lay
// nowhere else is lost: its row stays and says so, and keeps an empty disk from
// being made in its place. It goes with the volume.
func loseReplicas(tx *Tx, node string) {
	var had []api.Replica
	for r := range Replicas.By(tx, "node", node) {
		had = append(had, *r)
	}
	for _, r := range had {
		pool := Pools.Get(tx, r.Pool)
		if r.Kind != api.KindVolume || r.Delete || r.State == api.ReplicaPending || r.From != "" || pool != nil && pool.Shared {
			Replicas.delete(tx, r.Name)
			continue
		}
		r.State, r.Reason = api.ReplicaLost, "its node "+node+" was removed; delete the volume, or restore it under another name"
		Replicas.put(tx, r)
	}
}
