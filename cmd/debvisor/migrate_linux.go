package main

import (
	"context"
	"encoding/json"
	"net"

	"github.com/debvisor/debvisor/agent"
	"github.com/debvisor/debvisor/api"
)

// openMigration opens a stream of a migration to the agent of another node.
func (n *node) openMigration(ctx context.Context, to string, s agent.MigrationStream) (net.Conn, error) {
	return n.tunnels.dial(ctx, to, tunnelMigrate, s)
}

// serveMigration is the tunnel service that takes the streams of migrations to
// this node. The agent refuses those that the replicated state knows nothing of.
func (n *node) serveMigration(ctx context.Context, peerID string, argument json.RawMessage) (func(context.Context, net.Conn), error) {
	var s agent.MigrationStream
	if err := json.Unmarshal(argument, &s); err != nil {
		return nil, api.Invalid("argument", "is not understood: %v", err)
	}
	return n.agent.Arrive(ctx, peerID, s)
}
