package main

import (
	"context"
	"encoding/json"
	"net"

	"github.com/debvisor/debvisor/api"
)

const statsAnswerBytes = 16 << 20 // of one node, encoded: some 600 bytes a guest

// statsRequest is the argument of the tunnel service "stats".
type statsRequest struct {
	VMs bool   `json:"vms,omitzero"` // every guest
	VM  string `json:"vm,omitzero"`  // ID; neither: the node itself
	api.StatsQuery
}

// nodeStatistics asks this node, or another one through a tunnel.
type nodeStatistics struct{ n *node }

// Node implements httpd.Stats.
func (s nodeStatistics) Node(ctx context.Context, node string, q api.StatsQuery) (*api.NodeStats, error) {
	if node == s.n.server.Self().Name {
		return s.n.agent.NodeStats(q)
	}
	out := &api.NodeStats{}
	err := s.ask(ctx, node, statsRequest{StatsQuery: q}, out)
	return out, err
}

// VMs implements httpd.Stats.
func (s nodeStatistics) VMs(ctx context.Context, node string) ([]api.VMStats, error) {
	if node == s.n.server.Self().Name {
		return s.n.agent.VMStats()
	}
	var out []api.VMStats
	err := s.ask(ctx, node, statsRequest{VMs: true}, &out)
	return out, err
}

// VM implements httpd.Stats.
func (s nodeStatistics) VM(ctx context.Context, node, vmID string, q api.StatsQuery) (*api.VMStats, error) {
	if node == s.n.server.Self().Name {
		return s.n.agent.VM(ctx, vmID, q)
	}
	out := &api.VMStats{}
	err := s.ask(ctx, node, statsRequest{VM: vmID, StatsQuery: q}, out)
	return out, err
}

// ask never waits longer than one node's part may take.
func (s nodeStatistics) ask(ctx context.Context, node string, in statsRequest, out any) error {
	ctx, cancel := context.WithTimeout(ctx, api.StatsNodeTimeout)
	defer cancel()
	err := s.n.tunnels.ask(ctx, node, tunnelStats, in, statsAnswerBytes, out)
	if err != nil && ctx.Err() != nil {
		return api.Errorf(api.CodeUnavailable, "node %s did not answer within %v", node, api.StatsNodeTimeout).Do("see whether it runs: debvisor cluster status")
	}
	return err
}

// serveStats is the tunnel service that tells another node what this one does.
func (n *node) serveStats(ctx context.Context, _ string, argument json.RawMessage) (func(context.Context, net.Conn), error) {
	var in statsRequest
	if err := json.Unmarshal(argument, &in); err != nil {
		return nil, api.Invalid("argument", "is no request for statistics")
	}
	var out any
	var err error
	switch {
	case in.VMs:
		out, err = n.agent.VMStats()
	case in.VM != "":
		out, err = n.agent.VM(ctx, in.VM, in.StatsQuery)
	default:
		out, err = n.agent.NodeStats(in.StatsQuery)
	}
	if err != nil {
		return nil, err
	}
	return n.reply(out), nil
}
