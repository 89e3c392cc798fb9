package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/bbolt"

	"github.com/debvisor/debvisor/api"
)

// run is the writer: it collects what is queued for a moment and commits it in
// one transaction, so that many entries share one fsync.
func (j *Journal) run() {
	defer close(j.done)
	for {
		select {
		case <-j.stop:
			return
		case <-j.wake:
		}
		if !j.hurried() {
			j.pauseUnlessUrgent()
		}
		for j.writeSome() {
		}
		if j.retrying() {
			select {
			case <-j.stop:
				return
			case <-time.After(retryFull):
				j.kick()
			}
		}
	}
}

// hurried reports whether somebody waits for the disk or the queue is long.
func (j *Journal) hurried() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.urgent || len(j.queue) >= batchRecordsMax
}

// pauseUnlessUrgent lets more records gather.
func (j *Journal) pauseUnlessUrgent() {
	deadline := time.NewTimer(linger)
	defer deadline.Stop()
	for !j.hurried() {
		select {
		case <-j.stop:
			return
		case <-deadline.C:
			return
		case <-j.wake:
		}
	}
}

func (j *Journal) retrying() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failure != nil && !j.terminal && len(j.queue) > 0
}

// writeSome commits one batch and reports whether more is queued.
func (j *Journal) writeSome() bool {
	j.mu.Lock()
	n := min(len(j.queue), batchRecordsMax)
	if n == 0 || j.terminal {
		j.urgent = false
		j.announce()
		j.mu.Unlock()
		return false
	}
	batch, at := j.queue[:n:n], j.stored
	gaps, floor := slices.Clone(j.gaps), j.floor.index
	j.started = time.Now()
	j.mu.Unlock()

	at, err := j.commit(batch, at, gaps, floor)

	j.mu.Lock()
	defer j.mu.Unlock()
	j.started = time.Time{}
	defer j.announce()
	if err != nil {
		j.fail(err)
		return false
	}
	if j.failure != nil {
		j.cfg.Logger.Info("journal writes again", "path", j.cfg.Path)
	}
	j.failure, j.stored = nil, at
	j.queue = j.queue[n:]
	if len(j.queue) == 0 {
		j.queue, j.urgent = nil, false
	}
	return len(j.queue) > 0
}

// fail notes why the journal is unhealthy. A full disk heals by itself; after
// any other failure the state of the file's cached pages is unknown, and a
// retry might report what is not on disk. The caller holds mu.
func (j *Journal) fail(err error) {
	if j.failure == nil {
		j.cfg.Logger.Error("journal cannot be written", "path", j.cfg.Path, "error", err)
	}
	j.failure, j.terminal = unhealthy(err), !isFull(err)
}

// commit writes a batch and returns the new last position.
func (j *Journal) commit(batch []Entry, at position, gaps []gap, floor uint64) (_ position, err error) {
	defer recovered(&err)
	if j.cfg.Failing != nil {
		if err := j.cfg.Failing(); err != nil {
			return at, err
		}
	}
	err = j.db.Update(func(tx *bbolt.Tx) error {
		records, objects := tx.Bucket([]byte(bucketRecords)), tx.Bucket([]byte(bucketObjects))
		records.FillPercent = 0.95 // indexes only grow
		for i := range batch {
			r := batch[i].Record
			if r.Index <= at.index {
				if err := compare(records, &batch[i], floor); err != nil {
					return err
				}
				continue
			}
			if api.ChainHash(endOf(at, r.Index, gaps), batch[i].Canonical) != r.Hash {
				return brokenAt(r.Index)
			}
			if err := put(records, objects, r, batch[i].Canonical); err != nil {
				return err
			}
			at = position{r.Index, r.Hash}
		}
		return tx.Bucket([]byte(bucketMeta)).Put([]byte(keyGaps), encodeGaps(gaps))
	})
	return at, err
}

// endOf is the hash that the record at index must follow: that of the last
// one, or of the end of a gap between the two.
func endOf(at position, index uint64, gaps []gap) api.Hash {
	for i := range gaps {
		if g := &gaps[i]; g.through >= at.index && g.through < index && g.from.index >= at.index {
			return g.end
		}
	}
	return at.hash
}

// compare refuses a record that differs from the stored one at its index: the
// log and the journal then tell different stories.
func compare(records *bbolt.Bucket, e *Entry, floor uint64) error {
	r := e.Record
	if r.Index <= floor {
		return nil
	}
	key := indexKey(r.Index)
	v := records.Get(key)
	if v == nil {
		return nil // inside a gap; Fill brings it
	}
	p, canonical, err := decodeRecord(key, v)
	if err != nil {
		return err
	}
	if p.hash != r.Hash || !bytes.Equal(canonical, e.Canonical) {
		return fmt.Errorf("the journal's record at index %d is not the one that the log gives: it was altered, or belongs to another cluster", r.Index)
	}
	return nil
}

