package harness

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Process is a program that ends with the test.
type Process struct {
	cmd     *exec.Cmd
	logName string
	ended   chan struct{} // closed when it has ended
}

// StartProcess starts a program whose output goes to the end of a file. env is
// added to the environment of the test. It is killed when the test ends.
func StartProcess(t testing.TB, logName string, env []string, program string, args ...string) *Process {
	t.Helper()
	p, err := startProcess(logName, env, program, args...)
	if err != nil {
		t.Fatalf("start %s: %v", program, err)
	}
	t.Cleanup(p.Kill)
	return p
}

func startProcess(logName string, env []string, program string, args ...string) (*Process, error) {
	p := &Process{cmd: exec.Command(program, args...), logName: logName, ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	// Ends with the test binary, in whatever way that ends.
	return p, p.run(&syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM})
}

// run starts the prepared command with its output in the log.
func (p *Process) run(attributes *syscall.SysProcAttr) error {
	log, err := os.OpenFile(p.logName, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = attributes
	started := make(chan error, 1)
	go func() {
		// The kernel sends Pdeathsig when the thread that forked ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.ended)
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // what it came to stands in ProcessState
		}
	}()
	return <-started
}

// PID is the process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Kill ends the process and its group as kill -9 does, and waits.
func (p *Process) Kill() {
	select {
	case <-p.ended:
		return
	default:
	}
	_ = syscall.Kill(-p.PID(), syscall.SIGKILL) // it may be ending by itself
	<-p.ended
}

// Stop asks the process to end and waits; after the timeout the test fails.
func (p *Process) Stop(t testing.TB, timeout time.Duration) int {
	t.Helper()
	select {
	case <-p.ended:
		return p.cmd.ProcessState.ExitCode()
	default:
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may be ending by itself
	return p.Exit(t, timeout)
}

// Exit waits for the end of the process and returns its exit status; -1 when a
// signal ended it.
func (p *Process) Exit(t testing.TB, timeout time.Duration) int {
	t.Helper()
	select {
	case <-p.ended:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(timeout):
		t.Fatalf("process %d did not end within %v\n%s", p.PID(), timeout, tail(p.logName))
		return 0
	}
}

// Log is what the process has written so far, from its end.
func (p *Process) Log() string { return tail(p.logName) }

// tail is the end of a file, without what went well.
func tail(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }()
	if stat, err := f.Stat(); err == nil && stat.Size() > logReadBytes {
		_, _ = f.Seek(-logReadBytes, io.SeekEnd)
	}
	raw, err := io.ReadAll(io.LimitReader(f, logReadBytes))
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for line := range strings.Lines(string(raw)) {
		if !strings.Contains(line, "http: request:") || strings.Contains(line, " status=5") && !strings.Contains(line, "/health/") {
			b.WriteString(line)
		}
	}
	text := b.String()
	return fmt.Sprintf("--- end of %s\n%s", name, text[max(0, len(text)-logTailBytes):])
}

// alive reports whether a process runs. One that has ended and was not waited
// for by its parent does not; but while a thread of it is still ending, its
// files are open.
func alive(pid int) bool {
	if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
		return false
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return err == nil && (stateOf(raw) != 'Z' || len(threads) > 1)
}

// stateOf is the letter behind the program's name, which may hold anything,
// parentheses too.
func stateOf(stat []byte) byte {
	for i := len(stat) - 1; i >= 0; i-- {
		if stat[i] == ')' && i+2 < len(stat) {
			return stat[i+2]
		}
	}
	return 0
}
