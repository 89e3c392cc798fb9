package lab_test

import (
	"os"
	"testing"

	"github.com/debvisor/debvisor/e2e/lab"
)

func TestNodesAreIsolatedAndRestart(t *testing.T) {
	t.Parallel()
	l := lab.StartLibvirt(t, 2)
	first, second := l.Nodes()[0], l.Nodes()[1]
	if err := first.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := second.Restart(t.Context()); err != nil {
		t.Fatalf("the second node suffers from the first one's end: %v", err)
	}
	if err := first.Restart(t.Context()); err != nil {
		t.Fatalf("restart after kill: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(l.Dir()); !os.IsNotExist(err) {
		t.Fatalf("the directory is left: %v", err)
	}
}
