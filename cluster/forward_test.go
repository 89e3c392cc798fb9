package cluster_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/rpc"
	"github.com/debvisor/debvisor/cluster"
	"github.com/debvisor/debvisor/fsm"
)

// hostile is a client with a node's certificate and a program of its own.
func hostile(t *testing.T, from, to *node) *rpc.NodeClient {
	t.Helper()
	conn, err := rpc.Connect(func(ctx context.Context) (net.Conn, error) {
		return from.DialNode(ctx, to.Self().ID, cluster.ProtocolRPC)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return rpc.NewNodeClient(conn)
}

func send(t *testing.T, client *rpc.NodeClient, e fsm.Entry) error {
	t.Helper()
	e.Time, e.RequestID = time.Now().UTC(), "hostile-"+e.Op+time.Now().String()
	raw, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.Propose(t.Context(), &rpc.Propose{Version: raw[0], Entry: raw[1:]})
	return err
}

func by(e fsm.Entry, principal string, auth *fsm.Auth) fsm.Entry {
	e.By, e.Auth = principal, auth
	return e
}

// A node with a valid certificate and a hostile program changes nothing but
// what it may report about itself.
func TestAForwardedEntryIsTheCallersOwn(t *testing.T) {
	t.Parallel()
	c := start(t, 2, nil)
	l := c.waitLeader()
	evil, victim := c.follower(), l.name
	client, own := hostile(t, evil, l), "node:"+evil.name
	_, before := c.leaderIndexes()
	admin := fsm.APIKeys.Get(l.State().Read(), "admin")
	auth := &fsm.Auth{Key: "admin", Revision: admin.Modified}
	seal := api.Seal{Meta: api.Meta{Name: "ca"}, Ciphertext: []byte("mine"), KeyID: "mine"}
	for name, e := range map[string]fsm.Entry{
		"a user's change without a key":        by(tenant("evil"), own, nil),
		"a user's change in the leader's name": by(tenant("evil"), "control", nil),
		"a key under another name":             by(tenant("evil"), "key:root", auth),
		"a placement":                          by(fsm.AssignInstance.Entry(fsm.Assignment{VM: "x", Node: evil.name}), own, nil),
		"a placement with a user's key":        by(fsm.AssignInstance.Entry(fsm.Assignment{VM: "x", Node: evil.name}), "key:admin", auth),
		"a lease of another":                   by(fsm.RenewNodes.Entry(fsm.Renewals{}), "control", nil),
		"a fence":                              by(fsm.ExpireNode.Entry(fsm.NodeExpire{Node: victim}), own, nil),
		"a vote":                               by(fsm.SetVoter.Entry(fsm.NodeVoter{Node: evil.name, Voter: true}), own, nil),
		"a secret":                             by(fsm.PutSeal.Entry(seal), own, nil),
		"a certificate":                        by(fsm.RecordCertificate.Entry(api.Certificate{Role: "node"}), own, nil),
		"a member without the token's secret":  by(fsm.JoinNode.Entry(fsm.NodeJoin{Name: "friend"}), "join_token:t", nil),
		"a report of another node":             by(fsm.ReportNode.Entry(fsm.NodeReport{Node: victim}), own, nil),
		"a report in another's name":           by(fsm.ReportNode.Entry(fsm.NodeReport{Node: victim}), "node:"+victim, nil),
		"another's registration":               by(fsm.RegisterNode.Entry(fsm.NodeRegister{ID: l.Self().ID, Nonce: "n"}), own, nil),
		"a report of another's instance":       by(fsm.ReportInstance.Entry(fsm.InstanceReport{VM: "x", Node: victim}), own, nil),
		"the end of another's instance":        by(fsm.ForgetInstance.Entry(fsm.InstanceEnd{VM: "x", Node: victim}), own, nil),
		"a report of another's replica":        by(fsm.ReportReplica.Entry(fsm.ReplicaReport{Kind: "image", Node: victim}), own, nil),
		"the end of another's replica":         by(fsm.ForgetReplica.Entry(fsm.ReplicaEnd{Node: victim}), own, nil),
		"the end of another's task":            by(fsm.FinishTask.Entry(fsm.TaskReport{Name: "t", Node: victim}), own, nil),
		"the end of the leader's task":         by(fsm.FinishTask.Entry(fsm.TaskReport{Name: "t"}), own, nil),
	} {
		if err := send(t, client, e); api.CodeOf(err) != api.CodeForbidden {
			t.Errorf("%s: got %v, want it forbidden", name, err)
		}
	}
	if _, after := c.leaderIndexes(); after != before {
		t.Errorf("the log grew from %d to %d", before, after)
	}
	if err := send(t, client, by(tenant("good"), "key:admin", auth)); err != nil {
		t.Errorf("a user's change through the node: %v", err)
	}
	register := fsm.RegisterNode.Entry(fsm.NodeRegister{ID: evil.Self().ID, Nonce: "n", Address: evil.Self().Address})
	if err := send(t, client, by(register, own, nil)); err != nil {
		t.Errorf("its own registration: %v", err)
	}
}

// leaderIndexes are the leader's term and the index of its state.
func (c *testCluster) leaderIndexes() (term, index uint64) {
	l := c.waitLeader()
	return l.Stats().Term, l.State().Index()
}

// What a leader's loop proposes is not sent on by a node that no longer leads.
func TestALeadersEntryIsNotForwarded(t *testing.T) {
	t.Parallel()
	c := start(t, 2, nil)
	l, f := c.waitLeader(), c.follower()
	_, err := f.Propose(t.Context(), fsm.SetVoter.Entry(fsm.NodeVoter{Node: l.name}))
	if api.CodeOf(err) != api.CodeNoLeader {
		t.Fatalf("got %v, want %s", err, api.CodeNoLeader)
	}
}

// The state's clock never goes back: a node whose clock is ahead must not move
// it.
func TestAForwardedEntryDoesNotMoveTheClock(t *testing.T) {
	t.Parallel()
	c := start(t, 2, nil)
	l, f := c.waitLeader(), c.follower()
	ahead := tenant("ahead")
	ahead.Time = time.Now().AddDate(50, 0, 0).UTC()
	c.must(f, ahead)
	if at := l.State().Read().Time(); at.After(time.Now().Add(time.Minute)) {
		t.Fatalf("the state is at %v", at)
	}
}

// A leader's clock is believed, and may be ahead; what is proposed after it was
// set right is not taken for a request from long ago.
func TestAStateThatIsAheadTakesWrites(t *testing.T) {
	t.Parallel()
	c := start(t, 2, nil)
	ahead := tenant("ahead")
	ahead.Time = time.Now().Add(3 * time.Hour).UTC()
	c.must(c.waitLeader(), ahead)
	c.must(c.waitLeader(), tenant("by-the-leader"))
	c.converged(c.nodes...)
	c.must(c.follower(), tenant("by-another"))
}
