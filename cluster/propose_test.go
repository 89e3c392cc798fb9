package cluster_test

import (
	"context"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster"
)

// A node that lost the majority says early that nothing happened, instead of
// keeping the caller until it gives up and has to fear the opposite.
func TestWithoutAMajorityWhatWasNotSentIsRefusedEarly(t *testing.T) {
	t.Parallel()
	c := start(t, 3, nil)
	alive := c.follower()
	for _, n := range c.nodes {
		if n != alive {
			n.kill()
		}
	}
	c.eventually("the last node knows no leader", func() bool {
		_, ok := alive.Leader()
		return !ok && !alive.IsLeader()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	began := time.Now()
	_, err := alive.Propose(ctx, tenant("never"))
	took := time.Since(began)
	if api.CodeOf(err) != api.CodeNoLeader || took > 30*time.Second {
		t.Errorf("a write: %v after %v, want %s early", err, took, api.CodeNoLeader)
	}
	if election := cluster.FastTiming().Election; took < 3*election {
		t.Errorf("a write was refused after %v: an election, which takes %v and more, ends most absences of a leader", took, election)
	}
	if _, err := alive.ReadIndex(ctx); api.CodeOf(err) != api.CodeNoLeader {
		t.Errorf("a read: %v, want %s", err, api.CodeNoLeader)
	}
}
