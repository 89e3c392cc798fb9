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

// Own makes a cluster whose nodes are made and started by the test. env is
// where it answers, as DIR/env of `debvisor dev` says it.
func Own(t testing.TB, dir string, env ...string) *Cluster {
	c := &Cluster{Dir: dir, t: t, Env: env, env: parseEnv(strings.Join(env, "\n"))}
	t.Cleanup(c.cleanUp)
	return c
}

// Add makes a node of a cluster with a configuration for the simulated
// hypervisor. Its agent will run behind wrap: a program and its arguments, as
// "ip netns exec NAME".
func (c *Cluster) Add(name, address string, wrap ...string) *Node {
	c.t.Helper()
	n := &Node{Name: name, Dir: filepath.Join(c.Dir, name), Address: address, c: c, wrap: wrap}
	text := fmt.Sprintf("data_dir = %q\nlisten = %q\nadvertise = %q\nhypervisor = \"sim\"\nsim {\n  boot_time = \"1s\"\n}\n", n.DataDir(), address, address)
	err := errors.Join(os.MkdirAll(n.DataDir(), 0o700), os.WriteFile(n.ConfigFile(), []byte(text), 0o600))
	if err != nil {
		c.t.Fatal(err)
	}
	c.Nodes = append(c.Nodes, n)
	return n
}

// ReadKey takes the admin key from a file, once init has written it.
func (c *Cluster) ReadKey(name string) {
	c.t.Helper()
	raw, err := os.ReadFile(name)
	if err != nil {
		c.t.Fatal(err)
	}
	c.env["DEBVISOR_KEY"] = strings.TrimSpace(string(raw))
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
	p := StartProcess(n.c.t, n.LogFile(), nil, words[0], words[1:]...)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.process = p
	return p
}

// started is the process that the harness started; nil: dev did.
func (n *Node) started() *Process {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.process
}

// pid is the ID of the node's process, which may have ended.
func (n *Node) pid() (int, error) {
	if p := n.started(); p != nil {
		return p.PID(), nil
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
// One that is ending has no command line any more.
func (n *Node) is(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && (len(raw) == 0 || bytes.Contains(raw, []byte(n.ConfigFile())))
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
		if p := n.started(); p != nil {
			select {
			case <-p.Ended():
				n.c.t.Fatalf("%s ended with status %d", n.Name, p.cmd.ProcessState.ExitCode())
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
