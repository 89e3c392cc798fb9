package main

import (
	"context"
	"encoding/json"
	"net"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

const foreignAnswerBytes = 16 << 20 // of one node, encoded

// foreign is the machine's view of guests that others made; nil: it has none.
func (m *machine) foreign() plugins.Foreign {
	hypervisor := m.hypervisor
	if s, ok := hypervisor.(shared); ok {
		hypervisor = s.Hypervisor
	}
	f, _ := hypervisor.(plugins.Foreign)
	return f
}

// ForeignDomains asks this node, or another one through a tunnel.
func (n *node) ForeignDomains(ctx context.Context, name string) (api.ForeignDomains, error) {
	if name == n.server.Self().Name {
		return n.agent.ForeignDomains(ctx)
	}
	var out api.ForeignDomains
	err := n.tunnels.ask(ctx, name, tunnelForeign, struct{}{}, foreignAnswerBytes, &out)
	return out, err
}

// serveForeign is the tunnel service that lists this machine's for another node.
func (n *node) serveForeign(ctx context.Context, _ string, _ json.RawMessage) (func(context.Context, net.Conn), error) {
	out, err := n.agent.ForeignDomains(ctx)
	if err != nil {
		return nil, err
	}
	return n.reply(out), nil
}
