package cluster_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster"
	"github.com/debvisor/debvisor/fsm"
)

// refusesToStart opens a node that must not start, with an error that says
// what to do.
func refusesToStart(t *testing.T, n *node, what string) error {
	t.Helper()
	s, err := cluster.Open(n.cfg)
	if err == nil {
		n.Server = s
		n.kill()
		t.Fatalf("%s: the node started", what)
	}
	if e := api.AsError(err); e.Code == api.CodeInternal || e.Next == "" {
		t.Fatalf("%s: the error names no next step: %v", what, err)
	}
	return err
}

// flip changes one byte inside the first match of text in the files below dir.
func flip(t *testing.T, dir, text string) {
	t.Helper()
	done := false
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || done {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if at := bytes.Index(b, []byte(text)); at >= 0 {
			done = true
			b[at] ^= 1
			return os.WriteFile(path, b, 0o600)
		}
		return nil
	})
	if err != nil || !done {
		t.Fatalf("flip %q below %s: done %v, %v", text, dir, done, err)
	}
}

func TestADamagedLogIsRefused(t *testing.T) {
	t.Parallel()
	for _, form := range []string{cluster.LogStoreWAL, cluster.LogStoreBolt} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			c := start(t, 1, func(_ string, cfg *cluster.Config) { cfg.LogStore = form })
			n := c.nodes[0]
			for i := range 20 {
				c.must(n, tenant(fmt.Sprint("find-me-", i)))
			}
			n.kill()
			dir := n.cfg.DataDir + "/raft-wal"
			if form == cluster.LogStoreBolt {
				dir = n.cfg.DataDir + "/raft-log.db"
			}
			flip(t, dir, "find-me-3")
			refusesToStart(t, n, "a flipped bit in the log")
		})
	}
}

func TestADamagedSnapshotIsRefused(t *testing.T) {
	t.Parallel()
	for _, damage := range []string{"flip", "truncate", "meta"} {
		t.Run(damage, func(t *testing.T) {
			t.Parallel()
			c := start(t, 1, nil)
			n := c.nodes[0]
			c.must(n, tenant("find-me"))
			if err := n.Snapshot(t.Context()); err != nil {
				t.Fatal(err)
			}
			n.kill()
			dirs, err := filepath.Glob(n.cfg.DataDir + "/snapshots/*")
			if err != nil || len(dirs) != 1 {
				t.Fatalf("snapshots: %v %v", dirs, err)
			}
			switch damage {
			case "flip":
				flip(t, dirs[0], "find-me")
			case "truncate":
				err = os.Truncate(dirs[0]+"/state.bin", 200)
			case "meta":
				err = os.WriteFile(dirs[0]+"/meta.json", []byte("{"), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			refusesToStart(t, n, "a damaged snapshot")
		})
	}
}

func TestADamagedJournalOrStableStoreIsRefused(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"journal.db", "raft-stable.db", "identity.json", "node-key.pem", "ca.pem"} {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			c := start(t, 1, nil)
			n := c.nodes[0]
			c.must(n, tenant("x"))
			n.kill()
			if err := os.WriteFile(n.cfg.DataDir+"/"+file, []byte(strings.Repeat("junk", 5000)), 0o600); err != nil {
				t.Fatal(err)
			}
			refusesToStart(t, n, "a damaged "+file)
		})
	}
}

func TestAMovedAwayJournalIsFetchedFromPeers(t *testing.T) {
	t.Parallel()
	c := start(t, 3, func(_ string, cfg *cluster.Config) { cfg.TrailingEntries = 1 })
	n := c.follower()
	for i := range 20 {
		c.must(n, tenant(fmt.Sprint("t", i)))
	}
	c.converged(c.nodes...)
	if err := n.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.kill()
	if err := os.Remove(n.cfg.DataDir + "/journal.db"); err != nil {
		t.Fatal(err)
	}
	n.restart()
	c.must(n, tenant("after"))
	c.eventually("the journal is complete again", func() bool {
		v, err := n.VerifyJournal(t.Context(), nil)
		return err == nil && v.Records >= 22
	})
}

