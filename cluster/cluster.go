// Package cluster is this node's part of the cluster: its Raft, its port, its
// identity, and the ways to read and change the replicated state.
//
// A data directory becomes a node through Init (the first node of a cluster),
// Join (every other) or RestoreBackup. Open starts it. After that a caller
// needs four methods: State for reading what this node has, ReadIndex before a
// read that must be linearizable, Propose to change something, and Lead for
// loops that run on the leader only.
//
// DESIGN.md beside this file gives the reasons.
package cluster

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/rpc"
	"github.com/debvisor/debvisor/cluster/journal"
	"github.com/debvisor/debvisor/fsm"
)

// Exit statuses of a process that must end.
const (
	ExitError   = 1  // a person must act before a restart helps
	ExitRestart = 75 // start it again: the restart heals it (EX_TEMPFAIL)
)

// Fatal is why this process must end.
type Fatal struct {
	Err        error
	ExitStatus int
}

// Peer is a node and where it listens.
type Peer struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Address string `json:"address"` // host:port
}

// Timing is how fast a dead leader is noticed. The zero value is FastTiming.
type Timing struct {
	Heartbeat time.Duration // without news of the leader, a follower asks for votes
	Election  time.Duration // at least Heartbeat
	Lease     time.Duration // without a quorum's answers, a leader steps down; at most Heartbeat
}

// FastTiming suits machines in one place with disks of their own.
func FastTiming() Timing {
	return Timing{Heartbeat: 500 * time.Millisecond, Election: 500 * time.Millisecond, Lease: 500 * time.Millisecond}
}

// SlowTiming suits slow disks and links between cities.
func SlowTiming() Timing {
	return Timing{Heartbeat: 3 * time.Second, Election: 3 * time.Second, Lease: 2 * time.Second}
}

// Config is what Open needs to know. DataDir and one of Listen and Listener
// are required.
type Config struct {
	DataDir   string
	Listen    string       // host:port to bind
	Listener  net.Listener // a bound port instead; the server closes it
	Advertise string       // host:port that other nodes dial; the bound address when empty
	Version   string       // of this binary, for people
	Logger    hclog.Logger

	// LogStore is the form of the Raft log that Init, Join and RestoreBackup
	// choose: LogStoreWAL (when empty) or LogStoreBolt. It cannot change later.
	LogStore string

	Timing          Timing
	CertificateLife time.Duration // 0: CertificateLife
	SnapshotEntries uint64        // log entries between snapshots; 0: 16384
	TrailingEntries uint64        // log entries kept behind a snapshot; 0: 10240
	SnapshotEvery   time.Duration // how often the need of a snapshot is checked; 0: 30 s
	StoreDeadline   time.Duration // of one call of the log's disk; 0: 2 s

	// OnFatal is called once, in a goroutine of its own, when this process must
	// end: a disk that fails or hangs, an entry that cannot be understood, a
	// node that was removed. By default it prints the reason and exits.
	OnFatal func(Fatal)

	// CommitDeadline is how long a leader may fail to commit anything before its
	// process ends; 0: 10 s.
	CommitDeadline time.Duration

	// Dial opens TCP connections to other nodes instead of net.Dialer. WrapLog
	// and FailJournal stand between the node and its disk. All three let tests
	// put faults there.
	Dial        func(ctx context.Context, address string) (net.Conn, error)
	WrapLog     func(raft.LogStore) raft.LogStore
	FailJournal func() error
}

// Server is an open node. Its methods are safe for concurrent use.
type Server struct {
	cfg      Config
	logger   hclog.Logger
	dir      *dataDir
	identity Identity
	self     string // advertised address

	trust  *trust
	cert   atomic.Pointer[tls.Certificate]
	mux    *mux
	dialer *dialer
	peers  *clients

	http, gossip, tunnel *protocol
	node, join           *grpc.Server

	state   *fsm.FSM
	machine *machine
	journal *journal.Journal
	stores  *stores
	snaps   *snapshots
	trans   *transport
	raft    *raft.Raft

	seals    *sealKeys
	rotating sync.Mutex // guards changes of the seals; one at a time

	reads  rounds
	health healthTable
	joins  joinLimiter
	moved  addresses

	notify    chan bool
	leading   leadership
	ending    sync.Once
	draining  atomic.Bool
	founding  atomic.Bool  // the first entry of a new or restored cluster is not committed yet
	proposals atomic.Int64 // in progress, for the drain
	ctx       context.Context
	cancel    context.CancelFunc
	wait      sync.WaitGroup // background loops
	stopOnce  sync.Once
	stopped   chan struct{}
}

