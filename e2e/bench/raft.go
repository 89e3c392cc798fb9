package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	wal "github.com/hashicorp/raft-wal"
)

const raftTimeout = 10 * time.Second

// bareRaft is three members of hashicorp/raft with an empty state machine, on
// the stores and settings that debvisor uses.
type bareRaft struct {
	members []*raft.Raft
	closers []io.Closer
}

type emptyFSM struct{}

func (emptyFSM) Apply(*raft.Log) any { return nil }
func (emptyFSM) ApplyBatch(logs []*raft.Log) []any {
	return make([]any, len(logs))
}
func (emptyFSM) Snapshot() (raft.FSMSnapshot, error) { return emptySnapshot{}, nil }
func (emptyFSM) Restore(r io.ReadCloser) error       { return r.Close() }

type emptySnapshot struct{}

func (emptySnapshot) Persist(sink raft.SnapshotSink) error { return sink.Close() }
func (emptySnapshot) Release()                             {}

func startBareRaft(ctx context.Context, dir string) (*bareRaft, error) {
	b := &bareRaft{}
	var servers []raft.Server
	for i := range 3 {
		id := fmt.Sprintf("m%d", i+1)
		transport, err := raft.NewTCPTransport("127.0.0.1:0", nil, 3, raftTimeout, io.Discard)
		if err != nil {
			return b, err
		}
		b.closers = append(b.closers, transport)
		if err := b.open(filepath.Join(dir, id), id, transport); err != nil {
			return b, err
		}
		servers = append(servers, raft.Server{ID: raft.ServerID(id), Address: transport.LocalAddr()})
	}
	if err := b.members[0].BootstrapCluster(raft.Configuration{Servers: servers}).Error(); err != nil {
		return b, err
	}
	for {
		if _, err := b.leader(); err == nil {
			return b, nil
		}
		select {
		case <-ctx.Done():
			return b, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (b *bareRaft) open(dir, id string, transport raft.Transport) error {
	if err := os.MkdirAll(filepath.Join(dir, "wal"), 0o700); err != nil {
		return err
	}
	log, err := wal.Open(filepath.Join(dir, "wal"))
	if err != nil {
		return err
	}
	b.closers = append(b.closers, log)
	stable, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(dir, "stable.db")})
	if err != nil {
		return err
	}
	b.closers = append(b.closers, stable)
	cache, err := raft.NewLogCache(512, log)
	if err != nil {
		return err
	}
	config := raft.DefaultConfig()
	config.LocalID = raft.ServerID(id)
	config.HeartbeatTimeout, config.ElectionTimeout, config.LeaderLeaseTimeout = 500*time.Millisecond, 500*time.Millisecond, 250*time.Millisecond
	config.MaxAppendEntries, config.BatchApplyCh = 256, true
	config.Logger = hclog.NewNullLogger()
	r, err := raft.NewRaft(config, emptyFSM{}, cache, stable, raft.NewInmemSnapshotStore(), transport)
	if err != nil {
		return err
	}
	b.members = append(b.members, r)
	return nil
}

func (b *bareRaft) leader() (*raft.Raft, error) {
	for _, r := range b.members {
		if r.State() == raft.Leader {
			return r, nil
		}
	}
	return nil, fmt.Errorf("bare raft has no leader")
}

// put applies an entry of the size that a put has.
func (b *bareRaft) put(_ context.Context, _ int, _ uint64) error {
	leader, err := b.leader()
	if err != nil {
		return err
	}
	return leader.Apply(make([]byte, entryBytes), raftTimeout).Error()
}

func (b *bareRaft) close() {
	for _, r := range b.members {
		_ = r.Shutdown().Error()
	}
	for _, c := range b.closers {
		_ = c.Close()
	}
}

// freePort asks the kernel for a port on the loopback address that is free now.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
