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

// Limits of one read.
const (
	PageRecordsMax = 1000    // records of one answer
	pageBytesMax   = 2 << 20 // canonical bytes of one answer
)

// Moment is an object as it was at an index.
type Moment struct {
	// Known is false when the journal holds no change of the object: then what
	// the tables hold now, a row or none, is what was there at that index too.
	Known bool
	Index uint64          // of the change that made it so; 0 when only a later change tells
	Row   json.RawMessage // empty: the object did not exist
}

// At is the object as the entry at index left it. Below Floor it is CodeGone;
// while that stretch is fetched from peers, CodeUnavailable.
func (j *Journal) At(ctx context.Context, kind, key string, index uint64) (m Moment, err error) {
	index = min(index, indexMax)
	if err := j.ready(ctx, index); err != nil {
		return m, err
	}
	defer recovered(&err)
	_, _, gaps := j.Gap()
	err = j.db.View(func(tx *bbolt.Tx) error {
		prefix := objectPrefix(kind, key)
		cursor := tx.Bucket([]byte(bucketObjects)).Cursor()
		k, _ := cursor.Seek(objectKey(kind, key, index+1))
		after := bytes.Clone(k)
		if k == nil {
			k, _ = cursor.Last()
		} else {
			k, _ = cursor.Prev()
		}
		switch {
		case bytes.HasPrefix(k, prefix):
			m.Known, m.Index = true, objectIndex(k)
			c, err := changeAt(tx, m.Index, kind, key)
			m.Row = bytes.Clone(c.After)
			return err
		case gaps: // the first change may be missing
			return fetching()
		case bytes.HasPrefix(after, prefix):
			m.Known = true
			c, err := changeAt(tx, objectIndex(after), kind, key)
			m.Row = bytes.Clone(c.Before)
			return err
		}
		return nil
	})
	return m, err
}

// indexMax keeps index+1 from wrapping; no log gets there.
const indexMax = 1 << 62

// ready waits for the queue and refuses what was dropped or is still missing.
func (j *Journal) ready(ctx context.Context, index uint64) error {
	if err := j.Flush(ctx); err != nil && ctx.Err() != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if index < j.floor.index {
		return api.Errorf(api.CodeGone, "history at index %d was dropped", index).Allow("an index from %d on", j.floor.index)
	}
	if len(j.gaps) > 0 && index >= j.gaps[0].from.index {
		return fetching()
	}
	return nil
}

func fetching() *api.Error {
	return api.Errorf(api.CodeUnavailable, "this node is fetching its history from its peers").Do("ask another node, or try again in a moment")
}

// History lists the records that changed an object, newest first, at most
// limit of them and all below before (0: from the newest). Quiet operations
// (lease renewals) leave no changes and do not show. While records that might
// belong to the answer are fetched from peers it is CodeUnavailable.
func (j *Journal) History(ctx context.Context, kind, key string, before uint64, limit int) (out []api.Record, err error) {
	if err := j.Flush(ctx); err != nil && ctx.Err() != nil {
		return nil, err
	}
	defer recovered(&err)
	if before == 0 {
		before = ^uint64(0)
	}
	limit = min(limit, PageRecordsMax)
	lacking := j.lacking(before)
	err = j.db.View(func(tx *bbolt.Tx) error {
		prefix := objectPrefix(kind, key)
		cursor := tx.Bucket([]byte(bucketObjects)).Cursor()
		k, _ := cursor.Seek(objectKey(kind, key, before))
		if k == nil {
			k, _ = cursor.Last()
		} else {
			k, _ = cursor.Prev()
		}
		for ; bytes.HasPrefix(k, prefix) && len(out) < limit; k, _ = cursor.Prev() {
			r, err := recordAt(tx, objectIndex(k))
			if err != nil {
				return err
			}
			out = append(out, r)
		}
		return nil
	})
	if err == nil && lacking > 0 && (len(out) < limit || len(out) > 0 && out[len(out)-1].Index <= lacking) {
		return nil, fetching()
	}
	return out, err
}

// lacking is the highest index below before at which a record may be missing.
func (j *Journal) lacking(before uint64) (index uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := range j.gaps {
		if g := &j.gaps[i]; g.from.index+1 < before {
			index = min(g.through, before-1)
		}
	}
	return index
}

