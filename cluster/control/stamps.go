package control

import (
	"context"
	"sync"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// Stamps remembers when this node stored the last renewal of every node, on
// its own clock. It is kept on every node whoever leads: a new leader goes by
// the stamps it made as a follower, so that losing a leader costs no second
// wait. After a restart everything was heard of just now.
type Stamps struct {
	state *fsm.FSM
	clock Clock

	mu sync.Mutex
	at map[string]stamp // by node; guarded by mu
}

type stamp struct {
	created, epoch, seq uint64 // created tells a node from a former one of the same name
	at                  time.Duration
}

// NewStamps makes the stamps of one node's replica. A nil clock is the
// system's.
func NewStamps(state *fsm.FSM, clock Clock) *Stamps {
	if clock == nil {
		clock = SystemClock()
	}
	return &Stamps{state: state, clock: clock, at: map[string]stamp{}}
}

// Run stamps what is applied, until ctx ends; then it returns nil. It must run
// for as long as the node does.
func (s *Stamps) Run(ctx context.Context) error {
	for {
		view := s.state.Read()
		changed := fsm.Leases.Watch(view)
		s.note(view)
		if !wait(ctx, -1, changed) {
			return nil
		}
	}
}

// note stamps the renewals of a view, all with the time after it was taken: a
// late stamp only makes the leader wait longer.
func (s *Stamps) note(view *fsm.View) {
	now := s.clock.Elapsed()
	s.mu.Lock()
	defer s.mu.Unlock()
	known := make(map[string]stamp, len(s.at))
	for l := range fsm.Leases.All(view) {
		known[l.Name] = s.stampOf(l, now)
	}
	s.at = known
}

func (s *Stamps) stampOf(l *api.NodeLease, now time.Duration) stamp {
	have, ok := s.at[l.Name]
	if ok && have.created == l.Created && have.epoch == l.Epoch && have.seq >= l.Seq {
		return have
	}
	return stamp{l.Created, l.Epoch, l.Seq, now}
}

// Age is how long ago the renewal that the lease shows was stored here. A
// renewal that was not seen before was stored just now.
func (s *Stamps) Age(l *api.NodeLease) time.Duration {
	now := s.clock.Elapsed()
	s.mu.Lock()
	defer s.mu.Unlock()
	have := s.stampOf(l, now)
	s.at[l.Name] = have
	return now - have.at
}
