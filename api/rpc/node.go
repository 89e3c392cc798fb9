package rpc

import (
	"context"
	"encoding/json"
	"time"

	"github.com/debvisor/debvisor/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// Names of the services. They are part of the protocol between nodes.
const (
	nodeService = "debvisor.Node"
	joinService = "debvisor.Join"
)

// Empty is the body of a call that needs none.
type Empty struct{}

// Propose hands an encoded log entry to the leader.
type Propose struct {
	Version byte            `json:"version"` // of the encoding
	Entry   json.RawMessage `json:"entry"`
}

// Proposed is what the entry did, as the state machine encodes it.
type Proposed struct {
	Outcome json.RawMessage `json:"outcome"`
}

// Index is a log index and the term in which it was read.
type Index struct {
	Index uint64 `json:"index"`
	Term  uint64 `json:"term"`
}

// Hello is what a caller of Status says about itself.
type Hello struct {
	Address string `json:"address,omitzero"` // host:port where it listens now
}

// Status is what a node says about itself.
type Status struct {
	ID            string `json:"id"`
	Name          string `json:"name"`
	Address       string `json:"address"`
	State         string `json:"state"` // leader, follower, candidate or shutdown
	Term          uint64 `json:"term"`
	Leader        string `json:"leader,omitzero"`         // ID of the leader it follows
	Commit        uint64 `json:"commit"`                  // commit index
	Applied       uint64 `json:"applied"`                 // index of its state
	CallerRemoved bool   `json:"caller_removed,omitzero"` // the caller was removed from the cluster
	JournalReason string `json:"journal_reason,omitzero"` // why its journal is unhealthy
	JournalFirst  uint64 `json:"journal_first,omitzero"`  // first record it holds
	JournalLast   uint64 `json:"journal_last,omitzero"`   // last record it holds
	FsyncP99NS    int64  `json:"fsync_p99_ns,omitzero"`   // of its raft log
	SnapshotIndex uint64 `json:"snapshot_index,omitzero"` // of its last snapshot
	Version       string `json:"version,omitzero"`        // of its binary
}

// StateHash is the hash of a node's state at an index.
type StateHash struct {
	Index uint64   `json:"index"`
	Hash  api.Hash `json:"hash"`
	Known bool     `json:"known"` // false: the node is not there yet, or no longer remembers
}

// Sign asks for a certificate.
type Sign struct {
	Request []byte `json:"request"` // PKCS #10, DER
	Address string `json:"address"` // host:port where the caller listens now
}

// Signed is a certificate.
type Signed struct {
	Certificate []byte `json:"certificate"` // DER
}

// JournalRange asks for journal records After < index <= Through, oldest first.
type JournalRange struct {
	After   uint64 `json:"after"`
	Through uint64 `json:"through"`
}

// JournalRecords are records in their canonical encoding. More says that the
// answer was cut at the size of a message.
type JournalRecords struct {
	Records   []JournalRecord `json:"records"`
	More      bool            `json:"more,omitzero"`
	Floor     uint64          `json:"floor,omitzero"` // what the answering node dropped by retention, and the hash there
	FloorHash api.Hash        `json:"floor_hash,omitzero"`
}

// JournalRecord is one record and its place in the chain.
type JournalRecord struct {
	Index     uint64   `json:"index"`
	Hash      api.Hash `json:"hash"`
	Canonical []byte   `json:"canonical"`
}

// SealKey is a key that unseals the cluster's secrets, by its ID.
type SealKey struct {
	ID  string `json:"id"`
	Key []byte `json:"key,omitzero"`
}

// GossipKeys are the keys of the gossip packets, the one to encrypt with first.
type GossipKeys struct {
	Keys [][]byte `json:"keys"`
}

// Joining is what a new node sends: its token's parts, and who it wants to be.
type Joining struct {
	Token   string `json:"token"`   // name of the token
	Secret  string `json:"secret"`  // its secret
	NodeID  string `json:"node_id"` // random identity of the joiner
	Name    string `json:"name"`
	Address string `json:"address"` // host:port where the joiner listens
	Zone    string `json:"zone,omitzero"`
	Witness bool   `json:"witness,omitzero"`
	Version string `json:"version,omitzero"`
	Request []byte `json:"request"` // PKCS #10, DER
}

// Joined is what an admitted node needs to open its Raft.
type Joined struct {
	ClusterID   string    `json:"cluster_id"`
	CA          []byte    `json:"ca"`          // DER
	Certificate []byte    `json:"certificate"` // DER
	Members     []Member  `json:"members"`
	GossipKeys  [][]byte  `json:"gossip_keys,omitzero"`
	Time        time.Time `json:"time"` // of the answering node, to show a wrong clock
}

// Member is one node and where it listens.
type Member struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Address string `json:"address"`
}

