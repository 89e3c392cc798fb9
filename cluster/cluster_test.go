package cluster_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster"
	"github.com/debvisor/debvisor/fsm"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// node is one member of a cluster that runs inside the test.
type node struct {
	t    *testing.T
	name string
	cfg  cluster.Config
	*cluster.Server

	mu    sync.Mutex // guards fatal
	fatal []cluster.Fatal
	ended chan struct{}
}

func (n *node) onFatal(f cluster.Fatal) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fatal = append(n.fatal, f)
	if len(n.fatal) == 1 {
		close(n.ended)
	}
}

// testCluster is a cluster inside the test.
type testCluster struct {
	t     *testing.T
	nodes []*node
}

func logger(t *testing.T, name string) hclog.Logger {
	if !testing.Verbose() {
		return hclog.NewNullLogger()
	}
	return hclog.New(&hclog.LoggerOptions{Name: name, Level: hclog.Info, Output: testWriter{t}})
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	defer func() { _ = recover() }() // a line after the end of the test
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	return l
}

func newNode(t *testing.T, name string, change func(*cluster.Config)) *node {
	t.Helper()
	l := listen(t, "127.0.0.1:0")
	n := &node{t: t, name: name, ended: make(chan struct{})}
	n.cfg = cluster.Config{DataDir: t.TempDir(), Listener: l, Listen: l.Addr().String(), Advertise: l.Addr().String(), Version: "test",
		Logger: logger(t, name), OnFatal: n.onFatal}
	if change != nil {
		change(&n.cfg)
	}
	return n
}

func (n *node) open() {
	n.t.Helper()
	s, err := cluster.Open(n.cfg)
	if err != nil {
		n.t.Fatalf("open %s: %v", n.name, err)
	}
	n.Server = s
	n.cfg.Listener = nil // it is used up; a restart binds the same address
	n.t.Cleanup(func() { n.kill() })
}

// kill stops the node without handing anything over.
func (n *node) kill() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = n.Shutdown(ctx)
}

func (n *node) restart() {
	n.t.Helper()
	n.kill()
	n.ended, n.fatal = make(chan struct{}), nil
	n.open()
}

func adminKey() fsm.KeyCreate {
	return fsm.KeyCreate{Name: "admin", Hash: strings.Repeat("ab", 32), Role: api.RoleAdmin}
}

// start makes a cluster of so many voters.
func start(t *testing.T, size int, change func(name string, c *cluster.Config)) *testCluster {
	t.Helper()
	c := &testCluster{t: t}
	first := newNode(t, "node1", func(cfg *cluster.Config) {
		if change != nil {
			change("node1", cfg)
		}
	})
	if _, err := cluster.Init(first.cfg, cluster.InitOptions{Name: "node1", Region: "here", Key: adminKey()}); err != nil {
		t.Fatalf("init: %v", err)
	}
	first.open()
	c.nodes = []*node{first}
	c.ready(first)
	for i := 2; i <= size; i++ {
		name := fmt.Sprint("node", i)
		n := newNode(t, name, func(cfg *cluster.Config) {
			if change != nil {
				change(name, cfg)
			}
		})
		c.join(n, true)
	}
	return c
}

func (c *testCluster) ready(n *node) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	if err := n.WaitReady(ctx); err != nil {
		c.t.Fatalf("%s: %v", n.name, err)
	}
}

func (c *testCluster) token() string {
	c.t.Helper()
	e, text, err := c.nodes[0].NewToken(0, false)
	if err != nil {
		c.t.Fatal(err)
	}
	c.must(c.nodes[0], e)
	return text + "@" + c.nodes[0].Self().Address
}

func (c *testCluster) join(n *node, vote bool) {
	c.t.Helper()
	if _, err := cluster.Join(c.t.Context(), n.cfg, cluster.JoinOptions{Token: c.token(), Name: n.name}); err != nil {
		c.t.Fatalf("join %s: %v", n.name, err)
	}
	n.open()
	c.nodes = append(c.nodes, n)
	c.ready(n)
	if vote {
		c.eventually(n.name+" votes", func() bool {
			ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
			defer cancel()
			l := c.leader()
			return l != nil && l.AddVoter(ctx, n.Self()) == nil
		})
	}
}

