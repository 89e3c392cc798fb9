package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster"
	"github.com/debvisor/debvisor/cluster/control"
	"github.com/debvisor/debvisor/fsm"
)

const (
	caughtUpMax = 64              // entries that a member may be behind
	renewWait   = 2 * time.Second // for the leader's answer to a renewal
)

// membership lets the leader's loop read and change Raft's configuration.
type membership struct{ server *cluster.Server }

// Configuration implements control.Membership.
func (m membership) Configuration() ([]control.Server, error) {
	var out []control.Server
	for _, s := range m.server.Configuration() {
		out = append(out, control.Server{ID: s.ID, Address: s.Address, Voter: s.Voter})
	}
	if len(out) == 0 {
		return nil, api.Errorf(api.CodeUnavailable, "the configuration cannot be read now")
	}
	return out, nil
}

func (m membership) peer(id, address string) cluster.Peer {
	p := cluster.Peer{ID: id, Address: address}
	for n := range fsm.Nodes.By(m.server.State().Read(), "id_of", id) {
		p.Name = n.Name
	}
	return p
}

// AddVoter implements control.Membership.
func (m membership) AddVoter(ctx context.Context, id, address string) error {
	return m.server.AddVoter(ctx, m.peer(id, address))
}

// AddNonvoter implements control.Membership.
func (m membership) AddNonvoter(ctx context.Context, id, address string) error {
	return m.server.AddNonvoter(ctx, m.peer(id, address))
}

// Demote implements control.Membership.
func (m membership) Demote(ctx context.Context, id string) error {
	return m.server.DemoteVoter(ctx, id)
}

// Remove implements control.Membership.
func (m membership) Remove(ctx context.Context, id string) error {
	return m.server.RemoveServer(ctx, id)
}

// Healthy implements control.Membership.
func (m membership) Healthy(id string) (caughtUp bool, lastContact time.Duration) {
	for _, h := range m.server.Health() {
		if h.ID == id && !h.LastContact.IsZero() {
			return h.Behind <= caughtUpMax && h.Reason == "", time.Since(h.LastContact)
		}
	}
	return false, time.Hour // never heard of
}

// lead runs the leader's loops whenever this node leads, until ctx ends.
func (n *node) lead(ctx context.Context) error {
	return n.server.Lead(ctx, func(ctx context.Context) error {
		return n.control.Run(ctx, n.server.Stats().Term)
	})
}

// renewals carries this node's lease renewals to whoever leads, over one
// connection for as long as the leader stays.
type renewals struct {
	node *node

	mu     sync.Mutex // guards what follows; one renewal at a time
	leader string
	conn   net.Conn
}

// renewAnswer is the leader's line to a renewal.
type renewAnswer struct {
	Error *api.Error `json:"error,omitzero"`
}

// Renew hands a renewal to the leader and waits until this node's replica
// shows it. It blocks for 2 seconds at most, twice.
func (r *renewals) Renew(ctx context.Context, in fsm.Renewal) error {
	leader, ok := r.node.server.Leader()
	if !ok {
		return api.Errorf(api.CodeNoLeader, "nobody leads")
	}
	ctx, cancel := context.WithTimeout(ctx, renewWait)
	defer cancel()
	var err error
	if leader.ID == r.node.server.Self().ID {
		err = r.node.control.Renew(in)
	} else {
		err = r.send(ctx, leader, in)
	}
	if err != nil {
		return err
	}
	return r.awaitStored(ctx, in)
}

// awaitStored waits until the renewal is in the replica, or can no longer be.
func (r *renewals) awaitStored(ctx context.Context, in fsm.Renewal) error {
	for {
		view := r.node.server.State().Read()
		lease := fsm.Leases.Get(view, in.Node)
		switch {
		case lease == nil || lease.Epoch > in.Epoch:
			return api.Errorf(api.CodeConflict, "the lease at epoch %d has ended", in.Epoch).On(api.KindNode, in.Node)
		case lease.Epoch == in.Epoch && lease.Seq >= in.Seq:
			return nil
		}
		select {
		case <-fsm.Leases.WatchKey(view, in.Node):
		case <-ctx.Done():
			return api.Errorf(api.CodeUnknown, "the renewal was handed over and is not stored yet").On(api.KindNode, in.Node)
		}
	}
}

// send gives the renewal to the leader over the connection to it.
func (r *renewals) send(ctx context.Context, leader cluster.Peer, in fsm.Renewal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn != nil && r.leader != leader.ID {
		r.drop()
	}
	if r.conn == nil {
		conn, err := r.node.tunnels.dial(ctx, leader.Name, tunnelRenew, nil)
		if err != nil {
			return err
		}
		r.conn, r.leader = conn, leader.ID
	}
	var answer renewAnswer
	_ = r.conn.SetDeadline(time.Now().Add(renewWait))
	err := writeJSONLine(r.conn, in)
	if err == nil {
		err = readJSONLine(r.conn, &answer)
	}
	if err != nil {
		r.drop()
		return api.Errorf(api.CodeUnavailable, "the leader did not take the renewal: %v", err)
	}
	if answer.Error != nil {
		return answer.Error
	}
	return nil
}

func (r *renewals) drop() {
	_ = r.conn.Close()
	r.conn = nil
}

// close lets go of the connection.
func (r *renewals) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn != nil {
		r.drop()
	}
}

// serveRenewals is the tunnel service that takes renewals. A node renews its
// own lease only.
func (n *node) serveRenewals(_ context.Context, peerID string, _ json.RawMessage) (func(context.Context, net.Conn), error) {
	return func(ctx context.Context, conn net.Conn) {
		for ctx.Err() == nil {
			var in fsm.Renewal
			if readJSONLine(conn, &in) != nil {
				return
			}
			answer := renewAnswer{}
			if err := n.takeRenewal(peerID, in); err != nil {
				answer.Error = api.AsError(err)
			}
			if writeJSONLine(conn, answer) != nil {
				return
			}
		}
	}, nil
}

func (n *node) takeRenewal(peerID string, in fsm.Renewal) error {
	row := fsm.Nodes.Get(n.server.State().Read(), in.Node)
	if row == nil || row.ID != peerID {
		return api.Errorf(api.CodeForbidden, "node %s renewed the lease of %s", peerID, in.Node).Do("each node renews its own lease")
	}
	return n.control.Renew(in)
}

// newControl makes the leader's loops.
func (n *node) newControl(doers map[string]control.Doer) error {
	n.stamps = control.NewStamps(n.server.State(), nil)
	var err error
	n.control, err = control.New(control.Config{
		Cluster: n.server, Self: n.server.Self().Name, ID: n.server.Self().ID, Placer: placer{}, Membership: membership{n.server}, Secrets: n.server,
		Stamps: n.stamps, Logger: n.logger, Doers: doers,
	})
	if err != nil {
		return fmt.Errorf("prepare the leader's loops: %w", err)
	}
	return nil
}
