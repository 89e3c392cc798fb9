package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/rpc"
	"github.com/debvisor/debvisor/fsm"
)

const (
	memberTimeout = 10 * time.Second // one change of the membership
	peersPoll     = 2 * time.Second  // how often the leader asks the others how they are
	peersAnswer   = time.Second
)

// Membership is one member of the Raft configuration.
type Membership struct {
	Peer
	Voter bool `json:"voter"`
}

// Configuration lists the members of Raft's configuration, as this node knows
// it: everybody who gets the log, voter or not.
func (s *Server) Configuration() []Membership {
	f := s.raft.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	servers := f.Configuration().Servers
	out := make([]Membership, 0, len(servers))
	for _, srv := range servers {
		out = append(out, Membership{Peer: s.peer(string(srv.ID)), Voter: srv.Suffrage == raft.Voter})
	}
	return out
}

// voters are the IDs of the members that vote.
func (s *Server) voters() []string {
	var out []string
	for _, m := range s.raft.GetConfiguration().Configuration().Servers {
		if m.Suffrage == raft.Voter {
			out = append(out, string(m.ID))
		}
	}
	return out
}

// votes reports whether a node votes, and whether it is a member at all.
func (s *Server) votes(id string) (vote, known bool) {
	for _, m := range s.raft.GetConfiguration().Configuration().Servers {
		if string(m.ID) == id {
			return m.Suffrage == raft.Voter, true
		}
	}
	return false, false
}

// others are the nodes that this one knows besides itself: the members, or
// before the log told them, those it knew when it joined.
func (s *Server) others() []Peer {
	var out []Peer
	for _, m := range s.raft.GetConfiguration().Configuration().Servers {
		if string(m.ID) != s.identity.NodeID {
			out = append(out, s.peer(string(m.ID)))
		}
	}
	for _, m := range s.identity.Members {
		known := slices.ContainsFunc(out, func(p Peer) bool { return p.ID == m.ID })
		if len(out) == 0 && m.ID != s.identity.NodeID && !known {
			out = append(out, Peer(m))
		}
	}
	return out
}

// peer is what this node knows of another: its row, else what it knew when it
// joined, else what Raft's configuration says.
func (s *Server) peer(id string) Peer {
	if id == s.identity.NodeID {
		return s.Self()
	}
	view := s.state.Read()
	if n := nodeRow(view, id); n != nil {
		p := Peer{ID: n.ID, Name: n.Name, Address: n.Address}
		if address, ok := s.moved.of(view, id); ok {
			p.Address = address
		}
		return p
	}
	for _, m := range s.identity.Members {
		if m.ID == id {
			return Peer(m)
		}
	}
	if s.raft != nil {
		for _, m := range s.raft.GetConfiguration().Configuration().Servers {
			if string(m.ID) == id {
				return Peer{ID: id, Address: string(m.Address)}
			}
		}
	}
	return Peer{ID: id}
}

// addressBook tells Raft where a member listens now. Addresses change; the
// configuration keeps the one of the day the member was added.
type addressBook struct{ s *Server }

// ServerAddr implements raft.ServerAddressProvider. It must not ask Raft, which
// calls it from its own loops.
func (b addressBook) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	view := b.s.state.Read()
	if address, ok := b.s.moved.of(view, string(id)); ok {
		return raft.ServerAddress(address), nil
	}
	if n := nodeRow(view, string(id)); n != nil {
		return raft.ServerAddress(n.Address), nil
	}
	for _, m := range b.s.identity.Members {
		if m.ID == string(id) {
			return raft.ServerAddress(m.Address), nil
		}
	}
	return "", fmt.Errorf("node %s has no row yet", id)
}

// addresses remembers where nodes said that they listen now, until their rows
// say so too. A node that moved is not reached by its leader and so cannot
// know the state that it would need to register its new address.
type addresses struct {
	mu   sync.Mutex // guards byID
	byID map[string]movedTo
}

type movedTo struct {
	address  string
	revision uint64 // of the row that it overrides
}

// learn notes the address of a node that proved its identity.
func (a *addresses) learn(v *fsm.View, id, address string) {
	n := nodeRow(v, id)
	a.mu.Lock()
	defer a.mu.Unlock()
	if n == nil || n.Address == address || address == "" || len(address) > api.TextLengthMax {
		delete(a.byID, id)
		return
	}
	if a.byID == nil {
		a.byID = map[string]movedTo{}
	}
	a.byID[id] = movedTo{address, n.Modified}
}

func (a *addresses) of(v *fsm.View, id string) (string, bool) {
	a.mu.Lock()
	m, ok := a.byID[id]
	a.mu.Unlock()
	if !ok {
		return "", false
	}
	n := nodeRow(v, id)
	return m.address, n != nil && n.Modified == m.revision
}

// idOf is the node at an address, or "" when this node knows none.
func (s *Server) idOf(address string) string {
	for n := range fsm.Nodes.All(s.state.Read()) {
		if n.Address == address {
			return n.ID
		}
	}
	for _, m := range s.identity.Members {
		if m.Address == address {
			return m.ID
		}
	}
	return ""
}

// DialNode connects to a node for one protocol, with both certificates
// verified. It is for tunnels; Raft, RPC and gossip dial by themselves.
func (s *Server) DialNode(ctx context.Context, id, proto string) (net.Conn, error) {
	p := s.peer(id)
	if p.Address == "" {
		return nil, api.Errorf(api.CodeNotFound, "its address is not known").On(api.KindNode, id)
	}
	return s.dialer.dial(ctx, id, p.Address, proto)
}

// DialAddress connects to whatever node of this cluster listens at an address,
// for gossip.
func (s *Server) DialAddress(ctx context.Context, address, proto string) (net.Conn, error) {
	return s.dialer.dial(ctx, "", address, proto)
}