// Range lists records after < index <= through, oldest first, at most limit of
// them. Reading below Floor is CodeGone; what a gap lacks is CodeUnavailable,
// and never passed over.
func (j *Journal) Range(ctx context.Context, after, through uint64, limit int) (out []api.Record, err error) {
	raw, _, err := j.Raw(ctx, after, through, limit)
	if err != nil {
		return nil, err
	}
	if from, end, missing := j.Gap(); missing && after < end && through > from {
		raw = slices.DeleteFunc(raw, func(r Raw) bool { return r.Index > from })
		if len(raw) == 0 {
			return nil, fetching()
		}
	}
	for i := range raw {
		var r api.Record
		if err := json.Unmarshal(raw[i].Canonical, &r); err != nil {
			return nil, fmt.Errorf("journal record %d: %w", raw[i].Index, err)
		}
		r.Hash = raw[i].Hash
		out = append(out, r)
	}
	return out, nil
}

// Raw is Range without decoding. more says that the answer was cut at limit or
// at the size of an answer.
func (j *Journal) Raw(ctx context.Context, after, through uint64, limit int) (out []Raw, more bool, err error) {
	if err := j.Flush(ctx); err != nil && ctx.Err() != nil {
		return nil, false, err
	}
	if floor := j.Floor(); after < floor {
		return nil, false, api.Errorf(api.CodeGone, "history up to index %d was dropped", floor).Allow("an index from %d on", floor)
	}
	defer recovered(&err)
	limit = min(limit, PageRecordsMax)
	size := 0
	err = j.db.View(func(tx *bbolt.Tx) error {
		cursor := tx.Bucket([]byte(bucketRecords)).Cursor()
		for k, v := cursor.Seek(indexKey(min(after, indexMax) + 1)); k != nil && binary.BigEndian.Uint64(k) <= through; k, v = cursor.Next() {
			if len(out) == limit || size > pageBytesMax {
				more = true
				return nil
			}
			p, canonical, err := decodeRecord(k, v)
			if err != nil {
				return err
			}
			size += len(canonical)
			out = append(out, Raw{Index: p.index, Hash: p.hash, Canonical: bytes.Clone(canonical)})
		}
		return nil
	})
	return out, more, err
}

// Recent lists the newest records, newest first, at most limit of them and all
// below before (0: from the newest).
func (j *Journal) Recent(ctx context.Context, before uint64, limit int) (out []api.Record, err error) {
	if err := j.Flush(ctx); err != nil && ctx.Err() != nil {
		return nil, err
	}
	defer recovered(&err)
	if before == 0 {
		before = ^uint64(0)
	}
	limit = min(limit, PageRecordsMax)
	err = j.db.View(func(tx *bbolt.Tx) error {
		cursor := tx.Bucket([]byte(bucketRecords)).Cursor()
		for k, _ := seekUpTo(cursor, before-1); k != nil && len(out) < limit; k, _ = cursor.Prev() {
			r, err := recordAt(tx, binary.BigEndian.Uint64(k))
			if err != nil {
				return err
			}
			out = append(out, r)
		}
		return nil
	})
	return out, err
}

// FloorHash is the position of the last record that retention dropped.
func (j *Journal) FloorHash() (uint64, api.Hash) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.floor.index, j.floor.hash
}

// Verified is what Verify found in order.
type Verified struct {
	Records uint64
	First   uint64   // index of the first record
	Last    uint64   // index of the last record
	Head    api.Hash // of the last record; equals the state's chain when nothing was cut off
}

// progressEvery is how many records pass between two calls of progress.
const progressEvery = 10000

