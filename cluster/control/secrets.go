package control

import (
	"context"
	"time"
)

// Secrets are the keys of the cluster itself: of its CA, and of gossip.
type Secrets interface {
	// RotationDue reports whether a node that left may know them.
	RotationDue() bool
	// RotateSecrets makes new ones. What gossip encrypts with stays the same.
	RotateSecrets(ctx context.Context) error
	// Unpromoted is the revision of the gossip keys while the newest is not in
	// use, else 0.
	Unpromoted() uint64
	// PromoteGossipKey begins to use the newest, and drops the former.
	PromoteGossipKey(ctx context.Context) error
}

// Times of the loop over the secrets.
const (
	secretsPause   = 5 * time.Second
	secretsTimeout = 20 * time.Second // of one rotation
	promoteAfter   = time.Minute      // for every node to learn a new gossip key
)

// runSecrets changes the secrets when somebody left who may know them.
func (c *Control) runSecrets(ctx context.Context) error {
	revision, since := uint64(0), time.Duration(0) // of gossip keys that are not in use
	for wait(ctx, secretsPause, nil) {
		if c.secrets.RotationDue() {
			c.changeSecrets(ctx, "secrets not changed", c.secrets.RotateSecrets)
		}
		now, have := c.clock.Elapsed(), c.secrets.Unpromoted()
		if have != revision {
			revision, since = have, now
		}
		if have != 0 && now-since >= promoteAfter {
			c.changeSecrets(ctx, "gossip key not promoted", c.secrets.PromoteGossipKey)
		}
	}
	return nil
}

func (c *Control) changeSecrets(ctx context.Context, failed string, change func(context.Context) error) {
	call, cancel := context.WithTimeout(ctx, secretsTimeout)
	defer cancel()
	if err := change(call); err != nil && ctx.Err() == nil {
		c.log.Warn(failed, "error", err)
	}
}
