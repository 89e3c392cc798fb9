package lab

import (
	"os"
	"testing"
)

// RequireEnv names the environment variable that turns a skip for want of
// libvirt into a failure.
const RequireEnv = "DEBVISOR_REQUIRE_LIBVIRT"

// StartLibvirt starts n libvirt daemons for a test and ends them with it.
// Where labs cannot run it skips the test and says why; it fails instead when
// DEBVISOR_REQUIRE_LIBVIRT is 1.
func StartLibvirt(t testing.TB, n int) *Lab {
	t.Helper()
	Require(t)
	l, err := Start(t.Context(), n, Config{})
	if err != nil {
		t.Fatalf("start %d libvirt nodes: %v", n, err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("end libvirt nodes: %v", err)
		}
	})
	return l
}

// Require skips or fails a test on a machine where labs cannot run.
func Require(t testing.TB) {
	t.Helper()
	err := Unavailable()
	switch {
	case err == nil:
	case os.Getenv(RequireEnv) == "1":
		t.Fatalf("%v", err)
	default:
		t.Skipf("requires a libvirt lab: %v", err)
	}
}