func put(records, objects *bbolt.Bucket, r *api.Record, canonical []byte) error {
	value := make([]byte, 0, len(r.Hash)+len(canonical))
	value = append(append(value, r.Hash[:]...), canonical...)
	if err := records.Put(indexKey(r.Index), value); err != nil {
		return err
	}
	for i := range r.Changes {
		if err := objects.Put(objectKey(r.Changes[i].Kind, r.Changes[i].Key, r.Index), nil); err != nil {
			return err
		}
	}
	return nil
}

// Gap is the first missing stretch: records After < index <= Through.
func (j *Journal) Gap() (after, through uint64, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.gaps) == 0 {
		return 0, 0, false
	}
	return j.gaps[0].from.index, j.gaps[0].through, true
}

// Raw is a record as peers exchange it.
type Raw struct {
	Index     uint64
	Hash      api.Hash
	Canonical []byte
}

// Fill stores records of the first gap that a peer sent, oldest first. Each
// must follow from the one before; nothing is stored otherwise. It reports
// whether the gap is closed.
func (j *Journal) Fill(ctx context.Context, raw []Raw) (closed bool, err error) {
	if err := j.Flush(ctx); err != nil {
		return false, err
	}
	defer recovered(&err)
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.gaps) == 0 {
		return true, nil
	}
	g := j.gaps[0]
	entries, err := check(g, raw)
	if err != nil {
		return false, err
	}
	if len(entries) == 0 {
		return false, nil
	}
	last := entries[len(entries)-1].Record
	rest := j.gaps[1:]
	if last.Hash != g.end {
		g.from = position{last.Index, last.Hash}
		rest = append([]gap{g}, rest...)
	}
	err = j.db.Update(func(tx *bbolt.Tx) error {
		records, objects := tx.Bucket([]byte(bucketRecords)), tx.Bucket([]byte(bucketObjects))
		for i := range entries {
			if err := put(records, objects, entries[i].Record, entries[i].Canonical); err != nil {
				return err
			}
		}
		return tx.Bucket([]byte(bucketMeta)).Put([]byte(keyGaps), encodeGaps(rest))
	})
	if err != nil {
		j.fail(err)
		return false, err
	}
	j.gaps = rest
	if last.Index > j.stored.index {
		j.stored = position{last.Index, last.Hash}
	}
	j.announce()
	return last.Hash == g.end, nil
}

// check verifies a stretch that is to fill a gap. It ends at the latest in the
// hash that this node's own state vouches for.
func check(g gap, raw []Raw) ([]Entry, error) {
	entries := make([]Entry, 0, len(raw))
	at := g.from
	for i := range raw {
		if raw[i].Index <= at.index || raw[i].Index > g.through {
			continue
		}
		r := &api.Record{}
		if err := json.Unmarshal(raw[i].Canonical, r); err != nil || r.Index != raw[i].Index {
			return nil, fmt.Errorf("a peer's record at index %d is not readable", raw[i].Index)
		}
		r.Hash = raw[i].Hash
		if api.ChainHash(at.hash, raw[i].Canonical) != r.Hash {
			return nil, brokenAt(r.Index)
		}
		at = position{r.Index, r.Hash}
		entries = append(entries, Entry{Record: r, Canonical: raw[i].Canonical})
	}
	if at.index == g.through && at.hash != g.end {
		return nil, brokenAt(at.index)
	}
	return entries, nil
}

// StartAt lets an empty journal begin after index, whose record has the given
// hash: the peers' retention dropped what was before. It fails when the
// journal holds records before the gap already.
func (j *Journal) StartAt(index uint64, hash api.Hash) (err error) {
	defer recovered(&err)
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.gaps) == 0 || j.gaps[0].from.index >= index {
		return nil
	}
	if j.gaps[0].from != j.floor {
		return errors.New("the journal has older records than its peers: it cannot begin later")
	}
	if index > j.gaps[0].through {
		return fmt.Errorf("the peers' journal begins at index %d, after the gap", index)
	}
	floor := position{index, hash}
	gaps := append([]gap(nil), j.gaps...)
	gaps[0].from = floor
	err = j.db.Update(func(tx *bbolt.Tx) error {
		meta := tx.Bucket([]byte(bucketMeta))
		if err := meta.Put([]byte(keyFloor), encodePosition(floor)); err != nil {
			return err
		}
		return meta.Put([]byte(keyGaps), encodeGaps(gaps))
	})
	if err == nil {
		j.floor, j.gaps = floor, gaps
		if j.stored.index < index {
			j.stored = floor
		}
	}
	return err
}

