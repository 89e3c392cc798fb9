package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
	"go.etcd.io/bbolt"

	"github.com/debvisor/debvisor/api"
)

// The forms of the Raft log.
const (
	LogStoreWAL  = "wal"    // hashicorp/raft-wal; the default
	LogStoreBolt = "boltdb" // hashicorp/raft-boltdb
)

const (
	storeDeadline   = 2 * time.Second // one call of a store; a disk that takes longer hangs
	deadlineSteps   = 8
	storeLockWait   = time.Second
	logCacheEntries = 512
	fsyncSamples    = 512 // of which the 99th percentile is taken
	// FsyncReadyMax is the 99th percentile of fsync above which a node is not
	// ready to serve.
	FsyncReadyMax = 100 * time.Millisecond
)

// guard watches the log and the stable store of one node. The first failed
// write poisons both: after a failed fsync the kernel may drop the page and
// report success on the next attempt. A call beyond the deadline means a disk
// that hangs, and a leader on it would hang the cluster. Both end the process.
type guard struct {
	deadline time.Duration
	fatal    func(error)

	poison atomic.Pointer[error]

	mu      sync.Mutex // guards samples and next
	samples []time.Duration
	next    int
}

func newGuard(deadline time.Duration, fatal func(error)) *guard {
	return &guard{deadline: deadline, fatal: fatal, samples: make([]time.Duration, 0, fsyncSamples)}
}

// write runs a call that changes the disk.
func (g *guard) write(what string, call func() error) error {
	if p := g.poison.Load(); p != nil {
		return *p
	}
	started := time.Now()
	err := g.timed(what, call)
	g.sample(time.Since(started))
	if err == nil {
		if p := g.poison.Load(); p != nil {
			return *p // the deadline passed meanwhile: the process is ending
		}
		return nil
	}
	return g.fail(fmt.Errorf("%s: %w", what, err))
}

// read runs a call that only reads; its error is the caller's to judge.
func (g *guard) read(what string, call func() error) error {
	if p := g.poison.Load(); p != nil {
		return *p
	}
	return g.timed(what, call)
}

// timed notices a hung call while it hangs; the caller stays blocked with it.
// The deadline passes in steps, so that the time for which this process was
// stopped or its machine slept counts as one step: that disk does not hang.
func (g *guard) timed(what string, call func() error) error {
	w := &hangWatch{left: deadlineSteps, step: g.deadline / deadlineSteps, hangs: func() {
		_ = g.fail(fmt.Errorf("%s takes longer than %v: the disk hangs", what, g.deadline))
	}}
	w.start()
	defer w.stop()
	return call()
}

// hangWatch calls hangs after so many steps unless it is stopped before.
type hangWatch struct {
	step  time.Duration
	hangs func()

	mu    sync.Mutex // guards what follows
	left  int        // steps; 0: stopped or done
	timer *time.Timer
}

func (w *hangWatch) start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(w.step, w.tick)
}

func (w *hangWatch) tick() {
	w.mu.Lock()
	if w.left == 0 {
		w.mu.Unlock()
		return
	}
	w.left--
	if w.left > 0 {
		w.timer.Reset(w.step)
		w.mu.Unlock()
		return
	}
	w.mu.Unlock()
	w.hangs()
}

func (w *hangWatch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left = 0
	w.timer.Stop()
}

func (g *guard) fail(err error) error {
	err = &api.Error{Code: api.CodeUnavailable, Message: "the raft log cannot be written: " + err.Error(), Next: "look at the disk under the data directory, then start the node again"}
	if g.poison.CompareAndSwap(nil, &err) {
		g.fatal(err)
	}
	return *g.poison.Load()
}

// orNever passes nil on and does not return otherwise.
func (g *guard) orNever(err error) error {
	if err != nil {
		select {}
	}
	return nil
}

func (g *guard) poisoned() bool { return g.poison.Load() != nil }

func (g *guard) sample(d time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.samples) < fsyncSamples {
		g.samples = append(g.samples, d)
		return
	}
	g.samples[g.next] = d
	g.next = (g.next + 1) % fsyncSamples
}

// p99 is the 99th percentile of the last writes; 0 when there were none.
func (g *guard) p99() time.Duration {
	g.mu.Lock()
	s := slices.Clone(g.samples)
	g.mu.Unlock()
	if len(s) == 0 {
		return 0
	}
	slices.Sort(s)
	return s[len(s)*99/100]
}

// guardedLog is a log store under guard. It answers that it is monotonic when
// the store below is: after a snapshot install Raft then empties it, and no
// conflicting tail survives.
type guardedLog struct {
	guard *guard
	store raft.LogStore
}

