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
	noopDeadline = 10 * time.Second // a leader that commits nothing that long ends itself
	noopEvery    = 5 * time.Second  // how often an idle leader proves that it can commit
	leadRetry    = time.Second      // before a loop that returned early starts again
)

// epoch is one established leadership: from the barrier of its term to its
// loss.
type epoch struct {
	term uint64
	ctx  context.Context // ends with the leadership

	mu     sync.Mutex // guards closed, so that no loop joins an epoch that is being left
	closed bool
	loops  sync.WaitGroup
}

// join adds a loop to the epoch, unless it is over.
func (e *epoch) join() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false
	}
	e.loops.Add(1)
	return true
}

func (e *epoch) leave() {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.loops.Wait()
}

// leadership is the present epoch, if any, and tells when it changes.
type leadership struct {
	mu      sync.Mutex // guards what follows
	now     *epoch
	changed chan struct{} // closed and replaced at each change; nil until asked for
}

func (l *leadership) current() *epoch {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

func (l *leadership) watch() (*epoch, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.now, l.changed
}

func (l *leadership) set(e *epoch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now = e
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// Lead calls run whenever this node has become leader and committed an entry of
// its own term. The context of run ends when the leadership does; Lead waits
// for run to return before a later leadership begins. A run that returns early
// is started again after a second. Lead blocks until ctx ends.
func (s *Server) Lead(ctx context.Context, run func(context.Context) error) error {
	for ctx.Err() == nil {
		e, changed := s.leading.watch()
		if e != nil && e.join() {
			s.runLoop(ctx, e, run)
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		case <-s.stopped:
			return nil
		}
	}
	return nil
}

func (s *Server) runLoop(ctx context.Context, e *epoch, run func(context.Context) error) {
	defer e.loops.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(e.ctx, cancel)
	defer stop()
	for ctx.Err() == nil {
		if err := run(ctx); err != nil && ctx.Err() == nil {
			s.logger.Warn("a loop of the leader ended and starts again", "error", err)
		}
		if !waitFor(ctx, leadRetry) {
			return
		}
	}
}

// followLeadership is the one place where leadership is entered and left. It
// drains Raft's channel at once, so that Raft never waits for what we do.
func (s *Server) followLeadership(ctx context.Context) {
	gained := make(chan bool, 1)
	s.wait.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case lead := <-s.notify:
				select {
				case <-gained:
				default:
				}
				gained <- lead
			}
		}
	})
	for {
		select {
		case <-ctx.Done():
			return
		case lead := <-gained:
			if !lead {
				continue
			}
		}
		scope, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() { // waited for below
			defer close(done)
			s.lead(scope)
		}()
		s.untilLost(ctx, gained)
		cancel()
		<-done
	}
}

// untilLost waits for news that the leadership that began is over. A channel
// that held only the newest word may have skipped a loss, so the news of a
// second gain counts as one as well.
func (s *Server) untilLost(ctx context.Context, gained chan bool) {
	select {
	case <-ctx.Done():
	case again := <-gained:
		if again {
			select {
			case gained <- true:
			default:
			}
		}
	}
}

// lead is one leadership: the barrier of the own term, then service, then the
// watch over the ability to commit.
func (s *Server) lead(ctx context.Context) {
	term := s.raft.CurrentTerm()
	if !s.commitsInTime(ctx) {
		return
	}
	if s.raft.State() != raft.Leader || s.raft.CurrentTerm() != term {
		return // a later leadership has news of its own
	}
	e := &epoch{term: term, ctx: ctx}
	s.leading.set(e)
	s.logger.Info("this node leads", "term", term)
	defer func() {
		s.leading.set(nil)
		e.leave()
		s.logger.Info("this node no longer leads", "term", term)
	}()
	for !s.commitPending(ctx) {
		if !waitFor(ctx, leadRetry) {
			return
		}
	}
	var loops sync.WaitGroup
	loops.Go(func() { s.watchPeers(ctx) })
	loops.Go(func() { s.tellCommits(ctx, term) })
	s.proveCommits(ctx)
	loops.Wait()
}

// proveCommits commits a no-op now and then when nothing else is committed. A
// leader that keeps its followers but commits nothing (an interrupted
// transfer, a wedged log) would otherwise keep the cluster from electing one
// that works.
func (s *Server) proveCommits(ctx context.Context) {
	last := s.raft.CommitIndex()
	for waitFor(ctx, noopEvery) {
		if now := s.raft.CommitIndex(); now != last {
			last = now
			continue
		}
		if !s.commitsInTime(ctx) {
			return
		}
		last = s.raft.CommitIndex()
	}
}

// commitsInTime commits a barrier. If that fails for the whole deadline while
// this node still leads, the process ends.
func (s *Server) commitsInTime(ctx context.Context) bool {
	deadline := time.Now().Add(s.cfg.CommitDeadline)
	for {
		err := s.barrier(ctx, time.Until(deadline))
		if err == nil {
			return true
		}
		if ctx.Err() != nil || s.raft.State() != raft.Leader || s.draining.Load() {
			return false
		}
		if time.Now().After(deadline) {
			s.end(Fatal{ExitStatus: ExitRestart, Err: fmt.Errorf("this leader could commit nothing for %v: %w", s.cfg.CommitDeadline, err)})
			return false
		}
		if !waitFor(ctx, readyPoll) {
			return false
		}
	}
}

// barrier commits an entry that changes nothing, and waits until every entry
// before it is applied here.
func (s *Server) barrier(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, max(timeout, time.Millisecond))
	defer cancel()
	return s.await(ctx, s.raft.Barrier(timeout))
}

// await waits for a future of Raft and for ctx. Futures of the log do not end
// when Raft shuts down, hence the goroutine that may outlive the call; there
// are at most as many as calls in flight at a shutdown.
func (s *Server) await(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-s.stopped:
		return raft.ErrRaftShutdown
	}
}

func errNoLeader(format string, args ...any) *api.Error {
	return api.Errorf(api.CodeNoLeader, format, args...).Do("try again in a moment; if it stays so, check that more than half of the voters run: debvisor cluster status")
}

// lostLeadership reports whether err says that this node does not lead, so
// that the entry was not taken into its log.
func lostLeadership(err error) bool {
	return errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipTransferInProgress) || errors.Is(err, raft.ErrEnqueueTimeout)
}
