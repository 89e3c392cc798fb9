package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/rpc"
)

const (
	dialTimeout     = 3 * time.Second // to another node, handshake included
	raftTimeout     = 5 * time.Second // one Raft call; a snapshot gets more by its size
	raftPool        = 3               // idle Raft connections kept for each peer
	tcpKeepalive    = 10 * time.Second
	connectionsIdle = 1024 // RPC connections kept; more than the nodes of a cluster
)

// dialer opens secured connections to other nodes.
type dialer struct {
	trust *trust
	cert  func() *tls.Certificate
	tcp   func(ctx context.Context, address string) (net.Conn, error)
}

// dial connects to a node for one protocol. The other end must prove to be the
// node id of this cluster; an empty id accepts any of its nodes.
func (d *dialer) dial(ctx context.Context, id, address, proto string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := d.tcp(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{proto},
		// Nodes are known by the identity in their certificate, not by a host
		// name, so the standard check is replaced by the one below.
		InsecureSkipVerify:   true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return d.cert(), nil },
		VerifyConnection: func(state tls.ConnectionState) error {
			have, err := d.trust.nodeOf(state.PeerCertificates)
			if err == nil && id != "" && have != id {
				err = fmt.Errorf("%s is node %s, not %s", address, have, id)
			}
			if err == nil && state.NegotiatedProtocol != proto {
				err = fmt.Errorf("%s does not speak %s", address, proto)
			}
			return err
		},
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	return conn, nil
}

// dialPinned connects to a node that is known by the pin of its CA only, for a
// join. It returns the CA certificate that the other end showed.
func dialPinned(ctx context.Context, address string, want [32]byte) (net.Conn, *x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, nil, &api.Error{Code: api.CodeUnavailable, Message: fmt.Sprintf("cannot reach %s: %v", address, err), Next: "check the host and port after the @ of the token"}
	}
	var ca *x509.Certificate
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{ProtocolJoin}, InsecureSkipVerify: true, // the pin decides
		VerifyConnection: func(state tls.ConnectionState) error {
			for _, c := range state.PeerCertificates {
				if c.IsCA && pin(c) == want {
					ca = c
				}
			}
			if ca == nil {
				return errWrongCA
			}
			pool := x509.NewCertPool()
			pool.AddCert(ca)
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
			return err
		},
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		if errors.Is(err, errWrongCA) {
			return nil, nil, api.Errorf(api.CodeForbidden, "%s is not a node of the cluster that made the token: its CA is another", address).
				Do("check the host, and make a new token on that cluster")
		}
		return nil, nil, &api.Error{Code: api.CodeUnavailable, Message: fmt.Sprintf("%s does not answer as a debvisor node: %v", address, err), Next: "check the host and port after the @ of the token"}
	}
	return conn, ca, nil
}

var errWrongCA = errors.New("the CA is not the one of the token")

// streams is the raft.StreamLayer for connections to other nodes; what comes
// in is inbound's.
type streams struct {
	dialer *dialer
	idOf   func(address string) string
	self   string // advertised address
	done   chan struct{}
	once   sync.Once
}

// Accept implements net.Listener. It blocks until Close.
func (s *streams) Accept() (net.Conn, error) {
	<-s.done
	return nil, net.ErrClosed
}

// Close implements net.Listener.
func (s *streams) Close() error {
	s.once.Do(func() { close(s.done) })
	return nil
}

// Addr is what other nodes dial, not what the listener is bound to.
func (s *streams) Addr() net.Addr { return textAddress(s.self) }

// Dial implements raft.StreamLayer. The far end must be the node whose address
// it is, so that entries never go to an impostor.
func (s *streams) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return s.dialer.dial(ctx, s.idOf(string(address)), string(address), ProtocolRaft)
}

type textAddress string

func (textAddress) Network() string  { return "tcp" }
func (a textAddress) String() string { return string(a) }

// transport is Raft's own network transport without the heartbeat fast path.
// That path changes term and state beside Raft's main loop, and an old leader
// can then stamp an entry with a term it never led in.
// What it receives claims the node that the connection belongs to.
type transport struct {
	*raft.NetworkTransport
	inbound *inbound
}

// Consumer implements raft.Transport.
func (t *transport) Consumer() <-chan raft.RPC { return t.inbound.consume }

// Close implements raft.WithClose. It may be called more than once.
func (t *transport) Close() error {
	return errors.Join(t.NetworkTransport.Close(), t.inbound.close())
}

// SetHeartbeatHandler does nothing: heartbeats pass the main loop.
func (*transport) SetHeartbeatHandler(func(raft.RPC)) {}

func newTransport(accept net.Listener, s *streams, addresses raft.ServerAddressProvider, logger hclog.Logger) *transport {
	return &transport{inbound: newInbound(accept, logger), NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		ServerAddressProvider:   addresses,
		Logger:                  logger,
		Stream:                  s,
		MaxPool:                 raftPool,
		MaxRPCsInFlight:         1,
		Timeout:                 raftTimeout,
		MsgpackUseNewTimeFormat: true,
	})}
}

// clients keeps one RPC connection for each node.
type clients struct {
	dial func(ctx context.Context, id, proto string) (net.Conn, error)

	mu     sync.Mutex // guards what follows
	byID   map[string]*grpc.ClientConn
	closed bool
}

func (c *clients) to(id string) (*rpc.NodeClient, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, api.Errorf(api.CodeUnavailable, "this node is stopping")
	}
	conn := c.byID[id]
	if conn == nil {
		if len(c.byID) >= connectionsIdle {
			c.dropAll()
		}
		var err error
		conn, err = rpc.Connect(func(ctx context.Context) (net.Conn, error) { return c.dial(ctx, id, ProtocolRPC) })
		if err != nil {
			return nil, fmt.Errorf("connect to node %s: %w", id, err)
		}
		c.byID[id] = conn
	}
	return rpc.NewNodeClient(conn), nil
}

// dropAll closes every connection. The caller holds mu.
func (c *clients) dropAll() {
	for id, conn := range c.byID {
		_ = conn.Close()
		delete(c.byID, id)
	}
}

func (c *clients) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.dropAll()
}