func (l *guardedLog) FirstIndex() (index uint64, err error) {
	err = l.guard.read("first index", func() error { index, err = l.store.FirstIndex(); return err })
	return index, err
}

func (l *guardedLog) LastIndex() (index uint64, err error) {
	err = l.guard.read("last index", func() error { index, err = l.store.LastIndex(); return err })
	return index, err
}

func (l *guardedLog) GetLog(index uint64, log *raft.Log) error {
	return l.guard.read("read log", func() error { return l.store.GetLog(index, log) })
}

func (l *guardedLog) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

func (l *guardedLog) StoreLogs(logs []*raft.Log) error {
	return l.guard.write("append to log", func() error { return l.store.StoreLogs(logs) })
}

func (l *guardedLog) DeleteRange(min, max uint64) error {
	return l.guard.write("truncate log", func() error { return l.store.DeleteRange(min, max) })
}

// IsMonotonic implements raft.MonotonicLogStore. Emptying the log is right for
// either store.
func (l *guardedLog) IsMonotonic() bool { return true }

// guardedStable is a stable store under guard. Raft panics when a vote cannot
// be stored; a call on a poisoned store therefore does not return: the process
// is ending, and OnFatal is to say why.
type guardedStable struct {
	guard *guard
	store raft.StableStore
}

func (s *guardedStable) Set(key, value []byte) error {
	return s.guard.orNever(s.guard.write("store vote", func() error { return s.store.Set(key, value) }))
}

func (s *guardedStable) Get(key []byte) (value []byte, err error) {
	err = s.guard.read("read vote", func() error { value, err = s.store.Get(key); return err })
	return value, err
}

func (s *guardedStable) SetUint64(key []byte, value uint64) error {
	return s.guard.orNever(s.guard.write("store term", func() error { return s.store.SetUint64(key, value) }))
}

func (s *guardedStable) GetUint64(key []byte) (value uint64, err error) {
	err = s.guard.read("read term", func() error { value, err = s.store.GetUint64(key); return err })
	return value, err
}

// stores are the open stores of a node.
type stores struct {
	log    raft.LogStore
	stable raft.StableStore
	guard  *guard
	closes []io.Closer
}

// openStores opens the log and the votes, and reads every entry once: a node
// with a damaged log refuses to start rather than guess.
func openStores(d *dataDir, form string, logger hclog.Logger, g *guard, wrap func(raft.LogStore) raft.LogStore) (_ *stores, err error) {
	s := &stores{guard: g}
	defer func() {
		if p := recover(); p != nil { // bbolt panics on a page that makes no sense
			err = damaged(d, fmt.Errorf("%v", p))
		}
		if err != nil {
			s.close()
		}
	}()
	stable, err := raftboltdb.New(raftboltdb.Options{
		Path: d.file(fileStable), MsgpackUseNewTimeFormat: true, BoltOptions: boltOptions(),
	})
	if err != nil {
		return nil, damaged(d, fmt.Errorf("%s: %w", fileStable, err))
	}
	s.closes = append(s.closes, stable)
	s.stable = &guardedStable{g, stable}
	log, closer, err := openLog(d, form, logger)
	if err != nil {
		return nil, damaged(d, err)
	}
	s.closes = append(s.closes, closer)
	log = checkedLog{log}
	if err := readAll(log); err != nil {
		return nil, damaged(d, err)
	}
	if wrap != nil {
		log = wrap(log)
	}
	s.log, err = raft.NewLogCache(logCacheEntries, &guardedLog{g, log})
	return s, err
}

// keyOwner is the key of the stable store that names whose log it goes with.
const keyOwner = "debvisor-owner"

// claim ties the stores to one node of one cluster at their first use, and
// refuses them to any other: files of two nodes in one directory would make a
// node that waits for a leader for ever, or votes twice.
func (s *stores) claim(d *dataDir, id Identity) error {
	owner := id.ClusterID + "/" + id.NodeID
	have, err := s.stable.Get([]byte(keyOwner))
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return damaged(d, err)
	}
	if len(have) == 0 {
		return s.stable.Set([]byte(keyOwner), []byte(owner))
	}
	if string(have) == owner {
		return nil
	}
	return api.Errorf(api.CodeConflict, "the raft log in %s belongs to another node (cluster/node %s, this is %s)", d.path, have, owner).
		Do("put back the files that belong together; or remove this node from its cluster, empty the directory and join again")
}

