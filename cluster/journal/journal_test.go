package journal_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster/journal"
)

// chain makes n records of one log: record i has index 2*i, as if barriers lay
// between, and changes one of ten objects.
func chain(n int) []journal.Entry {
	out := make([]journal.Entry, 0, n)
	var head api.Hash
	rows := map[string]json.RawMessage{}
	for i := 1; i <= n; i++ {
		key := fmt.Sprintf("default/vm-%d", i%10)
		after := json.RawMessage(fmt.Sprintf(`{"name":"vm-%d","n":%d}`, i%10, i))
		r := &api.Record{Index: uint64(2 * i), Term: 1, Time: time.Unix(int64(i), 0).UTC(), Op: "vm.put", By: "admin", RequestID: fmt.Sprint("r", i),
			Changes: []api.Change{{Kind: "vm", Key: key, Before: rows[key], After: after}}}
		rows[key] = after
		c := r.Canonical()
		r.Hash = api.ChainHash(head, c)
		head = r.Hash
		out = append(out, journal.Entry{Record: r, Canonical: c})
	}
	return out
}

func raws(entries []journal.Entry) []journal.Raw {
	out := make([]journal.Raw, len(entries))
	for i, e := range entries {
		out[i] = journal.Raw{Index: e.Record.Index, Hash: e.Record.Hash, Canonical: e.Canonical}
	}
	return out
}

