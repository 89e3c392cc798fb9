// Package journal keeps one node's copy of the cluster's journal: who changed
// what, when, with which outcome, as a chain of hashes.
//
// The records come out of Apply and are the same on every node. This package
// only stores them in a bbolt file beside the Raft log, so that history, diff,
// undo and audit need no other source. Writing is asynchronous: an entry is
// acknowledged when the Raft log has it, and the log keeps every entry until
// Sync says that its record is on disk too. A lost tail is therefore written
// again when the log is replayed; what a snapshot skipped is fetched from peers.
package journal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.etcd.io/bbolt"

	"github.com/debvisor/debvisor/api"
)

// Limits of the journal.
const (
	queueRecordsMax = 8192                   // records waiting for the disk; Append waits beyond
	batchRecordsMax = 2048                   // records of one transaction
	linger          = 500 * time.Millisecond // readers do not wait for it: they flush
	commitTimeout   = 5 * time.Second        // a longer write makes the journal unhealthy
	retryFull       = 2 * time.Second        // between attempts on a full disk
	openTimeout     = time.Second            // for the file's lock
	tailChecked     = 1024                   // records verified at open
)

// Entry is one record with its canonical encoding.
type Entry struct {
	Record    *api.Record
	Canonical []byte
}

// Config says where the journal is.
type Config struct {
	Path   string
	Logger hclog.Logger
	// Failing, when set, is asked before every write; its error counts as the
	// disk's. It exists to test what a full or broken disk does.
	Failing func() error
}

// Journal is an open journal. Its methods are safe for concurrent use.
type Journal struct {
	cfg Config
	db  *bbolt.DB

	wake chan struct{} // cap 1: something was queued, or a flush is wanted
	stop chan struct{}
	done chan struct{}

	mu       sync.Mutex    // guards what follows
	changed  chan struct{} // closed and replaced when stored, queue or failure change
	queue    []Entry
	offered  uint64    // index of the last record that Append saw
	tip      api.Hash  // hash of that record, or of the state after a restore
	stored   position  // the last record on disk
	floor    position  // the last record that retention dropped
	gaps     []gap     // missing ranges, in order
	failure  error     // why the journal is unhealthy
	terminal bool      // the failure does not heal without a restart
	started  time.Time // of the write in progress; zero when none
	urgent   bool      // somebody waits: write without lingering
	closed   bool
}

// position is a record's place in the chain.
type position struct {
	index uint64
	hash  api.Hash
}

// gap is a missing stretch of the chain: the records after From and up to
// Through, the last of which has the hash End.
type gap struct {
	from    position
	through uint64
	end     api.Hash
}

var errClosed = errors.New("the journal is closed")

// bucket names are functions' constants, since a slice cannot be a constant.
const (
	bucketRecords = "records" // big-endian index -> hash, canonical record
	bucketObjects = "objects" // kind 0 key 0 big-endian index -> nothing
	bucketMeta    = "meta"
	keyFloor      = "floor" // position of the last record that retention dropped
	keyGaps       = "gaps"
	keyFormat     = "format"
	formatOne     = "1"
)

// Open opens or makes the journal file. A file that cannot be read is an error
// that says what to do: a journal is never replaced silently.
func Open(cfg Config) (*Journal, error) {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	j := &Journal{cfg: cfg, wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}), changed: make(chan struct{})}
	if err := j.open(); err != nil {
		return nil, &api.Error{Code: api.CodeUnavailable, Message: fmt.Sprintf("the journal %s cannot be opened: %v", cfg.Path, err),
			Next: "move the file away, so that the node fetches the journal from its peers; on the only node, restore a backup"}
	}
	go j.run()
	return j, nil
}

func (j *Journal) open() (err error) {
	defer recovered(&err)
	j.db, err = bbolt.Open(j.cfg.Path, 0o600, &bbolt.Options{
		Timeout: openTimeout, FreelistType: bbolt.FreelistMapType, NoFreelistSync: true,
	})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = j.db.Close() // the first error counts
		}
	}()
	if err = j.db.Update(prepare); err != nil {
		return err
	}
	return j.db.View(j.load)
}

func prepare(tx *bbolt.Tx) error {
	for _, name := range []string{bucketRecords, bucketObjects, bucketMeta} {
		if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
			return err
		}
	}
	meta := tx.Bucket([]byte(bucketMeta))
	switch format := meta.Get([]byte(keyFormat)); {
	case format == nil:
		return meta.Put([]byte(keyFormat), []byte(formatOne))
	case string(format) != formatOne:
		return fmt.Errorf("format %q is newer than this program: upgrade this node", format)
	}
	return nil
}

