package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/rpc"
	"github.com/debvisor/debvisor/fsm"
)

// service answers the calls of other nodes. Who calls is known from the
// certificate, never from the message.
type service struct{ s *Server }

// caller is the node that calls, unless it was removed.
func (v service) caller(ctx context.Context) (Peer, error) {
	id := rpc.Caller(ctx)
	if id == "" {
		return Peer{}, api.Errorf(api.CodeUnauthenticated, "the caller is no node")
	}
	if err := v.s.admitNode(id); err != nil {
		return Peer{}, err
	}
	return v.s.peer(id), nil
}

// Propose implements rpc.NodeServer. The entry is checked again: a newer node
// may propose what this one does not understand, and a hostile one what is not
// its own.
func (v service) Propose(ctx context.Context, in *rpc.Propose) (*rpc.Proposed, error) {
	from, err := v.caller(ctx)
	if err != nil {
		return nil, err
	}
	raw := append([]byte{in.Version}, in.Entry...)
	if len(raw) > fsm.EntrySizeMax {
		return nil, api.Errorf(api.CodeLimit, "the change has %d bytes", len(raw)).Allow("at most %d in one entry", fsm.EntrySizeMax)
	}
	if v.s.draining.Load() {
		return nil, errNoLeader("the leader is stopping")
	}
	e, err := fsm.DecodeEntry(raw)
	if err != nil {
		return nil, api.Errorf(api.CodeUnavailable, "the leader %s does not understand the change", v.s.identity.Name).Do("upgrade that node")
	}
	if err := v.s.authorize(e, from); err != nil {
		if api.CodeOf(err) == api.CodeForbidden {
			v.s.logger.Warn("a forwarded entry was refused", "from", from.Name, "op", e.Op, "by", e.By, "error", err)
		}
		return nil, err
	}
	if err := v.s.mayPropose(e); err != nil {
		return nil, err
	}
	if raw, err = v.s.clamp(e, raw); err != nil {
		return nil, err
	}
	v.s.proposals.Add(1)
	defer v.s.proposals.Add(-1)
	outcome, err := v.s.commit(ctx, raw)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(wireOutcome{Index: outcome.Index, Err: outcome.Err, Kind: outcome.Kind, Key: outcome.Key, Replayed: outcome.Replayed})
	if err != nil {
		return nil, fmt.Errorf("encode outcome: %w", err)
	}
	return &rpc.Proposed{Outcome: body}, nil
}

// ReadIndex implements rpc.NodeServer.
func (v service) ReadIndex(ctx context.Context, _ *rpc.Empty) (*rpc.Index, error) {
	if _, err := v.caller(ctx); err != nil {
		return nil, err
	}
	if v.s.raft.State() != raft.Leader {
		return nil, errNoLeader("this node does not lead")
	}
	index, err := v.s.reads.next(ctx, v.s.ctx, v.s.readRound)
	if err != nil {
		return nil, err
	}
	return &rpc.Index{Index: index}, nil
}

// ConfirmTerm implements rpc.NodeServer. The term in memory never lags behind a
// vote that was given: Raft stores and sets it first.
func (v service) ConfirmTerm(ctx context.Context, _ *rpc.Empty) (*rpc.Index, error) {
	if _, err := v.caller(ctx); err != nil {
		return nil, err
	}
	return &rpc.Index{Term: v.s.raft.CurrentTerm()}, nil
}

// Status implements rpc.NodeServer. It is the only call that a removed node
// gets an answer to, so that it learns what happened.
func (v service) Status(ctx context.Context, in *rpc.Hello) (*rpc.Status, error) {
	id := rpc.Caller(ctx)
	if id == "" {
		return nil, api.Errorf(api.CodeUnauthenticated, "the caller is no node")
	}
	if v.s.admitNode(id) != nil {
		return &rpc.Status{CallerRemoved: true}, nil
	}
	v.s.moved.learn(v.s.state.Read(), id, in.Address)
	st := v.s.Stats()
	out := &rpc.Status{
		ID: st.Self.ID, Name: st.Self.Name, Address: st.Self.Address, State: st.State, Term: st.Term, Leader: st.Leader.ID,
		Commit: st.Commit, Applied: st.Applied, JournalFirst: st.Journal.First, JournalLast: st.Journal.Last,
		FsyncP99NS: int64(st.FsyncP99), SnapshotIndex: st.Snapshot, Version: v.s.cfg.Version,
	}
	if err := v.s.journal.Healthy(); err != nil {
		out.JournalReason = err.Error()
	}
	return out, nil
}

