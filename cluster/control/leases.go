package control

import (
	"context"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// Times of the leases of nodes.
const (
	// LeaseExpiry is how old the last renewal of a node must be, on the
	// leader's clock, before the node is fenced. It follows from the longest
	// time that a host may go on by itself.
	LeaseExpiry = 9 * time.Second

	renewalPause   = 250 * time.Millisecond // between two entries with renewals: at most 4 a second
	renewalTimeout = 2 * time.Second        // of committing one
	// listenMin is how long the leader must have been able to hear renewals
	// before it fences anybody: nobody could renew while there was no leader,
	// or while the leader's process stood still.
	listenMin = 2 * time.Second
	// standstill is a pause between two looks at the leases that says that the
	// process stood still.
	standstill = time.Second
)

// Renew takes a node's renewal, to be committed with those of the others
// within a fraction of a second. It does not block; the node knows that the
// renewal holds when its own replica shows the sequence number. It fails with
// CodeNoLeader on a node that does not lead, with CodeNotFound for a node that
// is no member and with CodeConflict for one that must register first.
func (c *Control) Renew(r fsm.Renewal) error {
	view := c.cluster.State().Read()
	n, l := fsm.Nodes.Get(view, r.Node), fsm.Leases.Get(view, r.Node)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.term == 0:
		return api.Errorf(api.CodeNoLeader, "this node does not lead").Do("renew at the leader")
	case n == nil:
		return api.Errorf(api.CodeNotFound, "is not a member").On(api.KindNode, r.Node)
	case r.Epoch != n.Epoch || n.Lease != api.NodeLive || l == nil:
		return api.Errorf(api.CodeConflict, "is %s at epoch %d, the renewal is for %d", n.Lease, n.Epoch, r.Epoch).On(api.KindNode, r.Node).
			Do("register the node again")
	}
	if have, ok := c.renewals[r.Node]; renews(r, l) && (!ok || have.Epoch != r.Epoch || r.Seq > have.Seq) {
		c.renewals[r.Node] = r
	}
	return nil
}

// renews reports whether the renewal would move the lease on.
func renews(r fsm.Renewal, l *api.NodeLease) bool { return r.Epoch == l.Epoch && r.Seq > l.Seq }

func (c *Control) runLeases(ctx context.Context) error {
	listening := c.clock.Elapsed() // since when renewals can reach the state
	last := listening
	for {
		if now := c.clock.Elapsed(); now-last > standstill {
			listening = now
		}
		last = c.clock.Elapsed()
		if err := c.commitRenewals(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("renewals were not committed", "error", err)
			listening = c.clock.Elapsed()
		}
		if c.clock.Elapsed()-listening >= listenMin {
			c.expireSilent(ctx)
		}
		if !wait(ctx, renewalPause, nil) {
			return nil
		}
	}
}

// commitRenewals proposes what was handed in since the last time, in one entry.
func (c *Control) commitRenewals(ctx context.Context) error {
	c.mu.Lock()
	pending := c.renewals
	c.renewals = make(map[string]fsm.Renewal, len(pending))
	c.mu.Unlock()
	var batch fsm.Renewals
	for l := range fsm.Leases.All(c.cluster.State().Read()) {
		if r, ok := pending[l.Name]; ok && renews(r, l) {
			batch.Renewals = append(batch.Renewals, r)
		}
	}
	if len(batch.Renewals) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, renewalTimeout)
	defer cancel()
	e := fsm.RenewNodes.Entry(batch)
	e.By = principal
	_, err := c.cluster.Propose(ctx, e)
	return err
}

// expireSilent fences the nodes of which nothing was heard for LeaseExpiry.
// Nothing else follows from it: what such a node runs stays its own until an
// operator confirms that its machine is off, or it comes back.
func (c *Control) expireSilent(ctx context.Context) {
	view := c.cluster.State().Read()
	for l := range fsm.Leases.All(view) {
		n := fsm.Nodes.Get(view, l.Name)
		if n == nil || n.Lease != api.NodeLive || n.Epoch != l.Epoch || c.renewing(l) {
			continue
		}
		age := c.stamps.Age(l)
		if age <= LeaseExpiry {
			continue
		}
		out, err := c.propose(ctx, fsm.ExpireNode.Entry(fsm.NodeExpire{Node: l.Name, Epoch: l.Epoch, Seq: l.Seq}))
		switch {
		case err == nil:
			c.log.Warn("node fenced: its VMs stay assigned to it until it returns or its machine is confirmed off",
				"node", n.Name, "epoch", n.Epoch, "silent", age)
		case !refused(out, err):
			c.log.Warn("node not fenced", "node", n.Name, "error", err)
			return
		}
	}
}

// renewing reports whether a renewal of the lease waits to be committed.
func (c *Control) renewing(l *api.NodeLease) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, ok := c.renewals[l.Name]
	return ok && renews(r, l)
}
