package cluster

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/rpc"
)

// inbound takes Raft's connections from other nodes. Raft believes the ID that
// a message claims: it counts votes and follows leaders by it. A network
// transport does not tell from which connection a message came, so each peer
// gets one of its own, and what comes out of it must claim the ID of the
// certificate.
type inbound struct {
	accept  net.Listener // of connections with an identity
	logger  hclog.Logger
	consume chan raft.RPC
	done    chan struct{}
	once    sync.Once
	wait    sync.WaitGroup

	mu    sync.Mutex // guards peers
	peers map[string]*peerStreams
}

func newInbound(accept net.Listener, logger hclog.Logger) *inbound {
	in := &inbound{accept: accept, logger: logger, consume: make(chan raft.RPC), done: make(chan struct{}), peers: map[string]*peerStreams{}}
	in.wait.Go(in.run)
	return in
}

// run hands each connection to its peer's transport until the listener closes.
func (in *inbound) run() {
	for {
		conn, err := in.accept.Accept()
		if err != nil {
			return
		}
		node, ok := conn.(rpc.NodeConn)
		if !ok || !in.hand(node) {
			_ = conn.Close()
		}
	}
}

func (in *inbound) hand(conn rpc.NodeConn) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	select {
	case <-in.done:
		return false
	default:
	}
	p := in.peers[conn.NodeID()]
	if p == nil {
		if len(in.peers) >= peersMax {
			return false
		}
		p = in.newPeer(conn.NodeID())
		in.peers[conn.NodeID()] = p
	}
	select {
	case p.queue <- conn:
		return true
	default:
		return false // so many at once are no peer's
	}
}

const (
	peersMax        = 2 * api.NodesMax // with an inbound transport; some may have been removed just now
	peerConnections = 16               // of one peer that wait to be served
)

// newPeer begins to serve one peer. The caller holds mu.
func (in *inbound) newPeer(id string) *peerStreams {
	p := &peerStreams{id: id, address: in.accept.Addr(), queue: make(chan net.Conn, peerConnections), done: make(chan struct{})}
	p.trans = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: p, Logger: in.logger, MaxPool: 1, Timeout: raftTimeout, MsgpackUseNewTimeFormat: true,
	})
	in.wait.Go(func() { in.pump(p) })
	return p
}

// pump passes on what a peer says in its own name.
func (in *inbound) pump(p *peerStreams) {
	for {
		var call raft.RPC
		select {
		case call = <-p.trans.Consumer():
		case <-p.done:
			return
		}
		if claimed, ok := claimedID(call); !ok || claimed != p.id {
			in.logger.Warn("a node spoke in another's name", "node", p.id, "claimed", claimed)
			call.Respond(nil, errImpostor)
			continue
		}
		select {
		case in.consume <- call:
		case <-p.done:
			return
		}
	}
}

var errImpostor = errors.New("the message claims another node than the certificate of its connection")

func claimedID(call raft.RPC) (string, bool) {
	header, ok := call.Command.(raft.WithRPCHeader)
	if !ok {
		return "", false
	}
	return string(header.GetRPCHeader().ID), true
}

// forget ends the transports of nodes that were removed.
func (in *inbound) forget(removed func(id string) bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for id, p := range in.peers {
		if removed(id) {
			_ = p.trans.Close() // it never fails
			delete(in.peers, id)
		}
	}
}

// close ends every peer's transport and waits for what was started here.
func (in *inbound) close() error {
	in.once.Do(func() {
		in.mu.Lock()
		close(in.done)
		in.mu.Unlock()
		_ = in.accept.Close() // it only stops accepting
		in.forget(func(string) bool { return true })
	})
	in.wait.Wait()
	return nil
}

// peerStreams is the raft.StreamLayer of one peer: connections from it only.
type peerStreams struct {
	id      string
	address net.Addr
	trans   *raft.NetworkTransport
	queue   chan net.Conn
	done    chan struct{}
	once    sync.Once
}

// Accept implements net.Listener.
func (p *peerStreams) Accept() (net.Conn, error) {
	select {
	case conn := <-p.queue:
		return conn, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (p *peerStreams) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

// Addr implements net.Listener.
func (p *peerStreams) Addr() net.Addr { return p.address }

// Dial implements raft.StreamLayer. Nothing is sent through it.
func (p *peerStreams) Dial(address raft.ServerAddress, _ time.Duration) (net.Conn, error) {
	return nil, fmt.Errorf("dial %s: this transport only receives", address)
}
