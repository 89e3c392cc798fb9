package fsm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/debvisor/debvisor/api"
)

// EntrySizeMax is the largest entry that Propose accepts, in bytes: larger
// ones delay Raft's heartbeats.
const EntrySizeMax = 256 << 10

const entryVersion = 1

// RequestIDLengthMax bounds the request ID of an entry.
const RequestIDLengthMax = 128

// Entry is one proposed change. On the log it is a version byte and JSON.
type Entry struct {
	Op        string          `json:"op"`
	Time      time.Time       `json:"time"`                // stamped by the proposer, UTC
	By        string          `json:"by,omitzero"`         // principal, for the journal
	RequestID string          `json:"request_id,omitzero"` // a retry with the same one gets the first answer
	Auth      *Auth           `json:"auth,omitzero"`       // what By proved itself with; checked again by Apply
	Body      json.RawMessage `json:"body"`
}

// Auth is the credential that an entry was accepted with. Apply refuses the
// entry if the key is gone, changed or expired by then.
type Auth struct {
	Key      string `json:"key"`      // name of the API key
	Revision uint64 `json:"revision"` // its Modified when it was checked
}

// Encode renders the entry for the log. It fails with CodeLimit when the entry
// is larger than EntrySizeMax.
func (e *Entry) Encode() ([]byte, error) {
	if len(e.RequestID) > RequestIDLengthMax {
		return nil, api.Invalid("request_id", "has %d bytes", len(e.RequestID)).Allow("at most %d", RequestIDLengthMax)
	}
	body, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode entry %s: %w", e.Op, err)
	}
	if len(body)+1 > EntrySizeMax {
		return nil, api.Errorf(api.CodeLimit, "the change has %d bytes", len(body)+1).
			Allow("at most %d in one entry", EntrySizeMax).Do("split it, or use apply, which splits by itself")
	}
	return append([]byte{entryVersion}, body...), nil
}

// DecodeEntry reads what Encode wrote. An entry of a newer version, or with a
// field that this binary does not know, is ErrUpgrade.
func DecodeEntry(raw []byte) (*Entry, error) {
	if len(raw) == 0 || raw[0] != entryVersion {
		return nil, ErrUpgrade
	}
	e := &Entry{}
	if e.scan(raw[1:]) {
		return e, nil
	}
	*e = Entry{}
	if err := decodeStrict(raw[1:], e); err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrUpgrade, err)
	}
	return e, nil
}

// scan reads an entry in the form that Encode gives it, and reports whether it
// has that form; any other is left to the general way. The body stays where it
// is: raw must not be written into.
func (e *Entry) scan(raw []byte) bool {
	s := scanner{rest: raw}
	s.want(`{"op":"`)
	e.Op = s.text()
	s.want(`,"time":"`)
	if at := s.text(); !s.odd {
		s.odd = e.Time.UnmarshalText([]byte(at)) != nil
	}
	if s.has(`,"by":"`) {
		e.By = s.text()
	}
	if s.has(`,"request_id":"`) {
		e.RequestID = s.text()
	}
	if s.has(`,"auth":{"key":"`) {
		e.Auth = &Auth{Key: s.text()}
		s.want(`,"revision":`)
		e.Auth.Revision = s.number()
		s.want(`}`)
	}
	s.want(`,"body":`)
	if s.odd || len(s.rest) == 0 || s.rest[len(s.rest)-1] != '}' {
		return false
	}
	e.Body = s.rest[: len(s.rest)-1 : len(s.rest)-1]
	return json.Valid(e.Body) && !spaced(e.Body)
}

// spaced reports whether white space surrounds raw, which the general way
// leaves out.
func spaced(raw []byte) bool { return raw[0] <= ' ' || raw[len(raw)-1] <= ' ' }

// scanner reads the parts of an encoded entry one after the other. Once it has
// met something odd it stays so.
type scanner struct {
	rest []byte
	odd  bool
}

func (s *scanner) has(part string) bool {
	if s.odd || len(s.rest) < len(part) || string(s.rest[:len(part)]) != part {
		return false
	}
	s.rest = s.rest[len(part):]
	return true
}

func (s *scanner) want(part string) { s.odd = !s.has(part) || s.odd }

// text reads the rest of a string and its closing quote, if it is printable
// ASCII without escapes.
func (s *scanner) text() string {
	for i, c := range s.rest {
		if s.odd || c < ' ' || c >= 0x7f || c == '\\' {
			break
		}
		if c == '"' {
			text := string(s.rest[:i])
			s.rest = s.rest[i+1:]
			return text
		}
	}
	s.odd = true
	return ""
}

// number reads digits that make a uint64.
func (s *scanner) number() uint64 {
	n := 0
	for n < len(s.rest) && s.rest[n] >= '0' && s.rest[n] <= '9' {
		n++
	}
	v, err := strconv.ParseUint(string(s.rest[:n]), 10, 64)
	if err != nil || n > 1 && s.rest[0] == '0' {
		s.odd = true
		return 0
	}
	s.rest = s.rest[n:]
	return v
}

// strict decodes JSON values whole and strictly. It keeps its decoders, whose
// buffers cost more than what they hold. The zero value is ready; it is safe
// for concurrent use.
type strict struct{ idle sync.Pool }

// strictDecoder is a decoder and the input that it reads from.
type strictDecoder struct {
	in   bytes.Reader
	json *json.Decoder
}

// decode decodes one JSON value and refuses unknown fields and what follows the
// value. A decoder that met an error is not used again.
func (s *strict) decode(raw []byte, into any) error {
	d, ok := s.idle.Get().(*strictDecoder)
	if !ok {
		d = &strictDecoder{}
		d.json = json.NewDecoder(&d.in)
		d.json.DisallowUnknownFields()
	}
	d.in.Reset(raw)
	if err := d.json.Decode(into); err != nil {
		return err
	}
	if _, err := d.json.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the value")
	}
	d.in.Reset(nil)
	s.idle.Put(d)
	return nil
}

// decodeStrict is strict.decode for what is decoded rarely.
func decodeStrict(raw []byte, into any) error { return new(strict).decode(raw, into) }
