package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const lastWordsMax = 4096 // bytes of a log that are looked at when its node died

// devNode is one node of a development cluster.
type devNode struct {
	name    string
	dir     string
	address string
	socket  string        // of its libvirtd; empty: the usual one
	removed bool          // from the cluster; it does not start again
	pid     atomic.Int64  // 0: no process of ours runs
	lastPID int64         // of the process started last
	exited  chan struct{} // closed when the process has ended; nil before the first start
	err     error         // why it ended; valid once exited is closed
}

func (n *devNode) dataDir() string    { return filepath.Join(n.dir, "data") }
func (n *devNode) configFile() string { return filepath.Join(n.dir, "agent.hcl") }
func (n *devNode) logFile() string    { return filepath.Join(n.dir, "log") }
func (n *devNode) pidFile() string    { return filepath.Join(n.dir, "pid") }

// place is where the node is made.
func (n *devNode) place() placeFlags {
	return placeFlags{dataDir: n.dataDir(), name: n.name, listen: n.address, advertise: n.address}
}

// member reports whether the node was initialised or has joined.
func (n *devNode) member() bool { return fileExists(filepath.Join(n.dataDir(), "identity.json")) }

// spawn starts the node's process. It ends with this one, in whatever way that
// happens.
func (d *dev) spawn(n *devNode) error {
	log, err := os.OpenFile(n.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(d.program, "agent", "--config", n.configFile())
	cmd.Stdout, cmd.Stderr = log, log
	// A group of its own, so that Ctrl-C reaches this process alone, which ends
	// the nodes in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	started := make(chan error, 1)
	n.exited = make(chan struct{})
	go d.attend(n, cmd, started)
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", n.name, err)
	}
	d.a.notef("%s runs at %s (process %d)", n.name, n.address, n.lastPID)
	return writeSecret(n.pidFile(), strconv.FormatInt(n.lastPID, 10))
}

// attend starts and waits for a process. It keeps its thread: the kernel sends
// Pdeathsig when the thread that forked ends.
func (d *dev) attend(n *devNode, cmd *exec.Cmd, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Start()
	if err != nil {
		n.err = err
		close(n.exited)
		started <- err
		return
	}
	n.lastPID = int64(cmd.Process.Pid)
	n.pid.Store(n.lastPID)
	started <- nil
	n.err = cmd.Wait()
	n.pid.Store(0)
	close(n.exited)
	d.died <- n
}

func (d *dev) running() int {
	count := 0
	for _, n := range d.nodes {
		if n.pid.Load() != 0 {
			count++
		}
	}
	return count
}

// wasRemoved reports whether the process ended because the node is no member
// any more.
func (n *devNode) wasRemoved() bool {
	exit, ok := errors.AsType[*exec.ExitError](n.err)
	return ok && exit.ExitCode() == statusRemoved
}

// lastWords is the error of a node that died, with the end of its log.
func (n *devNode) lastWords() error {
	text := ""
	if f, err := os.Open(n.logFile()); err == nil {
		defer f.Close()
		if stat, err := f.Stat(); err == nil {
			_, _ = f.Seek(max(0, stat.Size()-lastWordsMax), io.SeekStart)
		}
		raw, _ := io.ReadAll(io.LimitReader(f, lastWordsMax))
		lines := bytes.Split(bytes.TrimSpace(raw), []byte("\n"))
		text = clean(string(lines[len(lines)-1]))
	}
	return fmt.Errorf("%s ended (%v): %s; its log is %s", n.name, endOf(n.err), text, n.logFile())
}

func endOf(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

// stop ends the nodes one after the other, the first one last, and waits.
func (d *dev) stop() error {
	deadline := time.After(devStopTimeout)
	for i := len(d.nodes) - 1; i >= 0; i-- {
		n := d.nodes[i]
		pid := n.pid.Load()
		if pid == 0 {
			continue
		}
		if err := syscall.Kill(int(pid), syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("end %s: %w", n.name, err)
		}
		select {
		case <-n.exited:
		case <-time.After(devStagger): // the next one need not wait for a slow one
		}
	}
	var killed []string
	for _, n := range d.nodes {
		if n.exited == nil {
			continue
		}
		select {
		case <-n.exited:
		case <-deadline:
			if pid := n.pid.Load(); pid != 0 {
				_ = syscall.Kill(int(pid), syscall.SIGKILL) // it may have ended by now
			}
			<-n.exited
			killed = append(killed, n.name)
		}
		n.forgetPID()
	}
	if len(killed) > 0 {
		return fmt.Errorf("%s did not end in %v and had to be killed", strings.Join(killed, ", "), devStopTimeout)
	}
	return nil
}

// forgetPID removes the pid file, unless it names a process that somebody else
// started for this node.
func (n *devNode) forgetPID() {
	raw, err := os.ReadFile(n.pidFile())
	if err == nil && strings.TrimSpace(string(raw)) == strconv.FormatInt(n.lastPID, 10) {
		_ = os.Remove(n.pidFile()) // a stale one does no harm
	}
}

// endLeftover ends a process of this node that a former run left behind.
func (d *dev) endLeftover(ctx context.Context, n *devNode) error {
	raw, err := os.ReadFile(n.pidFile())
	if absent(err) {
		return nil
	}
	pid, convErr := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || convErr != nil || !d.isNode(pid, n) {
		return os.Remove(n.pidFile()) // stale
	}
	d.a.notef("%s still runs (process %d); it is started anew", n.name, pid)
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("end %s: %w", n.name, err)
	}
	killAt := time.Now().Add(devStopTimeout)
	for alive(pid) && d.isNode(pid, n) {
		if time.Now().After(killAt) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of %s: %w", n.name, ctx.Err())
		case <-time.After(devPoll):
		}
	}
	return os.Remove(n.pidFile())
}

// isNode reports whether a process is the agent of that node: its number may
// belong to another program by now.
func (d *dev) isNode(pid int, n *devNode) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && pid > 1 && bytes.Contains(raw, []byte("\x00"+n.configFile()+"\x00"))
}
