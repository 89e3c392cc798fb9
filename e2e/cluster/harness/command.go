package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Result is what a command wrote and how it ended.
type Result struct {
	Args   []string
	Stdout string
	Stderr string
	Status int // exit status; -1: ended by a signal or by the timeout
	Took   time.Duration
}

// String shows the command and what it wrote, for messages of tests.
func (r Result) String() string {
	return fmt.Sprintf("$ debvisor %s\n%s%s(exit status %d after %v)", strings.Join(r.Args, " "), r.Stdout, r.Stderr, r.Status, r.Took.Round(time.Millisecond))
}

// Run runs the binary under test with exactly this environment, beside PATH
// and HOME.
func Run(t testing.TB, env []string, args ...string) Result {
	t.Helper()
	return RunProgram(t, env, Binary(t), args...)
}

// RunProgram runs any program as Run does.
func RunProgram(t testing.TB, env []string, program string, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), CommandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = Root(t)
	cmd.Env = slices.Concat([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "LC_ALL=C.UTF-8", "TZ=UTC"}, env)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s %v: %v", program, args, err)
	}
	return Result{Args: args, Stdout: stdout.String(), Stderr: stderr.String(), Status: cmd.ProcessState.ExitCode(), Took: time.Since(began)}
}
