package journal_test

import (
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/debvisor/debvisor/cluster/journal"
)

// More is written elsewhere while the disk is full than the queue holds. What
// was dropped is one gap, however often something was dropped, and peers fill
// it once there is room.
func TestWhatAFullDiskDroppedIsFilledFromPeers(t *testing.T) {
	t.Parallel()
	var full atomic.Bool
	path := filepath.Join(t.TempDir(), "j.db")
	j, err := journal.Open(journal.Config{Path: path, Failing: func() error {
		if full.Load() {
			return syscall.ENOSPC
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = j.Close() }()
	const before, dropped = 10, 8192
	entries := chain(before + dropped + 400)
	j.Append(entries[:before])
	if err := j.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	full.Store(true)
	j.Append(entries[before : before+1])
	within(t, "the full disk is noticed", func() bool { return j.Healthy() != nil })
	j.Append(entries[before+1 : before+dropped])
	for i := before + dropped; i < before+dropped+300; i += 100 {
		j.Append(entries[i : i+100])
	}
	full.Store(false)
	within(t, "healed", func() bool { return j.Healthy() == nil })
	j.Append(entries[before+dropped+300:])
	if err := j.Flush(t.Context()); err != nil {
		t.Fatalf("what follows the gap is not taken: %v", err)
	}
	for {
		after, through, ok := j.Gap()
		if !ok {
			break
		}
		if closed, err := j.Fill(t.Context(), raws(entries[after/2:through/2])); err != nil || !closed {
			t.Fatalf("fill %d to %d: closed %v, %v", after, through, closed, err)
		}
	}
	if v, err := j.Verify(t.Context(), 0, nil); err != nil || v.Records != uint64(len(entries)) {
		t.Fatalf("verify: %+v %v, want %d records", v, err, len(entries))
	}
}