func TestFilesOfAnotherClusterOrNodeAreRefused(t *testing.T) {
	t.Parallel()
	a, b := start(t, 1, nil).nodes[0], start(t, 1, nil).nodes[0]
	a.kill()
	b.kill()
	for _, file := range []string{"node-key.pem", "ca.pem", "identity.json"} {
		n := &node{t: t, name: "mixed", cfg: a.cfg, ended: make(chan struct{})}
		n.cfg.DataDir = t.TempDir()
		if err := os.CopyFS(n.cfg.DataDir, os.DirFS(a.cfg.DataDir)); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(b.cfg.DataDir + "/" + file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(n.cfg.DataDir+"/"+file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		refusesToStart(t, n, "another cluster's "+file)
	}
	n := &node{t: t, name: "mixed", cfg: a.cfg, ended: make(chan struct{})}
	n.cfg.DataDir = t.TempDir()
	if err := os.CopyFS(n.cfg.DataDir, os.DirFS(b.cfg.DataDir)); err != nil {
		t.Fatal(err)
	}
	for _, foreign := range []string{"raft-wal", "raft-stable.db", "journal.db"} {
		if err := os.RemoveAll(n.cfg.DataDir + "/" + foreign); err != nil {
			t.Fatal(err)
		}
	}
	copyInto(t, n.cfg.DataDir, a.cfg.DataDir, "raft-wal", "raft-stable.db", "journal.db")
	refusesToStart(t, n, "another cluster's log under an identity that is whole")
	empty := newNode(t, "empty", nil)
	refusesToStart(t, empty, "an empty directory")
}

func TestTwoProcessesDoNotShareADirectory(t *testing.T) {
	t.Parallel()
	n := start(t, 1, nil).nodes[0]
	second := n.cfg
	second.Listener = listen(t, "127.0.0.1:0")
	if _, err := cluster.Open(second); api.CodeOf(err) != api.CodeConflict {
		t.Fatalf("a second process: %v", err)
	}
}

func TestAFullJournalDiskRefusesWritesAndServesReads(t *testing.T) {
	t.Parallel()
	var full atomic.Bool
	c := start(t, 1, func(_ string, cfg *cluster.Config) {
		cfg.FailJournal = func() error {
			if full.Load() {
				return fmt.Errorf("write: %w", syscall.ENOSPC)
			}
			return nil
		}
	})
	n := c.nodes[0]
	c.must(n, tenant("before"))
	full.Store(true)
	c.must(n, tenant("notices")) // the log has it; the journal fails behind it
	c.eventually("writes are refused", func() bool {
		_, err := n.Propose(t.Context(), tenant("refused"))
		return api.CodeOf(err) == api.CodeUnavailable
	})
	if _, err := n.ReadIndex(t.Context()); err != nil || fsm.Tenants.Get(n.State().Read(), "notices") == nil {
		t.Fatalf("reads: %v", err)
	}
	if len(n.Unready()) == 0 {
		t.Fatal("the node says that it is ready")
	}
	full.Store(false)
	c.eventually("writes go on by themselves", func() bool {
		_, err := n.Propose(t.Context(), tenant("healed"))
		return err == nil
	})
	if _, err := n.VerifyJournal(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}

func TestEverythingSurvivesARestartOfAll(t *testing.T) {
	t.Parallel()
	c := start(t, 3, nil)
	for i := range 20 {
		c.must(c.nodes[i%3], tenant(fmt.Sprint("t", i)))
	}
	for _, n := range c.nodes {
		n.kill()
	}
	for _, n := range c.nodes {
		n.ended, n.fatal = make(chan struct{}), nil
		n.open()
	}
	for _, n := range c.nodes {
		c.ready(n)
	}
	began := time.Now()
	c.must(c.nodes[2], tenant("after"))
	t.Logf("first write %v after the start", time.Since(began))
	c.converged(c.nodes...)
	for i := range 20 {
		if fsm.Tenants.Get(c.nodes[0].State().Read(), fmt.Sprint("t", i)) == nil {
			t.Fatalf("t%d is gone", i)
		}
	}
}

// copyInto copies files and folders of one data directory into another.
func copyInto(t *testing.T, to, from string, names ...string) {
	t.Helper()
	for _, name := range names {
		info, err := os.Stat(from + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if info.IsDir() {
			err = os.CopyFS(to+"/"+name, os.DirFS(from+"/"+name))
		} else {
			var content []byte
			if content, err = os.ReadFile(from + "/" + name); err == nil {
				err = os.WriteFile(to+"/"+name, content, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
