package journal_test

import (
	"context"
	"errors"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster/journal"
)

// A follower whose disk is full for long drops record after record. What it
// dropped is one gap, and the records after it are accepted.
func TestWhatAFullDiskMadeUsDropIsOneGap(t *testing.T) {
	t.Parallel()
	all := chain(8192 + 120)
	var full atomic.Bool
	full.Store(true)
	j, err := journal.Open(journal.Config{Path: filepath.Join(t.TempDir(), "journal.db"), Failing: func() error {
		if full.Load() {
			return syscall.ENOSPC
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	j.Append(all[:8192])
	within(t, "the journal tells that its disk is full", func() bool { return j.Healthy() != nil })
	for i := 8192; i < 8192+100; i++ {
		j.Append(all[i : i+1])
	}
	full.Store(false)
	within(t, "the journal writes again", func() bool { return j.Healthy() == nil })
	j.Append(all[8192+100:])
	ctx := context.Background()
	if err := j.Flush(ctx); err != nil {
		t.Fatalf("the records after the gap: %v", err)
	}
	after, through, ok := j.Gap()
	if !ok || after != all[8191].Record.Index || through != all[8192+99].Record.Index {
		t.Fatalf("the gap is %d to %d (%v), want %d to %d", after, through, ok, all[8191].Record.Index, all[8192+99].Record.Index)
	}
	if closed, err := j.Fill(ctx, raws(all[8192:8192+100])); err != nil || !closed {
		t.Fatalf("fill: %v, %v", closed, err)
	}
	if found, err := j.Verify(ctx, 0, nil); err != nil || found.Records != uint64(len(all)) {
		t.Fatalf("verify: %+v, %v", found, err)
	}
}

// What a later change says was there before may have come about in the gap.
func TestNothingIsToldAcrossAGap(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	j := open(t, filepath.Join(t.TempDir(), "journal.db"))
	all := chain(40)
	j.Append(all[:5]) // objects 1 to 5
	if err := j.Expect(ctx, all[19].Record.Index, all[19].Record.Hash); err != nil {
		t.Fatal(err)
	}
	j.Append(all[20:])
	if err := j.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	unavailable := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, &api.Error{Code: api.CodeUnavailable}) {
			t.Errorf("%s: got %v, want unavailable", what, err)
		}
	}
	m, err := j.At(ctx, "vm", "default/vm-3", 8)
	if err != nil || !m.Known || m.Index != 6 {
		t.Errorf("before the gap: %+v, %v", m, err)
	}
	_, err = j.At(ctx, "vm", "default/vm-7", 8)
	unavailable("an object that the gap may have made", err)
	_, err = j.At(ctx, "vm", "default/other", 8)
	unavailable("an object without records", err)
	if list, err := j.History(ctx, "vm", "default/vm-7", 0, 2); err != nil || len(list) != 2 {
		t.Errorf("the changes after the gap: %d, %v", len(list), err)
	}
	_, err = j.History(ctx, "vm", "default/vm-7", 0, 3)
	unavailable("a history that runs into the gap", err)
	if list, err := j.History(ctx, "vm", "default/vm-3", 8, 3); err != nil || len(list) != 1 {
		t.Errorf("the changes before the gap: %d, %v", len(list), err)
	}
}
