//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asProgram makes the test binary behave as the program itself, so that dev
// can start its nodes from it.
const asProgram = "DEBVISOR_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

const (
	smokeTimeout = 90 * time.Second
	smokePoll    = 20 * time.Millisecond
)

// program runs the test binary as the program.
func program(t *testing.T, env []string, args ...string) (status int, out, errOut string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), testBinary(t), args...)
	cmd.Env = append(append(os.Environ(), asProgram+"=1"), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()
}

func testBinary(t *testing.T) string {
	t.Helper()
	name, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// startDev runs dev and returns the environment for commands, and a function
// that stops it and tells its exit status.
func startDev(t *testing.T, dir string) (env []string, stop func() int) {
	t.Helper()
	cmd := exec.Command(testBinary(t), "dev", "--nodes", "1", "--dir", dir, "--hypervisor", "sim")
	cmd.Env = append(os.Environ(), asProgram+"=1")
	var log bytes.Buffer
	cmd.Stderr = &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // ProcessState tells
		close(ended)
	}()
	stop = func() int {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		return cmd.ProcessState.ExitCode()
	}
	t.Cleanup(func() { stop() })
	deadline := time.After(smokeTimeout)
	for {
		raw, err := os.ReadFile(filepath.Join(dir, "env"))
		if err == nil {
			for line := range strings.Lines(string(raw)) {
				env = append(env, strings.TrimSpace(strings.TrimPrefix(line, "export ")))
			}
			return env, stop
		}
		select {
		case <-ended:
			t.Fatalf("dev ended: %s", log.String())
		case <-deadline:
			t.Fatalf("dev is not ready: %s", log.String())
		case <-time.After(smokePoll):
		}
	}
}

// TestAFileBecomesARunningVM is the whole way through one node.
func TestAFileBecomesARunningVM(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	env, stop := startDev(t, dir)
	must := func(want string, args ...string) {
		t.Helper()
		status, out, errOut := program(t, env, args...)
		if status != statusDone || !strings.Contains(out, want) {
			t.Fatalf("debvisor %s: status %d, want %q in:\n%s%s", strings.Join(args, " "), status, want, out, errOut)
		}
	}
	const file = "../../docs/examples/first-vm.hcl"
	must("1 to create", "plan", "-f", file)
	must("vm web is running on node1", "apply", "-f", file)
	must("nothing to do", "apply", "-f", file)
	must("GUEST-READY", "vm", "console", "web", "--replay", "--no-input", "--until", "GUEST-READY", "--timeout", "30s")
	must("running on node1", "why", "vm/web")
	must("the journal is whole", "audit", "verify")
	must("ok", "doctor", "--client")
	must("vm web is stopped", "vm", "stop", "web")
	if status, _, errOut := program(t, env, "vm", "create", "web"); status != statusConflict {
		t.Errorf("creating a VM that exists: status %d, want %d: %s", status, statusConflict, errOut)
	}
	if status, _, _ := program(t, []string{env[0], env[1], "DEBVISOR_KEY=dvk_admin_" + strings.Repeat("a", 52)}, "vm", "list"); status != statusForbidden {
		t.Errorf("a wrong key: status %d, want %d", status, statusForbidden)
	}
	var status struct{ Leader string }
	_, out, _ := program(t, env, "cluster", "status", "-o", "json")
	if err := json.Unmarshal([]byte(out), &status); err != nil || status.Leader != "node1" {
		t.Errorf("cluster status: leader %q, %v", status.Leader, err)
	}
	if got := stop(); got != statusDone {
		t.Errorf("dev ended with status %d", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "env")); !absent(err) {
		t.Errorf("a cluster that does not run still has its env: %v", err)
	}
	env, _ = startDev(t, dir)
	must("stopped", "vm", "list")
}

func TestNodesAreMadeOnce(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	place := []string{"--data-dir", dir, "--name", "one", "--listen", "127.0.0.1:0", "--advertise", "127.0.0.1:7443"}
	keyFile := filepath.Join(t.TempDir(), "key")
	status, out, errOut := program(t, nil, append([]string{"init", "--key-file", keyFile}, place...)...)
	if status != statusDone || !strings.Contains(out, "debvisor join debvisor1-") {
		t.Fatalf("init: status %d: %s%s", status, out, errOut)
	}
	if info, err := os.Stat(keyFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key file: %v, %v", info, err)
	}
	if status, _, errOut := program(t, nil, append([]string{"init"}, place...)...); status != statusConflict || !strings.Contains(errOut, "holds a node already") {
		t.Errorf("a second init: status %d: %s", status, errOut)
	}
	if status, _, errOut := program(t, nil, append([]string{"join", "nonsense@127.0.0.1"}, place...)...); status != statusError || !strings.Contains(errOut, "is not a join token") {
		t.Errorf("a wrong token: status %d: %s", status, errOut)
	}
	if status, _, errOut := program(t, nil, "agent", "--data-dir", t.TempDir()); status != statusNotFound || !strings.Contains(errOut, "belongs to no cluster") {
		t.Errorf("an agent without a node: status %d: %s", status, errOut)
	}
}
