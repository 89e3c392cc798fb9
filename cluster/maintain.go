package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/rpc"
	"github.com/debvisor/debvisor/cluster/journal"
	"github.com/debvisor/debvisor/fsm"
)

const (
	journalPage  = journal.PageRecordsMax
	journalPoll  = time.Second
	journalFetch = 10 * time.Second // one page from a peer
	trimEvery    = time.Hour
)

// compact takes a snapshot when the log has grown by size; Raft itself does by
// count.
func (s *Server) compact(ctx context.Context) {
	for waitFor(ctx, s.cfg.SnapshotEvery) {
		if s.machine.bytes.Load() < snapshotBytesMax {
			continue
		}
		if err := s.Snapshot(ctx); err != nil {
			s.logger.Warn("no snapshot was taken", "error", err)
		}
	}
}

// Snapshot takes a Raft snapshot now and shortens the log. It blocks until the
// snapshot is on disk; there being nothing new is no error.
func (s *Server) Snapshot(ctx context.Context) error {
	err := s.await(ctx, s.raft.Snapshot())
	if err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return fmt.Errorf("take a snapshot: %w", err)
	}
	return nil
}

// fillJournal fetches from peers what the journal lacks after a snapshot was
// installed or its file was moved away.
func (s *Server) fillJournal(ctx context.Context) {
	for waitFor(ctx, journalPoll) {
		for {
			after, through, missing := s.journal.Gap()
			if !missing || ctx.Err() != nil {
				break
			}
			if err := s.fillGap(ctx, after, through); err != nil {
				s.logger.Warn("the journal is not complete yet", "after", after, "through", through, "error", err)
				break
			}
		}
	}
}

// fillGap makes progress on one gap, from the first peer that can help.
func (s *Server) fillGap(ctx context.Context, after, through uint64) error {
	err := errors.New("no other node is known")
	for _, p := range s.others() {
		if err = s.fillFrom(ctx, p, after, through); err == nil {
			return nil
		}
		err = fmt.Errorf("ask %s: %w", p.Name, err)
	}
	return err
}

func (s *Server) fillFrom(ctx context.Context, p Peer, after, through uint64) error {
	client, err := s.peers.to(p.ID)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, journalFetch)
	defer cancel()
	answer, err := client.Journal(ctx, &rpc.JournalRange{After: after, Through: through})
	if err != nil {
		return err
	}
	if answer.Floor > after {
		return s.journal.StartAt(answer.Floor, answer.FloorHash)
	}
	raw := make([]journal.Raw, len(answer.Records))
	for i, r := range answer.Records {
		raw[i] = journal.Raw{Index: r.Index, Hash: r.Hash, Canonical: r.Canonical}
	}
	closed, err := s.journal.Fill(ctx, raw)
	if err == nil && !closed && len(raw) == 0 {
		err = errors.New("it has none of the records")
	}
	return err
}

// trimJournal drops what is older than the cluster's journal retention. Every
// node does so by itself: what it holds is its own copy.
func (s *Server) trimJournal(ctx context.Context) {
	for {
		if err := s.trimJournalAt(ctx, time.Now()); err != nil && ctx.Err() == nil {
			s.logger.Warn("the journal was not shortened", "error", err)
		}
		if !waitFor(ctx, trimEvery) {
			return
		}
	}
}

// trimJournalAt goes by the clock that is behind: a wrong one must not cost
// history.
func (s *Server) trimJournalAt(ctx context.Context, now time.Time) error {
	view := s.state.Read()
	if fsm.Configs.Get(view, api.ConfigName) == nil {
		return nil // the state has not arrived
	}
	if at := view.Time(); at.Before(now) {
		now = at
	}
	index, err := s.journal.LastBefore(now.Add(-fsm.Settings(view).JournalRetention))
	if err != nil {
		return err
	}
	before := s.journal.Floor()
	if index <= before {
		return nil
	}
	err = s.journal.Trim(ctx, index)
	if floor := s.journal.Floor(); floor > before {
		s.logger.Info("the journal was shortened", "begins_after", floor)
	}
	return err
}

// VerifyJournal recomputes this node's chain of journal records and compares
// its end with the state. The first bad record is named in the error; records
// that were cut off at the end are noticed too.
func (s *Server) VerifyJournal(ctx context.Context, progress func(records uint64)) (journal.Verified, error) {
	view := s.state.Read()
	if err := s.journal.Sync(ctx, view.Index()); err != nil {
		return journal.Verified{}, err
	}
	out, err := s.journal.Verify(ctx, 0, progress)
	if err != nil {
		return out, err
	}
	at, err := s.journal.HashUpTo(view.Index())
	if err != nil {
		return out, err
	}
	if at != view.Chain() {
		return out, api.Errorf(api.CodeInternal, "the journal ends at index %d and the state at index %d expects another record: records were cut off", out.Last, view.Index()).
			Do("compare with another node's journal: audit verify")
	}
	return out, nil
}
