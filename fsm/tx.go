package fsm

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"math/bits"
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/debvisor/debvisor/api"
)

// Tx is the state as one entry sees and changes it. Its writes are undone when
// the command refuses the entry.
type Tx struct {
	Index     uint64
	Term      uint64
	Time      time.Time // the replicated clock; never goes back
	By        string
	RequestID string

	b       *batch
	changes []change
	at      map[rowRef]int // position in changes, once there are many

	strange  error  // a part of the body is not understood: this node must stop
	making   bool   // a command makes a volume for a VM
	dropping string // ID of the VM whose volumes are being dropped

	restoring bool // a command puts a VM back to what it was at a snapshot
}

type rowRef struct{ kind, key string }

type change struct {
	rowRef
	before, after anyRow // nil: no row
}

// batch is the write transaction over the entries of one ApplyBatch.
type batch struct {
	registry *registry
	gen      *generation
	base     *memdb.Txn        // the state before the batch: reads by key need no copy of the tree
	txn      *memdb.Txn        // all writes so far
	written  map[rowRef]anyRow // rows of this batch; nil for a deleted one
	read     map[rowRef]any    // what base has, for the rows that were looked at
	sys      system
	tx       *Tx // of the entry being applied
}

func newBatch(r *registry, gen *generation) *batch {
	base := gen.db.Txn(false)
	b := &batch{registry: r, gen: gen, base: base, txn: gen.db.Txn(true), written: map[rowRef]anyRow{}, read: map[rowRef]any{}, sys: *readSystem(base)}
	b.sys.counts, b.sys.usage = maps.Clone(b.sys.counts), maps.Clone(b.sys.usage) // readers have the old ones
	return b
}

func (b *batch) commit() {
	sys := b.sys
	b.insert(systemTable, &sys)
	b.txn.Commit()
}

func (b *batch) insert(table string, raw any) {
	if err := b.txn.Insert(table, raw); err != nil {
		panic(fmt.Sprintf("write %s: %v", table, err)) // the schema is wrong
	}
}

func (tx *Tx) reader() *memdb.Txn { return tx.b.txn }

func (tx *Tx) counted(what string) int { return tx.b.sys.counts[what] }

func (tx *Tx) used(tenant string) api.Usage { return tx.b.sys.usage[tenant] }

func (tx *Tx) row(table, key string) any {
	if unnamable(key) {
		return nil
	}
	ref := rowRef{table, key}
	if r, ok := tx.b.written[ref]; ok {
		if r == nil {
			return nil
		}
		return r
	}
	if raw, ok := tx.b.read[ref]; ok {
		return raw
	}
	raw, err := tx.b.base.First(table, indexID, key)
	if err != nil {
		panic(err)
	}
	tx.b.read[ref] = raw
	return raw
}

// ClusterVersion is the activated version of the log's meaning.
func (tx *Tx) ClusterVersion() uint32 { return tx.b.sys.ClusterVersion }

