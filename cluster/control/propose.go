package control

import (
	"context"
	"crypto/rand"
	"math/big"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// Limits of proposing.
const (
	unknownRetryPause = 100 * time.Millisecond // between tries of an entry whose outcome is unknown
	unknownRetryMax   = fsm.RequestMemory / 2  // how long such an entry is tried; well within the memory of request IDs
	backoffMin        = 50 * time.Millisecond  // after the first round in which nothing could be committed
	backoffMax        = 5 * time.Second
)

// principal is whom the journal names for what the leader does by itself.
const principal = "control"

// propose commits an entry. While it is unknown whether it was, it is proposed
// again under the same request ID: what follows must not be computed from a
// state that the entry may still change.
func (c *Control) propose(ctx context.Context, e fsm.Entry) (fsm.Outcome, error) {
	e.By = principal
	if e.RequestID == "" {
		e.RequestID = rand.Text()
	}
	begun := c.clock.Elapsed()
	for {
		out, err := c.cluster.Propose(ctx, e)
		if err == nil && out.Err != nil {
			err = out.Err
		}
		if api.CodeOf(err) != api.CodeUnknown || c.clock.Elapsed()-begun > unknownRetryMax || !wait(ctx, unknownRetryPause, nil) {
			return out, err
		}
	}
}

// refused reports whether err is the state machine's answer, as opposed to a
// cluster that cannot take or commit the entry at the moment.
func refused(out fsm.Outcome, err error) bool { return err != nil && out.Index > 0 && out.Err != nil }

// backoff is a pause that doubles with every failure in a row.
type backoff struct{ pause time.Duration }

func (b *backoff) failed() time.Duration {
	b.pause = min(max(2*b.pause, backoffMin), backoffMax)
	return b.pause
}

func (b *backoff) done() { b.pause = 0 }

// jittered is d, shortened or lengthened by up to a quarter, so that what
// failed together is not tried together again.
func jittered(d time.Duration) time.Duration {
	n, err := rand.Int(rand.Reader, big.NewInt(int64(d/2)+1))
	if err != nil {
		return d
	}
	return d - d/4 + time.Duration(n.Int64())
}