// NodeServer is what a node answers to other nodes. Every error that the
// caller can act on is an *api.Error.
type NodeServer interface {
	Propose(ctx context.Context, in *Propose) (*Proposed, error)
	ReadIndex(ctx context.Context, in *Empty) (*Index, error)
	ConfirmTerm(ctx context.Context, in *Empty) (*Index, error)
	Status(ctx context.Context, in *Hello) (*Status, error)
	StateHash(ctx context.Context, in *Index) (*StateHash, error)
	Sign(ctx context.Context, in *Sign) (*Signed, error)
	Journal(ctx context.Context, in *JournalRange) (*JournalRecords, error)
	SealKey(ctx context.Context, in *SealKey) (*SealKey, error)
	PutSealKey(ctx context.Context, in *SealKey) (*Empty, error)
	GossipKeys(ctx context.Context, in *Empty) (*GossipKeys, error)
	Join(ctx context.Context, in *Joining) (*Joined, error)
}

// JoinServer admits nodes that have no certificate yet.
type JoinServer interface {
	Join(ctx context.Context, in *Joining) (*Joined, error)
}

// RegisterNode adds the calls between nodes to a server.
func RegisterNode(s *grpc.Server, impl NodeServer) {
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: nodeService,
		HandlerType: (*NodeServer)(nil),
		Methods: []grpc.MethodDesc{
			unary("Propose", func() any { return new(Propose) }, func(ctx context.Context, s, in any) (any, error) {
				return s.(NodeServer).Propose(ctx, in.(*Propose))
			}),
			unary("ReadIndex", func() any { return new(Empty) }, func(ctx context.Context, s, in any) (any, error) {
				return s.(NodeServer).ReadIndex(ctx, in.(*Empty))
			}),
			unary("ConfirmTerm", func() any { return new(Empty) }, func(ctx context.Context, s, in any) (any, error) {
				return s.(NodeServer).ConfirmTerm(ctx, in.(*Empty))
			}),
			unary("Status", func() any { return new(Hello) }, func(ctx context.Context, s, in any) (any, error) {
				return s.(NodeServer).Status(ctx, in.(*Hello))
			}),
			unary("StateHash", func() any { return new(Index) }, func(ctx context.Context, s, in any) (any, error) {
				return s.(NodeServer).StateHash(ctx, in.(*Index))
			}),
			unary("Sign", func() any { return new(Sign) }, func(ctx context.Context, s, in any) (any, error) {
				return s.(NodeServer).Sign(ctx, in.(*Sign))
			}),
			unary("Journal", func() any { return new(JournalRange) }, func(ctx context.Context, s, in any) (any, error) {
				return s.(NodeServer).Journal(ctx, in.(*JournalRange))
			}),
			unary("SealKey", func() any { return new(SealKey) }, func(ctx context.Context, s, in any) (any, error) {
				return s.(NodeServer).SealKey(ctx, in.(*SealKey))
			}),
			unary("PutSealKey", func() any { return new(SealKey) }, func(ctx context.Context, s, in any) (any, error) {
				return s.(NodeServer).PutSealKey(ctx, in.(*SealKey))
			}),
			unary("GossipKeys", func() any { return new(Empty) }, func(ctx context.Context, s, in any) (any, error) {
				return s.(NodeServer).GossipKeys(ctx, in.(*Empty))
			}),
			unary("Join", func() any { return new(Joining) }, func(ctx context.Context, s, in any) (any, error) {
				return s.(NodeServer).Join(ctx, in.(*Joining))
			}),
		},
	}, impl)
}

// RegisterJoin adds the call of new nodes to a server.
func RegisterJoin(s *grpc.Server, impl JoinServer) {
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: joinService,
		HandlerType: (*JoinServer)(nil),
		Methods: []grpc.MethodDesc{
			unary("Join", func() any { return new(Joining) }, func(ctx context.Context, s, in any) (any, error) {
				return s.(JoinServer).Join(ctx, in.(*Joining))
			}),
		},
	}, impl)
}