// NewID derives a UUID that is unique to this cluster, entry and name: version
// 8 of RFC 9562. It rests on nothing that a later binary may word differently.
func (tx *Tx) NewID(kind, key string) string {
	h := sha256.New()
	if c := Configs.Get(tx, api.ConfigName); c != nil {
		h.Write([]byte(c.ClusterID))
	}
	fmt.Fprintf(h, "\x00%d\x00%s\x00%s", tx.Index, kind, key)
	sum := h.Sum(nil)[:16]
	sum[6] = sum[6]&0x0f | 0x80
	sum[8] = sum[8]&0x3f | 0x80
	s := hex.EncodeToString(sum)
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// put writes a row. The kernel's fields of Meta are filled in: a new row gets
// its ID, unless it brings one.
func (t Table[T, P]) put(tx *Tx, v T) *T {
	m := P(&v).Head()
	key := t.key(&v)
	if before := t.Get(tx, key); before != nil {
		old := P(before).Head()
		m.ID, m.Created, m.CreatedAt = old.ID, old.Created, old.CreatedAt
	} else {
		if m.ID == "" {
			m.ID = tx.NewID(t.kind, key)
		}
		m.Created, m.CreatedAt = tx.Index, tx.Time
	}
	m.Modified, m.ModifiedAt = tx.Index, tx.Time
	r := t.newRow(v)
	tx.write(t, key, r)
	return &r.value
}

// delete removes the row of that key, if there is one.
func (t Table[T, P]) delete(tx *Tx, key string) {
	if tx.row(t.kind, key) != nil {
		tx.write(t, key, nil)
	}
}

// write puts a row (or with nil deletes it), keeping what is needed to undo it.
func (tx *Tx) write(t anyTable, key string, after anyRow) {
	ref := rowRef{t.Kind(), key}
	var before anyRow
	if raw := tx.row(ref.kind, key); raw != nil {
		before = raw.(anyRow)
	}
	if at, ok := tx.changed(ref); ok {
		tx.changes[at].after = after
	} else {
		tx.note(change{rowRef: ref, before: before, after: after})
	}
	tx.b.set(ref, before, after)
}

// changesFew is up to how many changes are looked through one by one: most
// entries change one or two rows, and need no map.
const changesFew = 8

// changed finds the change of a row that the entry has made already.
func (tx *Tx) changed(ref rowRef) (at int, ok bool) {
	if tx.at != nil {
		at, ok = tx.at[ref]
		return at, ok
	}
	for i := range tx.changes {
		if tx.changes[i].rowRef == ref {
			return i, true
		}
	}
	return 0, false
}

// note keeps the first change of a row.
func (tx *Tx) note(c change) {
	tx.changes = append(tx.changes, c)
	if tx.at == nil && len(tx.changes) <= changesFew {
		return
	}
	if tx.at == nil {
		tx.at = make(map[rowRef]int, 2*changesFew)
		for i := range tx.changes {
			tx.at[tx.changes[i].rowRef] = i
		}
	}
	tx.at[c.rowRef] = len(tx.changes) - 1
}

// set moves one row of the batch from before to after.
func (b *batch) set(ref rowRef, before, after anyRow) {
	if before != nil {
		b.sys.Rows.subtract(before.sum())
		b.sys.count(ref.kind, before, -1)
	}
	if after == nil {
		if err := b.txn.Delete(ref.kind, before); err != nil {
			panic(fmt.Sprintf("delete %s/%s: %v", ref.kind, ref.key, err))
		}
	} else {
		b.sys.Rows.add(after.sum())
		b.sys.count(ref.kind, after, 1)
		b.insert(ref.kind, after)
	}
	b.written[ref] = after
}

// undo takes back every write of the entry, last first.
func (tx *Tx) undo() {
	for i := len(tx.changes) - 1; i >= 0; i-- {
		c := tx.changes[i]
		if c.before == nil && c.after == nil {
			continue // made and deleted again within the entry
		}
		tx.b.set(c.rowRef, c.after, c.before)
	}
	tx.changes, tx.at = nil, nil
}

// rowSum is the sum of the hashes of all rows modulo 2^256. Addition commutes,
// so that the sum can be kept up to date row by row in any order.
type rowSum [4]uint64

func (s *rowSum) words(h api.Hash) (w [4]uint64) {
	for i := range w {
		for j := range 8 {
			w[i] |= uint64(h[i*8+j]) << (8 * j)
		}
	}
	return w
}

func (s *rowSum) add(h api.Hash) {
	var carry uint64
	for i, w := range s.words(h) {
		s[i], carry = bits.Add64(s[i], w, carry)
	}
}

func (s *rowSum) subtract(h api.Hash) {
	var borrow uint64
	for i, w := range s.words(h) {
		s[i], borrow = bits.Sub64(s[i], w, borrow)
	}
}

func (s rowSum) hash() (h api.Hash) {
	for i, w := range s {
		for j := range 8 {
			h[i*8+j] = byte(w >> (8 * j))
		}
	}
	return h
}