// Open starts the node in a data directory. It refuses a directory without a
// node, in use, or with damaged files; a port in use; and a certificate that
// is not this node's. It returns when the node serves, which may be before it
// knows a leader: see WaitReady.
func Open(cfg Config) (*Server, error) {
	s := &Server{cfg: cfg.withDefaults(), state: fsm.New(), notify: make(chan bool, 16), stopped: make(chan struct{})}
	s.logger = s.cfg.Logger
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.open(); err != nil {
		s.cancel()
		s.release()
		return nil, err
	}
	return s, nil
}

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	if c.Timing == (Timing{}) {
		c.Timing = FastTiming()
	}
	if c.CertificateLife == 0 {
		c.CertificateLife = CertificateLife
	}
	if c.SnapshotEntries == 0 {
		c.SnapshotEntries = 16384
	}
	if c.TrailingEntries == 0 {
		c.TrailingEntries = 10240
	}
	if c.SnapshotEvery == 0 {
		c.SnapshotEvery = 30 * time.Second
	}
	if c.StoreDeadline == 0 {
		c.StoreDeadline = storeDeadline
	}
	if c.CommitDeadline == 0 {
		c.CommitDeadline = noopDeadline
	}
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{KeepAlive: tcpKeepalive}).DialContext(ctx, "tcp", address)
		}
	}
	if c.OnFatal == nil {
		c.OnFatal = func(f Fatal) {
			fmt.Fprintln(os.Stderr, "debvisor:", f.Err)
			os.Exit(f.ExitStatus)
		}
	}
	return c
}

func (s *Server) open() error {
	var err error
	if s.dir, err = openDir(s.cfg.DataDir); err != nil {
		return err
	}
	if s.identity, err = s.dir.identity(); err != nil {
		return err
	}
	if err := s.openTrust(); err != nil {
		return err
	}
	s.founding.Store(s.dir.exists(filePending))
	if err := s.openPort(); err != nil {
		return err
	}
	s.journal, err = journal.Open(journal.Config{Path: s.dir.file(fileJournal), Logger: s.logger.Named("journal"), Failing: s.cfg.FailJournal})
	if err != nil {
		return err
	}
	s.machine = &machine{state: s.state, journal: s.journal, clusterID: s.identity.ClusterID, fatal: s.end}
	if err := s.openRaft(); err != nil {
		return err
	}
	s.serve()
	s.background()
	return nil
}

// openPort binds the port and prepares its protocols. Nothing is accepted yet.
func (s *Server) openPort() error {
	listener := s.cfg.Listener
	if listener == nil {
		var err error
		if listener, err = bind(s.cfg.Listen); err != nil {
			return err
		}
	}
	s.self = s.cfg.Advertise
	if s.self == "" {
		s.self = listener.Addr().String()
	}
	s.mux = newMux(listener, s.logger.Named("port"), s.trust, s.cert.Load, s.admitNode)
	s.http = s.mux.listen(ProtocolHTTP1, ProtocolHTTP2)
	s.gossip = s.mux.listen(ProtocolGossip)
	s.tunnel = s.mux.listen(ProtocolTunnel)
	s.dialer = &dialer{trust: s.trust, cert: s.cert.Load, tcp: s.cfg.Dial}
	s.peers = &clients{dial: s.DialNode, byID: map[string]*grpc.ClientConn{}}
	return nil
}

// openRaft opens the stores and starts Raft on them.
func (s *Server) openRaft() error {
	var err error
	logger := s.logger.Named("raft")
	if s.snaps, err = openSnapshots(s.dir, logger, s.end); err != nil {
		return err
	}
	g := newGuard(s.cfg.StoreDeadline, func(err error) { s.end(Fatal{Err: err, ExitStatus: ExitRestart}) })
	if s.stores, err = openStores(s.dir, s.identity.LogStore, logger, g, s.cfg.WrapLog); err != nil {
		return err
	}
	if err := s.stores.claim(s.dir, s.identity); err != nil {
		return err
	}
	if err := s.logReachesJournal(); err != nil {
		return damaged(s.dir, err)
	}
	out := &streams{dialer: s.dialer, idOf: s.idOf, self: s.self, done: make(chan struct{})}
	s.trans = newTransport(s.mux.listen(ProtocolRaft), out, addressBook{s}, logger)
	config := s.raftConfig(logger)
	if err := s.bootstrap(config); err != nil {
		return err
	}
	s.raft, err = raft.NewRaft(config, s.machine, s.stores.log, s.stores.stable, s.snaps, s.trans)
	if err != nil {
		return damaged(s.dir, fmt.Errorf("start raft: %w", err))
	}
	return nil
}

