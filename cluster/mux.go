package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/api"
)

// The protocols of the one port, as ALPN names them.
const (
	ProtocolHTTP1  = "http/1.1"
	ProtocolHTTP2  = "h2"
	ProtocolRPC    = "debvisor-rpc"
	ProtocolJoin   = "debvisor-join"
	ProtocolRaft   = "debvisor-raft"
	ProtocolGossip = "debvisor-gossip"
	ProtocolTunnel = "debvisor-tunnel"
)

// Limits of the one port.
const (
	handshakesMax    = 128             // at a time; further connections wait in the kernel's queue
	handshakeTimeout = 5 * time.Second // from accept to a finished handshake
	connectionsMax   = 16384           // open at a time, of all protocols
	clientsMax       = 8192            // of these, without the certificate of a node; the rest is for nodes
	joiningMax       = 64              // of these, to join
	queuedMax        = 256             // accepted by the mux and not yet by their protocol
	acceptPause      = 50 * time.Millisecond
)

// nodeProtocols demand the certificate of a node.
func nodeProtocols() []string {
	return []string{ProtocolRPC, ProtocolRaft, ProtocolGossip, ProtocolTunnel}
}

// mux is the one TCP port: it ends TLS and hands each connection to the
// protocol that ALPN chose. Who must prove to be a node is decided by the
// protocol, before a byte of it is read.
type mux struct {
	listener net.Listener
	logger   hclog.Logger
	trust    *trust
	cert     func() *tls.Certificate
	allowed  func(nodeID string) error // refuses removed nodes

	handshakes chan struct{} // one slot for each handshake in progress
	open       atomic.Int64
	clients    atomic.Int64 // connections of the API and of nodes that join
	joining    atomic.Int64 // the latter
	wait       sync.WaitGroup
	done       chan struct{}
	stopOnce   sync.Once

	mu        sync.Mutex // guards below
	protocols map[string]*protocol
	conns     map[net.Conn]struct{}
	closing   bool
}

func newMux(listener net.Listener, logger hclog.Logger, t *trust, cert func() *tls.Certificate, allowed func(string) error) *mux {
	return &mux{
		listener: listener, logger: logger, trust: t, cert: cert, allowed: allowed,
		handshakes: make(chan struct{}, handshakesMax), done: make(chan struct{}),
		protocols: map[string]*protocol{}, conns: map[net.Conn]struct{}{},
	}
}

// listen opens the queue of some protocols; their connections come out of the
// listener that it returns.
func (m *mux) listen(names ...string) *protocol {
	p := &protocol{mux: m, queue: make(chan net.Conn, queuedMax), done: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range names {
		m.protocols[name] = p
	}
	return p
}

// serve accepts until close. It waits for a free handshake slot before it
// accepts, so that a flood stays in the kernel's queue.
func (m *mux) serve() {
	for {
		select {
		case m.handshakes <- struct{}{}:
		case <-m.done:
			return
		}
		conn, err := m.listener.Accept()
		if err != nil {
			<-m.handshakes
			if errors.Is(err, net.ErrClosed) {
				return
			}
			m.logger.Warn("accept", "error", err)
			select {
			case <-time.After(acceptPause): // out of descriptors, most likely
			case <-m.done:
				return
			}
			continue
		}
		if !m.begin(conn) {
			<-m.handshakes
			_ = conn.Close()
			return
		}
	}
}

// begin starts the handshake of a connection, unless the port is being closed:
// nothing may be counted any more once somebody waits for the count.
func (m *mux) begin(conn net.Conn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closing {
		return false
	}
	m.wait.Go(func() { m.handshake(conn) })
	return true
}

func (m *mux) handshake(raw net.Conn) {
	conn, name, err := m.secure(raw)
	<-m.handshakes
	if err != nil {
		m.logger.Debug("connection refused", "remote", raw.RemoteAddr(), "error", err)
		_ = raw.Close()
		return
	}
	m.mu.Lock()
	p := m.protocols[name]
	m.mu.Unlock()
	if p == nil || !p.offer(conn) {
		_ = conn.Close()
	}
}

// secure does the handshake and finds the protocol.
func (m *mux) secure(raw net.Conn) (net.Conn, string, error) {
	if m.open.Add(1) > connectionsMax {
		m.open.Add(-1)
		return nil, "", fmt.Errorf("%d connections are open", connectionsMax)
	}
	t := &tracked{mux: m, Conn: raw}
	m.mu.Lock()
	m.conns[t] = struct{}{}
	m.mu.Unlock()
	conn := tls.Server(t, m.serverConfig())
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = t.Close()
		return nil, "", err
	}
	state := conn.ConnectionState()
	name := state.NegotiatedProtocol
	if name == "" {
		name = ProtocolHTTP1
	}
	if !slices.Contains(nodeProtocols(), name) {
		if err := t.countClient(name == ProtocolJoin); err != nil {
			_ = t.Close()
			return nil, "", err
		}
		return conn, name, nil
	}
	id, err := m.trust.nodeOf(state.PeerCertificates)
	if err == nil && name != ProtocolRPC {
		err = m.allowed(id) // RPC tells a removed node that it was removed
	}
	if err != nil {
		_ = conn.Close()
		return nil, "", err
	}
	t.node.Store(id)
	return &nodeConn{Conn: conn, id: id}, name, nil
}

