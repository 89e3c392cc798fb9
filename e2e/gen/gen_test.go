package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestObjectReferenceIsFresh(t *testing.T) {
	t.Parallel()
	if out, err := exec.Command("go", "run", ".", "-check").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestStaleReferenceIsCaught(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "objects.md")
	if out, err := exec.Command("go", "run", ".", "-out", name).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	page, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	stale := strings.Replace(string(page), "| `cpus` |", "| `cores` |", 1)
	if err := os.WriteFile(name, []byte(stale), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("go", "run", ".", "-check", "-out", name).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "make generate") {
		t.Fatalf("a renamed field goes unnoticed: %v\n%s", err, out)
	}
}
