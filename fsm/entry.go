package fsm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	if err := decodeStrict(raw[1:], e); err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrUpgrade, err)
	}
	return e, nil
}

// decodeStrict decodes one JSON value and refuses unknown fields and what
// follows the value.
func decodeStrict(raw []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the value")
	}
	return nil
}