// Verify recomputes the chain from the record after index from (0: from the
// floor) to the end. It stops at the first bad record with an error that names
// its index. progress, when not nil, is told how many records are done.
func (j *Journal) Verify(ctx context.Context, from uint64, progress func(records uint64)) (out Verified, err error) {
	if err := j.Flush(ctx); err != nil && ctx.Err() != nil {
		return out, err
	}
	defer recovered(&err)
	j.mu.Lock()
	at, gaps := j.floor, append([]gap(nil), j.gaps...)
	j.mu.Unlock()
	if len(gaps) > 0 {
		return out, api.Errorf(api.CodeUnavailable, "records %d to %d are being fetched from peers", gaps[0].from.index+1, gaps[0].through).Do("verify again in a moment")
	}
	err = j.db.View(func(tx *bbolt.Tx) error {
		cursor := tx.Bucket([]byte(bucketRecords)).Cursor()
		k, v := cursor.First()
		if from > at.index {
			k, v = cursor.Seek(indexKey(from))
			if k == nil {
				return nil
			}
			p, _, err := decodeRecord(k, v)
			if err != nil {
				return brokenBecause(k, err)
			}
			at = p
			k, v = cursor.Next()
		}
		for ; k != nil; k, v = cursor.Next() {
			p, canonical, err := decodeRecord(k, v)
			if err != nil {
				return brokenBecause(k, err)
			}
			if api.ChainHash(at.hash, canonical) != p.hash {
				return brokenAt(p.index)
			}
			if out.First == 0 {
				out.First = p.index
			}
			at = p
			out.Records++
			if out.Records%progressEvery == 0 {
				if err := ctx.Err(); err != nil {
					return fmt.Errorf("verify journal: %w", err)
				}
				if progress != nil {
					progress(out.Records)
				}
			}
		}
		return nil
	})
	out.Last, out.Head = at.index, at.hash
	return out, err
}

func brokenBecause(k []byte, err error) error {
	if len(k) == 8 {
		return fmt.Errorf("%w: %w", brokenAt(binary.BigEndian.Uint64(k)), err)
	}
	return err
}

// seekUpTo moves to the last record at or below index.
func seekUpTo(cursor *bbolt.Cursor, index uint64) ([]byte, []byte) {
	k, v := cursor.Seek(indexKey(index))
	switch {
	case k == nil:
		return cursor.Last()
	case binary.BigEndian.Uint64(k) > index:
		return cursor.Prev()
	}
	return k, v
}

func objectIndex(k []byte) uint64 { return binary.BigEndian.Uint64(k[len(k)-8:]) }

func recordAt(tx *bbolt.Tx, index uint64) (r api.Record, err error) {
	key := indexKey(index)
	v := tx.Bucket([]byte(bucketRecords)).Get(key)
	if v == nil {
		return r, brokenAt(index)
	}
	p, canonical, err := decodeRecord(key, v)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(canonical, &r); err != nil {
		return r, fmt.Errorf("journal record %d: %w", index, err)
	}
	r.Hash = p.hash
	return r, nil
}

func changeAt(tx *bbolt.Tx, index uint64, kind, key string) (api.Change, error) {
	r, err := recordAt(tx, index)
	if err != nil {
		return api.Change{}, err
	}
	for _, c := range r.Changes {
		if c.Kind == kind && c.Key == key {
			return c, nil
		}
	}
	return api.Change{}, errors.Join(brokenAt(index), errors.New("it lacks a change that the index names"))
}

// LastBefore is the index of the last record that is older than a time, or the
// floor. The times of records never go back, so halving finds it.
func (j *Journal) LastBefore(at time.Time) (index uint64, err error) {
	defer recovered(&err)
	low := j.Floor()
	err = j.db.View(func(tx *bbolt.Tx) error {
		cursor := tx.Bucket([]byte(bucketRecords)).Cursor()
		last, _ := cursor.Last()
		if last == nil {
			return nil
		}
		for high := binary.BigEndian.Uint64(last); low < high; { // low is older; what follows high is not
			middle := low + (high-low)/2
			k, v := cursor.Seek(indexKey(middle + 1))
			p, canonical, err := decodeRecord(k, v)
			if err != nil {
				return err
			}
			var r struct {
				Time time.Time `json:"time"`
			}
			if err := json.Unmarshal(canonical, &r); err != nil {
				return fmt.Errorf("journal record %d: %w", p.index, err)
			}
			if r.Time.Before(at) {
				low = p.index
			} else {
				high = middle
			}
		}
		return nil
	})
	return low, err
}

// HashUpTo is the hash of the last record at or below index, or of the floor.
func (j *Journal) HashUpTo(index uint64) (api.Hash, error) {
	p, err := j.lastUpTo(index)
	return p.hash, err
}
