package api

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strconv"
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
	Message   string    `json:"message,omitzero"` // where it was refused, as Error.Where: never a wording, which may change between binaries
	Digest    string    `json:"digest,omitzero"`  // chain of SHA-256 over the bodies of the renewals since the record before, which leave no record of their own
	Changes   []Change  `json:"changes,omitzero"`
	Hash      Hash      `json:"hash"`
}

// Canonical is the encoding that the chain runs over: the record's JSON with a
// zero hash. It is byte for byte what json.Marshal gives, without looking again
// at the rows, which were encoded when they were written.
func (r *Record) Canonical() []byte {
	size := 512 + len(r.Message)
	for i := range r.Changes {
		c := &r.Changes[i]
		if !plainJSON(c.Before) || !plainJSON(c.After) {
			return r.marshal()
		}
		size += len(c.Before) + len(c.After) + len(c.Kind) + len(c.Key) + 64
	}
	b := append(make([]byte, 0, size), `{"index":`...)
	b = strconv.AppendUint(b, r.Index, 10)
	b = strconv.AppendUint(append(b, `,"term":`...), r.Term, 10)
	b, err := r.Time.AppendText(append(b, `,"time":"`...))
	if err != nil {
		return r.marshal()
	}
	b = appendJSONString(append(b, `","op":`...), r.Op)
	for _, f := range []struct{ name, value string }{
		{`,"by":`, r.By}, {`,"request_id":`, r.RequestID}, {`,"code":`, string(r.Code)}, {`,"message":`, r.Message}, {`,"digest":`, r.Digest},
	} {
		if f.value != "" {
			b = appendJSONString(append(b, f.name...), f.value)
		}
	}
	b = r.appendChanges(b)
	return append(b, `,"hash":"`+zeroHash+`"}`...)
}

// zeroHash is the zero Hash in hexadecimal digits.
const zeroHash = "0000000000000000000000000000000000000000000000000000000000000000"

func (r *Record) appendChanges(b []byte) []byte {
	if r.Changes == nil {
		return b
	}
	b = append(b, `,"changes":[`...)
	for i := range r.Changes {
		c := &r.Changes[i]
		if i > 0 {
			b = append(b, ',')
		}
		b = appendJSONString(append(b, `{"kind":`...), c.Kind)
		b = appendJSONString(append(b, `,"key":`...), c.Key)
		if c.Before != nil {
			b = append(append(b, `,"before":`...), c.Before...)
		}
		if c.After != nil {
			b = append(append(b, `,"after":`...), c.After...)
		}
		b = append(b, '}')
	}
	return append(b, ']')
}

// marshal is Canonical in the general way.
func (r *Record) marshal() []byte {
	c := *r
	c.Hash = Hash{}
	b, err := json.Marshal(&c)
	if err != nil {
		panic("encode journal record: " + err.Error()) // only raw messages that are not JSON; Apply made them
	}
	return b
}

// plainJSON reports whether json.Marshal would copy raw as it is: an encoded
// object without white space between its parts, and with nothing that it
// escapes for HTML. What it made itself is so.
func plainJSON(raw []byte) bool {
	if raw == nil {
		return true
	}
	if len(raw) < 2 || raw[0] != '{' || raw[len(raw)-1] != '}' {
		return false
	}
	quoted := false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\':
			i++ // whatever follows is part of a string
		case c <= ' ' && !(quoted && c == ' '), c == '<', c == '>', c == '&', c == 0xE2:
			return false // the last begins U+2028, among others
		}
	}
	return !quoted
}

// appendJSONString appends s as json.Marshal would.
func appendJSONString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			encoded, err := json.Marshal(s)
			if err != nil {
				panic("encode a string: " + err.Error()) // json.Marshal encodes every string
			}
			return append(b, encoded...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
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
	Effects    []PlannedEffect    `json:"effects,omitzero"`   // on guests that run
	Revisions  map[string]uint64  `json:"revisions,omitzero"` // "kind/key" to the revision that the plan saw; 0: did not exist
}

// PlannedEffect is when an edit of a VM reaches its guest, which runs.
type PlannedEffect struct {
	VM        string   `json:"vm"`
	Online    []string `json:"online,omitzero"`     // fields that change while it runs
	NextStart []string `json:"next_start,omitzero"` // fields that wait for its next start
}

// PlannedPlacement is where a VM would run.
type PlannedPlacement struct {
	VM       string   `json:"vm"`
	Decision Decision `json:"decision"`
}
