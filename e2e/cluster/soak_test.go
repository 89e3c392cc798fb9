//go:build soak

package cluster_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/debvisor/debvisor/e2e/cluster/harness"
)

// TestSoakHTTPStaysLinearizable repeats the linearizability test, each round on
// a cluster of its own with a history of its own, until DEBVISOR_SOAK (a
// duration) has passed.
func TestSoakHTTPStaysLinearizable(t *testing.T) {
	lasting, err := time.ParseDuration(os.Getenv("DEBVISOR_SOAK"))
	if err != nil {
		t.Fatalf("DEBVISOR_SOAK is no duration: %v; run it with: make soak SOAKTIME=1h", err)
	}
	for began, round := time.Now(), 1; round == 1 || time.Since(began) < lasting; round++ {
		if !t.Run(fmt.Sprint("round ", round), func(t *testing.T) { linearizable(t, harness.Start(t, harness.Options{})) }) {
			return
		}
	}
}
