package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

const (
	drainTimeout    = 30 * time.Second // for proposals in progress
	transferTimeout = 5 * time.Second  // for another node to take the lead
	raftStopTimeout = 10 * time.Second
	// raftStopPoisoned is short: a Raft whose disk failed does not stop.
	raftStopPoisoned = 200 * time.Millisecond
)

// Shutdown stops the node in order: it takes no new proposals, waits for those
// in progress (30 s at most), hands the leadership over, closes the port, then
// Raft, then the stores. When ctx has ended, waiting and handing over are left
// out, as if the process were killed. It may be called more than once.
func (s *Server) Shutdown(ctx context.Context) error {
	var err error
	s.stopOnce.Do(func() { err = s.shutdown(ctx) })
	return err
}

func (s *Server) shutdown(ctx context.Context) error {
	s.draining.Store(true)
	_ = s.http.Close() // only stops accepting
	s.drain(ctx)
	s.handOver(ctx)
	close(s.stopped)
	s.cancel()
	s.node.Stop()
	s.join.Stop()
	s.mux.close()
	s.peers.close()
	err := s.stopRaft()
	s.wait.Wait()
	return errors.Join(err, s.release())
}

func (s *Server) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	for s.proposals.Load() > 0 {
		if !waitFor(ctx, readyPoll) {
			s.logger.Warn("proposals were still in progress", "count", s.proposals.Load())
			return
		}
	}
}

// handOver is the only place that transfers leadership: an interrupted
// transfer can leave Raft refusing every write, and here the process ends
// anyway.
func (s *Server) handOver(ctx context.Context) {
	if ctx.Err() != nil || s.raft.State() != raft.Leader || len(s.voters()) < 2 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, transferTimeout)
	defer cancel()
	if err := s.await(ctx, s.raft.LeadershipTransfer()); err != nil {
		s.logger.Warn("the leadership was not handed over", "error", err)
	}
}

func (s *Server) stopRaft() error {
	done := make(chan error, 1)
	go func() { done <- s.raft.Shutdown().Error() }() // a hung disk may keep it
	timeout := raftStopTimeout
	if s.stores.guard.poisoned() {
		timeout = raftStopPoisoned
	}
	select {
	case err := <-done:
		return err
	case <-time.After(timeout):
		return fmt.Errorf("raft did not stop within %v", timeout)
	}
}

// release closes what open opened, as far as it came.
func (s *Server) release() error {
	var errs []error
	if s.mux != nil {
		s.mux.close()
	} else if s.cfg.Listener != nil {
		_ = s.cfg.Listener.Close() // nothing was accepted
	}
	if s.trans != nil {
		errs = append(errs, s.trans.Close())
	}
	if s.journal != nil {
		errs = append(errs, s.journal.Close())
	}
	if s.stores != nil {
		errs = append(errs, s.stores.close())
	}
	if s.dir != nil {
		s.dir.close()
	}
	return errors.Join(errs...)
}
