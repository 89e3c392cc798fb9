package cluster_test

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/e2e/cluster/harness"
)

// TestNodeRefusesToGuess starts agents on data directories and configurations
// that something is wrong with. Each ends, names what is wrong and what to do.
func TestNodeRefusesToGuess(t *testing.T) {
	t.Parallel()
	c := harness.Single(t)
	load := harness.StartLoad(t, c, 4)
	load.Grow(300, 60*time.Second)
	load.Stop()
	good := c.Nodes[0]
	busy := harness.Run(t, nil, "agent", "--config", good.ConfigFile())
	if busy.Status == 0 || !strings.Contains(busy.Stderr, "in use by another process") {
		t.Errorf("a second agent on one directory was not refused: %v", busy)
	}
	c.Shutdown()
	second := c.Run("init", "--data-dir", good.DataDir(), "--name", "again", "--advertise", good.Address)
	if second.Status != 4 || !strings.Contains(second.Stderr, "debvisor agent") {
		t.Errorf("a second init was not refused with the next step: %v", second)
	}

	other := t.TempDir()
	if r := harness.Run(t, nil, "init", "--data-dir", other, "--name", "node1", "--advertise", good.Address); r.Status != 0 {
		t.Fatalf("init of another cluster: %v", r)
	}
	for _, test := range []refusal{
		{"misspelt key", func(t *testing.T, n *harness.Node) { edit(t, n.ConfigFile(), "listen ", "lisen ") }, []string{"agent.hcl", "lisen", `"listen"`}},
		{"wrong value", func(t *testing.T, n *harness.Node) { edit(t, n.ConfigFile(), `"sim"`, `"smi"`) }, []string{"hypervisor", `"sim"`}},
		{"port in use", takePort, []string{"address already in use", "listen"}},
		{"wrong CA", func(t *testing.T, n *harness.Node) { replace(t, n, other, "ca.pem") }, []string{"not this cluster's", "join again"}},
		{"key of another node", func(t *testing.T, n *harness.Node) { replace(t, n, other, "node-key.pem") }, []string{"node-key.pem"}},
		{"identity of another cluster", func(t *testing.T, n *harness.Node) { replace(t, n, other, "identity.json") }, []string{"does not fit node", "of another cluster"}},
		{"damaged identity", func(t *testing.T, n *harness.Node) { damage(t, n, "identity.json") }, []string{"identity.json", "damaged"}},
		{"damaged votes", func(t *testing.T, n *harness.Node) { damage(t, n, "raft-stable.db") }, []string{"raft-stable.db"}},
		{"damaged log", func(t *testing.T, n *harness.Node) { damage(t, n, "raft-wal") }, []string{"raft-wal"}},
		{"damaged journal", func(t *testing.T, n *harness.Node) { damage(t, n, "journal.db") }, []string{"journal"}},
		{"absent log", func(t *testing.T, n *harness.Node) { remove(t, n, "raft-wal") }, []string{"log"}},
		{"no data directory", func(t *testing.T, n *harness.Node) { remove(t, n, "identity.json") }, []string{"debvisor join"}},
	} {
		t.Run(strings.ReplaceAll(test.name, " ", "-"), func(t *testing.T) { test.run(t, good) })
	}
}

// refusal is one thing that a node refuses.
type refusal struct {
	name  string
	spoil func(*testing.T, *harness.Node)
	says  []string
}

func (r *refusal) run(t *testing.T, good *harness.Node) {
	dir := t.TempDir()
	n := harness.Own(t, dir).Add("node1", good.Address)
	if err := os.RemoveAll(n.DataDir()); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(n.DataDir(), os.DirFS(good.DataDir())); err != nil {
		t.Fatal(err)
	}
	r.spoil(t, n)
	began := time.Now()
	p := n.Start()
	status := p.Exit(t, 30*time.Second)
	if status <= 0 {
		t.Errorf("ended with status %d", status)
	}
	text := p.Log()
	words := strings.TrimSpace(text[strings.LastIndex(strings.TrimSpace(text), "\n")+1:])
	t.Logf("after %v, status %d: %s", time.Since(began).Round(time.Millisecond), status, words)
	for _, w := range r.says {
		if !strings.Contains(text, w) {
			t.Errorf("%q is missing in\n%s", w, text)
		}
	}
	if strings.Contains(text, "panic:") || strings.Contains(text, "goroutine ") {
		t.Errorf("it panicked:\n%s", text)
	}
}

func edit(t *testing.T, name, old, now string) {
	t.Helper()
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(raw), old, now, 1)
	if text == string(raw) {
		t.Fatalf("%q is not in %s", old, name)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func takePort(t *testing.T, n *harness.Node) {
	l, err := net.Listen("tcp", n.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
}

// replace takes a file from another node's data directory.
func replace(t *testing.T, n *harness.Node, from, name string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(from, name))
	if err == nil {
		err = os.WriteFile(filepath.Join(n.DataDir(), name), raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, n *harness.Node, name string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(n.DataDir(), name)); err != nil {
		t.Fatal(err)
	}
}

// damage overwrites bytes near the beginning of a file, or of every file in a
// directory, where there is content for sure.
func damage(t *testing.T, n *harness.Node, name string) {
	t.Helper()
	damaged := 0
	err := filepath.WalkDir(filepath.Join(n.DataDir(), name), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		stat, err := f.Stat()
		if err != nil {
			return err
		}
		junk := make([]byte, min(16<<10, max(stat.Size()/2, 16)))
		for i := range junk {
			junk[i] = byte(i*7 + 13)
		}
		if _, err := f.WriteAt(junk, min(48, stat.Size()/4)); err != nil {
			return err
		}
		damaged++
		return nil
	})
	if err != nil || damaged == 0 {
		t.Fatalf("damage %s: %d files, %v", name, damaged, err)
	}
	t.Logf("%d files of %s damaged", damaged, name)
}
