package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// isolatedEnv marks the process that runs one test in namespaces of its own.
const isolatedEnv = "DEBVISOR_E2E_ISOLATED"

// Isolated runs a test in a process with mount, network and process namespaces
// of its own, where it may mount, make interfaces and break both; what it
// leaves behind goes away with them. It needs root; without, it is skipped.
func Isolated(t *testing.T, run func(*testing.T)) {
	t.Helper()
	if os.Getenv(isolatedEnv) == t.Name() {
		prepareNamespaces(t)
		run(t)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("requires root, for namespaces of its own")
	}
	p, err := startIsolated(t)
	if err != nil {
		t.Fatalf("start a process in new namespaces: %v", err)
	}
	t.Cleanup(p.Kill)
	<-p.Ended()
	raw, err := os.ReadFile(p.logName)
	if err != nil {
		t.Fatal(err)
	}
	if status := p.cmd.ProcessState.ExitCode(); status != 0 {
		t.Fatalf("in namespaces of its own: exit status %d\n%s", status, raw)
	}
	t.Logf("in namespaces of its own:\n%s", raw)
}

func startIsolated(t *testing.T) (*Process, error) {
	p := &Process{logName: filepath.Join(t.TempDir(), "output"), ended: make(chan struct{})}
	args := []string{"-test.run=^" + t.Name() + "$", "-test.v", "-test.count=1"}
	if deadline, ok := t.Deadline(); ok {
		args = append(args, "-test.timeout="+time.Until(deadline).String())
	}
	p.cmd = exec.Command(os.Args[0], args...)
	p.cmd.Env = append(os.Environ(), isolatedEnv+"="+t.Name())
	return p, p.run(&syscall.SysProcAttr{
		Setpgid: true, Pdeathsig: syscall.SIGKILL,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID,
	})
}

func prepareNamespaces(t *testing.T) {
	t.Helper()
	err := errors.Join(
		syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""),
		syscall.Mount("proc", "/proc", "proc", 0, ""),
		syscall.Mount("tmpfs", "/run", "tmpfs", 0, "size=16m"), // for the names of network namespaces
	)
	if err != nil {
		t.Fatalf("prepare namespaces: %v", err)
	}
	IP(t, "link", "set", "lo", "up")
}

// IP runs ip(8), which must succeed.
func IP(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Tmpfs mounts a file system in memory of this size over a directory, until
// the test ends.
func Tmpfs(t testing.TB, dir string, bytes int64) {
	t.Helper()
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes))
	}
	if err != nil {
		t.Fatalf("mount a file system at %s: %v", dir, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}
