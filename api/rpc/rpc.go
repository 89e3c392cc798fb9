// Package rpc is the shell of the calls between nodes: messages, service
// descriptions, and a client and a server on gRPC.
//
// Messages are plain Go structs in JSON rather than protocol buffers. Both ends
// are the same program, the bodies that matter (log entries, journal records,
// rows) are JSON already, and an added field with omitzero gives the same
// compatibility that a protocol buffer gives. No generator is needed to build.
//
// The package knows nothing about TLS. Connections arrive with the handshake
// done; one that carries a peer's identity implements NodeConn, and Caller
// finds that identity in the context of a call.
package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/debvisor/debvisor/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// Limits of every call between nodes.
const (
	MessageBytesMax = 4 << 20 // of one message, either way
	StreamsMax      = 1024    // calls at a time on one connection
	keepaliveTime   = 10 * time.Second
	keepaliveWait   = 5 * time.Second
	strangerStreams = 4
	strangerIdle    = 5 * time.Second
	strangerAge     = 90 * time.Second // longer than a join tries
)

// NodeConn is a connection whose peer proved to be a node of this cluster.
type NodeConn interface {
	net.Conn
	// NodeID is the identity in the peer's certificate.
	NodeID() string
}

// NewServer makes a gRPC server for connections that are already secured. A
// message is at most bytesMax long. Options overrule the limits of calls
// between nodes.
func NewServer(bytesMax int, options ...grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append([]grpc.ServerOption{
		grpc.Creds(accepted{}),
		grpc.ForceServerCodecV2(jsonCodec{}),
		grpc.MaxRecvMsgSize(bytesMax),
		grpc.MaxSendMsgSize(bytesMax),
		grpc.MaxConcurrentStreams(StreamsMax),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveWait}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveWait, PermitWithoutStream: true}),
	}, options...)...)
}

// StrangerLimits are the limits of a server for callers that prove nothing: few
// calls at a time, on connections that are used or closed.
func StrangerLimits() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxConcurrentStreams(strangerStreams),
		grpc.ConnectionTimeout(strangerIdle),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: strangerIdle, MaxConnectionAge: strangerAge, MaxConnectionAgeGrace: strangerIdle,
			Time: keepaliveTime, Timeout: keepaliveWait,
		}),
	}
}

// Connect makes a client connection that calls dial when it needs one. dial
// returns a connection with its handshake done. Connect does not block.
func Connect(dial func(ctx context.Context) (net.Conn, error)) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///node",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveWait}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect(), MinConnectTimeout: time.Second}),
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(jsonCodec{}),
			grpc.MaxCallRecvMsgSize(MessageBytesMax),
			grpc.MaxCallSendMsgSize(MessageBytesMax),
		),
	)
}

// Caller is the ID of the node that makes this call, or "" when the connection
// carried no identity.
func Caller(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	if a, ok := p.AuthInfo.(authInfo); ok {
		return a.nodeID
	}
	return ""
}

// RemoteHost is the address of the caller without its port, or "" when unknown.
func RemoteHost(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(p.Addr.String())
	if err != nil {
		return p.Addr.String()
	}
	return host
}

// accepted passes connections on whose handshake the listener has done.
type accepted struct{}

type authInfo struct {
	credentials.CommonAuthInfo
	nodeID string
}

func (authInfo) AuthType() string { return "tls" }

func (accepted) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	info := authInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}
	if n, ok := conn.(NodeConn); ok {
		info.nodeID = n.NodeID()
	}
	return conn, info, nil
}

func (accepted) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("accepted connections are a server's")
}

func (accepted) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}
func (accepted) Clone() credentials.TransportCredentials { return accepted{} }
func (accepted) OverrideServerName(string) error         { return nil }

// jsonCodec carries messages as JSON. It is forced on both ends, never
// registered, so that it cannot clash with another codec of the process.
type jsonCodec struct{}

var _ encoding.CodecV2 = jsonCodec{}

func (jsonCodec) Name() string { return "json" }

func (jsonCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

func (jsonCodec) Unmarshal(data mem.BufferSlice, v any) error {
	return json.Unmarshal(data.Materialize(), v)
}

// encodeError turns a failure into a gRPC status. An *api.Error travels whole;
// anything else becomes an internal error without its text.
func encodeError(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	b, jsonErr := json.Marshal(api.AsError(err))
	if jsonErr != nil {
		return status.Error(codes.Internal, "internal error")
	}
	return status.Error(codes.FailedPrecondition, string(b))
}

// decodeError is the reverse of encodeError. A failure of the connection is
// returned as an *api.Error with CodeUnavailable when the call cannot have
// reached its handler, and with CodeUnknown otherwise.
func decodeError(method string, err error) error {
	if err == nil {
		return nil
	}
	s, _ := status.FromError(err)
	switch s.Code() {
	case codes.FailedPrecondition:
		e := &api.Error{}
		if json.Unmarshal([]byte(s.Message()), e) == nil && e.Code != "" {
			return e
		}
	case codes.Canceled:
		return fmt.Errorf("call %s: %w", method, context.Canceled)
	case codes.DeadlineExceeded:
		return fmt.Errorf("call %s: %w", method, context.DeadlineExceeded)
	case codes.Unimplemented:
		return api.Errorf(api.CodeUnavailable, "the other node does not know the call %s", method).Do("upgrade that node")
	}
	return api.Errorf(api.CodeUnknown, "call %s: %s", method, s.Message())
}