func open(t *testing.T, path string) *journal.Journal {
	t.Helper()
	j, err := journal.Open(journal.Config{Path: path})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func within(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestRecordsSurviveAReopenAndVerify(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.db")
	entries := chain(3000)
	j := open(t, path)
	j.Append(entries[:2000])
	if err := j.Sync(t.Context(), entries[1999].Record.Index); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = open(t, path)
	j.Append(entries[1500:]) // a replay that overlaps
	v, err := j.Verify(t.Context(), 0, nil)
	if err != nil || v.Records != 3000 || v.Head != entries[2999].Record.Hash {
		t.Fatalf("verified %+v, %v", v, err)
	}
	got, err := j.Range(t.Context(), 10, 20, 100)
	if err != nil || len(got) != 5 || got[0].Index != 12 || got[0].Hash != entries[5].Record.Hash {
		t.Fatalf("range: %d records, %v", len(got), err)
	}
}

func TestHistoryOfAnObjectIsExactAtEveryIndex(t *testing.T) {
	t.Parallel()
	j := open(t, filepath.Join(t.TempDir(), "journal.db"))
	entries := chain(100)
	j.Append(entries)
	for index := uint64(0); index <= 200; index++ {
		want := ""
		for i := 1; i <= int(index/2); i++ {
			if i%10 == 3 {
				want = fmt.Sprintf(`{"name":"vm-3","n":%d}`, i)
			}
		}
		m, err := j.At(t.Context(), "vm", "default/vm-3", index)
		if err != nil || !m.Known || string(m.Row) != want {
			t.Fatalf("at %d: got %s %v %v, want %s", index, m.Row, m.Known, err, want)
		}
	}
	m, err := j.At(t.Context(), "vm", "default/never", 50)
	if err != nil || m.Known {
		t.Fatalf("an object without changes: %+v, %v", m, err)
	}
	h, err := j.History(t.Context(), "vm", "default/vm-3", 0, 3)
	if err != nil || len(h) != 3 || h[0].Index != 186 || h[2].Index != 146 {
		t.Fatalf("history: %d %v", len(h), err)
	}
	recent, err := j.Recent(t.Context(), 0, 2)
	if err != nil || len(recent) != 2 || recent[0].Index != 200 {
		t.Fatalf("recent: %v %v", recent, err)
	}
}

func TestRetentionAnswersGoneBelowTheFloorAndStillVerifies(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.db")
	j := open(t, path)
	entries := chain(200)
	j.Append(entries)
	if err := j.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := j.Trim(t.Context(), 101); err != nil {
		t.Fatal(err)
	}
	if j.Floor() != 100 {
		t.Fatalf("floor %d, want 100", j.Floor())
	}
	if _, err := j.At(t.Context(), "vm", "default/vm-3", 99); api.CodeOf(err) != api.CodeGone {
		t.Fatalf("below the floor: %v", err)
	}
	if _, err := j.Range(t.Context(), 50, 150, 10); api.CodeOf(err) != api.CodeGone {
		t.Fatalf("range below the floor: %v", err)
	}
	m, err := j.At(t.Context(), "vm", "default/vm-3", 100)
	if err != nil || string(m.Row) != `{"name":"vm-3","n":43}` {
		t.Fatalf("at the floor: %s %v", m.Row, err)
	}
	_ = j.Close()
	j = open(t, path)
	if v, err := j.Verify(t.Context(), 0, nil); err != nil || v.Records != 150 {
		t.Fatalf("verify after trim: %+v %v", v, err)
	}
}

func TestAGapIsFilledOnlyWithTheRightRecords(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.db")
	entries := chain(300)
	j := open(t, path)
	j.Append(entries[:100])
	snapshot := entries[199].Record
	if err := j.Expect(t.Context(), snapshot.Index+1, snapshot.Hash); err != nil {
		t.Fatal(err)
	}
	j.Append(entries[200:])
	if err := j.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = j.Close()
	j = open(t, path) // the gap is remembered
	after, through, ok := j.Gap()
	if !ok || after != 200 || through != snapshot.Index+1 {
		t.Fatalf("gap %d %d %v", after, through, ok)
	}
	if _, err := j.Verify(t.Context(), 0, nil); api.CodeOf(err) != api.CodeUnavailable {
		t.Fatalf("verify with a gap: %v", err)
	}
	if got, err := j.Range(t.Context(), 198, 1<<40, 100); err != nil || len(got) != 1 || got[0].Index != 200 {
		t.Fatalf("a range into the gap: %d records, %v", len(got), err)
	}
	if got, err := j.Range(t.Context(), 200, 1<<40, 100); api.CodeOf(err) != api.CodeUnavailable {
		t.Fatalf("a range within the gap: %d records, %v", len(got), err)
	}
	forged := raws(entries[100:200])
	forged[50].Canonical = []byte(strings.Replace(string(forged[50].Canonical), "admin", "nobody", 1))
	if _, err := j.Fill(t.Context(), forged); err == nil {
		t.Fatal("a forged record was stored")
	}
	if closed, err := j.Fill(t.Context(), raws(entries[100:150])); err != nil || closed {
		t.Fatalf("first part: %v %v", closed, err)
	}
	if closed, err := j.Fill(t.Context(), raws(entries[100:200])); err != nil || !closed {
		t.Fatalf("second part: %v %v", closed, err)
	}
	if v, err := j.Verify(t.Context(), 0, nil); err != nil || v.Records != 300 {
		t.Fatalf("verify: %+v %v", v, err)
	}
}

func TestANewNodeMayBeginAtItsPeersFloor(t *testing.T) {
	t.Parallel()
	entries := chain(300)
	j := open(t, filepath.Join(t.TempDir(), "journal.db"))
	snapshot := entries[249].Record
	if err := j.Expect(t.Context(), snapshot.Index, snapshot.Hash); err != nil {
		t.Fatal(err)
	}
	j.Append(entries[250:])
	floor := entries[99].Record
	if err := j.StartAt(floor.Index, floor.Hash); err != nil {
		t.Fatal(err)
	}
	if closed, err := j.Fill(t.Context(), raws(entries[100:250])); err != nil || !closed {
		t.Fatalf("fill: %v %v", closed, err)
	}
	if v, err := j.Verify(t.Context(), 0, nil); err != nil || v.Records != 200 || j.Floor() != 200 {
		t.Fatalf("verify: %+v %v", v, err)
	}
}

func TestAnAlteredRecordIsNamed(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.db")
	entries := chain(5000)
	j := open(t, path)
	j.Append(entries)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("records"))
		k := []byte{0, 0, 0, 0, 0, 0, 0, 200}
		v := append([]byte(nil), b.Get(k)...)
		return b.Put(k, []byte(strings.Replace(string(v), "admin", "other", 1)))
	})
	if err != nil {
		t.Fatal(err)
	}
	_ = db.Close()
	j = open(t, path)
	if _, err := j.Verify(t.Context(), 0, nil); err == nil || !strings.Contains(err.Error(), "index 200 ") {
		t.Fatalf("verify: %v", err)
	}
	j.Append(entries[99:100]) // the log gives the true one
	within(t, "the difference makes the journal unhealthy", func() bool { return j.Healthy() != nil })
}

