package fsm

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/api"
)

// ClusterInit is the body of cluster.init: what the first node stamps.
type ClusterInit struct {
	ClusterID string     `json:"cluster_id"`
	Region    string     `json:"region"`
	Version   uint32     `json:"version"`
	Node      NodeJoin   `json:"node"`
	Key       KeyCreate  `json:"key"`
	Seals     []api.Seal `json:"seals,omitzero"`
}

// DefaultPool is the pool that a new cluster has: a directory below each
// node's data directory.
const DefaultPool = "local"

// InitCluster makes the first rows of a cluster. It is accepted once.
var InitCluster = effect("cluster.init", func(tx *Tx, in ClusterInit) *api.Error {
	if Configs.Get(tx, api.ConfigName) != nil {
		return api.Errorf(api.CodeConflict, "the cluster exists already").Do("join it instead")
	}
	if in.Version < VersionMin || in.Version > VersionMax {
		return api.Invalid("version", "is %d", in.Version).Allow("%d to %d", VersionMin, VersionMax)
	}
	if err := api.CheckName("region", in.Region); err != nil {
		return err
	}
	tx.b.sys.ClusterVersion = in.Version
	Configs.put(tx, api.Config{Meta: api.Meta{Name: api.ConfigName}, Region: in.Region, ClusterID: in.ClusterID})
	Regions.put(tx, api.Region{Meta: api.Meta{Name: in.Region}})
	Tenants.put(tx, api.Tenant{Meta: api.Meta{Name: api.DefaultTenant}})
	Pools.put(tx, api.Pool{Meta: api.Meta{Name: DefaultPool}, Driver: api.PoolDir})
	if _, err := addNode(tx, in.Node); err != nil {
		return err
	}
	if _, err := createKey(tx, in.Key); err != nil {
		return err
	}
	for _, s := range in.Seals {
		if err := putSeal(tx, s); err != nil {
			return err
		}
	}
	return nil
})

// ClusterRehome is the body of cluster.rehome.
type ClusterRehome struct {
	Node   NodeJoin   `json:"node"`
	Reason string     `json:"reason"`
	Seals  []api.Seal `json:"seals,omitzero"`
}

// RehomeCluster makes a restored state the state of a new cluster of one node:
// every former node is removed, and what ran there waits for a place.
var RehomeCluster = effect("cluster.rehome", func(tx *Tx, in ClusterRehome) *api.Error {
	var names []string
	for n := range Nodes.All(tx) {
		names = append(names, n.Name)
	}
	for _, name := range names {
		if err := removeNode(tx, name, in.Reason); err != nil {
			return err
		}
	}
	var tokens []string
	for t := range JoinTokens.All(tx) {
		tokens = append(tokens, t.Name)
	}
	for _, name := range tokens {
		JoinTokens.delete(tx, name)
	}
	if _, err := addNode(tx, in.Node); err != nil {
		return err
	}
	for _, s := range in.Seals {
		if err := putSeal(tx, s); err != nil {
			return err
		}
	}
	return nil
})

// VersionActivate is the body of cluster.activate.
type VersionActivate struct {
	Version uint32 `json:"version"`
}

// ActivateVersion raises the version of the log's meaning. Every node must
// understand it; there is no way back.
var ActivateVersion = effect("cluster.activate", func(tx *Tx, in VersionActivate) *api.Error {
	if have := tx.b.sys.ClusterVersion; in.Version <= have {
		return api.Invalid("version", "is %d", in.Version).Allow("more than the active %d", have)
	}
	for n := range Nodes.All(tx) {
		if n.ClusterVersion < in.Version {
			return api.Errorf(api.CodeConflict, "does not understand cluster version %d", in.Version).
				On(api.KindNode, n.Name).Do("upgrade the node, or remove it")
		}
	}
	tx.b.sys.ClusterVersion = in.Version
	return nil
}).forUsers()

// Operation is one op inside ApplyMany.
type Operation struct {
	Op   string          `json:"op"`
	Body json.RawMessage `json:"body"`
}

// Operations is the body of apply: all of them or none. Revisions, by
// "kind/key", is what the plan saw, 0 for an object that did not exist; the
// entry is refused when one has moved.
type Operations struct {
	Operations []Operation       `json:"operations"`
	Revisions  map[string]uint64 `json:"revisions,omitzero"`
}

