package cluster_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/e2e/cluster/harness"
)

// writesWithin is how soon writes go on after a leader is cut off.
const writesWithin = 5 * time.Second

// site is three nodes, each in a network namespace of its own, on a bridge in
// the namespace of the test.
type site struct {
	*harness.Cluster
	t *testing.T
}

func nodeAddress(i int) string { return fmt.Sprintf("10.77.0.%d", i+1) }

// makeSite makes the network and the cluster in it.
func makeSite(t *testing.T) *site {
	t.Helper()
	harness.IP(t, "link", "add", "hub", "type", "bridge")
	harness.IP(t, "address", "add", "10.77.0.254/24", "dev", "hub")
	harness.IP(t, "link", "set", "hub", "up")
	dir := t.TempDir()
	first := filepath.Join(dir, "node1", "data")
	key := filepath.Join(dir, "admin.key")
	s := &site{t: t, Cluster: harness.Own(t, dir,
		"DEBVISOR_ADDR="+strings.Join([]string{nodeAddress(0) + ":7443", nodeAddress(1) + ":7443", nodeAddress(2) + ":7443"}, ","),
		"DEBVISOR_CACERT="+filepath.Join(first, "ca.pem"), "DEBVISOR_KEY_FILE="+key)}
	for i := range 3 {
		s.plug(i)
		n := s.Add(fmt.Sprintf("node%d", i+1), nodeAddress(i)+":7443", "ip", "netns", "exec", netns(i))
		place := []string{"--data-dir", n.DataDir(), "--name", n.Name, "--listen", n.Address, "--advertise", n.Address}
		if i == 0 {
			s.inside(i, 0, append([]string{"init", "--key-file", key}, place...)...)
			s.ReadKey(key)
		} else {
			var token api.Secret
			decode(t, s.Must("node", "token", "-o", "json"), &token)
			s.inside(i, 0, append([]string{"join", token.Token + "@" + s.Nodes[0].Address}, place...)...)
		}
		n.Start()
		n.Ready(60 * time.Second)
	}
	harness.Until(t, 30*time.Second, "all nodes vote", func() (bool, string) {
		r := s.Run("cluster", "status", "-o", "json")
		return strings.Count(r.Stdout, `"voter": true`) == 3, r.String()
	})
	return s
}

func netns(i int) string { return fmt.Sprintf("n%d", i+1) }
func cable(i int) string { return fmt.Sprintf("cable%d", i+1) }

// plug makes the namespace of a node and its cable to the bridge.
func (s *site) plug(i int) {
	s.t.Helper()
	harness.IP(s.t, "netns", "add", netns(i))
	harness.IP(s.t, "link", "add", cable(i), "type", "veth", "peer", "name", "eth0", "netns", netns(i))
	harness.IP(s.t, "link", "set", cable(i), "master", "hub", "up")
	harness.IP(s.t, "-n", netns(i), "link", "set", "lo", "up")
	harness.IP(s.t, "-n", netns(i), "address", "add", nodeAddress(i)+"/24", "dev", "eth0")
	harness.IP(s.t, "-n", netns(i), "link", "set", "eth0", "up")
}

// inside runs a command on the machine of a node.
func (s *site) inside(i, status int, args ...string) harness.Result {
	s.t.Helper()
	r := harness.RunProgram(s.t, s.Env, "ip", append([]string{"netns", "exec", netns(i), harness.Binary(s.t)}, args...)...)
	if r.Status != status {
		s.t.Fatalf("on node%d: exit status %d, want %d:\n%v", i+1, r.Status, status, r)
	}
	return r
}

// index is the place of a node in the site.
func (s *site) index(n *harness.Node) int {
	for i, other := range s.Nodes {
		if n == other {
			return i
		}
	}
	s.t.Fatalf("%s is not of this site", n.Name)
	return 0
}

// isolate takes a node's cable off the bridge; heal puts it back. Connections
// stay open on both sides and hear nothing any more.
func (s *site) isolate(i int) { harness.IP(s.t, "link", "set", cable(i), "nomaster") }
func (s *site) heal(i int)    { harness.IP(s.t, "link", "set", cable(i), "master", "hub") }

// mute makes what one node sends to another go nowhere; the other way is open.
func (s *site) mute(from, to int) {
	harness.IP(s.t, "-n", netns(from), "neighbour", "replace", nodeAddress(to), "lladdr", "02:00:00:00:de:ad", "dev", "eth0", "nud", "permanent")
}

