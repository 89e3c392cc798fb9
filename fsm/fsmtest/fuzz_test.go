package fsmtest_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/fsm/fsmtest"
)

// FuzzDecodeEntry: what is decoded encodes to something that decodes to the
// same; everything else is an error. White space, which the shortcut for
// entries as Encode writes them does not take, changes nothing.
func FuzzDecodeEntry(f *testing.F) {
	m := grow(f, newGenerator(f, seeded(3)), 60, nil)
	for _, c := range m.Log {
		f.Add(c.Data)
	}
	for _, s := range []string{"", "\x01", "\x02{}", "\x01{}", "\x01{} {}", "\x01{\"op\":\"vm.put\",\"unknown\":1}", "\x01null", "\x01{\"op\":1}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := fsm.DecodeEntry(raw)
		if len(raw) > 1 {
			spaced, spacedErr := fsm.DecodeEntry(slices.Concat(raw[:1], []byte(" "), raw[1:]))
			if (err == nil) != (spacedErr == nil) {
				t.Fatalf("got %v, with white space before it %v", err, spacedErr)
			}
			if diff := cmp.Diff(spaced, e); diff != "" {
				t.Fatalf("white space before it matters: %s", diff)
			}
		}
		if err != nil {
			if !errors.Is(err, fsm.ErrUpgrade) {
				t.Fatalf("an entry that is not understood gives %v", err)
			}
			return
		}
		again, err := e.Encode()
		if err != nil {
			return // too large, or a time that JSON has no form for
		}
		back, err := fsm.DecodeEntry(again)
		if err != nil || back.Op != e.Op || !back.Time.Equal(e.Time) || back.RequestID != e.RequestID {
			t.Fatalf("%+v came back as %+v, %v", e, back, err)
		}
	})
}

// FuzzApply: no entry makes Apply panic or breaks the state, whatever its body.
func FuzzApply(f *testing.F) {
	base := grow(f, newGenerator(f, seeded(4)), 80, nil)
	var snapshot bytes.Buffer
	if _, err := base.FSM.Snapshot().WriteTo(&snapshot); err != nil {
		f.Fatal(err)
	}
	g := newGenerator(f, seeded(5))
	for _, op := range fsm.Ops() {
		f.Add(op, []byte(g.Make(base.FSM.Read(), op).Body))
		f.Add(op, []byte("{}"))
		f.Add(op, []byte("null"))
	}
	f.Fuzz(func(t *testing.T, op string, body []byte) {
		m := fsm.New()
		if err := m.Restore(bytes.NewReader(snapshot.Bytes())); err != nil {
			t.Fatal(err)
		}
		before := m.Read()
		e := fsm.Entry{Op: op, Time: before.Time(), Body: body}
		data, err := e.Encode()
		if err != nil {
			return
		}
		if _, err := fsm.DecodeEntry(data); err != nil {
			return
		}
		checkErr := m.Check(&e)
		out, _, err := m.ApplyBatch([]fsm.Committed{{Index: before.Index() + 1, Term: 1, Data: data}})
		if (err == nil) != (checkErr == nil) {
			t.Fatalf("Check says %v, Apply %v", checkErr, err)
		}
		if err != nil {
			if !errors.Is(err, fsm.ErrUpgrade) || m.Read().StateHash() != before.StateHash() || m.Index() != before.Index() {
				t.Fatalf("an entry that is not understood: %v", err)
			}
			return
		}
		if err := errors.Join(fsmtest.CheckRows(m.Read()), fsmtest.CheckState(m.Read()), fsmtest.CheckStep(before, m.Read(), out[0].Err != nil)); err != nil {
			t.Fatalf("%s %s: %v", op, body, err)
		}
	})
}

// FuzzRestore: damaged snapshots are refused, without a panic and without more
// memory than they have bytes.
func FuzzRestore(f *testing.F) {
	m := grow(f, newGenerator(f, seeded(6)), 50, nil)
	var snapshot bytes.Buffer
	if _, err := m.FSM.Snapshot().WriteTo(&snapshot); err != nil {
		f.Fatal(err)
	}
	whole := snapshot.Bytes()
	f.Add(whole)
	f.Add([]byte("debvisor snapshot 1\n"))
	f.Add([]byte("debvisor snapshot 1\nr\x00\xff\xff\xff"))
	f.Add([]byte("debvisor snapshot 1\nr\xff\xff\xff\xff"))
	f.Add([]byte("debvisor snapshot 1\nt\x00\x00\x00\x02vm"))
	r := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		bad := bytes.Clone(whole)
		bad[r.IntN(len(bad))] ^= byte(1 + r.IntN(255))
		f.Add(bad[:r.IntN(len(bad))])
		f.Add(bad)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := fsm.New()
		hash := s.Read().StateHash()
		err := s.Restore(bytes.NewReader(raw))
		if err != nil && s.Read().StateHash() != hash {
			t.Fatal("a refused snapshot changed the state")
		}
		if err != nil {
			return
		}
		if err := fsmtest.CheckRows(s.Read()); err != nil {
			t.Fatal(err)
		}
	})
}

// TestRestoreTakesNoMoreMemoryThanThereAreBytes: the length of a frame is what
// whoever wrote the snapshot says.
func TestRestoreTakesNoMoreMemoryThanThereAreBytes(t *testing.T) {
	liar := []byte("debvisor snapshot 1\nr\x00\xff\xff\xff")
	var before, after runtime.MemStats
	const times = 64
	f := fsm.New()
	runtime.ReadMemStats(&before)
	for range times {
		if err := f.Restore(bytes.NewReader(liar)); !errors.Is(err, fsm.ErrSnapshot) {
			t.Fatalf("got %v", err)
		}
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / times; each > 4<<20 {
		t.Fatalf("%d bytes for a snapshot of %d", each, len(liar))
	}
}
