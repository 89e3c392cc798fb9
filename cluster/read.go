package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/debvisor/debvisor/api"
)

const (
	readTimeout  = 10 * time.Second // where the caller's context has no deadline
	roundTimeout = 2 * time.Second  // one round of confirmation
	walkMax      = 1 << 20          // entries looked at for the last one that the state has; a sanity bound
)

// ReadIndex makes the next read of State linearizable: when it returns,
// everything that was acknowledged before it was called is in this node's
// state. It returns the index that this took.
//
// The leader takes its commit index and then asks every voter for its current
// term. When a quorum, itself included, still has its term, nobody can have
// been elected, and so nothing can have been acknowledged elsewhere, before
// the index was taken. No clock is involved. A follower asks the leader for
// the index. Calls at the same time share one round.
//
// It blocks until ctx ends (at most 10 s), through changes of leader, and then
// fails with CodeNoLeader or CodeUnavailable; when nobody leads for longer than
// an election takes, earlier.
func (s *Server) ReadIndex(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	var leaderless time.Time // since when; zero: somebody may lead
	for {
		index, err := s.reads.next(ctx, s.ctx, s.readRound)
		if err == nil {
			return index, s.WaitIndex(ctx, index)
		}
		code := api.CodeOf(err)
		switch {
		case code == api.CodeUnknown:
			leaderless = time.Time{}
		case code != api.CodeNoLeader:
			return 0, err
		case leaderless.IsZero():
			leaderless = time.Now()
		case s.noElection(leaderless):
			return 0, err
		}
		if !s.pause(ctx) {
			return 0, asUnread(err)
		}
	}
}

func asUnread(err error) error {
	if e, ok := errors.AsType[*api.Error](err); ok && e.Code != api.CodeUnknown {
		return e
	}
	return &api.Error{Code: api.CodeNoLeader, Message: "no leader confirmed the read in time", Next: "try again, or read with stale=true what this node has"}
}

// WaitIndex blocks until this node's state has the entry at index, or ctx
// ends: then it fails with CodeUnavailable.
func (s *Server) WaitIndex(ctx context.Context, index uint64) error {
	if err := s.state.Wait(ctx, index); err != nil {
		return api.Errorf(api.CodeUnavailable, "this node is at index %d and index %d did not arrive in time", s.state.Index(), index).Do("try again, or ask another node")
	}
	return nil
}

// readRound finds the index for one round of reads.
func (s *Server) readRound(ctx context.Context) (uint64, error) {
	if s.raft.State() == raft.Leader {
		return s.confirmedIndex(ctx)
	}
	leader, err := s.findLeader(ctx)
	if err != nil {
		return 0, err
	}
	if leader.ID == s.identity.NodeID {
		return s.confirmedIndex(ctx)
	}
	client, err := s.peers.to(leader.ID)
	if err != nil {
		return 0, err
	}
	answer, err := client.ReadIndex(ctx)
	if err != nil {
		return 0, err
	}
	return answer.Index, nil
}

// confirmedIndex is the leader's part: the order of its steps is the proof.
func (s *Server) confirmedIndex(ctx context.Context) (uint64, error) {
	e := s.leading.current()
	if e == nil || !s.leadsIn(e.term) {
		return 0, errNoLeader("this node does not lead yet")
	}
	commit := s.raft.CommitIndex()
	if err := s.confirmTerm(ctx, e.term); err != nil {
		return 0, err
	}
	if !s.leadsIn(e.term) {
		return 0, errNoLeader("this node no longer leads")
	}
	return s.lastApplicable(commit)
}

func (s *Server) leadsIn(term uint64) bool {
	return s.raft.State() == raft.Leader && s.raft.CurrentTerm() == term
}

// confirmTerm asks every voter for its term and returns when a quorum has ours.
func (s *Server) confirmTerm(ctx context.Context, term uint64) error {
	voters := s.voters()
	need := len(voters)/2 + 1
	answers := make(chan bool, len(voters))
	asked := 0
	for _, id := range voters {
		if id == s.identity.NodeID {
			need--
			continue
		}
		asked++
		go func() { answers <- s.hasTerm(ctx, id, term) }() // the channel has room: it ends with its call
	}
	for ; need > 0 && asked > 0; asked-- {
		select {
		case ok := <-answers:
			if ok {
				need--
			}
		case <-ctx.Done():
			return errNoLeader("no quorum confirmed the leader in time")
		}
	}
	if need > 0 {
		return errNoLeader("no quorum confirms the leader")
	}
	return nil
}

func (s *Server) hasTerm(ctx context.Context, id string, term uint64) bool {
	client, err := s.peers.to(id)
	if err != nil {
		return false
	}
	answer, err := client.ConfirmTerm(ctx)
	return err == nil && answer.Term == term
}

// lastApplicable is the last index at or below commit that reaches the state
// machine. Barriers and the no-op of a new term do not, so the state never has
// their index and a reader would wait for it in vain.
func (s *Server) lastApplicable(commit uint64) (uint64, error) {
	var entry raft.Log
	for index := commit; index > 0 && commit-index < walkMax; index-- {
		if s.state.Index() >= index {
			return index, nil
		}
		err := s.stores.log.GetLog(index, &entry)
		if errors.Is(err, raft.ErrLogNotFound) {
			return s.state.Index(), nil // compacted: the snapshot that holds it is in the state
		}
		if err != nil {
			return 0, fmt.Errorf("read log entry %d: %w", index, err)
		}
		if entry.Type == raft.LogCommand || entry.Type == raft.LogConfiguration {
			return index, nil
		}
	}
	return s.state.Index(), nil
}

// rounds lets readers that come while a round runs share the next one. A
// reader never joins a round that has begun: its index may be older than what
// was acknowledged to that reader.
type rounds struct {
	mu      sync.Mutex // guards what follows
	running bool
	waiting *round
}

type round struct {
	done  chan struct{}
	index uint64
	err   error
}

// next waits for the result of a round that begins after the call. life
// bounds the round itself, which must not end with one reader's context.
func (r *rounds) next(ctx, life context.Context, run func(context.Context) (uint64, error)) (uint64, error) {
	r.mu.Lock()
	if r.waiting == nil {
		r.waiting = &round{done: make(chan struct{})}
	}
	mine := r.waiting
	if !r.running {
		r.running = true
		go r.run(life, run) // ends when nobody waits
	}
	r.mu.Unlock()
	select {
	case <-mine.done:
		return mine.index, mine.err
	case <-ctx.Done():
		return 0, errNoLeader("the read was not confirmed in time")
	}
}

func (r *rounds) run(life context.Context, run func(context.Context) (uint64, error)) {
	for {
		r.mu.Lock()
		now := r.waiting
		r.waiting = nil
		if now == nil {
			r.running = false
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		ctx, cancel := context.WithTimeout(life, roundTimeout)
		now.index, now.err = run(ctx)
		cancel()
		close(now.done)
	}
}
