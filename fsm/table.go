package fsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/debvisor/debvisor/api"
)

const indexID = "id"

// Reader is a View or, inside a command, the *Tx.
type Reader interface {
	reader() *memdb.Txn
	row(table, key string) any
	counted(what string) int
	used(tenant string) api.Usage
}

// object ties a struct to the methods of its pointer.
type object[T any] interface {
	*T
	api.Object
}

// Row is one stored object with what is derived from it once: its JSON and
// its share of the state hash.
type row[T any] struct {
	value T
	key   string
	json  []byte
	hash  api.Hash
}

func (r *row[T]) encoded() []byte { return r.json }
func (r *row[T]) sum() api.Hash   { return r.hash }

// anyRow is a row of any kind.
type anyRow interface {
	encoded() []byte
	sum() api.Hash
}

// Table is the typed access to the rows of one kind. Tables are declared in
// kinds.go and hold no rows themselves.
type Table[T any, P object[T]] struct {
	kind    string
	key     func(*T) string
	indexes []index[T]
	edits   bool
}

// rule is what a user's put (after set) and delete (after nil) of a kind must
// pass. It sees the other rows, may fill in fields of after that the kernel
// derives, and may write other rows.
type rule[T any] func(tx *Tx, before, after *T) *api.Error

type index[T any] struct {
	name   string
	values func(*T) []string
}

// option configures a table at its declaration.
type option[T any] func(*declaration[T])

type declaration[T any] struct {
	indexes []index[T]
	edits   bool
	key     func(*T) string
}

// indexed adds a secondary index over any number of values of a row.
func indexed[T any](name string, values func(*T) []string) option[T] {
	return func(d *declaration[T]) { d.indexes = append(d.indexes, index[T]{name, values}) }
}

// edited lets users put and delete rows of the kind.
func edited[T any]() option[T] {
	return func(d *declaration[T]) { d.edits = true }
}

func table[T any, P object[T]](kind string, options ...option[T]) Table[T, P] {
	d := declaration[T]{key: func(v *T) string { return P(v).Head().Name }}
	if k, ok := api.LookupKind(kind); ok && k.TenantScope {
		d.key = func(v *T) string { return api.Key(P(v).Head().Tenant, P(v).Head().Name) }
	}
	for _, o := range options {
		o(&d)
	}
	return Table[T, P]{kind: kind, key: d.key, indexes: d.indexes, edits: d.edits}
}

// Kind is the kind's name.
func (t Table[T, P]) Kind() string { return t.kind }

// Get returns the row of that key, or nil. It must not be written into.
func (t Table[T, P]) Get(r Reader, key string) *T {
	raw := r.row(t.kind, key)
	if raw == nil {
		return nil
	}
	return &raw.(*row[T]).value
}

// JSON returns the encoding of the row of that key, made when it was written,
// or nil. It must not be written into.
func (t Table[T, P]) JSON(r Reader, key string) json.RawMessage {
	raw := r.row(t.kind, key)
	if raw == nil {
		return nil
	}
	return raw.(*row[T]).json
}

// All yields the rows in the order of their keys.
func (t Table[T, P]) All(r Reader) iter.Seq[*T] {
	return t.scan(r, indexID+"_prefix", "")
}

// Prefix yields the rows whose key begins with prefix, in order; "tenant/"
// yields what belongs to a tenant.
func (t Table[T, P]) Prefix(r Reader, prefix string) iter.Seq[*T] {
	return t.scan(r, indexID+"_prefix", prefix)
}

// By yields the rows that have value in the index of that name, in the order
// of their keys.
func (t Table[T, P]) By(r Reader, index, value string) iter.Seq[*T] {
	return t.scan(r, index, value)
}

func (t Table[T, P]) scan(r Reader, index, value string) iter.Seq[*T] {
	return func(yield func(*T) bool) {
		if unnamable(value) {
			return
		}
		it, err := r.reader().Get(t.kind, index, value)
		if err != nil {
			panic(fmt.Sprintf("index %s of %s: %v", index, t.kind, err)) // an index that kinds.go does not declare
		}
		for raw := it.Next(); raw != nil; raw = it.Next() {
			if !yield(&raw.(*row[T]).value) {
				return
			}
		}
	}
}

// After yields the encodings of rows whose key is greater than key, in order,
// for pages. The key of each comes with it.
func (t Table[T, P]) After(r Reader, key string) iter.Seq2[string, json.RawMessage] {
	return func(yield func(string, json.RawMessage) bool) {
		if unnamable(key) {
			return
		}
		it, err := r.reader().LowerBound(t.kind, indexID, key)
		if err != nil {
			panic(err)
		}
		for raw := it.Next(); raw != nil; raw = it.Next() {
			row := raw.(*row[T])
			if row.key > key && !yield(row.key, row.json) {
				return
			}
		}
	}
}

// Len is how many rows there are. It is known without looking at them.
func (t Table[T, P]) Len(r Reader) int { return r.counted(t.kind) }

// Ordered yields the rows that have a value in the index of that name, in the
// order of the values.
func (t Table[T, P]) Ordered(r Reader, index string) iter.Seq[*T] {
	return t.scan(r, index+"_prefix", "")
}

// moment is a time as an index orders it.
func moment(at time.Time) []string {
	return []string{at.UTC().Format("20060102150405.000000000")}
}

