// Package fsm is the deterministic heart of a debvisor cluster: the replicated
// tables, the commands that change them, and what can be derived from both:
// plans, the journal, snapshots and watches.
//
// Apply is a function of (state, entry): it reads no clock, no randomness, no
// file, no configuration, and depends on no map order. What it needs travels
// in the entry, stamped by whoever proposed it. Every node that applies the
// same entries holds the same rows, the same chain of hashes and the same
// state hash.
//
// Rows never change once written. What a reader receives is shared: a map or
// slice inside a row is replaced, never written into.
package fsm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/debvisor/debvisor/api"
)

// Versions of the log's meaning. A cluster starts at VersionMin; Propose
// refuses what the replicated cluster version does not allow yet.
const (
	VersionMin uint32 = 1
	VersionMax uint32 = 1 // the highest that this binary understands
)

// ErrUpgrade is wrapped by what ApplyBatch returns for an entry that this
// binary does not understand. The node must stop; the entry must not be skipped.
var ErrUpgrade = errors.New("this node does not understand an entry of the log: upgrade this node")

// FSM holds the replicated state of one node. ApplyBatch and Restore are
// called by one goroutine; everything else is safe from any.
type FSM struct {
	registry *registry

	current atomic.Pointer[generation] // swapped as a whole by Restore

	mu      sync.Mutex
	advance chan struct{} // closed and replaced whenever the index grows; guarded by mu
	recent  recentRecords // the last records, for event streams
}

// generation is the store between two restores.
type generation struct {
	db       *memdb.MemDB
	requests *requests
	sums     sums
}

// Committed is an entry as the log holds it. Data is nil for entries that are
// none of ours (configuration changes); they advance the index only.
type Committed struct {
	Index uint64
	Term  uint64
	Data  []byte
}

// Outcome is what became of one entry.
type Outcome struct {
	Index    uint64     // of the entry that was carried out or refused (of the first one, for a replay)
	Err      *api.Error // the refusal, or nil
	Kind     string     // of the row that the op is about; may be empty
	Key      string
	Row      any  // the *T of that row after the entry; nil after a deletion, on refusal, and from a remote node
	Replayed bool // the request ID was known: this is the first answer again
}

// Yield is one journal record with its canonical encoding.
type Yield struct {
	Record    *api.Record
	Canonical []byte
}

// New makes an empty FSM.
func New() *FSM {
	f := &FSM{registry: newRegistry(), advance: make(chan struct{})}
	f.recent.limit, f.recent.most = recentRecordsMax, recentBytesMax
	f.current.Store(f.newGeneration())
	return f
}

func (f *FSM) newGeneration() *generation {
	db, err := memdb.NewMemDB(f.registry.schema)
	if err != nil {
		panic("state schema: " + err.Error()) // a bug in kinds.go
	}
	return &generation{db: db, requests: newRequests()}
}

// View is a consistent snapshot of the state for reading. It costs nothing to
// make and never changes.
type View struct {
	txn *memdb.Txn
	sys *system
	gen *generation
}

// Read takes a snapshot of the state as it is now.
func (f *FSM) Read() *View {
	for {
		gen := f.current.Load()
		v := gen.view()
		// Restore empties the store that it replaced, after the swap: a view of
		// what is still current was taken before that.
		if f.current.Load() == gen {
			return v
		}
	}
}

func (g *generation) view() *View {
	txn := g.db.Txn(false)
	return &View{txn: txn, sys: readSystem(txn), gen: g}
}

func (v *View) reader() *memdb.Txn { return v.txn }

func (v *View) counted(what string) int { return v.sys.counts[what] }

func (v *View) used(tenant string) api.Usage { return v.sys.usage[tenant] }

func (v *View) row(table, key string) any {
	if unnamable(key) {
		return nil
	}
	raw, err := v.txn.First(table, indexID, key)
	if err != nil {
		panic(err) // the schema is wrong
	}
	return raw
}

// Index is the log index of the last entry that the view has applied.
func (v *View) Index() uint64 { return v.sys.Index }

// Time is the replicated clock: the highest time stamped on an applied entry.
func (v *View) Time() time.Time { return v.sys.Time }

// ClusterVersion is the activated version of the log's meaning.
func (v *View) ClusterVersion() uint32 { return v.sys.ClusterVersion }

// Chain is the head of the journal's hash chain.
func (v *View) Chain() api.Hash { return v.sys.Chain }

// StateHash digests every row. Nodes at the same index have the same one.
func (v *View) StateHash() api.Hash { return v.sys.Rows.hash() }

// Index is the log index of the last applied entry.
func (f *FSM) Index() uint64 { return f.Read().Index() }

// Wait blocks until the entry at index has been applied here, or ctx ends.
func (f *FSM) Wait(ctx context.Context, index uint64) error {
	for {
		ch := f.Advanced()
		if f.Index() >= index {
			return nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return fmt.Errorf("wait for index %d: %w", index, ctx.Err())
		}
	}
}

// Advanced returns a channel that closes when the index grows next, or when
// the state is restored.
func (f *FSM) Advanced() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.advance
}

func (f *FSM) wake() {
	f.mu.Lock()
	close(f.advance)
	f.advance = make(chan struct{})
	f.mu.Unlock()
}

// ApplyBatch applies entries in order in one transaction and makes them
// visible together. A refused entry leaves no row behind, only its outcome and
// its record. A non-nil error means that this node must stop: nothing of the
// batch was applied.
func (f *FSM) ApplyBatch(batch []Committed) ([]Outcome, []Yield, error) {
	gen := f.current.Load()
	outcomes, yields, err := f.registry.applyBatch(gen, batch)
	if err != nil {
		return nil, nil, err
	}
	f.mu.Lock()
	f.recent.add(yields)
	f.mu.Unlock()
	f.wake()
	return outcomes, yields, nil
}

func (r *registry) applyBatch(gen *generation, batch []Committed) ([]Outcome, []Yield, error) {
	entries := make([]*Entry, len(batch))
	for i, c := range batch {
		if c.Data == nil {
			continue
		}
		e, err := DecodeEntry(c.Data)
		if err == nil && r.commands[e.Op] == nil {
			err = fmt.Errorf("op %q: %w", e.Op, ErrUpgrade)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("entry %d: %w", c.Index, err)
		}
		entries[i] = e
	}
	b := newBatch(r, gen)
	defer b.txn.Abort()
	outcomes := make([]Outcome, len(batch))
	var yields []Yield
	sums := make([]sumAt, 0, len(batch))
	for i, c := range batch {
		if c.Index <= b.sys.Index {
			return nil, nil, fmt.Errorf("entry %d arrived after entry %d", c.Index, b.sys.Index)
		}
		b.sys.Index = c.Index
		if entries[i] == nil {
			outcomes[i] = Outcome{Index: c.Index}
			sums = append(sums, sumAt{c.Index, b.sys.Rows})
			continue
		}
		outcome, yield, err := b.apply(c, entries[i])
		if err != nil {
			return nil, nil, err
		}
		if v := b.sys.ClusterVersion; v > VersionMax {
			return nil, nil, fmt.Errorf("entry %d activates cluster version %d: %w", c.Index, v, ErrUpgrade)
		}
		outcomes[i] = outcome
		sums = append(sums, sumAt{c.Index, b.sys.Rows})
		if yield != nil {
			yields = append(yields, *yield)
		}
	}
	gen.sums.add(sums)
	b.commit()
	return outcomes, yields, nil
}
