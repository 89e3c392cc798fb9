package cluster_test

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/e2e/cluster/harness"
)

// beside is an address of the cluster's own loopback network that no node has.
func beside(t *testing.T, c *harness.Cluster, last string) string {
	t.Helper()
	host, port, err := net.SplitHostPort(c.Nodes[0].Address)
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort(host[:strings.LastIndexByte(host, '.')+1]+last, port)
}

func token(t *testing.T, c *harness.Cluster) string {
	t.Helper()
	var s api.Secret
	decode(t, c.Must("node", "token", "-o", "json"), &s)
	return s.Token
}

// place are the flags that say where a node lives.
func place(n *harness.Node) []string {
	return []string{"--data-dir", n.DataDir(), "--name", n.Name, "--listen", n.Address, "--advertise", n.Address}
}

// TestJoinAndRemove brings a fourth node in, uses it, and removes it.
func TestJoinAndRemove(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, harness.Options{})
	load := harness.StartLoad(t, c, 2)
	load.Grow(50, 20*time.Second)
	secret := token(t, c)
	n := c.Add("node4", beside(t, c, "4"))
	contains(t, c.Must(append([]string{"join", secret + "@" + c.Nodes[0].Address}, place(n)...)...), "node4 has joined")
	process := n.Start()
	t.Logf("node4 was ready after %v", n.Ready(40*time.Second).Round(time.Millisecond))
	refuseTokens(t, c, secret)

	c.Must("vm", "create", "guest", "--cpus", "1", "--memory", "64MiB", "--node", "node4")
	if i := waitRunning(t, c.Client(10*time.Second), "guest", 30*time.Second); i.Owner != "node4" {
		t.Errorf("the VM runs on %s, want node4", i.Owner)
	}
	acked := load.Stop()
	c.Converge(30 * time.Second)
	c.Holds(c.Client(20*time.Second, n), acked)
	c.Must("tenant", "create", "through-node4", "--addr", n.Address)

	contains(t, c.Wants(4, "node", "remove", "node4", "--reason", "too early", "--yes"), "node4")
	c.Must("node", "cordon", "node4")
	c.Must("vm", "delete", "guest", "--yes")
	harness.Until(t, 20*time.Second, "node4 may be removed", func() (bool, string) {
		r := c.Run("node", "remove", "node4", "--reason", "goes back to the vendor", "--yes")
		return r.Status == 0, r.String()
	})
	if status := process.Exit(t, 30*time.Second); status != 78 {
		t.Errorf("the removed node ended with status %d, want 78\n%s", status, process.Log())
	}
	saysRemoved(t, process)
	again := n.Start()
	if status := again.Exit(t, 40*time.Second); status != 78 {
		t.Errorf("started again, the removed node ended with status %d, want 78\n%s", status, again.Log())
	}
	saysRemoved(t, again)
	c.Wants(3, "node", "show", "node4")
	c.Must("tenant", "create", "after-removal")
	rejoin := c.Run(append([]string{"join", token(t, c) + "@" + c.Nodes[0].Address}, place(n)...)...)
	if rejoin.Status != 4 || !strings.Contains(rejoin.Stderr, "empty directory") {
		t.Errorf("the old data directory was not refused: %v", rejoin)
	}
}

func saysRemoved(t *testing.T, p *harness.Process) {
	t.Helper()
	if text := p.Log(); !strings.Contains(text, "removed") || !strings.Contains(text, "goes back to the vendor") {
		t.Errorf("the removed node does not say why it ends:\n%s", text)
	}
}

// refuseTokens tries tokens that admit nobody.
func refuseTokens(t *testing.T, c *harness.Cluster, used string) {
	t.Helper()
	other := harness.Start(t, harness.Options{Nodes: 1})
	foreign := token(t, other)
	parts := strings.Split(token(t, c), ".")
	for name, test := range map[string]struct{ token, says string }{
		"used":    {used, "used"},
		"foreign": {foreign, "cluster"},
		"cut":     {used[:len(used)-4], "token"},
		"garbage": {"nonsense", "token"},
		"forged":  {strings.Join(append(parts[:len(parts)-1], strings.Repeat("a", len(parts[len(parts)-1]))), "."), "token"},
	} {
		dir := t.TempDir()
		r := c.Run("join", test.token+"@"+c.Nodes[0].Address, "--data-dir", filepath.Join(dir, "data"), "--name", "intruder", "--listen", beside(t, c, "9"), "--advertise", beside(t, c, "9"))
		if r.Status == 0 || !strings.Contains(r.Stderr, test.says) {
			t.Errorf("%s token: want a refusal that says %q:\n%v", name, test.says, r)
		}
		if strings.Contains(r.Stdout+r.Stderr, test.token) && name != "garbage" {
			t.Errorf("%s token: the secret is shown in the refusal", name)
		}
	}
}