// logReachesJournal refuses a log that is shorter than what was applied from
// it: an entry is on disk before it is applied and journaled, so the log was
// lost or replaced, and the node must not vote with it.
func (s *Server) logReachesJournal() error {
	span, err := s.journal.Span()
	if err != nil {
		return err
	}
	last, err := s.stores.log.LastIndex()
	if err != nil {
		return err
	}
	snapshots, err := s.snaps.List()
	if err != nil {
		return err
	}
	for _, snapshot := range snapshots {
		last = max(last, snapshot.Index)
	}
	if last < span.Last {
		return fmt.Errorf("it ends at %d, but the journal has records up to %d", last, span.Last)
	}
	return nil
}

func (s *Server) raftConfig(logger hclog.Logger) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(s.identity.NodeID)
	c.Logger = logger
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = s.cfg.Timing.Heartbeat, s.cfg.Timing.Election, s.cfg.Timing.Lease
	c.CommitTimeout = commitTimeout
	c.MaxAppendEntries = appendEntriesMax
	c.BatchApplyCh = true
	c.ShutdownOnRemove = false // watchRemoval says why and ends the process
	c.SnapshotThreshold, c.TrailingLogs, c.SnapshotInterval = s.cfg.SnapshotEntries, s.cfg.TrailingEntries, s.cfg.SnapshotEvery
	c.NotifyCh = s.notify
	c.NoLegacyTelemetry = true
	return c
}

const (
	// commitTimeout is how often an idle leader repeats what is committed to
	// those who missed it: tellCommits says it first.
	commitTimeout    = 250 * time.Millisecond
	appendEntriesMax = 256
)

// serve starts the port and the calls that other nodes make.
func (s *Server) serve() {
	s.node = rpc.NewServer(rpc.MessageBytesMax)
	rpc.RegisterNode(s.node, service{s})
	s.join = rpc.NewServer(joinBytesMax, rpc.StrangerLimits()...)
	rpc.RegisterJoin(s.join, joinService{s})
	nodes, joins := s.mux.listen(ProtocolRPC), s.mux.listen(ProtocolJoin)
	s.wait.Go(s.mux.serve)
	s.wait.Go(func() { _ = s.node.Serve(nodes) }) // ends when the listener does
	s.wait.Go(func() { _ = s.join.Serve(joins) })
}

// background starts the loops that run on every node.
func (s *Server) background() {
	for _, loop := range []func(context.Context){
		s.followLeadership, s.renewCertificate, s.watchRemoval, s.fillJournal, s.compact, s.watchSeals, s.compareStates, s.trimJournal,
	} {
		s.wait.Go(func() { loop(s.ctx) })
	}
}

// end reports once that this process must end.
func (s *Server) end(f Fatal) {
	s.ending.Do(func() {
		s.logger.Error("this process must end", "reason", f.Err, "exit_status", f.ExitStatus)
		go s.cfg.OnFatal(f) // not waited for: it may end the process, or call Shutdown
	})
}

// State is this node's replica of the state, for reading. It may be behind the
// leader: see ReadIndex.
func (s *Server) State() *fsm.FSM { return s.state }

// Self is this node.
func (s *Server) Self() Peer {
	return Peer{ID: s.identity.NodeID, Name: s.identity.Name, Address: s.self}
}

// ClusterID is the cluster's random identity.
func (s *Server) ClusterID() string { return s.identity.ClusterID }

// Leader is the leader that this node follows, or itself. ok is false while it
// knows none.
func (s *Server) Leader() (leader Peer, ok bool) {
	_, id := s.raft.LeaderWithID()
	if id == "" {
		return Peer{}, false
	}
	return s.peer(string(id)), true
}

// IsLeader reports whether this node leads and may serve as leader: it has
// committed an entry of its own term.
func (s *Server) IsLeader() bool { return s.leading.current() != nil }