// saveGaps writes the list of gaps. The caller holds mu.
func (j *Journal) saveGaps() (err error) {
	defer recovered(&err)
	return j.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(bucketMeta)).Put([]byte(keyGaps), encodeGaps(j.gaps))
	})
}

// trimBatch bounds one transaction of Trim, in records. Append waits for it.
const trimBatch = 512

// Trim drops the records at or below index, but none behind a gap. The last
// dropped one stays known by its hash, so that the chain of the rest still
// verifies.
func (j *Journal) Trim(ctx context.Context, index uint64) error {
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("trim journal: %w", err)
		}
		more, err := j.trimSome(index)
		if err != nil || !more {
			return err
		}
	}
}

func (j *Journal) trimSome(index uint64) (more bool, err error) {
	defer recovered(&err)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.terminal {
		return false, j.failure
	}
	if len(j.gaps) > 0 { // where the peers' floor has passed the gap, Fill goes on from there
		index = min(index, j.gaps[0].from.index)
	}
	floor := j.floor
	err = j.db.Update(func(tx *bbolt.Tx) error {
		records, objects := tx.Bucket([]byte(bucketRecords)), tx.Bucket([]byte(bucketObjects))
		cursor := records.Cursor()
		n := 0
		for k, v := cursor.First(); k != nil && binary.BigEndian.Uint64(k) <= index && n < trimBatch; k, v = cursor.First() {
			p, canonical, err := decodeRecord(k, v)
			if err != nil {
				return err
			}
			r := &api.Record{}
			if err := json.Unmarshal(canonical, r); err != nil {
				return fmt.Errorf("record %d: %w", p.index, err)
			}
			for i := range r.Changes {
				if err := objects.Delete(objectKey(r.Changes[i].Kind, r.Changes[i].Key, p.index)); err != nil {
					return err
				}
			}
			if err := cursor.Delete(); err != nil {
				return err
			}
			floor, n = p, n+1
		}
		more = n == trimBatch
		return tx.Bucket([]byte(bucketMeta)).Put([]byte(keyFloor), encodePosition(floor))
	})
	if err == nil {
		j.floor = floor
	}
	return more, err
}

func indexKey(index uint64) []byte {
	return binary.BigEndian.AppendUint64(nil, index)
}

func objectPrefix(kind, key string) []byte {
	b := make([]byte, 0, len(kind)+len(key)+10)
	b = append(append(b, kind...), 0)
	return append(append(b, key...), 0)
}

func objectKey(kind, key string, index uint64) []byte {
	return binary.BigEndian.AppendUint64(objectPrefix(kind, key), index)
}

func decodeRecord(k, v []byte) (position, []byte, error) {
	var p position
	if len(k) != 8 || len(v) < len(p.hash)+2 {
		return p, nil, errors.New("a record is cut short")
	}
	p.index = binary.BigEndian.Uint64(k)
	copy(p.hash[:], v)
	canonical := v[len(p.hash):]
	want := fmt.Appendf(make([]byte, 0, 32), `{"index":%d,`, p.index)
	if !bytes.HasPrefix(canonical, want) {
		return p, nil, fmt.Errorf("the record at index %d is another one", p.index)
	}
	return p, canonical, nil
}

func encodePosition(p position) []byte {
	return append(binary.BigEndian.AppendUint64(nil, p.index), p.hash[:]...)
}

func decodePosition(raw []byte) (p position, err error) {
	if len(raw) != 8+len(p.hash) {
		return p, errors.New("a position is cut short")
	}
	p.index = binary.BigEndian.Uint64(raw)
	copy(p.hash[:], raw[8:])
	return p, nil
}

const gapSize = 2 * (8 + 32)

func encodeGaps(gaps []gap) []byte {
	out := make([]byte, 0, len(gaps)*gapSize)
	for _, g := range gaps {
		out = append(out, encodePosition(g.from)...)
		out = append(out, encodePosition(position{g.through, g.end})...)
	}
	return out
}

func decodeGaps(raw []byte) ([]gap, error) {
	if len(raw)%gapSize != 0 {
		return nil, errors.New("the list of gaps is cut short")
	}
	var out []gap
	for ; len(raw) > 0; raw = raw[gapSize:] {
		from, err := decodePosition(raw[:gapSize/2])
		if err != nil {
			return nil, err
		}
		end, err := decodePosition(raw[gapSize/2 : gapSize])
		if err != nil {
			return nil, err
		}
		out = append(out, gap{from: from, through: end.index, end: end.hash})
	}
	return out, nil
}
