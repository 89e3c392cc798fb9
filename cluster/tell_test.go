package cluster_test

import (
	"fmt"
	"testing"
	"time"
)

// Raft alone would tell followers of a commit after 250 ms at the earliest. The
// best of some tries counts, so that a busy machine does not matter.
func TestFollowersLearnSoonWhatIsCommitted(t *testing.T) {
	t.Parallel()
	c := start(t, 3, nil)
	best := time.Hour
	for i := range 10 {
		leader, follower := c.waitLeader(), c.follower()
		from := time.Now()
		out := c.must(leader, tenant(fmt.Sprint("t", i)))
		if err := follower.WaitIndex(t.Context(), out.Index); err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(from))
		c.converged(c.nodes...) // nothing is on its way when the next one begins
	}
	if best > 200*time.Millisecond {
		t.Errorf("a follower had an entry %v after it was proposed, at best", best)
	}
}

func TestAFollowerAnswersAWriteSoon(t *testing.T) {
	t.Parallel()
	c := start(t, 3, nil)
	best := time.Hour
	for i := range 10 {
		from := time.Now()
		c.must(c.follower(), tenant(fmt.Sprint("t", i)))
		best = min(best, time.Since(from))
		c.converged(c.nodes...)
	}
	if best > 200*time.Millisecond {
		t.Errorf("a follower answered a write after %v, at best", best)
	}
}
