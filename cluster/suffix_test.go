package cluster_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/debvisor/debvisor/cluster"
)

// A leader that was killed drops the entries that only it had when it comes
// back as a follower. What is left has to be readable after the next start.
func TestALogWhoseEndWasTruncatedOpensAgain(t *testing.T) {
	t.Parallel()
	for _, form := range []string{cluster.LogStoreWAL, cluster.LogStoreBolt} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for round := range uint64(3) {
				log, closer, err := cluster.OpenLog(dir, form)
				if err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				first := 10*round + 1
				appendEntries(t, log, first, first+19)
				if err := log.DeleteRange(first+10, first+19); err != nil {
					t.Fatal(err)
				}
				if err := closer.Close(); err != nil {
					t.Fatal(err)
				}
			}
			log, closer, err := cluster.OpenLog(dir, form)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = closer.Close() }()
			if last, err := log.LastIndex(); err != nil || last != 30 {
				t.Fatalf("the last index is %d (%v), want 30", last, err)
			}
			for i := uint64(1); i <= 30; i++ {
				var l raft.Log
				if err := log.GetLog(i, &l); err != nil || string(l.Data) != fmt.Sprint(i) {
					t.Errorf("entry %d: %q, %v", i, l.Data, err)
				}
			}
		})
	}
}

// A node that votes knows from its journal how far its log has reached.
func TestALogThatIsGoneIsRefused(t *testing.T) {
	t.Parallel()
	c := start(t, 1, nil)
	n := c.nodes[0]
	c.must(n, tenant("acknowledged"))
	n.kill()
	if err := os.RemoveAll(n.cfg.DataDir + "/raft-wal"); err != nil {
		t.Fatal(err)
	}
	if err := refusesToStart(t, n, "a log that is gone"); !strings.Contains(err.Error(), "the journal has records") {
		t.Errorf("the error does not say how it is known: %v", err)
	}
}

func appendEntries(t *testing.T, log raft.LogStore, from, to uint64) {
	t.Helper()
	var entries []*raft.Log
	for i := from; i <= to; i++ {
		entries = append(entries, &raft.Log{Index: i, Term: 1, Type: raft.LogCommand, Data: []byte(fmt.Sprint(i))})
	}
	if err := log.StoreLogs(entries); err != nil {
		t.Fatal(err)
	}
}
