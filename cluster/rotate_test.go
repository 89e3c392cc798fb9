package cluster_test

import (
	"context"
	"testing"
	"time"

	"github.com/debvisor/debvisor/fsm"
)

// A rotation that nobody carried out stays due for every later leader, until
// one does.
func TestARotationStaysDueUntilItIsDone(t *testing.T) {
	t.Parallel()
	c := start(t, 3, nil)
	if l := c.waitLeader(); l.RotationDue() {
		t.Fatalf("%s leads, and a rotation is due in a new cluster", l.name)
	}
	c.eventually("no follower, each of which hears of the last vote later, takes a rotation for due", func() bool {
		for _, n := range c.nodes {
			if n.RotationDue() {
				return false
			}
		}
		return true
	})
	former := c.follower()
	if err := c.waitLeader().DemoteVoter(t.Context(), former.Self().ID); err != nil {
		t.Fatal(err)
	}
	old := c.waitLeader()
	if !old.RotationDue() {
		t.Fatal("a voter lost its vote, and no rotation is due")
	}
	if err := old.Raft().LeadershipTransfer().Error(); err != nil {
		t.Fatal(err)
	}
	var next *node
	c.eventually("another leads", func() bool { next = c.leader(); return next != nil && next != old })
	if !next.RotationDue() {
		t.Fatal("the next leader does not know of the rotation")
	}
	before := fsm.Seals.Get(next.State().Read(), "ca").KeyID
	if err := next.RotateSecrets(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := fsm.Seals.Get(next.State().Read(), "ca")
	if next.RotationDue() || after.KeyID == before || len(after.Holders) != 2 {
		t.Fatalf("after the rotation: due %v, holders %v", next.RotationDue(), after.Holders)
	}
	c.eventually("it votes again, with the new key", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		return next.AddVoter(ctx, former.Self()) == nil
	})
	if next.RotationDue() {
		t.Fatal("a promotion makes a rotation due")
	}
}

// Whoever leaves without a vote knew the gossip keys.
func TestTheRemovalOfAReplicaMakesARotationDue(t *testing.T) {
	t.Parallel()
	c := start(t, 1, nil)
	replica := newNode(t, "replica", nil)
	c.join(replica, false)
	l := c.waitLeader()
	if l.RotationDue() {
		t.Fatal("a rotation is due after a join")
	}
	c.must(l, fsm.RemoveNode.Entry(fsm.NodeRemove{Node: "replica", Force: true}))
	if !l.RotationDue() {
		t.Fatal("no rotation is due")
	}
	if err := l.RotateSecrets(t.Context()); err != nil || l.RotationDue() {
		t.Fatalf("rotate: %v, due %v", err, l.RotationDue())
	}
}
