package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/debvisor/debvisor/cluster"
)

// network lets a test cut nodes off from one another.
type network struct {
	mu    sync.Mutex // guards what follows
	cut   map[string]bool
	names map[string]string // address -> name
	conns map[*netConn]struct{}
}

type netConn struct {
	net.Conn
	net      *network
	from, to string
}

func (c *netConn) Close() error {
	c.net.mu.Lock()
	delete(c.net.conns, c)
	c.net.mu.Unlock()
	return c.Conn.Close()
}

func newNetwork() *network {
	return &network{cut: map[string]bool{}, names: map[string]string{}, conns: map[*netConn]struct{}{}}
}

// attach lets a node dial through the network.
func (n *network) attach(name string, cfg *cluster.Config) {
	n.mu.Lock()
	n.names[cfg.Advertise] = name
	n.mu.Unlock()
	cfg.Dial = func(ctx context.Context, address string) (net.Conn, error) {
		n.mu.Lock()
		to := n.names[address]
		blocked := n.cut[name] || n.cut[to]
		n.mu.Unlock()
		if blocked {
			return nil, fmt.Errorf("%s and %s are cut off", name, to)
		}
		raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		c := &netConn{Conn: raw, net: n, from: name, to: to}
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.cut[name] || n.cut[to] {
			_ = raw.Close()
			return nil, errors.New("cut off")
		}
		n.conns[c] = struct{}{}
		return c, nil
	}
}

// isolate cuts a node off from all others, or heals it.
func (n *network) isolate(name string, cut bool) {
	n.mu.Lock()
	n.cut[name] = cut
	var drop []net.Conn
	for c := range n.conns {
		if cut && (c.from == name || c.to == name) {
			drop = append(drop, c.Conn)
		}
	}
	n.mu.Unlock()
	for _, c := range drop {
		_ = c.Close()
	}
}

// faultyLog fails or hangs on demand.
type faultyLog struct {
	raft.LogStore
	fail   atomic.Pointer[error]
	hang   atomic.Bool
	resume chan struct{}
	writes atomic.Int64
}

func (f *faultyLog) StoreLog(l *raft.Log) error { return f.StoreLogs([]*raft.Log{l}) }

func (f *faultyLog) StoreLogs(logs []*raft.Log) error {
	f.writes.Add(1)
	if f.hang.Load() {
		<-f.resume
	}
	if err := f.fail.Load(); err != nil {
		return *err
	}
	return f.LogStore.StoreLogs(logs)
}

// faults keeps the logs of a cluster's nodes by name.
type faults struct {
	mu   sync.Mutex // guards logs
	logs map[string]*faultyLog
}

func (f *faults) attach(name string, cfg *cluster.Config) {
	cfg.WrapLog = func(store raft.LogStore) raft.LogStore {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.logs == nil {
			f.logs = map[string]*faultyLog{}
		}
		f.logs[name] = &faultyLog{LogStore: store, resume: make(chan struct{})}
		return f.logs[name]
	}
}

func (f *faults) of(name string) *faultyLog {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.logs[name]
}

func newListener() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
