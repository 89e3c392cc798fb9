package cluster_test

import (
	"context"
	"testing"
	"time"
)

// A node that stops ends its leader's loops while it still leads.
func TestLeadReturnsWithItsContextWhileTheNodeLeads(t *testing.T) {
	t.Parallel()
	c := start(t, 1, nil)
	leader := c.waitLeader()
	ctx, cancel := context.WithCancel(t.Context())
	running, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- leader.Lead(ctx, func(ctx context.Context) error {
			close(running)
			<-ctx.Done()
			return nil
		})
	}()
	<-running
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatalf("Lead ended with %v, want nil", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Lead goes on after the end of its context")
	}
}