// OperationsMax is how many operations one apply entry carries.
const OperationsMax = 1000

const opApply = "apply"

// ApplyMany carries out several operations that users may propose as one.
var ApplyMany = effect(opApply, applyMany).forUsers()

func applyMany(tx *Tx, in Operations) *api.Error {
	if len(in.Operations) > OperationsMax {
		return api.Errorf(api.CodeLimit, "%d operations", len(in.Operations)).Allow("at most %d in one entry", OperationsMax)
	}
	if err := checkRevisions(tx, in.Revisions); err != nil {
		return err
	}
	for _, o := range in.Operations {
		cmd := tx.b.registry.commands[o.Op]
		if cmd == nil {
			tx.strange = fmt.Errorf("op %q in an apply: %w", o.Op, ErrUpgrade)
			return nil
		}
		if err := partOfApply(cmd, tx.b.sys.ClusterVersion); err != nil {
			return err
		}
		_, refusal, err := cmd.run(tx, o.Body)
		if err != nil {
			tx.strange = err
			return nil
		}
		if refusal != nil {
			return refusal
		}
	}
	return nil
}

// partOfApply refuses an operation that stands for itself only, or that the
// active cluster version does not allow yet.
func partOfApply(cmd *anyCommand, active uint32) *api.Error {
	if !cmd.users || cmd.op == opApply {
		return api.Invalid("op", "%s cannot be part of an apply", cmd.op).Allow("what users may change, each for itself")
	}
	if cmd.since > active {
		return tooNew(cmd.op, cmd.since, active)
	}
	return nil
}

func checkRevisions(tx *Tx, revisions map[string]uint64) *api.Error {
	for _, ref := range slices.Sorted(maps.Keys(revisions)) {
		kind, key, _ := strings.Cut(ref, "/")
		table := tx.b.registry.byKind[kind]
		if table == nil {
			return api.Invalid("revisions", "%q names no kind", ref).Allow("kind/key")
		}
		if have := table.revisionOf(tx, key); have != revisions[ref] {
			return api.Errorf(api.CodeConflict, "is at revision %d, the plan saw %d", have, revisions[ref]).On(kind, key).Do("plan it again")
		}
	}
	return nil
}

// PutSeal writes a sealed secret of the cluster.
var PutSeal = effect("seal.put", putSeal)

func putSeal(tx *Tx, s api.Seal) *api.Error {
	if err := s.Validate(); err != nil {
		return api.AsError(err)
	}
	Seals.put(tx, s)
	return nil
}

// CertificatesMax is how many unexpired certificates are kept.
const CertificatesMax = 100_000

// certificatesTrimMax is how many expired ones one entry forgets.
const certificatesTrimMax = 100

// RecordCertificate notes a certificate that the CA issued and forgets up to
// 100 that have expired.
var RecordCertificate = transition("certificate.record", Certificates, func(tx *Tx, c api.Certificate) (*api.Certificate, *api.Error) {
	if err := c.Validate(); err != nil {
		return nil, api.AsError(err)
	}
	var expired []string
	for have := range Certificates.Ordered(tx, "not_after") {
		if !have.NotAfter.Before(tx.Time) || len(expired) == certificatesTrimMax {
			break
		}
		expired = append(expired, have.Name)
	}
	for _, name := range expired {
		Certificates.delete(tx, name)
	}
	if Certificates.Len(tx) >= CertificatesMax {
		return nil, api.Errorf(api.CodeLimit, "%d certificates have not expired", CertificatesMax).Do("wait until some have; look at which node asks for so many")
	}
	return Certificates.put(tx, c), nil
})

func checkConfig(tx *Tx, before, after *api.Config) *api.Error {
	if after == nil {
		return api.Errorf(api.CodeForbidden, "the cluster's settings cannot be deleted").Do("put them with the values you want")
	}
	if before == nil {
		return nil
	}
	if after.Region == "" {
		after.Region = before.Region
	}
	if after.ClusterID == "" {
		after.ClusterID = before.ClusterID
	}
	if after.Region != before.Region || after.ClusterID != before.ClusterID {
		return api.Invalid("cluster_id", "and region are fixed").Allow("%s, %s", before.ClusterID, before.Region)
	}
	return nil
}
