package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/e2e/lab"
	"github.com/debvisor/debvisor/e2e/lint"
)

// TestDemoBootsAGuestAndCleansUp runs the demo as `make demo` does.
func TestDemoBootsAGuestAndCleansUp(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	root, err := lint.Root(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bin/debvisor", "bin/guest/tiny.qcow2"} {
		if _, err := os.Stat(filepath.Join(root, name)); err != nil {
			if os.Getenv(lab.RequireEnv) == "1" {
				t.Fatalf("%v; run make build guest", err)
			}
			t.Skipf("requires %s: run make build guest", name)
		}
	}
	bin, dir := filepath.Join(t.TempDir(), "demo"), filepath.Join(t.TempDir(), "files")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), bin, "-dir", dir)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "DEMO_EXIT=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("demo: %v\n%s", err, out)
	}
	for _, want := range []string{"GUEST-READY", "bin/debvisor apply -f docs/examples/first-vm.hcl", "Taking everything down"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the demo does not show %q\n%s", want, out)
		}
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the demo leaves %s: %v", dir, err)
	}
}

// TestDemoLeavesForeignFoldersAlone plants a folder that is not the demo's.
func TestDemoLeavesForeignFoldersAlone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	kept := filepath.Join(dir, "thesis.txt")
	if err := os.WriteFile(kept, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("go", "run", ".", "-dir", dir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "is not the demo's") {
		t.Errorf("the demo takes over %s\n%s", dir, out)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("the demo removed a foreign file: %v\n%s", err, out)
	}
}