// Journal is this node's journal, for history.
func (s *Server) Journal() *journal.Journal { return s.journal }

// HTTP is the listener of the API: TLS connections with their handshake done.
func (s *Server) HTTP() net.Listener { return s.http }

// Gossip is the listener of gossip streams from other nodes.
func (s *Server) Gossip() net.Listener { return s.gossip }

// Tunnel is the listener of byte streams between nodes (consoles, migration).
// Each connection is an rpc.NodeConn.
func (s *Server) Tunnel() net.Listener { return s.tunnel }

// Certificate is the node's present certificate, for the API's server.
func (s *Server) Certificate() *tls.Certificate { return s.cert.Load() }

// Stats is what a node tells about its Raft.
type Stats struct {
	Self          Peer          `json:"self"`
	State         string        `json:"state"` // leader, follower, candidate or shutdown
	Term          uint64        `json:"term"`
	Leader        Peer          `json:"leader,omitzero"`
	Commit        uint64        `json:"commit"`         // commit index
	Applied       uint64        `json:"applied"`        // index of this node's state
	LastLog       uint64        `json:"last_log"`       // index of the last entry of the log
	Snapshot      uint64        `json:"snapshot"`       // index of the last snapshot
	LastContact   time.Duration `json:"last_contact"`   // since the leader was heard; 0 on the leader
	FsyncP99      time.Duration `json:"fsync_p99"`      // of the Raft log
	Journal       journal.Span  `json:"journal"`        // what the journal holds
	Diverged      string        `json:"diverged"`       // how the state differs between nodes; empty when it does not
	CertificateTo time.Time     `json:"certificate_to"` // end of the node certificate
}

// Stats tells about this node.
func (s *Server) Stats() Stats {
	leader, _ := s.Leader()
	span, _ := s.journal.Span() // a damaged file shows in Unready
	diverged, _ := s.health.divergence()
	out := Stats{
		Self: s.Self(), State: stateName(s.raft.State()), Term: s.raft.CurrentTerm(), Leader: leader,
		Commit: s.raft.CommitIndex(), Applied: s.state.Index(), LastLog: s.raft.LastIndex(), Snapshot: s.snaps.latest(),
		FsyncP99: s.stores.guard.p99(), Journal: span, Diverged: diverged, CertificateTo: s.cert.Load().Leaf.NotAfter,
	}
	if t := s.raft.LastContact(); out.State != "leader" && !t.IsZero() {
		out.LastContact = time.Since(t)
	}
	return out
}

func stateName(st raft.RaftState) string {
	switch st {
	case raft.Leader:
		return "leader"
	case raft.Candidate:
		return "candidate"
	case raft.Follower:
		return "follower"
	case raft.Shutdown:
	}
	return "shutdown"
}

// Unready lists why this node should get no requests now; empty: it may.
func (s *Server) Unready() []string {
	var why []string
	if s.draining.Load() {
		why = append(why, "the node is stopping")
	}
	if _, ok := s.Leader(); !ok {
		why = append(why, "no leader is known")
	}
	if s.state.Index() == 0 {
		why = append(why, "the state has not arrived yet")
	}
	if p := s.stores.guard.p99(); p > FsyncReadyMax {
		why = append(why, fmt.Sprintf("the disk is slow: 99%% of writes take up to %v, allowed are %v", p.Round(time.Millisecond), FsyncReadyMax))
	}
	if err := s.journal.Healthy(); err != nil {
		why = append(why, err.Error())
	}
	if text, doubtful := s.health.divergence(); doubtful {
		why = append(why, text)
	}
	return why
}

// WaitReady blocks until this node knows a leader and has the cluster's first
// entry, or ctx ends.
func (s *Server) WaitReady(ctx context.Context) error {
	for {
		advanced := s.state.Advanced()
		if _, ok := s.Leader(); ok && fsm.Configs.Get(s.state.Read(), api.ConfigName) != nil {
			return nil
		}
		select {
		case <-advanced:
		case <-time.After(readyPoll): // a leader may appear without an entry
		case <-s.stopped:
			return errStopping()
		case <-ctx.Done():
			return fmt.Errorf("wait for a leader: %w", ctx.Err())
		}
	}
}

const readyPoll = 20 * time.Millisecond

func errStopping() *api.Error {
	return api.Errorf(api.CodeUnavailable, "this node is stopping").Do("ask another node")
}