// Watch returns a channel that closes when any row of the kind is written
// after the view was taken, or when the state is restored.
func (t Table[T, P]) Watch(v *View) <-chan struct{} {
	it, err := v.txn.Get(t.kind, indexID+"_prefix", "")
	if err != nil {
		panic(err)
	}
	return it.WatchCh()
}

// WatchKey is Watch for the row of one key.
func (t Table[T, P]) WatchKey(v *View, key string) <-chan struct{} {
	if unnamable(key) {
		return t.Watch(v)
	}
	ch, _, err := v.txn.FirstWatch(t.kind, indexID, key)
	if err != nil {
		panic(err)
	}
	return ch
}

// newRow validates nothing: it encodes the value and digests it.
func (t Table[T, P]) newRow(v T) *row[T] {
	r := &row[T]{value: v}
	r.key = t.key(&r.value)
	encoded, err := json.Marshal(&r.value)
	if err != nil {
		panic(fmt.Sprintf("encode %s/%s: %v", t.kind, r.key, err)) // a type that cannot be encoded: a bug in api
	}
	r.json = encoded
	r.hash = rowHash(t.kind, r.key, encoded)
	return r
}

func rowHash(kind, key string, encoded []byte) api.Hash {
	h := sha256.New()
	h.Write([]byte(kind + "/" + key + "\x00"))
	h.Write(encoded)
	return api.Hash(h.Sum(nil))
}

func (t Table[T, P]) schema() *memdb.TableSchema {
	s := &memdb.TableSchema{Name: t.kind, Indexes: map[string]*memdb.IndexSchema{
		indexID: {Name: indexID, Unique: true, Indexer: keyIndexer{func(raw any) string { return raw.(*row[T]).key }}},
	}}
	for _, i := range t.indexes {
		s.Indexes[i.name] = &memdb.IndexSchema{Name: i.name, AllowMissing: true, Indexer: valuesIndexer{func(raw any) []string {
			return i.values(&raw.(*row[T]).value)
		}}}
	}
	return s
}

// abandon writes to and then empties the table of a store that Restore
// replaced, so that whoever watches any part of it wakes up.
func (t Table[T, P]) abandon(txn *memdb.Txn) error {
	if err := txn.Insert(t.kind, &row[T]{key: "\x01"}); err != nil {
		return err
	}
	_, err := txn.DeleteAll(t.kind, indexID+"_prefix", "")
	return err
}

func (t Table[T, P]) rowsOf(txn *memdb.Txn) iter.Seq2[string, anyRow] {
	return func(yield func(string, anyRow) bool) {
		it, err := txn.Get(t.kind, indexID+"_prefix", "")
		if err != nil {
			panic(err)
		}
		for raw := it.Next(); raw != nil; raw = it.Next() {
			r := raw.(*row[T])
			if !yield(r.key, r) {
				return
			}
		}
	}
}

// decodeRow reads a row of a snapshot. The encoding is kept as it was written,
// so that the state hash does not depend on the binary that restores it.
func (t Table[T, P]) decodeRow(raw []byte) (string, anyRow, error) {
	r := &row[T]{json: bytes.Clone(raw)}
	if err := decodeStrict(raw, &r.value); err != nil {
		return "", nil, fmt.Errorf("row of %s: %w", t.kind, err)
	}
	r.key = t.key(&r.value)
	r.hash = rowHash(t.kind, r.key, r.json)
	return r.key, r, nil
}

// keyIndexer is the unique index over the key.
type keyIndexer struct{ key func(any) string }

// FromObject implements memdb.SingleIndexer.
func (k keyIndexer) FromObject(raw any) (bool, []byte, error) {
	return true, terminated(k.key(raw)), nil
}

// FromArgs implements memdb.Indexer.
func (k keyIndexer) FromArgs(args ...any) ([]byte, error) { return terminatedArg(args) }

// PrefixFromArgs implements memdb.PrefixIndexer.
func (k keyIndexer) PrefixFromArgs(args ...any) ([]byte, error) {
	b, err := terminatedArg(args)
	if err != nil {
		return nil, err
	}
	return b[:len(b)-1], nil
}

// valuesIndexer is a secondary index.
type valuesIndexer struct{ values func(any) []string }

// FromObject implements memdb.MultiIndexer.
func (v valuesIndexer) FromObject(raw any) (bool, [][]byte, error) {
	var out [][]byte
	for _, s := range v.values(raw) {
		if s != "" {
			out = append(out, terminated(s))
		}
	}
	return len(out) > 0, out, nil
}

// FromArgs implements memdb.Indexer.
func (v valuesIndexer) FromArgs(args ...any) ([]byte, error) { return terminatedArg(args) }

// PrefixFromArgs implements memdb.PrefixIndexer.
func (v valuesIndexer) PrefixFromArgs(args ...any) ([]byte, error) {
	return keyIndexer{}.PrefixFromArgs(args...)
}

// unnamable reports whether no row can have s as a key or indexed value: it
// holds the NUL that ends values in an index. Anybody can send it, in any name.
func unnamable(s string) bool { return strings.ContainsRune(s, 0) }

// terminated ends a value with NUL, so that no value is the prefix of another.
func terminated(s string) []byte { return append([]byte(s), 0) }

func terminatedArg(args []any) ([]byte, error) {
	if len(args) != 1 {
		return nil, fmt.Errorf("an index takes one value, got %d", len(args))
	}
	s, ok := args[0].(string)
	if !ok || unnamable(s) {
		return nil, fmt.Errorf("an index takes a string without NUL, got %T", args[0])
	}
	return terminated(s), nil
}
