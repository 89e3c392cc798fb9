package cluster_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/e2e/cluster/harness"
)

// smallDisk holds a log segment and little more.
const smallDisk = 160 << 20

// TestFullDiskLosesNothing fills the disk of the leader, and then of a
// follower, while the cluster is written to. The node ends or refuses, the
// others go on, and with room again it catches up.
func TestFullDiskLosesNothing(t *testing.T) {
	t.Parallel()
	harness.Isolated(t, func(t *testing.T) {
		dir := t.TempDir()
		for _, name := range []string{"node1", "node2", "node3"} {
			harness.Tmpfs(t, filepath.Join(dir, name, "data"), smallDisk)
		}
		c := harness.Start(t, harness.Options{Dir: dir})
		load := harness.StartLoad(t, c, 4)
		load.Grow(50, 20*time.Second)
		fillDisk(t, c, c.Leader(), load)
		fillDisk(t, c, c.Others(c.Leader())[0], load)
		acked := load.Stop()
		for _, n := range c.Nodes {
			n.Ready(30 * time.Second)
		}
		c.Converge(30 * time.Second)
		for _, n := range c.Nodes {
			c.Holds(c.Client(20*time.Second, n), acked)
		}
	})
}

// fillDisk fills the disk of a node, sees what happens and makes room again.
func fillDisk(t *testing.T, c *harness.Cluster, n *harness.Node, load *harness.Load) {
	t.Helper()
	began := time.Now()
	ballast := fill(t, n.DataDir())
	ended := false
	harness.Until(t, 90*time.Second, n.Name+" notices its full disk", func() (bool, string) {
		if !n.Alive() {
			ended = true
			return true, ""
		}
		err := c.Client(2*time.Second, n).Ready(t.Context())
		return err != nil && strings.Contains(err.Error(), "no space left"), "it serves"
	})
	t.Logf("%s: full; noticed after %v, ended: %v", n.Name, time.Since(began).Round(time.Millisecond), ended)
	took := load.Grow(50, 30*time.Second)
	t.Logf("no write was acknowledged for %v", took)
	_, err := tenants(c.Client(3*time.Second, n)).Put(t.Context(), &api.Tenant{Meta: api.Meta{Name: "refused"}})
	if err != nil && n.Alive() && !strings.Contains(err.Error(), "journal") && !strings.Contains(err.Error(), "space") {
		t.Errorf("a write to the full node was refused with %v, which does not say why", err)
	}
	raw, err := os.ReadFile(n.LogFile())
	if err != nil || !strings.Contains(string(raw), "no space left on device") {
		t.Errorf("the log of %s does not say that its disk is full (%v)", n.Name, err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if !n.Alive() {
		n.Start()
	}
	t.Logf("%s was ready %v after there was room", n.Name, n.Ready(40*time.Second).Round(time.Millisecond))
}

// fill writes until nothing more fits, and returns what it wrote.
func fill(t *testing.T, dir string) string {
	t.Helper()
	name := filepath.Join(dir, "ballast")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for block := make([]byte, 1<<20); len(block) > 0; {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			block = block[:len(block)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return name
}