func (j *Journal) load(tx *bbolt.Tx) error {
	meta := tx.Bucket([]byte(bucketMeta))
	if raw := meta.Get([]byte(keyFloor)); raw != nil {
		p, err := decodePosition(raw)
		if err != nil {
			return err
		}
		j.floor = p
	}
	gaps, err := decodeGaps(meta.Get([]byte(keyGaps)))
	if err != nil {
		return err
	}
	j.gaps = gaps
	j.stored = j.floor
	cursor := tx.Bucket([]byte(bucketRecords)).Cursor()
	if k, v := cursor.Last(); k != nil {
		p, _, err := decodeRecord(k, v)
		if err != nil {
			return err
		}
		j.stored = p
	}
	j.offered, j.tip = j.stored.index, j.stored.hash
	return j.checkTail(tx)
}

// checkTail verifies the last records, where an interrupted write would show.
func (j *Journal) checkTail(tx *bbolt.Tx) error {
	cursor := tx.Bucket([]byte(bucketRecords)).Cursor()
	k, v := cursor.Last()
	for n := 0; k != nil && n < tailChecked; n++ {
		next, canonical, err := decodeRecord(k, v)
		if err != nil {
			return err
		}
		previous := j.floor
		if k, v = cursor.Prev(); k != nil {
			if previous, _, err = decodeRecord(k, v); err != nil {
				return err
			}
		}
		if err := j.link(previous, next, canonical); err != nil {
			return err
		}
	}
	return nil
}

// link checks that a record follows another, or the end of a known gap.
func (j *Journal) link(previous, next position, canonical []byte) error {
	hash := previous.hash
	for i := range j.gaps {
		if g := &j.gaps[i]; g.through < next.index && g.through >= previous.index {
			hash = g.end
		}
	}
	if api.ChainHash(hash, canonical) != next.hash {
		return brokenAt(next.index)
	}
	return nil
}

func brokenAt(index uint64) *api.Error {
	return api.Errorf(api.CodeInternal, "the record at index %d does not follow from the one before it", index).
		Do("compare with another node's journal: audit verify")
}

// Append queues records in the order of the log. It waits while the queue is
// full and the disk works; while the journal is unhealthy it drops what does
// not fit, since the Raft log still has it. Records that are stored already are
// compared and skipped.
func (j *Journal) Append(entries []Entry) {
	if len(entries) == 0 {
		return
	}
	deadline := time.Now().Add(commitTimeout)
	j.mu.Lock()
	for len(j.queue) >= queueRecordsMax && j.failure == nil && !j.closed && time.Now().Before(deadline) {
		changed := j.changed
		j.mu.Unlock()
		select {
		case <-changed:
		case <-time.After(time.Until(deadline)): // the disk hangs: the log must not
		}
		j.mu.Lock()
	}
	if j.closed {
		j.mu.Unlock()
		return
	}
	last := entries[len(entries)-1].Record
	if len(j.queue) < queueRecordsMax {
		j.queue = append(j.queue, entries...)
	} else {
		j.missing(last.Index, last.Hash)
	}
	j.offered, j.tip = last.Index, last.Hash
	j.mu.Unlock()
	j.kick()
}

// Expect tells the journal that the state at index was restored from a
// snapshot whose chain head is hash. If the journal does not hold the chain up
// to there, the stretch becomes a gap for Fill.
func (j *Journal) Expect(ctx context.Context, index uint64, hash api.Hash) error {
	if err := j.Flush(ctx); err != nil && ctx.Err() != nil {
		return err
	}
	at, err := j.lastUpTo(index)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.offered, j.tip = max(index, j.stored.index), hash
	if j.stored.index > index {
		j.tip = j.stored.hash
	}
	if at.hash == hash || j.unknownAt(index) {
		return nil
	}
	if at.index != j.stored.index {
		return brokenAt(at.index)
	}
	j.missing(index, hash)
	return j.saveGaps()
}

// unknownAt reports whether index lies in a gap. The caller holds mu.
func (j *Journal) unknownAt(index uint64) bool {
	for i := range j.gaps {
		if j.gaps[i].from.index <= index && index <= j.gaps[i].through {
			return true
		}
	}
	return false
}

