package cluster

import (
	"context"
	"time"

	"github.com/hashicorp/raft"
)

// WithoutFastPath wraps a transport as nodes do, but receives on that one.
func WithoutFastPath(t *raft.NetworkTransport) raft.Transport {
	return own{&transport{NetworkTransport: t}, t}
}

type own struct {
	*transport
	receiver *raft.NetworkTransport
}

func (o own) Consumer() <-chan raft.RPC { return o.receiver.Consumer() }

// Raft is the node's Raft, for what no method offers.
func (s *Server) Raft() *raft.Raft { return s.raft }

// CommitsInTime is the leader's proof that it can commit.
func (s *Server) CommitsInTime(ctx context.Context) bool { return s.commitsInTime(ctx) }

// RepeatedInstalls finishes snapshots at the given indexes and returns whether
// the process had to end.
func RepeatedInstalls(indexes ...uint64) (ended Fatal) {
	s := &snapshots{fatal: func(f Fatal) { ended = f }}
	for _, i := range indexes {
		s.finished(i, 1)
	}
	return ended
}

// CompareState compares the state with the other voters' now.
func (s *Server) CompareState(ctx context.Context) { s.compareState(ctx) }

// TrimJournal drops what the retention allows to, at a time.
func (s *Server) TrimJournal(ctx context.Context, now time.Time) error {
	return s.trimJournalAt(ctx, now)
}

// RenewCertificate renews the certificate now.
func (s *Server) RenewCertificate(ctx context.Context) error { return s.renewNow(ctx) }

// RenewAt is when the certificate is due.
func (s *Server) RenewAt() time.Time { return s.renewAt() }
