package cluster

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster/journal"
	"github.com/debvisor/debvisor/fsm"
)

const journalSyncWait = 30 * time.Second // of a snapshot for the journal

// machine ties Raft to the state machine and the journal. Raft calls it from
// one goroutine, except for Persist.
type machine struct {
	state     *fsm.FSM
	journal   *journal.Journal
	clusterID string
	fatal     func(Fatal)

	halted atomic.Pointer[error] // an entry was not understood: apply nothing more
	bytes  atomic.Int64          // of the log since the last snapshot
}

// Apply implements raft.FSM; Raft calls ApplyBatch instead.
func (m *machine) Apply(log *raft.Log) any { return m.ApplyBatch([]*raft.Log{log})[0] }

// ApplyBatch implements raft.BatchingFSM. Each answer is an fsm.Outcome, or an
// error when this node must stop.
func (m *machine) ApplyBatch(logs []*raft.Log) []any {
	answers := make([]any, len(logs))
	if p := m.halted.Load(); p != nil {
		return fill(answers, *p)
	}
	batch := make([]fsm.Committed, len(logs))
	size := 0
	for i, l := range logs {
		batch[i] = fsm.Committed{Index: l.Index, Term: l.Term}
		if l.Type == raft.LogCommand {
			batch[i].Data = l.Data
		}
		size += len(l.Data)
	}
	outcomes, yields, err := m.state.ApplyBatch(batch)
	if err != nil {
		m.halted.Store(&err)
		m.fatal(Fatal{ExitStatus: ExitError, Err: err})
		return fill(answers, err)
	}
	m.bytes.Add(int64(size))
	m.keep(yields)
	for i := range outcomes {
		answers[i] = outcomes[i]
	}
	return answers
}

func fill(answers []any, err error) []any {
	for i := range answers {
		answers[i] = err
	}
	return answers
}

// keep hands records to the journal, which writes them when it can: Apply
// never depends on the journal's disk.
func (m *machine) keep(yields []fsm.Yield) {
	entries := make([]journal.Entry, len(yields))
	for i, y := range yields {
		entries[i] = journal.Entry{Record: y.Record, Canonical: y.Canonical}
	}
	m.journal.Append(entries)
}

// Snapshot implements raft.FSM. It is quick; Persist writes.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	if p := m.halted.Load(); p != nil {
		return nil, *p
	}
	return &persisting{machine: m, snapshot: m.state.Snapshot(), bytes: m.bytes.Load()}, nil
}

// Restore implements raft.FSM. On an error the old state stays.
func (m *machine) Restore(r io.ReadCloser) error {
	defer func() { _ = r.Close() }() // it was only read
	if err := checkSnapshotHead(r, m.clusterID); err != nil {
		return err
	}
	if err := m.state.Restore(r); err != nil {
		return err
	}
	m.bytes.Store(0)
	v := m.state.Read()
	ctx, cancel := context.WithTimeout(context.Background(), journalSyncWait)
	defer cancel()
	if err := m.journal.Expect(ctx, v.Index(), v.Chain()); err != nil {
		return &api.Error{Code: api.CodeUnavailable, Message: fmt.Sprintf("the journal does not belong to the state at index %d: %v", v.Index(), err),
			Next: "move journal.db away, so that the node fetches the journal from its peers; on the only node, restore a backup"}
	}
	return nil
}

// persisting is one snapshot being written.
type persisting struct {
	machine  *machine
	snapshot *fsm.Snapshot
	bytes    int64
}

// Persist implements raft.FSMSnapshot. It completes only after the journal is
// on disk through the snapshot's index: Raft then drops the entries from which
// the records could be made again.
func (p *persisting) Persist(sink raft.SnapshotSink) error {
	err := p.write(sink)
	if err != nil {
		_ = sink.Cancel() // the first error counts
		return err
	}
	p.machine.bytes.Add(-p.bytes)
	return nil
}

func (p *persisting) write(sink raft.SnapshotSink) error {
	ctx, cancel := context.WithTimeout(context.Background(), journalSyncWait)
	defer cancel()
	if err := p.machine.journal.Sync(ctx, p.snapshot.Index()); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if _, err := io.WriteString(sink, snapshotHead(p.machine.clusterID)); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	if _, err := p.snapshot.WriteTo(sink); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	if err := sink.Close(); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	return nil
}

// Release implements raft.FSMSnapshot.
func (p *persisting) Release() {}