// AddNonvoter adds a member that gets the log and does not vote. Only the
// leader can; elsewhere it is CodeNoLeader. A member that votes stays so.
func (s *Server) AddNonvoter(ctx context.Context, p Peer) error {
	if vote, known := s.votes(p.ID); known && vote {
		return nil
	}
	return s.change(ctx, "add", p.ID, func() raft.IndexFuture {
		return s.raft.AddNonvoter(raft.ServerID(p.ID), raft.ServerAddress(p.Address), 0, memberTimeout)
	})
}

// AddVoter lets a member vote. Before that it gets the key of the sealed
// secrets, since every voter can sign certificates; a member that cannot be
// reached is therefore not promoted.
func (s *Server) AddVoter(ctx context.Context, p Peer) error {
	s.rotating.Lock()
	defer s.rotating.Unlock()
	if p.ID != s.identity.NodeID {
		if err := s.giveSealKeys(ctx, p); err != nil {
			return err
		}
	}
	return s.change(ctx, "promote", p.ID, func() raft.IndexFuture {
		return s.raft.AddVoter(raft.ServerID(p.ID), raft.ServerAddress(p.Address), 0, memberTimeout)
	})
}

// DemoteVoter takes a member's vote; it still gets the log. RotationDue is true
// from then on.
func (s *Server) DemoteVoter(ctx context.Context, id string) error {
	return s.change(ctx, "demote", id, func() raft.IndexFuture { return s.raft.DemoteVoter(raft.ServerID(id), 0, memberTimeout) })
}

// RemoveServer takes a member out of Raft's configuration. Propose node.remove
// first: its process then learns why. The leader may remove itself; it leads until that is committed.
func (s *Server) RemoveServer(ctx context.Context, id string) error {
	return s.change(ctx, "remove", id, func() raft.IndexFuture { return s.raft.RemoveServer(raft.ServerID(id), 0, memberTimeout) })
}

func (s *Server) change(ctx context.Context, verb, id string, start func() raft.IndexFuture) error {
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	err := s.await(ctx, start())
	switch {
	case err == nil:
		s.logger.Info("the membership changed", "change", verb, "node", id)
		return nil
	case lostLeadership(err):
		return errNoLeader("this node does not lead: %v", err)
	case errors.Is(err, raft.ErrLeadershipLost), ctx.Err() != nil:
		return api.Errorf(api.CodeUnknown, "%s node %s: %v", verb, id, err).Do("look at the membership and repeat it")
	}
	return fmt.Errorf("%s node %s: %w", verb, id, err)
}

// PeerHealth is how the leader sees a member.
type PeerHealth struct {
	Membership
	LastContact time.Time `json:"last_contact,omitzero"` // of its last answer; zero: none since this leadership began
	Term        uint64    `json:"term"`
	Applied     uint64    `json:"applied"` // index of its state
	Behind      uint64    `json:"behind"`  // entries that the leader had committed and it had not applied
	Reason      string    `json:"reason,omitzero"`
}

// healthTable is what the leader learned of the others.
type healthTable struct {
	mu       sync.Mutex // guards what follows
	byID     map[string]PeerHealth
	diverged string // who differs from this node's state; empty: nobody
	doubtful bool   // and no quorum says that this node is right
}

func (t *healthTable) divergence() (text string, doubtful bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.diverged, t.doubtful
}

// Health is how the members are, by the leader's knowledge; on another node it
// lists the members without it.
func (s *Server) Health() []PeerHealth {
	members := s.Configuration()
	out := make([]PeerHealth, 0, len(members))
	s.health.mu.Lock()
	defer s.health.mu.Unlock()
	for _, m := range members {
		h := s.health.byID[m.ID]
		h.Membership = m
		if m.ID == s.identity.NodeID {
			h.LastContact, h.Term, h.Applied = time.Now(), s.raft.CurrentTerm(), s.state.Index()
		}
		out = append(out, h)
	}
	return out
}

// watchPeers asks every member how it is while this node leads.
func (s *Server) watchPeers(ctx context.Context) {
	s.health.mu.Lock()
	s.health.byID = map[string]PeerHealth{}
	s.health.mu.Unlock()
	for {
		var asks sync.WaitGroup
		for _, p := range s.others() {
			asks.Go(func() { s.askPeer(ctx, p) })
		}
		asks.Wait()
		s.yieldUnhealthy()
		if !waitFor(ctx, peersPoll) {
			return
		}
	}
}

func (s *Server) askPeer(ctx context.Context, p Peer) {
	client, err := s.peers.to(p.ID)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, peersAnswer)
	defer cancel()
	commit := s.raft.CommitIndex()
	status, err := client.Status(ctx, &rpc.Hello{Address: s.self})
	s.health.mu.Lock()
	h := s.health.byID[p.ID]
	if err != nil {
		h.Reason = "does not answer"
	} else {
		h.LastContact, h.Term, h.Applied, h.Reason = time.Now(), status.Term, status.Applied, status.JournalReason
		h.Behind = commit - min(commit, status.Commit)
	}
	s.health.byID[p.ID] = h
	s.health.mu.Unlock()
}

// yieldUnhealthy ends a leader that cannot write its journal while another
// voter can: mutations are refused as long as it leads.
func (s *Server) yieldUnhealthy() {
	err := s.journal.Healthy()
	if err == nil {
		return
	}
	for _, h := range s.Health() {
		if h.ID != s.identity.NodeID && h.Voter && h.Reason == "" && time.Since(h.LastContact) < 2*peersPoll {
			s.end(Fatal{ExitStatus: ExitRestart, Err: fmt.Errorf("this leader cannot write its journal and %s can: %w", h.Name, err)})
			return
		}
	}
}
