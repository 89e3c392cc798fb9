package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The files of one server below Config.Dir, after the name of its bridge.
const (
	configSuffix = ".conf"
	hostsSuffix  = ".hosts"
	leaseSuffix  = ".leases"
	pidSuffix    = ".pid"
)

const (
	serverPauseMin = 250 * time.Millisecond // before a server that ended is started again
	serverPauseMax = 30 * time.Second
	serverSteady   = time.Minute // that it must run for the pause to begin anew
	serverEnd      = 5 * time.Second
)

// server is one process of dnsmasq that is started again when it ends. When
// the agent ends it goes on, so that guests keep their addresses; the next
// agent ends it and starts its own.
type server struct {
	network *Network
	bridge  string
	program string
	config  string // as written to its file
	hosts   string

	mu     sync.Mutex // guards below
	cmd    *exec.Cmd
	timer  *time.Timer
	ended  chan struct{} // closes when cmd has ended
	closed bool          // it is not started again
	pause  time.Duration
}

func (s *server) path(suffix string) string {
	return filepath.Join(s.network.root.Name(), s.bridge+suffix)
}

// start runs the process. It must not run yet.
func (s *server) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.startLocked()
}

func (s *server) startLocked() error {
	cmd := exec.Command(s.program, "--keep-in-foreground", "--conf-file="+s.path(configSuffix), "--pid-file="+s.path(pidSuffix), "--log-facility=-")
	cmd.Env = environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a signal for the agent's terminal is not for it
	said := &capped{limit: complaintMax}
	cmd.Stderr = said
	cmd.WaitDelay = serverEnd
	if err := s.network.within(cmd.Start); err != nil {
		return fmt.Errorf("start the address server of %s: %w", s.bridge, err)
	}
	ended, began := make(chan struct{}), time.Now()
	s.cmd, s.ended = cmd, ended
	go func() {
		defer close(ended)
		err := cmd.Wait()
		s.again(err, said.String(), time.Since(began))
	}()
	return nil
}

// again starts a server that ended once more, after a pause that grows.
func (s *server) again(err error, said string, ran time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	if ran > serverSteady || s.pause == 0 {
		s.pause = serverPauseMin
	} else {
		s.pause = min(2*s.pause, serverPauseMax)
	}
	s.network.logger.Warn("an address server ended: it is started again", "bridge", s.bridge, "error", err, "said", strings.TrimSpace(said), "in", s.pause)
	s.timer = time.AfterFunc(s.pause, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.closed {
			return
		}
		if err := s.startLocked(); err != nil {
			s.network.logger.Error("an address server cannot be started", "bridge", s.bridge, "error", err)
		}
	})
}

// reload makes the process read its hosts again.
func (s *server) reload() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil && s.cmd.Process != nil {
		_ = s.cmd.Process.Signal(syscall.SIGHUP) // one that has just ended reads them at its next start
	}
}

// letGo leaves the process alone from now on.
func (s *server) letGo() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
}

// stop ends the process and waits for it.
func (s *server) stop() {
	s.letGo()
	s.mu.Lock()
	cmd, ended := s.cmd, s.ended
	s.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(serverEnd):
		_ = cmd.Process.Kill()
		<-ended
	}
}

// endLeft ends the server that an earlier process left on the bridge. Its
// number may belong to another program by now: that is looked at, and the
// process is held by a descriptor meanwhile, so that it is the one that was
// looked at which gets the signal.
func (n *Network) endLeft(bridge string) {
	raw, err := n.root.ReadFile(bridge + pidSuffix)
	if err != nil {
		return
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || pid <= 1 {
		return
	}
	process, err := os.FindProcess(pid)
	if err != nil {
		return
	}
	defer func() { _ = process.Release() }()
	command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	ours := []byte("--conf-file=" + filepath.Join(n.root.Name(), bridge+configSuffix) + "\x00")
	if err != nil || !bytes.Contains(command, ours) {
		return
	}
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		_ = process.Signal(signal)
		for begun := time.Now(); time.Since(begun) < serverEnd; time.Sleep(endPoll) {
			if err := process.Signal(syscall.Signal(0)); errors.Is(err, os.ErrProcessDone) || errors.Is(err, syscall.ESRCH) {
				return
			}
		}
	}
}

// endPoll is how often it is looked whether a process that is no child of ours
// has ended.
const endPoll = 10 * time.Millisecond