// Sign implements rpc.NodeServer. The certificate names the caller; only the
// key and the address come from the request.
func (v service) Sign(ctx context.Context, in *rpc.Sign) (*rpc.Signed, error) {
	p, err := v.caller(ctx)
	if err != nil {
		return nil, err
	}
	if row := nodeRow(v.s.state.Read(), p.ID); row == nil {
		return nil, api.Errorf(api.CodeForbidden, "the caller is not a member").On(api.KindNode, p.ID)
	}
	p.Address = in.Address
	a, err := v.s.authority()
	if err != nil {
		return nil, err
	}
	der, err := v.s.issue(ctx, a, in.Request, p)
	if err != nil {
		return nil, err
	}
	return &rpc.Signed{Certificate: der}, nil
}

// issue signs a certificate and has the cluster remember that it exists.
func (s *Server) issue(ctx context.Context, a *authority, request []byte, p Peer) ([]byte, error) {
	der, err := s.signFor(a, request, p)
	if err != nil {
		return nil, err
	}
	note := api.Certificate{Meta: api.Meta{Name: uuid.NewString()}, Role: roleNode, Subject: p.ID, NotAfter: time.Now().Add(s.cfg.CertificateLife).UTC()}
	outcome, err := s.Propose(ctx, fsm.RecordCertificate.Entry(note))
	if err == nil && outcome.Err != nil {
		err = outcome.Err
	}
	if err != nil {
		return nil, fmt.Errorf("record the certificate: %w", err)
	}
	return der, nil
}

// Journal implements rpc.NodeServer.
func (v service) Journal(ctx context.Context, in *rpc.JournalRange) (*rpc.JournalRecords, error) {
	if _, err := v.caller(ctx); err != nil {
		return nil, err
	}
	if after, through, missing := v.s.journal.Gap(); missing && in.After < through && after < in.Through {
		return nil, api.Errorf(api.CodeUnavailable, "this node fetches that stretch itself").Do("ask another node")
	}
	floor, hash := v.s.journal.FloorHash()
	out := &rpc.JournalRecords{Floor: floor, FloorHash: hash}
	if in.After < floor {
		return out, nil // the caller begins at the floor, if it may
	}
	raw, more, err := v.s.journal.Raw(ctx, in.After, in.Through, journalPage)
	if err != nil {
		return nil, err
	}
	out.More = more
	for _, r := range raw {
		out.Records = append(out.Records, rpc.JournalRecord{Index: r.Index, Hash: r.Hash, Canonical: r.Canonical})
	}
	return out, nil
}

// SealKey implements rpc.NodeServer: only voters get it.
func (v service) SealKey(ctx context.Context, in *rpc.SealKey) (*rpc.SealKey, error) {
	p, err := v.caller(ctx)
	if err != nil {
		return nil, err
	}
	if vote, _ := v.s.votes(p.ID); !vote {
		return nil, api.Errorf(api.CodeForbidden, "does not vote").On(api.KindNode, p.Name)
	}
	// A seal that is in the state came after the removal of whom it keeps out,
	// so that whoever was removed was refused above.
	present := false
	for sealed := range fsm.Seals.All(v.s.state.Read()) {
		present = present || sealed.KeyID == in.ID
	}
	key, ok := v.s.seals.find(in.ID)
	if !ok || !present {
		return nil, api.Errorf(api.CodeNotFound, "this node does not hold that key").Do("ask another voter")
	}
	return &key, nil
}

// PutSealKey implements rpc.NodeServer: it comes from the leader, before this
// node may vote or at a rotation.
func (v service) PutSealKey(ctx context.Context, in *rpc.SealKey) (*rpc.Empty, error) {
	p, err := v.caller(ctx)
	if err != nil {
		return nil, err
	}
	if vote, _ := v.s.votes(p.ID); !vote {
		return nil, api.Errorf(api.CodeForbidden, "does not vote").On(api.KindNode, p.Name)
	}
	return &rpc.Empty{}, v.s.seals.add(*in)
}

// GossipKeys implements rpc.NodeServer: every node gets them.
func (v service) GossipKeys(ctx context.Context, _ *rpc.Empty) (*rpc.GossipKeys, error) {
	if _, err := v.caller(ctx); err != nil {
		return nil, err
	}
	keys, err := v.s.gossipKeys()
	if err != nil {
		return nil, err
	}
	return &rpc.GossipKeys{Keys: keys}, nil
}

// nodeRow is the row of a node by its ID, or nil.
func nodeRow(v *fsm.View, id string) *api.Node {
	for n := range fsm.Nodes.By(v, "id_of", id) {
		return n
	}
	return nil
}
