package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api/client"
)

// NewNode describes a node that dev did not start. Its data directory and
// configuration are below dir.
func (c *Cluster) NewNode(name, dir, address string) *Node {
	return &Node{Name: name, Dir: dir, Address: address, c: c}
}

// NodeAt describes a node outside of any `debvisor dev`, which runs behind
// wrap: a program and its arguments, as "ip netns exec NAME". env is where the
// cluster answers.
func NodeAt(t testing.TB, name, dir, address string, env []string, wrap ...string) *Node {
	c := &Cluster{Dir: dir, t: t, Env: env, env: parseEnv(strings.Join(env, "\n"))}
	return &Node{Name: name, Dir: dir, Address: address, c: c, wrap: wrap}
}

// ClusterOf makes one cluster of nodes from NodeAt, for its commands and
// clients. env is where it answers.
func ClusterOf(t testing.TB, dir string, env []string, nodes ...*Node) *Cluster {
	c := &Cluster{Dir: dir, t: t, Env: env, env: parseEnv(strings.Join(env, "\n")), Nodes: nodes}
	for _, n := range nodes {
		n.c = c
	}
	t.Cleanup(c.cleanUp)
	return c
}

// DataDir is the node's data directory.
func (n *Node) DataDir() string { return filepath.Join(n.Dir, "data") }

// ConfigFile is the node's configuration.
func (n *Node) ConfigFile() string { return filepath.Join(n.Dir, "agent.hcl") }

// LogFile is what the node logs.
func (n *Node) LogFile() string { return filepath.Join(n.Dir, "log") }

// Start starts the node's agent; it must not run.
func (n *Node) Start() *Process {
	n.c.t.Helper()
	words := append(append([]string{}, n.wrap...), Binary(n.c.t), "agent", "--config", n.ConfigFile())
	n.process = StartProcess(n.c.t, n.LogFile(), nil, words[0], words[1:]...)
	return n.process
}

// pid is the ID of the node's process, which may have ended.
func (n *Node) pid() (int, error) {
	if n.process != nil {
		return n.process.PID(), nil
	}
	raw, err := os.ReadFile(filepath.Join(n.Dir, "pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(raw)))
}

// PID is the ID of the node's process; the test fails when there is none.
func (n *Node) PID() int {
	n.c.t.Helper()
	pid, err := n.pid()
	if err != nil {
		n.c.t.Fatalf("process of %s: %v", n.Name, err)
	}
	return pid
}

// is reports whether a process is this node's agent: numbers are used again.
func (n *Node) is(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && bytes.Contains(raw, []byte(n.ConfigFile()))
}

// Alive reports whether the node's process runs.
func (n *Node) Alive() bool {
	pid, err := n.pid()
	return err == nil && alive(pid) && n.is(pid)
}

// Signal sends a signal to the node's process.
func (n *Node) Signal(s syscall.Signal) {
	n.c.t.Helper()
	if err := syscall.Kill(n.PID(), s); err != nil && !errors.Is(err, syscall.ESRCH) {
		n.c.t.Fatalf("send %v to %s: %v", s, n.Name, err)
	}
}

// Kill ends the node's process as kill -9 does, and waits until it is gone.
func (n *Node) Kill() {
	n.c.t.Helper()
	n.Signal(syscall.SIGKILL)
	n.Gone(10 * time.Second)
}

// Gone waits until the node's process has ended.
func (n *Node) Gone(timeout time.Duration) {
	n.c.t.Helper()
	Until(n.c.t, timeout, n.Name+" has ended", func() (bool, string) { return !n.Alive(), "it runs" })
}

// Stop freezes the node's process where it is.
func (n *Node) Stop() { n.Signal(syscall.SIGSTOP) }

// Continue lets a frozen process go on. It does nothing to one that has ended.
func (n *Node) Continue() {
	if pid, err := n.pid(); err == nil && alive(pid) && n.is(pid) {
		_ = syscall.Kill(pid, syscall.SIGCONT) // it may end in this moment
	}
}

// Ready waits until the node serves.
func (n *Node) Ready(timeout time.Duration) time.Duration {
	n.c.t.Helper()
	return Until(n.c.t, timeout, n.Name+" is ready", func() (bool, string) {
		if n.process != nil {
			select {
			case <-n.process.Ended():
				n.c.t.Fatalf("%s ended with status %d", n.Name, n.process.cmd.ProcessState.ExitCode())
			default:
			}
		}
		if err := n.ready(); err != nil {
			return false, err.Error()
		}
		return true, ""
	})
}

func (n *Node) ready() error {
	c, err := client.New(client.Config{Addresses: []string{n.Address}, CAFile: n.c.CAFile(), Key: n.c.Key(), Timeout: time.Second})
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Ready(context.Background())
}
