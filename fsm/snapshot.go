package fsm

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/debvisor/debvisor/api"
)

// The snapshot format: the magic, then frames, each a type byte, a length
// (uint32, big endian) and that many bytes, then the trailer frame with the
// SHA-256 of all before it. Tables come in the order of kinds.go, rows in the
// order of their keys, so that equal states give equal bytes.
const (
	snapshotMagic = "debvisor snapshot 1\n"

	frameSystem  = 's'
	frameRequest = 'q'
	frameTable   = 't' // the kind of the rows that follow
	frameRow     = 'r'
	frameEnd     = 'e'

	frameSizeMax = 16 << 20
	frameChunk   = 64 << 10 // read at once
)

// ErrSnapshot is wrapped by what Restore returns for a snapshot that is
// damaged or cut short.
var ErrSnapshot = errors.New("the snapshot is damaged")

// Snapshot is the state at one index, to be written while Apply goes on.
type Snapshot struct {
	view     *View
	tables   []anyTable
	requests []*request
}

// Snapshot takes the state as it is now. It is quick and must be called by the
// goroutine that applies.
func (f *FSM) Snapshot() *Snapshot {
	gen := f.current.Load()
	return &Snapshot{view: gen.view(), tables: f.registry.tables, requests: gen.requests.all()}
}

// Index is the log index that the snapshot holds.
func (s *Snapshot) Index() uint64 { return s.view.Index() }

// WriteTo writes the snapshot with its trailer.
func (s *Snapshot) WriteTo(w io.Writer) (int64, error) {
	out := &frameWriter{w: bufio.NewWriterSize(w, 1<<20), sum: sha256.New()}
	out.raw([]byte(snapshotMagic))
	out.json(frameSystem, s.view.sys)
	for _, q := range s.requests {
		out.json(frameRequest, q)
	}
	for _, t := range s.tables {
		out.frame(frameTable, []byte(t.Kind()))
		for _, row := range t.rowsOf(s.view.txn) {
			out.frame(frameRow, row.encoded())
		}
	}
	out.frame(frameEnd, out.sum.Sum(nil))
	if out.err == nil {
		out.err = out.w.Flush()
	}
	return out.n, out.err
}

type frameWriter struct {
	w   *bufio.Writer
	sum hash.Hash
	n   int64
	err error
}

func (f *frameWriter) raw(b []byte) {
	if f.err != nil {
		return
	}
	f.sum.Write(b)
	_, f.err = f.w.Write(b)
	f.n += int64(len(b))
}

func (f *frameWriter) frame(kind byte, body []byte) {
	head := [5]byte{kind}
	binary.BigEndian.PutUint32(head[1:], uint32(len(body)))
	f.raw(head[:])
	f.raw(body)
}

func (f *frameWriter) json(kind byte, v any) {
	body, err := json.Marshal(v)
	if err != nil && f.err == nil {
		f.err = fmt.Errorf("encode snapshot: %w", err)
	}
	f.frame(kind, body)
}

// Restore replaces the state with the snapshot that r yields, and wakes every
// reader that waits on the old one. It reads into a new store and verifies its
// trailer and its state hash first: on an error the old state stays.
func (f *FSM) Restore(r io.Reader) error {
	gen, err := f.readSnapshot(r)
	if err != nil {
		return err
	}
	old := f.current.Swap(gen)
	f.mu.Lock()
	f.recent.reset()
	f.mu.Unlock()
	txn := old.db.Txn(true)
	for _, t := range f.registry.tables {
		if err := t.abandon(txn); err != nil {
			panic(err) // the schema is wrong
		}
	}
	txn.Commit()
	f.wake()
	return nil
}

func (f *FSM) readSnapshot(r io.Reader) (*generation, error) {
	in := &frameReader{r: bufio.NewReaderSize(r, 1<<20), sum: sha256.New()}
	if magic := in.raw(len(snapshotMagic)); in.err != nil || string(magic) != snapshotMagic {
		return nil, fmt.Errorf("%w: it does not begin as one", ErrSnapshot)
	}
	gen := f.newGeneration()
	txn := gen.db.Txn(true)
	defer txn.Abort()
	sys, rows := &system{counts: map[string]int{}, usage: map[string]api.Usage{}}, rowSum{}
	var t anyTable
	for {
		kind, body, sum := in.frame()
		if in.err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSnapshot, in.err)
		}
		var err error
		switch kind {
		case frameSystem:
			if err = decodeStrict(body, sys); err == nil && sys.ClusterVersion > VersionMax {
				err = fmt.Errorf("cluster version %d: %w", sys.ClusterVersion, ErrUpgrade)
			}
		case frameRequest:
			q := &request{}
			if err = decodeStrict(body, q); err == nil {
				gen.requests.add(q)
			}
		case frameTable:
			if t = f.registry.byKind[string(body)]; t == nil {
				err = fmt.Errorf("kind %q: %w", body, ErrUpgrade)
			}
		case frameRow:
			if t == nil {
				return nil, fmt.Errorf("%w: a row before its table", ErrSnapshot)
			}
			var row anyRow
			if _, row, err = t.decodeRow(body); err == nil {
				rows.add(row.sum())
				sys.count(t.Kind(), row, 1)
				err = txn.Insert(t.Kind(), row)
			}
		case frameEnd:
			if !bytes.Equal(sum, body) || rows != sys.Rows {
				return nil, fmt.Errorf("%w: its checksum does not match", ErrSnapshot)
			}
			if err := txn.Insert(systemTable, sys); err != nil {
				return nil, err
			}
			txn.Commit()
			return gen, nil
		default:
			err = fmt.Errorf("frame %q: %w", kind, ErrUpgrade)
		}
		if err != nil {
			return nil, fmt.Errorf("restore snapshot: %w", err)
		}
	}
}

type frameReader struct {
	r   *bufio.Reader
	sum hash.Hash
	err error
}

// raw reads n bytes. It takes memory as they arrive: the length is what a
// damaged snapshot says.
func (f *frameReader) raw(n int) []byte {
	if f.err != nil {
		return nil
	}
	b := make([]byte, min(n, frameChunk))
	for at := 0; f.err == nil && at < n; at = len(b) {
		b = append(b[:at], make([]byte, min(n-at, frameChunk))...)
		_, f.err = io.ReadFull(f.r, b[at:])
	}
	f.sum.Write(b)
	return b
}

// frame reads one frame; sum is the checksum of all before it.
func (f *frameReader) frame() (kind byte, body, sum []byte) {
	sum = f.sum.Sum(nil)
	head := f.raw(5)
	if f.err != nil {
		return 0, nil, nil
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size > frameSizeMax {
		f.err = fmt.Errorf("a frame of %d bytes", size)
		return 0, nil, nil
	}
	return head[0], f.raw(int(size)), sum
}

// SnapshotInfo is what VerifySnapshot found.
type SnapshotInfo struct {
	Index     uint64
	StateHash api.Hash
	Chain     api.Hash
}

// VerifySnapshot reads a snapshot whole, as Restore would, and keeps nothing.
func VerifySnapshot(r io.Reader) (SnapshotInfo, error) {
	gen, err := New().readSnapshot(r)
	if err != nil {
		return SnapshotInfo{}, err
	}
	v := gen.view()
	return SnapshotInfo{Index: v.Index(), StateHash: v.StateHash(), Chain: v.Chain()}, nil
}
