package cluster_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/debvisor/debvisor/cluster"
	"github.com/debvisor/debvisor/cluster/gossip"
	"github.com/debvisor/debvisor/fsm"
)

// gossipOn starts gossip on a node's port, as the agent does.
func gossipOn(t *testing.T, n *node) *gossip.Gossip {
	t.Helper()
	keys, err := n.GossipKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	g, err := gossip.Start(gossip.Config{
		ID: n.Self().ID, Meta: gossip.Meta{Name: n.name}, Advertise: n.Self().Address, Keys: keys, Streams: n.Gossip(), LocalTiming: true,
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return n.DialAddress(ctx, address, cluster.ProtocolGossip)
		},
		Known: func(id string) bool {
			for range fsm.Nodes.By(n.State().Read(), "id_of", id) {
				return true
			}
			return false
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close(0) })
	return g
}

func TestGossipSharesThePortAndRaftDoesNotFollowIt(t *testing.T) {
	t.Parallel()
	c := start(t, 3, nil)
	all := map[*node]*gossip.Gossip{}
	var peers []gossip.Peer
	for _, n := range c.nodes {
		all[n] = gossipOn(t, n)
		peers = append(peers, gossip.Peer{ID: n.Self().ID, Address: n.Self().Address})
	}
	for _, g := range all {
		if _, err := g.Join(peers); err != nil {
			t.Fatal(err)
		}
	}
	c.eventually("everybody sees everybody", func() bool {
		for _, g := range all {
			for _, p := range peers {
				if !g.Alive(p.ID) {
					return false
				}
			}
		}
		return true
	})
	gone := c.follower()
	if err := all[gone].Close(time.Second); err != nil {
		t.Fatal(err)
	}
	l := c.waitLeader()
	c.eventually("its departure is seen", func() bool { return !all[l].Alive(gone.Self().ID) })
	if members := l.Configuration(); len(members) != 3 {
		t.Fatalf("raft followed gossip: %v", members)
	}
	c.must(gone, tenant("still-a-member"))
}

func TestTunnelsConnectNodesThatAreWhoTheySay(t *testing.T) {
	t.Parallel()
	c := start(t, 2, nil)
	a, b := c.nodes[0], c.nodes[1]
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, err := b.Tunnel().Accept()
		if err == nil {
			accepted <- conn
		}
	}()
	c.eventually("the row is here", func() bool { return fsm.Nodes.Get(a.State().Read(), b.name) != nil })
	conn, err := a.DialNode(t.Context(), b.Self().ID, cluster.ProtocolTunnel)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	got := <-accepted
	defer func() { _ = got.Close() }()
	if id := got.(interface{ NodeID() string }).NodeID(); id != a.Self().ID {
		t.Fatalf("the tunnel is from %s, want %s", id, a.Self().ID)
	}
}