// leader is the node that leads, or nil.
func (c *testCluster) leader() *node {
	for _, n := range c.nodes {
		if n.IsLeader() {
			return n
		}
	}
	return nil
}

func (c *testCluster) waitLeader() *node {
	c.t.Helper()
	c.eventually("a leader", func() bool { return c.leader() != nil })
	return c.leader()
}

func (c *testCluster) follower() *node {
	c.t.Helper()
	l := c.waitLeader()
	for _, n := range c.nodes {
		if n != l {
			return n
		}
	}
	c.t.Fatal("no follower")
	return nil
}

func (c *testCluster) eventually(what string, holds func() bool) {
	c.t.Helper()
	deadline := time.Now().Add(patience)
	for !holds() {
		if time.Now().After(deadline) {
			c.t.Fatalf("not within %v: %s", patience, what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// Propose proposes as the API does, with a key, what users do, and as the
// node's agent does what is left.
func (n *node) Propose(ctx context.Context, e fsm.Entry) (fsm.Outcome, error) {
	if key := fsm.APIKeys.Get(n.State().Read(), "admin"); key != nil && n.State().Users(e.Op) && e.Auth == nil {
		e.By, e.Auth = "key:admin", &fsm.Auth{Key: key.Name, Revision: key.Modified}
	}
	if e.By == "" {
		e.By = "node:" + n.name
	}
	return n.Server.Propose(ctx, e)
}

// must commits an entry that must be accepted.
func (c *testCluster) must(n *node, e fsm.Entry) fsm.Outcome {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	out, err := n.Propose(ctx, e)
	if err == nil && out.Err != nil {
		err = out.Err
	}
	if err != nil {
		c.t.Fatalf("propose %s on %s: %v", e.Op, n.name, err)
	}
	return out
}

func tenant(name string) fsm.Entry {
	e, err := fsm.Tenants.Put(&api.Tenant{Meta: api.Meta{Name: name}})
	if err != nil {
		panic(err)
	}
	return e
}

// converged waits until all nodes have the same index and compares the hashes.
func (c *testCluster) converged(nodes ...*node) {
	c.t.Helper()
	l := c.waitLeader()
	index, err := l.ReadIndex(c.t.Context())
	if err != nil {
		c.t.Fatalf("read index: %v", err)
	}
	c.eventually("all nodes at one index with one hash", func() bool {
		want := l.State().Read()
		for _, n := range nodes {
			v := n.State().Read()
			if v.Index() < index || v.Index() != want.Index() {
				return false
			}
			if v.StateHash() != want.StateHash() || v.Chain() != want.Chain() {
				c.t.Fatalf("%s differs from %s at index %d", n.name, l.name, v.Index())
			}
		}
		return true
	})
}

func TestThreeNodesAgreeAndAnyOfThemTakesWrites(t *testing.T) {
	t.Parallel()
	c := start(t, 3, nil)
	for i := range 30 {
		n := c.nodes[i%3]
		out := c.must(n, tenant(fmt.Sprint("t", i)))
		other := c.nodes[(i+1)%3]
		if _, err := other.ReadIndex(t.Context()); err != nil {
			t.Fatalf("read on %s: %v", other.name, err)
		}
		if row := fsm.Tenants.Get(other.State().Read(), fmt.Sprint("t", i)); row == nil || row.Modified != out.Index {
			t.Fatalf("a linearizable read on %s misses what %s acknowledged", other.name, n.name)
		}
	}
	c.converged(c.nodes...)
	for _, n := range c.nodes {
		if _, err := n.VerifyJournal(t.Context(), nil); err != nil {
			t.Fatalf("journal of %s: %v", n.name, err)
		}
	}
}
