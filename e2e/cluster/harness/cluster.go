package harness

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

// Options say what `debvisor dev` starts.
type Options struct {
	Nodes      int      // 0: 3
	Hypervisor string   // empty: sim
	Dir        string   // empty: a temporary one
	Args       []string // further arguments
}

// Cluster is a running `debvisor dev` and the nodes that it started.
type Cluster struct {
	Dir   string
	Env   []string // exports of DIR/env, for commands
	Nodes []*Node  // node1 first
	Dev   *Process

	t   testing.TB
	env map[string]string
}

// Node is one node of a cluster.
type Node struct {
	Name    string
	Dir     string
	Address string // host:port

	c    *Cluster
	wrap []string // program and arguments in front of the agent's

	mu      sync.Mutex // guards process
	process *Process   // when the harness started it; nil: dev did
}

// Start starts `debvisor dev` and blocks until it is ready. Everything ends
// with the test; when the test has failed, it shows the logs.
func Start(t testing.TB, o Options) *Cluster {
	t.Helper()
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Hypervisor == "" {
		o.Hypervisor = "sim"
	}
	c := &Cluster{Dir: o.Dir, t: t}
	if c.Dir == "" {
		c.Dir = t.TempDir()
	} else if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.cleanUp) // registered before the process, so it runs after its end
	args := slices.Concat([]string{"dev", "--nodes", strconv.Itoa(o.Nodes), "--dir", c.Dir, "--hypervisor", o.Hypervisor}, o.Args)
	began := time.Now()
	c.startDev(args...)
	for i := range o.Nodes {
		name := fmt.Sprintf("node%d", i+1)
		c.Nodes = append(c.Nodes, &Node{Name: name, Dir: filepath.Join(c.Dir, name), Address: c.Addresses()[i], c: c})
	}
	t.Logf("%d nodes ready after %v", o.Nodes, time.Since(began).Round(time.Millisecond))
	return c
}

// startDev starts the process and waits for DIR/env.
func (c *Cluster) startDev(args ...string) {
	c.t.Helper()
	envName := filepath.Join(c.Dir, "env")
	_ = os.Remove(envName) // of a run before
	c.Dev = StartProcess(c.t, filepath.Join(c.Dir, "dev.log"), nil, Binary(c.t), args...)
	Until(c.t, ReadyTimeout, "the cluster is ready", func() (bool, string) {
		select {
		case <-c.Dev.Ended():
			c.t.Fatalf("dev ended before it was ready: %s", c.Dev.Log())
		default:
		}
		raw, err := os.ReadFile(envName)
		if err != nil {
			return false, err.Error()
		}
		c.env = parseEnv(string(raw))
		return true, ""
	})
	c.Env = nil
	for name, value := range c.env {
		c.Env = append(c.Env, name+"="+value)
	}
}

// Resume ends dev and every node if they run, and starts dev on the same
// directory again.
func (c *Cluster) Resume(o Options) {
	c.t.Helper()
	c.Shutdown()
	c.startDev(slices.Concat([]string{"dev", "--nodes", strconv.Itoa(len(c.Nodes)), "--dir", c.Dir, "--hypervisor", "sim"}, o.Args)...)
	for _, n := range c.Nodes {
		n.mu.Lock()
		n.process = nil
		n.mu.Unlock()
	}
}

// Shutdown ends everything in order.
func (c *Cluster) Shutdown() {
	c.t.Helper()
	for _, n := range c.Nodes {
		n.Continue()
		if p := n.started(); p != nil {
			p.Stop(c.t, StopTimeout)
		}
	}
	if c.Dev != nil {
		c.Dev.Stop(c.t, StopTimeout)
	}
}

// cleanUp ends the nodes that survived dev and shows their logs after a
// failure.
func (c *Cluster) cleanUp() {
	if c.t.Failed() && c.Dev != nil {
		c.t.Log(c.Dev.Log())
	}
	for _, n := range c.Nodes {
		if pid, err := n.pid(); err == nil && alive(pid) && n.is(pid) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if c.t.Failed() {
			c.t.Log(tail(n.LogFile()))
		}
	}
}

func parseEnv(text string) map[string]string {
	env := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		if ok {
			env[name] = strings.Trim(value, `'"`)
		}
	}
	return env
}

// Addresses are where the nodes listen, node1 first.
func (c *Cluster) Addresses() []string { return strings.Split(c.env["DEBVISOR_ADDR"], ",") }

// CAFile is the CA certificate of the cluster.
func (c *Cluster) CAFile() string { return c.env["DEBVISOR_CACERT"] }

// Key is the admin key.
func (c *Cluster) Key() string { return c.env["DEBVISOR_KEY"] }

// Run runs a command against the cluster.
func (c *Cluster) Run(args ...string) Result {
	c.t.Helper()
	return Run(c.t, c.Env, args...)
}

// Must runs a command that must succeed.
func (c *Cluster) Must(args ...string) Result {
	c.t.Helper()
	return c.Wants(0, args...)
}

// Wants runs a command that must end with a status.
func (c *Cluster) Wants(status int, args ...string) Result {
	c.t.Helper()
	r := c.Run(args...)
	if r.Status != status {
		c.t.Fatalf("exit status %d, want %d:\n%v", r.Status, status, r)
	}
	return r
}

// Client talks to these nodes; to all when none is named.
func (c *Cluster) Client(timeout time.Duration, nodes ...*Node) *client.Client {
	c.t.Helper()
	out, err := c.dial(timeout, nodes...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(out.Close)
	return out
}

// dial is Client for one who closes it. Any goroutine may call it.
func (c *Cluster) dial(timeout time.Duration, nodes ...*Node) (*client.Client, error) {
	addresses := c.Addresses()
	if len(nodes) > 0 {
		addresses = nil
		for _, n := range nodes {
			addresses = append(addresses, n.Address)
		}
	}
	return client.New(client.Config{Addresses: addresses, CAFile: c.CAFile(), Key: c.Key(), Timeout: timeout, Agent: "debvisor-e2e"})
}

// Leader blocks until one of the nodes that answer leads, and returns it.
func (c *Cluster) Leader(among ...*Node) *Node {
	c.t.Helper()
	var leader *Node
	Until(c.t, 30*time.Second, "a leader", func() (bool, string) {
		leader, _ = c.leader(among...)
		return leader != nil, "nobody leads"
	})
	return leader
}

// leader is who leads by the word of a node that says so of itself.
func (c *Cluster) leader(among ...*Node) (*Node, error) {
	if len(among) == 0 {
		among = c.Nodes
	}
	var last error
	for _, n := range among {
		status, err := n.Status(time.Second)
		if err != nil {
			last = err
			continue
		}
		if status.Leader == n.Name {
			return n, nil
		}
	}
	return nil, last
}

// Others are the nodes besides the named one.
func (c *Cluster) Others(not *Node) []*Node {
	return slices.DeleteFunc(slices.Clone(c.Nodes), func(n *Node) bool { return n == not })
}

// Node finds a node by name.
func (c *Cluster) Node(name string) *Node {
	c.t.Helper()
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	c.t.Fatalf("there is no node %q", name)
	return nil
}

// Status is how the cluster looks from this node.
func (n *Node) Status(timeout time.Duration) (*api.ClusterStatus, error) {
	c, err := client.New(client.Config{Addresses: []string{n.Address}, CAFile: n.c.CAFile(), Key: n.c.Key(), Timeout: timeout})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Status(context.Background())
}