// missing notes that the records after the last known one and through index
// are not here. What follows a gap without a record in between makes it longer.
// The caller holds mu.
func (j *Journal) missing(through uint64, end api.Hash) {
	from := j.stored
	if n := len(j.queue); n > 0 {
		r := j.queue[n-1].Record
		from = position{r.Index, r.Hash}
	}
	if n := len(j.gaps); n > 0 && j.gaps[n-1].through >= from.index {
		if last := &j.gaps[n-1]; last.through <= through {
			last.through, last.end = through, end
		}
		return
	}
	if through > from.index {
		j.gaps = append(j.gaps, gap{from: from, through: through, end: end})
	}
}

// lastUpTo is the position of the last stored record at or below index.
func (j *Journal) lastUpTo(index uint64) (p position, err error) {
	defer recovered(&err)
	j.mu.Lock()
	p = j.floor
	j.mu.Unlock()
	err = j.db.View(func(tx *bbolt.Tx) error {
		cursor := tx.Bucket([]byte(bucketRecords)).Cursor()
		k, v := seekUpTo(cursor, index)
		if k == nil {
			return nil
		}
		p, _, err = decodeRecord(k, v)
		return err
	})
	return p, err
}

// Sync blocks until every record offered so far through index is on disk. It
// fails while the journal is unhealthy.
func (j *Journal) Sync(ctx context.Context, index uint64) error {
	for {
		j.mu.Lock()
		target := min(index, j.offered)
		pending := len(j.queue) > 0 && j.queue[0].Record.Index <= target || !j.started.IsZero() && j.stored.index < target
		failure, closed, changed := j.failure, j.closed, j.changed
		j.urgent = j.urgent || pending
		j.mu.Unlock()
		switch {
		case failure != nil:
			return failure
		case !pending:
			return nil
		case closed:
			return errClosed
		}
		j.kick()
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("journal index %d: %w", index, ctx.Err())
		}
	}
}

// Flush is Sync of everything offered so far.
func (j *Journal) Flush(ctx context.Context) error {
	j.mu.Lock()
	index := j.offered
	j.mu.Unlock()
	return j.Sync(ctx, index)
}

// Healthy is nil while records reach the disk, and otherwise an *api.Error
// with CodeUnavailable that says why they do not.
func (j *Journal) Healthy() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failure != nil {
		return j.failure
	}
	if !j.started.IsZero() && time.Since(j.started) > commitTimeout {
		return unhealthy(fmt.Errorf("a write takes longer than %v", commitTimeout))
	}
	return nil
}

// Span is what the journal holds.
type Span struct {
	First   uint64   // index of the first record; 0 when empty
	Last    uint64   // index of the last record on disk
	Floor   uint64   // records at or below it were dropped by retention
	Head    api.Hash // of the last record
	Missing bool     // there are gaps to be filled from peers
}

// Span tells what the journal holds.
func (j *Journal) Span() (s Span, err error) {
	defer recovered(&err)
	err = j.db.View(func(tx *bbolt.Tx) error {
		if k, _ := tx.Bucket([]byte(bucketRecords)).Cursor().First(); k != nil {
			s.First = binary.BigEndian.Uint64(k)
		}
		return nil
	})
	j.mu.Lock()
	defer j.mu.Unlock()
	s.Last, s.Head, s.Floor, s.Missing = j.stored.index, j.stored.hash, j.floor.index, len(j.gaps) > 0
	return s, err
}

// Floor is the index at or below which history was dropped. Reading there is
// CodeGone.
func (j *Journal) Floor() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.floor.index
}

// Close writes what is queued and closes the file.
func (j *Journal) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	flushErr := j.Flush(ctx)
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.closed = true
	j.announce()
	j.mu.Unlock()
	close(j.stop)
	<-j.done
	return errors.Join(flushErr, j.db.Close())
}

func (j *Journal) kick() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// announce wakes whoever waits for a change. The caller holds mu.
func (j *Journal) announce() {
	close(j.changed)
	j.changed = make(chan struct{})
}

func unhealthy(cause error) *api.Error {
	next := "look at the disk under the data directory, then restart the node"
	if isFull(cause) {
		next = "free space on the disk under the data directory; the node goes on by itself"
	}
	return &api.Error{Code: api.CodeUnavailable, Message: "the journal cannot be written: " + cause.Error(), Next: next}
}

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// recovered turns a panic into an error: bbolt panics on a page that makes no
// sense, and a broken file must not end the process without a word.
func recovered(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("the journal file is damaged: %v", p)
	}
}

// Exists reports whether there is a journal file at path.
func Exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