func TestAFullDiskHealsAndABrokenOneDoesNot(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		err   error
		heals bool
	}{{"full", syscall.ENOSPC, true}, {"broken", syscall.EIO, false}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var failing atomic.Bool
			j, err := journal.Open(journal.Config{Path: filepath.Join(t.TempDir(), "j.db"), Failing: func() error {
				if failing.Load() {
					return fmt.Errorf("write: %w", c.err)
				}
				return nil
			}})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = j.Close() }()
			entries := chain(20)
			j.Append(entries[:10])
			if err := j.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			failing.Store(true)
			j.Append(entries[10:])
			if err := j.Flush(t.Context()); api.CodeOf(err) != api.CodeUnavailable {
				t.Fatalf("flush on a failing disk: %v", err)
			}
			if err := j.Healthy(); api.CodeOf(err) != api.CodeUnavailable {
				t.Fatalf("healthy: %v", err)
			}
			failing.Store(false)
			if c.heals {
				within(t, "healed", func() bool { return j.Healthy() == nil })
				if v, err := j.Verify(t.Context(), 0, nil); err != nil || v.Records != 20 {
					t.Fatalf("verify: %+v %v", v, err)
				}
			}
			if err := j.Healthy(); (err == nil) != c.heals {
				t.Fatalf("healthy after the disk recovered: %v", err)
			}
		})
	}
}

func TestADamagedFileIsRefusedWithTheNextStep(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("not a journal ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := journal.Open(journal.Config{Path: path})
	e, ok := errors.AsType[*api.Error](err)
	if !ok || e.Next == "" {
		t.Fatalf("open: %v", err)
	}
}

func BenchmarkVerify(b *testing.B) {
	path := filepath.Join(b.TempDir(), "journal.db")
	j, err := journal.Open(journal.Config{Path: path})
	if err != nil {
		b.Fatal(err)
	}
	entries := chain(100000)
	for len(entries) > 0 {
		n := min(len(entries), 1000)
		j.Append(entries[:n])
		entries = entries[n:]
	}
	if err := j.Flush(context.Background()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		v, err := j.Verify(context.Background(), 0, nil)
		if err != nil || v.Records != 100000 {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100000, "ns/record")
	_ = j.Close()
}

func TestLastBeforeFindsTheRecord(t *testing.T) {
	t.Parallel()
	j := open(t, filepath.Join(t.TempDir(), "journal.db"))
	if index, err := j.LastBefore(time.Unix(50, 0)); err != nil || index != 0 {
		t.Fatalf("in an empty journal: %d %v", index, err)
	}
	j.Append(chain(200)) // record i is of second i and has index 2i
	if err := j.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for second, want := range map[int64]uint64{0: 0, 1: 0, 2: 2, 50: 98, 51: 100, 200: 398, 201: 400, 9999: 400} {
		if index, err := j.LastBefore(time.Unix(second, 0)); err != nil || index != want {
			t.Errorf("before second %d: got %d %v, want %d", second, index, err, want)
		}
	}
	if err := j.Trim(t.Context(), 98); err != nil {
		t.Fatal(err)
	}
	if index, err := j.LastBefore(time.Unix(20, 0)); err != nil || index != 98 {
		t.Errorf("below the floor: got %d %v, want the floor 98", index, err)
	}
}

// A node that was away while its peers' retention passed the end of its own
// journal goes on from there, once its own retention has passed it too.
func TestAGapBehindThePeersFloorIsLeftOut(t *testing.T) {
	t.Parallel()
	entries := chain(300)
	j := open(t, filepath.Join(t.TempDir(), "journal.db"))
	j.Append(entries[:100])
	snapshot := entries[199].Record
	if err := j.Expect(t.Context(), snapshot.Index, snapshot.Hash); err != nil {
		t.Fatal(err)
	}
	j.Append(entries[200:])
	if err := j.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	floor := entries[149].Record
	if err := j.StartAt(floor.Index, floor.Hash); err == nil {
		t.Fatal("it began later although it holds older records")
	}
	if err := j.Trim(t.Context(), floor.Index); err != nil {
		t.Fatal(err)
	}
	if got := j.Floor(); got != 200 {
		t.Fatalf("floor %d, want 200, where the gap begins", got)
	}
	if err := j.StartAt(floor.Index, floor.Hash); err != nil {
		t.Fatal(err)
	}
	if closed, err := j.Fill(t.Context(), raws(entries[150:200])); err != nil || !closed {
		t.Fatalf("fill: %v %v", closed, err)
	}
	if v, err := j.Verify(t.Context(), 0, nil); err != nil || v.Records != 150 {
		t.Fatalf("verify: %+v %v", v, err)
	}
}
