package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster"
	"github.com/debvisor/debvisor/fsm"
)

const (
	contactLate  = 5 * time.Second // without an answer a member is not healthy
	askLeaderFor = time.Second
)

// clusterStatus tells how the cluster looks: as its leader sees it, which
// knows when it last heard of whom, or else as this node does.
func (n *node) clusterStatus(ctx context.Context) (*api.ClusterStatus, error) {
	leader, ok := n.server.Leader()
	if ok && leader.ID != n.server.Self().ID && leader.Name != "" {
		if status, err := n.askStatus(ctx, leader); err == nil {
			return status, nil
		}
	}
	return n.localStatus(), nil
}

func (n *node) askStatus(ctx context.Context, leader cluster.Peer) (*api.ClusterStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, askLeaderFor)
	defer cancel()
	conn, err := n.tunnels.dial(ctx, leader.Name, tunnelStatus, nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(askLeaderFor))
	status := &api.ClusterStatus{}
	if err := json.NewDecoder(conn).Decode(status); err != nil {
		return nil, fmt.Errorf("read status: %w", err)
	}
	return status, nil
}

// serveStatus is the tunnel service of askStatus.
func (n *node) serveStatus(context.Context, string, json.RawMessage) (func(context.Context, net.Conn), error) {
	return func(_ context.Context, conn net.Conn) {
		if err := writeJSONLine(conn, n.localStatus()); err != nil {
			n.logger.Debug("status was not taken", "error", err)
		}
	}, nil
}

// localStatus is the cluster as this node sees it.
func (n *node) localStatus() *api.ClusterStatus {
	view, stats := n.server.State().Read(), n.server.Stats()
	status := &api.ClusterStatus{
		ClusterID: n.server.ClusterID(), Leader: stats.Leader.Name, Term: stats.Term, Index: view.Index(),
		ClusterVersion: view.ClusterVersion(), Members: []api.Member{},
	}
	if config := fsm.Configs.Get(view, api.ConfigName); config != nil {
		status.Region = config.Region
	}
	health := map[string]cluster.PeerHealth{}
	for _, h := range n.server.Health() {
		health[h.ID] = h
	}
	now := time.Now()
	for row := range fsm.Nodes.All(view) {
		h, member := health[row.ID]
		m := api.Member{
			Name: row.Name, ID: row.ID, Address: row.Address, Voter: h.Voter, Witness: row.Witness, Leader: row.ID == stats.Leader.ID,
			Lease: row.Lease, Version: row.Version, ClusterVersion: row.ClusterVersion,
		}
		if row.ID != stats.Self.ID && !h.LastContact.IsZero() {
			m.LastContactMS = max(1, now.Sub(h.LastContact).Milliseconds())
		}
		m.Reason = n.memberReason(row, h, member, stats)
		m.Healthy = m.Reason == ""
		status.Members = append(status.Members, m)
		for _, p := range row.Pools {
			if p.Warning != "" {
				status.Warnings = append(status.Warnings, fmt.Sprintf("pool %s of %s is %s", p.Pool, row.Name, p.Warning))
			}
		}
	}
	summarise(status)
	status.Survival = n.survival.of(view)
	return status
}

// memberReason is why a member is not healthy, or "".
func (n *node) memberReason(row *api.Node, h cluster.PeerHealth, member bool, stats cluster.Stats) string {
	leading := stats.Leader.ID == stats.Self.ID
	switch {
	case !member:
		return "it does not get the log yet"
	case h.Reason != "":
		return h.Reason
	case leading && row.ID != stats.Self.ID && !h.LastContact.IsZero() && time.Since(h.LastContact) > contactLate:
		return "it was not heard for " + duration(time.Since(h.LastContact))
	case row.Lease == api.NodeFenced && row.Epoch == 0:
		return "it has not registered yet"
	case row.Lease == api.NodeFenced:
		return "its lease ended"
	}
	return n.gossip.memberReason(row)
}

// summarise sets what a person wants to know first.
func summarise(s *api.ClusterStatus) {
	healthy, voters := 0, 0
	for _, m := range s.Members {
		if m.Healthy {
			healthy++
		}
		if m.Voter {
			voters++
		}
	}
	s.Healthy = s.Leader != "" && healthy == len(s.Members)
	s.Summary = fmt.Sprintf("%d of %d nodes healthy, %d vote", healthy, len(s.Members), voters)
	if s.Leader == "" {
		s.Summary += "; nobody leads"
	}
}