func (s *site) unmute(from, to int) {
	harness.IP(s.t, "-n", netns(from), "neighbour", "delete", nodeAddress(to), "dev", "eth0")
}

// TestPartition cuts the leader off, and then one way only. The minority
// refuses changes and keeps its guests; the majority goes on; healed, all are
// the same.
func TestPartition(t *testing.T) {
	t.Parallel()
	harness.Isolated(t, func(t *testing.T) {
		s := makeSite(t)
		load := harness.StartLoad(t, s.Cluster, 3)
		load.Grow(20, 20*time.Second)
		s.leaderIsCutOff(load)
		s.leaderIsMute(load)
		s.followerHearsNothing(load)
		acked := load.Stop()
		s.Converge(30 * time.Second)
		for _, n := range s.Nodes {
			s.Holds(s.Client(20*time.Second, n), acked)
		}
	})
}

func (s *site) leaderIsCutOff(load *harness.Load) {
	s.t.Helper()
	leader := s.Leader()
	i := s.index(leader)
	s.Must("vm", "create", "local", "--cpus", "1", "--memory", "64MiB", "--node", leader.Name)
	was := waitRunning(s.t, s.Client(10*time.Second), "local", 30*time.Second)

	s.isolate(i)
	took := load.Grow(20, 20*time.Second)
	s.t.Logf("leader %s isolated: the majority acknowledged nothing for %v", leader.Name, took)
	s.inTime(took)
	r := s.inside(i, 6, "tenant", "create", "minority", "--addr", leader.Address)
	contains(s.t, r, "nobody leads") // and not that it may have happened
	s.t.Logf("the minority refused after %v: %s", r.Took.Round(time.Millisecond), strings.TrimSpace(r.Stderr))
	s.inside(i, 6, "cluster", "status", "--addr", leader.Address)
	if len(s.Others(leader)) != 2 || s.Leader(s.Others(leader)...) == leader {
		s.t.Error("the majority has no leader of its own")
	}

	s.heal(i)
	healed := harness.Until(s.t, 30*time.Second, leader.Name+" follows again", func() (bool, string) {
		status, err := leader.Status(2 * time.Second)
		if err != nil {
			return false, err.Error()
		}
		return status.Leader != "" && status.Leader != leader.Name, "leader " + status.Leader
	})
	s.t.Logf("%s followed %v after the cut was healed", leader.Name, healed.Round(time.Millisecond))
	s.Wants(3, "tenant", "show", "minority")
	if is := waitRunning(s.t, s.Client(10*time.Second), "local", 30*time.Second); !is.StartedAt.Equal(was.StartedAt) || is.Gen != was.Gen {
		s.t.Errorf("the guest of the minority was touched:\nbefore %+v\nafter  %+v", was, is)
	}
}

// inTime checks how long all writes stood still.
func (s *site) inTime(took time.Duration) {
	s.t.Helper()
	if took > writesWithin {
		s.t.Errorf("writes stood still for %v, want at most %v", took, writesWithin)
	}
}

// leaderIsMute lets the leader hear everything and say nothing.
func (s *site) leaderIsMute(load *harness.Load) {
	s.t.Helper()
	leader := s.Leader()
	i := s.index(leader)
	for _, other := range s.Others(leader) {
		s.mute(i, s.index(other))
	}
	took := load.Grow(20, 20*time.Second)
	s.t.Logf("leader %s mute: no write was acknowledged for %v", leader.Name, took)
	s.inTime(took)
	for _, other := range s.Others(leader) {
		s.unmute(i, s.index(other))
	}
	load.Grow(20, 20*time.Second)
}

// followerHearsNothing cuts the way from the leader to one follower, which
// must not disturb the others.
func (s *site) followerHearsNothing(load *harness.Load) {
	s.t.Helper()
	leader := s.Leader()
	deaf := s.Others(leader)[0]
	s.mute(s.index(leader), s.index(deaf))
	load.Grow(100, 30*time.Second)
	harness.Pause(3 * time.Second) // many election timeouts
	load.Grow(50, 20*time.Second)
	s.t.Logf("%s did not hear %s; leader afterwards: %s", deaf.Name, leader.Name, s.Leader().Name)
	s.unmute(s.index(leader), s.index(deaf))
	load.Grow(20, 20*time.Second)
}