// serverConfig chooses what is asked of the client by what the client offers:
// a certificate for the node protocols, none for a join, an optional one for
// the API.
func (m *mux) serverConfig() *tls.Config {
	base := func(protocols ...string) *tls.Config {
		return &tls.Config{
			MinVersion:     tls.VersionTLS13,
			NextProtos:     protocols,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return m.cert(), nil },
		}
	}
	config := base(ProtocolHTTP2, ProtocolHTTP1)
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		switch {
		case slices.ContainsFunc(hello.SupportedProtos, func(p string) bool { return slices.Contains(nodeProtocols(), p) }):
			c := base(nodeProtocols()...)
			c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, m.trust.pool
			c.SessionTicketsDisabled = true // each connection proves its certificate anew
			return c, nil
		case slices.Contains(hello.SupportedProtos, ProtocolJoin):
			return base(ProtocolJoin), nil
		}
		c := base(ProtocolHTTP2, ProtocolHTTP1)
		c.ClientAuth, c.ClientCAs = tls.VerifyClientCertIfGiven, m.trust.pool
		return c, nil
	}
	return config
}

// close stops accepting, and ends every connection that is still open.
func (m *mux) close() {
	m.stopOnce.Do(func() {
		close(m.done)
		_ = m.listener.Close()
	})
	m.mu.Lock()
	m.closing = true
	conns := make([]net.Conn, 0, len(m.conns))
	for c := range m.conns {
		conns = append(conns, c)
	}
	for _, p := range m.protocols {
		p.stop()
	}
	m.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
	m.wait.Wait()
}

// dropNode ends the open connections of a node that was removed.
func (m *mux) dropNode(match func(nodeID string) bool) {
	m.mu.Lock()
	var drop []net.Conn
	for c := range m.conns {
		if t, ok := c.(*tracked); ok {
			if id, ok := t.node.Load().(string); ok && match(id) {
				drop = append(drop, c)
			}
		}
	}
	m.mu.Unlock()
	for _, c := range drop {
		_ = c.Close()
	}
}

// tracked counts an open connection until it is closed.
type tracked struct {
	net.Conn
	mux  *mux
	once sync.Once
	node atomic.Value // string: the node behind it

	counts []*atomic.Int64 // of its class, to be lowered by Close; guarded by mux.mu
}

// countClient refuses a connection without a node's certificate when there are
// too many, so that a flood of clients leaves room for the nodes.
func (t *tracked) countClient(joins bool) error {
	t.mux.mu.Lock()
	defer t.mux.mu.Unlock()
	t.counts = append(t.counts, &t.mux.clients)
	if n := t.mux.clients.Add(1); n > clientsMax {
		return fmt.Errorf("%d clients are connected", n-1)
	}
	if !joins {
		return nil
	}
	t.counts = append(t.counts, &t.mux.joining)
	if n := t.mux.joining.Add(1); n > joiningMax {
		return fmt.Errorf("%d nodes are joining", n-1)
	}
	return nil
}

func (t *tracked) Close() error {
	t.once.Do(func() {
		t.mux.open.Add(-1)
		t.mux.mu.Lock()
		delete(t.mux.conns, t)
		counts := t.counts
		t.mux.mu.Unlock()
		for _, c := range counts {
			c.Add(-1)
		}
	})
	return t.Conn.Close()
}

// nodeConn is a connection from a node.
type nodeConn struct {
	*tls.Conn
	id string
}

// NodeID is the identity in the peer's certificate.
func (c *nodeConn) NodeID() string { return c.id }

// protocol is the queue of accepted connections of one or more protocols. It
// is a net.Listener.
type protocol struct {
	mux   *mux
	queue chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (p *protocol) offer(conn net.Conn) bool {
	select {
	case <-p.done:
		return false
	default:
	}
	select {
	case p.queue <- conn:
		return true
	default:
		return false // nobody accepts: better refused than kept
	}
}

// Accept implements net.Listener.
func (p *protocol) Accept() (net.Conn, error) {
	select {
	case conn := <-p.queue:
		return conn, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *protocol) stop() { p.once.Do(func() { close(p.done) }) }

// Close implements net.Listener. It ends this protocol only.
func (p *protocol) Close() error {
	p.stop()
	return nil
}

// Addr implements net.Listener.
func (p *protocol) Addr() net.Addr { return p.mux.listener.Addr() }

// bind opens the port, with an error that says what to do.
func bind(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, &api.Error{Code: api.CodeUnavailable, Field: "listen", Message: fmt.Sprintf("cannot listen on %s: %v", address, err),
			Next: "stop what uses the port, or choose another address"}
	}
	return l, nil
}
