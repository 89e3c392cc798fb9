// Package harness runs clusters of real processes for tests: it builds the
// binary, starts `debvisor dev` and single agents, kills, pauses and restarts
// them, runs commands against them, and leaves nothing behind, whatever the
// test came to.
package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/debvisor/debvisor/e2e/lint"
)

// BinaryEnv names the environment variable with the binary under test.
const BinaryEnv = "DEBVISOR_BINARY"

// Limits of the harness.
const (
	ReadyTimeout   = 90 * time.Second // until a cluster answers, on a busy machine
	CommandTimeout = 60 * time.Second // of one command
	StopTimeout    = 45 * time.Second // of a cluster that is told to end
	pollEvery      = 20 * time.Millisecond
	logTailBytes   = 8 << 10 // of each log, when a test fails
	logReadBytes   = 1 << 20 // of which so much is looked at
)

// Main builds the binary unless BinaryEnv names one, runs the tests and
// returns their exit status. TestMain calls it.
func Main(m *testing.M) int {
	if os.Getenv(BinaryEnv) != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "debvisor-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary := filepath.Join(dir, "debvisor")
	if err := build(binary); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	if err := os.Setenv(BinaryEnv, binary); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	return m.Run()
}

func build(binary string) error {
	root, err := lint.Root(".")
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "./cmd/debvisor")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the binary: %w\n%s", err, out)
	}
	return nil
}

// Binary is the program under test.
func Binary(t testing.TB) string {
	t.Helper()
	binary, err := filepath.Abs(os.Getenv(BinaryEnv))
	if os.Getenv(BinaryEnv) == "" {
		err = errors.New(BinaryEnv + " is not set; TestMain must call harness.Main")
	}
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// Root is the root of the checkout.
func Root(t testing.TB) string {
	t.Helper()
	root, err := lint.Root(".")
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// Until polls a condition and returns how long it took to hold. When it does
// not hold in time, the test fails with what it said last.
func Until(t testing.TB, timeout time.Duration, what string, holds func() (bool, string)) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		ok, last := holds()
		took := time.Since(began)
		if ok {
			return took
		}
		if took > timeout {
			t.Fatalf("%s: not within %v: %s", what, timeout, last)
		}
		Pause(pollEvery)
	}
}

// Pause lets time pass where the passing of time is what is tested, or between
// two looks at a condition.
func Pause(d time.Duration) { <-time.After(d) }
