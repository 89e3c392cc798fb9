package main

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster"
	"github.com/debvisor/debvisor/cluster/gossip"
	"github.com/debvisor/debvisor/fsm"
)

const (
	gossipRound   = 5 * time.Second // between looks at the keys and at who is missing
	gossipGoodbye = time.Second
)

// gossiper keeps this node in the gossip. What it hears is shown and nothing
// depends on it.
type gossiper struct {
	server *cluster.Server
	logger hclog.Logger
	now    atomic.Pointer[gossip.Gossip]
}

// run takes part until ctx ends. A node whose gossip does not start goes on
// without.
func (g *gossiper) run(ctx context.Context) error {
	ticker := time.NewTicker(gossipRound)
	defer ticker.Stop()
	for {
		if err := g.round(ctx); err != nil && ctx.Err() == nil {
			level := hclog.Warn
			if g.now.Load() == nil && api.CodeOf(err) == api.CodeNoLeader {
				level = hclog.Debug // Raft says the same, louder
			}
			g.logger.Log(level, "gossip does not start yet", "error", err)
		}
		select {
		case <-ctx.Done():
			if running := g.now.Load(); running != nil {
				return running.Close(gossipGoodbye)
			}
			return nil
		case <-ticker.C:
		}
	}
}

func (g *gossiper) round(ctx context.Context) error {
	keys, err := g.server.GossipKeys(ctx)
	if err != nil {
		return err
	}
	running := g.now.Load()
	if running == nil {
		if running, err = g.start(ctx, keys); err != nil {
			return err
		}
		g.now.Store(running)
	} else if err := running.SetKeys(keys); err != nil {
		return err
	}
	var missing []gossip.Peer
	for n := range fsm.Nodes.All(g.server.State().Read()) {
		if n.ID == g.server.Self().ID || running.Alive(n.ID) {
			continue
		}
		if address, err := resolve(ctx, n.Address); err == nil {
			missing = append(missing, gossip.Peer{ID: n.ID, Address: address})
		}
	}
	if _, err := running.Join(missing); err != nil {
		g.logger.Debug("nobody of the missing answers", "error", err)
	}
	return nil
}

func (g *gossiper) start(ctx context.Context, keys [][]byte) (*gossip.Gossip, error) {
	self := g.server.Self()
	address, err := resolve(ctx, self.Address)
	if err != nil {
		return nil, err
	}
	return gossip.Start(gossip.Config{
		ID: self.ID, Meta: gossip.Meta{Name: self.Name, Version: version}, Advertise: address, Keys: keys,
		Streams: g.server.Gossip(),
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return g.server.DialAddress(ctx, address, cluster.ProtocolGossip)
		},
		Known: func(id string) bool {
			for range fsm.Nodes.By(g.server.State().Read(), "id_of", id) {
				return true
			}
			return false
		},
		Logger: g.logger,
	})
}

// resolve is the address with an IP for its host.
func resolve(ctx context.Context, address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", fmt.Errorf("address %s: %w", address, err)
	}
	if net.ParseIP(host) != nil {
		return address, nil
	}
	found, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return "", fmt.Errorf("look up %s: %w", host, err)
	}
	return net.JoinHostPort(found[0], port), nil
}

// suspects reports whether gossip says that the node stopped answering.
func (g *gossiper) suspects(id string) bool {
	running := g.now.Load()
	if running == nil {
		return false
	}
	for _, m := range running.Members() {
		if m.ID == id {
			return m.State != gossip.StateAlive
		}
	}
	return false
}

// memberReason is why a member does not look healthy from here, or "".
func (g *gossiper) memberReason(n *api.Node) string {
	if n.ID != g.server.Self().ID && g.suspects(n.ID) {
		return "it stopped answering (gossip)"
	}
	return ""
}