// unary describes one call with one request and one answer.
func unary(name string, request func() any, handle func(ctx context.Context, impl, in any) (any, error)) grpc.MethodDesc {
	return grpc.MethodDesc{
		MethodName: name,
		Handler: func(impl any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := request()
			if err := decode(in); err != nil {
				return nil, encodeError(api.Errorf(api.CodeInvalid, "the request is not readable"))
			}
			out, err := handle(ctx, impl, in)
			if err != nil {
				return nil, encodeError(err)
			}
			return out, nil
		},
	}
}

// NodeClient calls another node. Its methods block until the answer or the end
// of ctx. A failed connection is CodeUnknown: the call may have been served.
type NodeClient struct{ conn *grpc.ClientConn }

// NewNodeClient makes a client on a connection, which stays the caller's.
func NewNodeClient(conn *grpc.ClientConn) *NodeClient { return &NodeClient{conn} }

func (c *NodeClient) call(ctx context.Context, method string, in, out any) error {
	return decodeError(method, c.conn.Invoke(ctx, "/"+nodeService+"/"+method, in, out))
}

// Propose asks the other node, as leader, to commit an entry.
func (c *NodeClient) Propose(ctx context.Context, in *Propose) (*Proposed, error) {
	out := new(Proposed)
	return out, c.call(ctx, "Propose", in, out)
}

// ReadIndex asks the other node, as leader, for an index that makes a local
// read linearizable.
func (c *NodeClient) ReadIndex(ctx context.Context) (*Index, error) {
	out := new(Index)
	return out, c.call(ctx, "ReadIndex", &Empty{}, out)
}

// ConfirmTerm asks for the other node's current term.
func (c *NodeClient) ConfirmTerm(ctx context.Context) (*Index, error) {
	out := new(Index)
	return out, c.call(ctx, "ConfirmTerm", &Empty{}, out)
}

// Status asks the other node about itself, and tells it where the caller is.
func (c *NodeClient) Status(ctx context.Context, in *Hello) (*Status, error) {
	out := new(Status)
	return out, c.call(ctx, "Status", in, out)
}

// StateHash asks for the hash of the other node's state at an index that it
// has, or will have soon.
func (c *NodeClient) StateHash(ctx context.Context, in *Index) (*StateHash, error) {
	out := new(StateHash)
	return out, c.call(ctx, "StateHash", in, out)
}

// Sign asks the other node, as a voter, to renew the caller's certificate.
func (c *NodeClient) Sign(ctx context.Context, in *Sign) (*Signed, error) {
	out := new(Signed)
	return out, c.call(ctx, "Sign", in, out)
}

// Journal asks for journal records.
func (c *NodeClient) Journal(ctx context.Context, in *JournalRange) (*JournalRecords, error) {
	out := new(JournalRecords)
	return out, c.call(ctx, "Journal", in, out)
}

// SealKey asks for a seal key by its ID; only a voter gets it.
func (c *NodeClient) SealKey(ctx context.Context, in *SealKey) (*SealKey, error) {
	out := new(SealKey)
	return out, c.call(ctx, "SealKey", in, out)
}

// PutSealKey hands a seal key to a voter, which has it on disk when it answers.
func (c *NodeClient) PutSealKey(ctx context.Context, in *SealKey) error {
	return c.call(ctx, "PutSealKey", in, new(Empty))
}

// GossipKeys asks for the keys of the gossip packets.
func (c *NodeClient) GossipKeys(ctx context.Context) (*GossipKeys, error) {
	out := new(GossipKeys)
	return out, c.call(ctx, "GossipKeys", &Empty{}, out)
}

// Join passes the request of a new node on to the leader.
func (c *NodeClient) Join(ctx context.Context, in *Joining) (*Joined, error) {
	out := new(Joined)
	return out, c.call(ctx, "Join", in, out)
}

// CallJoin asks a node to admit the caller.
func CallJoin(ctx context.Context, conn *grpc.ClientConn, in *Joining) (*Joined, error) {
	out := new(Joined)
	err := conn.Invoke(ctx, "/"+joinService+"/Join", in, out)
	return out, decodeError("Join", err)
}

// reconnect keeps the pause between attempts short: a restarted node should be
// reachable again within an election timeout or two.
func reconnect() backoff.Config {
	return backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}
}
