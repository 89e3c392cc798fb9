package control_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster/control"
	"github.com/debvisor/debvisor/fsm"
)

func TestSilentNodeIsFencedAndKeepsItsVMs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.register(1, 1)
		c.join(2, "", false)
		c.register(2, 1)
		c.create("a", nil)
		c.create("b", nil)
		l := lead(t, c, newControl(t, c, nil), 2)
		defer l.stop()
		l.pass(20 * time.Second)
		if c.node(1).Lease != api.NodeLive || c.node(2).Lease != api.NodeLive {
			t.Fatal("a node that renewed was fenced")
		}
		l.pass(control.LeaseExpiry-time.Second, 2)
		if c.node(2).Lease != api.NodeLive {
			t.Fatal("fenced before the lease had expired")
		}
		l.pass(2*time.Second, 2)
		if c.node(2).Lease != api.NodeFenced || c.node(1).Lease != api.NodeLive {
			t.Fatalf("got node1 %s, node2 %s", c.node(1).Lease, c.node(2).Lease)
		}
		if c.owner("b") != "node2" {
			t.Fatalf("the VM of a fenced node went to %q", c.owner("b"))
		}
		if err := l.Renew(fsm.Renewal{Node: "node2", Epoch: 1, Seq: 999}); api.CodeOf(err) != api.CodeConflict {
			t.Fatalf("a renewal of a fenced epoch: got %v, want conflict", err)
		}
		c.register(2, 1)
		l.pass(12 * time.Second)
		if c.node(2).Lease != api.NodeLive {
			t.Fatal("a node that registered again and renews was fenced")
		}
	})
}

func TestRenewalsTakeAtMostFourEntriesASecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.register(1, 1)
		for n := 2; n <= 20; n++ {
			c.join(n, "", false)
			c.register(n, 1)
		}
		l := lead(t, c, newControl(t, c, nil), 2)
		defer l.stop()
		pass(time.Millisecond)
		before := c.count(fsm.RenewNodes.Op())
		for seq := range 1000 {
			for n := 1; n <= 20; n++ {
				if err := l.Renew(fsm.Renewal{Node: nodeName(n), Epoch: 1, Seq: uint64(seq)}); err != nil {
					t.Fatal(err)
				}
			}
			pass(10 * time.Millisecond)
		}
		if got := c.count(fsm.RenewNodes.Op()) - before; got < 30 || got > 41 {
			t.Fatalf("got %d entries in 10 s, want at most 4 a second", got)
		}
		for n := 1; n <= 20; n++ {
			if l := fsm.Leases.Get(c.f.Read(), nodeName(n)); l.Seq < 950 {
				t.Fatalf("the renewals of node %d were not committed: seq %d", n, l.Seq)
			}
		}
	})
}

func TestRenewalIsRefusedWhereItCannotHold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		ctl := newControl(t, c, nil)
		epoch := c.register(1, 1)
		if err := ctl.Renew(fsm.Renewal{Node: "node1", Epoch: epoch, Seq: 1}); api.CodeOf(err) != api.CodeNoLeader {
			t.Fatalf("without leading: got %v, want no_leader", err)
		}
		l := lead(t, c, ctl, 2)
		pass(time.Millisecond)
		for _, r := range []struct {
			in   fsm.Renewal
			want api.Code
		}{
			{fsm.Renewal{Node: "nobody", Epoch: 1, Seq: 1}, api.CodeNotFound},
			{fsm.Renewal{Node: "node1", Epoch: epoch + 1, Seq: 1}, api.CodeConflict},
			{fsm.Renewal{Node: "node1", Epoch: epoch - 1, Seq: 1}, api.CodeConflict},
			{fsm.Renewal{Node: "node1", Epoch: epoch, Seq: 0}, ""},
			{fsm.Renewal{Node: "node1", Epoch: epoch, Seq: 1}, ""},
		} {
			if err := l.Renew(r.in); api.CodeOf(err) != r.want {
				t.Errorf("%+v: got %v, want %q", r.in, err, r.want)
			}
		}
		l.stop()
		if err := ctl.Renew(fsm.Renewal{Node: "node1", Epoch: epoch, Seq: 2}); api.CodeOf(err) != api.CodeNoLeader {
			t.Fatalf("after leading: got %v, want no_leader", err)
		}
	})
}

// TestNewLeaderGoesByTheStampsOfAFollower shows that losing a leader costs no
// second wait.
func TestNewLeaderGoesByTheStampsOfAFollower(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.register(1, 1)
		c.join(2, "", false)
		c.register(2, 1)
		clock := virtual{time.Now()}
		stamps := control.NewStamps(c.f, clock)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- stamps.Run(ctx) }()
		pass(7 * time.Second) // as a follower
		l := lead(t, c, newControl(t, c, func(conf *control.Config) { conf.Stamps, conf.Clock = stamps, clock }), 3)
		l.pass(1500*time.Millisecond, 2)
		if c.node(2).Lease != api.NodeLive {
			t.Fatal("fenced too early")
		}
		l.pass(2*time.Second, 2)
		if c.node(2).Lease != api.NodeFenced {
			t.Fatal("the wait began anew with the new leader")
		}
		if c.node(1).Lease != api.NodeLive {
			t.Fatal("the node that renews was fenced")
		}
		l.stop()
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// TestNobodyIsFencedForTheTimeWithoutALeader: no node could renew meanwhile.
func TestNobodyIsFencedForTheTimeWithoutALeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.register(1, 1)
		clock := virtual{time.Now()}
		stamps := control.NewStamps(c.f, clock)
		lease := fsm.Leases.Get(c.f.Read(), "node1")
		stamps.Age(lease)
		pass(time.Minute)
		if age := stamps.Age(lease); age != time.Minute {
			t.Fatalf("got age %v, want a minute", age)
		}
		l := lead(t, c, newControl(t, c, func(conf *control.Config) { conf.Stamps, conf.Clock = stamps, clock }), 3)
		defer l.stop()
		l.pass(15 * time.Second)
		// Then renewals cannot be committed for a while: the same holds.
		c.setIntercept(func(e fsm.Entry) (bool, error) { return true, api.Errorf(api.CodeUnavailable, "no quorum") })
		l.pass(15 * time.Second)
		c.setIntercept(nil)
		l.pass(15 * time.Second)
		if c.node(1).Lease != api.NodeLive || c.count(fsm.ExpireNode.Op()) != 0 {
			t.Fatal("a node was fenced for not renewing while it could not")
		}
	})
}

func TestStampsTellANodeFromAFormerOneOfItsName(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.register(1, 1)
		c.join(2, "", false)
		c.register(2, 1)
		stamps := control.NewStamps(c.f, virtual{time.Now()})
		stamps.Age(fsm.Leases.Get(c.f.Read(), "node2"))
		pass(time.Minute)
		c.do(fsm.RemoveNode.Entry(fsm.NodeRemove{Node: "node2"}))
		c.do(fsm.CreateToken.Entry(fsm.TokenCreate{Name: "again", Hash: nodeHash(9), Expires: time.Now().Add(time.Hour)}))
		c.do(fsm.JoinNode.Entry(fsm.NodeJoin{ID: nodeID(9), Name: "node2", Address: "127.0.0.9:1", TokenHash: nodeHash(9)}))
		c.do(fsm.RegisterNode.Entry(fsm.NodeRegister{ID: nodeID(9), Address: "127.0.0.9:1"}))
		if age := stamps.Age(fsm.Leases.Get(c.f.Read(), "node2")); age != 0 {
			t.Fatalf("the new node is %v old", age)
		}
	})
}