func openLog(d *dataDir, form string, logger hclog.Logger) (raft.LogStore, io.Closer, error) {
	switch form {
	case LogStoreBolt:
		store, err := raftboltdb.New(raftboltdb.Options{Path: d.file(fileLogBolt), MsgpackUseNewTimeFormat: true, BoltOptions: boltOptions()})
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", fileLogBolt, err)
		}
		return store, store, nil
	case LogStoreWAL:
		if err := os.MkdirAll(d.file(dirLogWAL), dirMode); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", dirLogWAL, err)
		}
		meta := &metadb.BoltMetaDB{}
		store, err := wal.Open(d.file(dirLogWAL), wal.WithLogger(logger.Named("wal")), wal.WithMetaStore(meta))
		if err != nil {
			return nil, nil, errors.Join(fmt.Errorf("%s: %w", dirLogWAL, err), meta.Close())
		}
		return walLog{store}, walCloser{store, meta}, nil
	}
	return nil, nil, api.Invalid("log_store", "is %q", form).Allow("%s or %s", LogStoreWAL, LogStoreBolt)
}

// walLog answers as truncated what was truncated: the WAL goes on reading
// entries below its first one while their segment is there, so that whether a
// peer gets entries or a snapshot would depend on the size of segments.
type walLog struct{ *wal.WAL }

// GetLog implements raft.LogStore.
func (l walLog) GetLog(index uint64, entry *raft.Log) error {
	first, err := l.FirstIndex()
	if err != nil {
		return err
	}
	if index < first {
		return raft.ErrLogNotFound
	}
	return l.WAL.GetLog(index, entry)
}

// walCloser closes the WAL and its list of segments, which the WAL leaves open.
type walCloser struct {
	wal  *wal.WAL
	meta *metadb.BoltMetaDB
}

// Close implements io.Closer.
func (c walCloser) Close() error { return errors.Join(c.wal.Close(), c.meta.Close()) }

func boltOptions() *bbolt.Options {
	return &bbolt.Options{Timeout: storeLockWait, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType}
}

func readAll(log raft.LogStore) error {
	first, err := log.FirstIndex()
	if err != nil {
		return err
	}
	last, err := log.LastIndex()
	if err != nil {
		return err
	}
	var entry raft.Log
	for index := first; index <= last && last > 0; index++ {
		if err := log.GetLog(index, &entry); err != nil {
			return fmt.Errorf("entry %d of the log: %w", index, err)
		}
	}
	return nil
}

func damaged(d *dataDir, err error) error {
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e
	}
	return &api.Error{Code: api.CodeUnavailable, Message: fmt.Sprintf("the raft log in %s is damaged: %v", d.path, err),
		Next: "on a cluster with other nodes: remove this node there, empty the directory and join again; on the only node: restore a backup"}
}

func (s *stores) close() error {
	var errs []error
	for _, c := range slices.Backward(s.closes) {
		errs = append(errs, c.Close())
	}
	s.closes = nil
	return errors.Join(errs...)
}

// checkedLog adds a checksum to each entry. The WAL's own checksums cover its
// last batch only, and bbolt has none for its values. The sum travels in the
// entry's extensions, which nothing else uses, and never leaves the store.
type checkedLog struct{ raft.LogStore }

func entrySum(l *raft.Log) uint32 {
	head := binary.BigEndian.AppendUint64(make([]byte, 0, 17), l.Index)
	head = append(binary.BigEndian.AppendUint64(head, l.Term), byte(l.Type))
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum(head, table), table, l.Data)
}

// GetLog implements raft.LogStore.
func (c checkedLog) GetLog(index uint64, l *raft.Log) error {
	if err := c.LogStore.GetLog(index, l); err != nil {
		return err
	}
	if l.Index != index || len(l.Extensions) != crc32.Size || binary.BigEndian.Uint32(l.Extensions) != entrySum(l) {
		return fmt.Errorf("entry %d of the log: %w", index, errChecksum)
	}
	l.Extensions = nil
	return nil
}

var errChecksum = errors.New("its checksum does not match")

// StoreLog implements raft.LogStore.
func (c checkedLog) StoreLog(l *raft.Log) error { return c.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore. Raft goes on using the entries that it
// passed, so they are copied.
func (c checkedLog) StoreLogs(logs []*raft.Log) error {
	sums := make([]byte, 0, len(logs)*crc32.Size)
	copies := make([]raft.Log, len(logs))
	pointers := make([]*raft.Log, len(logs))
	for i, l := range logs {
		sums = binary.BigEndian.AppendUint32(sums, entrySum(l))
		copies[i] = *l
		copies[i].Extensions = sums[len(sums)-crc32.Size:]
		pointers[i] = &copies[i]
	}
	return c.LogStore.StoreLogs(pointers)
}
