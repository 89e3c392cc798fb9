package cluster_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/e2e/cluster/harness"
)

// TestLeaderKillLosesNothing kills the leader again and again under load.
func TestLeaderKillLosesNothing(t *testing.T) {
	t.Parallel()
	leaderKill(t, harness.Start(t, harness.Options{}))
}

func leaderKill(t *testing.T, c *harness.Cluster) {
	load := harness.StartLoad(t, c, 4)
	load.Grow(50, 20*time.Second)
	for range 3 {
		leader := c.Leader()
		leader.Kill()
		took := load.Grow(50, 20*time.Second)
		t.Logf("%s killed; no write was acknowledged for %v", leader.Name, took)
		leader.Start()
		t.Logf("%s was ready %v after its restart", leader.Name, leader.Ready(30*time.Second).Round(time.Millisecond))
	}
	acked := load.Stop()
	c.Converge(30 * time.Second)
	for _, n := range c.Nodes {
		c.Holds(c.Client(20*time.Second, n), acked)
	}
}

// TestPowerLossOfAllLosesNothing kills every node at once under load. What was
// acknowledged is there afterwards, and the guests were not touched.
func TestPowerLossOfAllLosesNothing(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, harness.Options{})
	conn := c.Client(20 * time.Second)
	const guests = 4
	started := map[string]*api.Instance{}
	for i := range guests {
		name := fmt.Sprintf("guest%d", i)
		c.Must("vm", "create", name, "--cpus", "1", "--memory", "64MiB")
		started[name] = waitRunning(t, conn, name, 30*time.Second)
	}
	load := harness.StartLoad(t, c, 4)
	load.Grow(200, 30*time.Second)
	for _, n := range c.Nodes {
		n.Signal(9)
	}
	for _, n := range c.Nodes {
		n.Gone(10 * time.Second)
	}
	began := time.Now()
	for _, n := range c.Nodes {
		n.Start()
	}
	load.Grow(20, 40*time.Second)
	t.Logf("writes went on %v after the start of the first node", time.Since(began).Round(time.Millisecond))
	acked := load.Stop()
	for _, n := range c.Nodes {
		n.Ready(30 * time.Second)
	}
	c.Converge(30 * time.Second)
	for _, n := range c.Nodes {
		c.Holds(c.Client(20*time.Second, n), acked)
	}
	for name, was := range started {
		is := waitRunning(t, conn, name, 30*time.Second)
		if !is.StartedAt.Equal(was.StartedAt) || is.Restarts != was.Restarts || is.Owner != was.Owner || is.Gen != was.Gen {
			t.Errorf("guest of %s was started again or moved:\nbefore %+v\nafter  %+v", name, was, is)
		}
	}
}

// TestPauseEndsNoProcess freezes each node for seconds under load, as a machine
// that is suspended does. The others go on, and nobody takes it for a failed
// disk.
func TestPauseEndsNoProcess(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, harness.Options{})
	load := harness.StartLoad(t, c, 4)
	load.Grow(50, 20*time.Second)
	for range c.Nodes {
		leader := c.Leader()
		pause(leader, 4*time.Second)
		t.Logf("%s frozen for 4 s; no write was acknowledged for %v", leader.Name, load.Grow(50, 20*time.Second))
		leader.Ready(20 * time.Second)
	}
	for _, n := range c.Nodes {
		if !n.Alive() {
			t.Errorf("%s has ended", n.Name)
		}
	}
	acked := load.Stop()
	c.Converge(30 * time.Second)
	c.Holds(c.Client(20*time.Second), acked)
}

// TestDevResumes ends a cluster in order and starts it again on its directory.
func TestDevResumes(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, harness.Options{Nodes: 1})
	conn := c.Client(20 * time.Second)
	c.Must("vm", "create", "kept", "--cpus", "1", "--memory", "64MiB")
	was := waitRunning(t, conn, "kept", 30*time.Second)
	c.Resume(harness.Options{})
	if is := waitRunning(t, c.Client(20*time.Second), "kept", 30*time.Second); !is.StartedAt.Equal(was.StartedAt) {
		t.Errorf("the guest started at %v and again at %v", was.StartedAt, is.StartedAt)
	}
	other := harness.Run(t, nil, "dev", "--dir", c.Dir, "--hypervisor", "sim")
	if other.Status == 0 {
		t.Errorf("a second dev on the same directory was admitted: %v", other)
	}
}
