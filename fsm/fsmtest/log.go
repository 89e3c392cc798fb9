package fsmtest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"github.com/debvisor/debvisor/fsm"
)

// entryVersion is the byte that every encoded entry of a golden log begins with.
const entryVersion = 1

// lineSizeMax bounds one line of a golden log, in bytes.
const lineSizeMax = 2 * fsm.EntrySizeMax

// Machine is a state machine at the end of a growing log.
type Machine struct {
	FSM *fsm.FSM
	Log []fsm.Committed
}

// NewMachine makes an empty one.
func NewMachine() *Machine { return &Machine{FSM: fsm.New()} }

// Append encodes the entry, applies it at the next index and returns what came
// of it. A nil yield is that of an entry that leaves no record of its own.
func (m *Machine) Append(e fsm.Entry) (fsm.Outcome, *fsm.Yield, error) {
	data, err := e.Encode()
	if err != nil {
		return fsm.Outcome{}, nil, err
	}
	c := fsm.Committed{Index: uint64(len(m.Log)) + 1, Term: 1 + uint64(len(m.Log))/100, Data: data}
	out, yields, err := m.FSM.ApplyBatch([]fsm.Committed{c})
	if err != nil {
		return fsm.Outcome{}, nil, fmt.Errorf("entry %d, %s: %w", c.Index, e.Op, err)
	}
	m.Log = append(m.Log, c)
	if len(yields) == 0 {
		return out[0], nil, nil
	}
	return out[0], &yields[0], nil
}

// line is one entry of a golden log.
type line struct {
	Index uint64          `json:"index"`
	Term  uint64          `json:"term"`
	Entry json.RawMessage `json:"entry,omitzero"` // without its version byte; absent: none of ours
}

// WriteLog writes entries as one line of JSON each.
func WriteLog(w io.Writer, log []fsm.Committed) error {
	for _, c := range log {
		l := line{Index: c.Index, Term: c.Term}
		if c.Data != nil {
			if c.Data[0] != entryVersion {
				return fmt.Errorf("entry %d has version %d", c.Index, c.Data[0])
			}
			l.Entry = c.Data[1:]
		}
		b, err := json.Marshal(l)
		if err != nil {
			return fmt.Errorf("entry %d: %w", c.Index, err)
		}
		if _, err := w.Write(append(b, '\n')); err != nil {
			return fmt.Errorf("write log: %w", err)
		}
	}
	return nil
}

// ReadLog reads what WriteLog wrote, byte for byte.
func ReadLog(r io.Reader) ([]fsm.Committed, error) {
	var log []fsm.Committed
	in := bufio.NewScanner(r)
	in.Buffer(nil, lineSizeMax)
	for in.Scan() {
		var l line
		if err := json.Unmarshal(in.Bytes(), &l); err != nil {
			return nil, fmt.Errorf("line %d: %w", len(log)+1, err)
		}
		c := fsm.Committed{Index: l.Index, Term: l.Term}
		if l.Entry != nil {
			c.Data = append([]byte{entryVersion}, bytes.Clone(l.Entry)...)
		}
		log = append(log, c)
	}
	if err := in.Err(); err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	return log, nil
}
