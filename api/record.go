package api

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"
)

// Hash is a SHA-256 sum, written as hexadecimal in JSON.
type Hash [sha256.Size]byte

// MarshalText implements encoding.TextMarshaler.
func (h Hash) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h[:])), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hash) UnmarshalText(text []byte) error {
	if len(text) != 2*len(h) {
		return Invalid("hash", "has %d characters", len(text)).Allow("%d hexadecimal digits", 2*len(h))
	}
	_, err := hex.Decode(h[:], text)
	return err
}

// String is the hash in hexadecimal digits.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// Change is one row before and after an entry. Before is empty for a row that
// was made, After for one that was deleted.
type Change struct {
	Kind   string          `json:"kind"`
	Key    string          `json:"key"`
	Before json.RawMessage `json:"before,omitzero"`
	After  json.RawMessage `json:"after,omitzero"`
}

// Action is create, update or delete.
func (c *Change) Action() string {
	switch {
	case len(c.Before) == 0:
		return "create"
	case len(c.After) == 0:
		return "delete"
	}
	return "update"
}

// Record is one entry of the journal: what an entry of the log did. Its JSON
// encoding, in the order of these fields, is canonical and frozen, since the
// hash chain runs over it: Hash(i) = SHA-256(Hash(i-1) | JSON of record i with
// Hash left out).
type Record struct {
	Index     uint64    `json:"index"`
	Term      uint64    `json:"term"`
	Time      time.Time `json:"time"`
	Op        string    `json:"op"`
	By        string    `json:"by,omitzero"`
	RequestID string    `json:"request_id,omitzero"`
	Code      Code      `json:"code,omitzero"`    // of the refusal; empty when it was carried out
	Message   string    `json:"message,omitzero"` // of the refusal
	Digest    string    `json:"digest,omitzero"`  // chain of SHA-256 over the bodies of the renewals since the record before, which leave no record of their own
	Changes   []Change  `json:"changes,omitzero"`
	Hash      Hash      `json:"hash"`
}

// Canonical is the encoding that the chain runs over: the record's JSON with a
// zero hash.
func (r *Record) Canonical() []byte {
	c := *r
	c.Hash = Hash{}
	b, err := json.Marshal(&c)
	if err != nil {
		panic("encode journal record: " + err.Error()) // only raw messages that are not JSON; Apply made them
	}
	return b
}

// Chain is the hash of this record after the one before it.
func (r *Record) Chain(previous Hash) Hash {
	return ChainHash(previous, r.Canonical())
}

// ChainHash links the canonical encoding of a record to the hash before it.
func ChainHash(previous Hash, canonical []byte) Hash {
	h := sha256.New()
	h.Write(previous[:])
	h.Write(canonical)
	return Hash(h.Sum(nil))
}

// Plan is what a change would do: the rows that it would write and where the
// VMs among them would run.
type Plan struct {
	Index      uint64             `json:"index"` // of the state that it was computed on
	Changes    []Change           `json:"changes"`
	Placements []PlannedPlacement `json:"placements,omitzero"`
	Revisions  map[string]uint64  `json:"revisions,omitzero"` // "kind/key" to the revision that the plan saw; 0: did not exist
}

// PlannedPlacement is where a VM would run.
type PlannedPlacement struct {
	VM       string   `json:"vm"`
	Decision Decision `json:"decision"`
}
