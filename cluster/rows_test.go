package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster"
	"github.com/debvisor/debvisor/fsm"
)

// Row 1: heartbeats pass Raft's main loop; no fast path changes term and state
// beside it.
func TestRow01HeartbeatsPassTheMainLoop(t *testing.T) {
	t.Parallel()
	inner, err := raft.NewTCPTransport("127.0.0.1:0", nil, 1, time.Second, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = inner.Close() }()
	client, err := raft.NewTCPTransport("127.0.0.1:0", nil, 1, time.Second, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	trans := cluster.WithoutFastPath(inner)
	trans.SetHeartbeatHandler(func(raft.RPC) { t.Error("a heartbeat took the fast path") })
	go func() {
		rpc := <-trans.Consumer()
		rpc.Respond(&raft.AppendEntriesResponse{Term: 7, Success: true}, nil)
	}()
	heartbeat := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, Addr: []byte("x")}, Term: 7}
	var answer raft.AppendEntriesResponse
	if err := client.AppendEntries("n", trans.LocalAddr(), heartbeat, &answer); err != nil || answer.Term != 7 {
		t.Fatalf("heartbeat: %+v %v", answer, err)
	}
}

// Row 2: a deposed leader that still believes it leads serves no linearizable
// read, even while its own lease lasts.
func TestRow02ADeposedLeaderServesNoRead(t *testing.T) {
	t.Parallel()
	net := newNetwork()
	c := start(t, 3, func(name string, cfg *cluster.Config) { net.attach(name, cfg) })
	old := c.follower()
	old.cfg.Timing = cluster.Timing{Heartbeat: 30 * time.Second, Election: 30 * time.Second, Lease: 30 * time.Second}
	old.restart() // it will not notice that it is alone
	c.eventually("it leads", func() bool {
		if l := c.leader(); l != nil && l != old {
			_ = l.Raft().LeadershipTransferToServer(raft.ServerID(old.Self().ID), raft.ServerAddress(old.Self().Address)).Error()
		}
		return old.IsLeader()
	})
	var others []*node
	for _, n := range c.nodes {
		if n != old {
			others = append(others, n)
		}
	}
	net.isolate(old.name, true)
	c.eventually("another leader", func() bool { return others[0].IsLeader() || others[1].IsLeader() })
	out := c.must(others[0], tenant("later"))
	if !old.IsLeader() {
		t.Fatal("the old leader noticed: the test does not test")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := old.ReadIndex(ctx); api.CodeOf(err) != api.CodeNoLeader {
		t.Fatalf("a read on the deposed leader: %v", err)
	}
	net.isolate(old.name, false)
	c.eventually("the old leader reads what it missed", func() bool {
		index, err := old.ReadIndex(t.Context())
		return err == nil && index >= out.Index && fsm.Tenants.Get(old.State().Read(), "later") != nil
	})
}

// Row 3: one snapshot installed again and again ends the process with the
// status that asks for a restart.
func TestRow03RepeatedInstallsEndTheProcess(t *testing.T) {
	t.Parallel()
	if f := cluster.RepeatedInstalls(10, 10, 20, 10, 10); f.Err != nil {
		t.Fatalf("ended without need: %v", f.Err)
	}
	if f := cluster.RepeatedInstalls(10, 20, 20, 20); f.ExitStatus != cluster.ExitRestart {
		t.Fatalf("did not end: %+v", f)
	}
}

// Row 3 and 14: a node that is far behind gets a snapshot over its old log,
// takes up the state whole, and completes its journal from its peers.
func TestRow03ALaggingNodeTakesASnapshot(t *testing.T) {
	t.Parallel()
	for _, form := range []string{cluster.LogStoreWAL, cluster.LogStoreBolt} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			c := start(t, 3, func(_ string, cfg *cluster.Config) {
				cfg.LogStore, cfg.TrailingEntries = form, 5
			})
			lag := c.follower()
			lag.kill()
			writer := c.nodes[0]
			if writer == lag {
				writer = c.nodes[1]
			}
			for i := range 60 {
				c.must(writer, tenant(fmt.Sprint("t", i)))
			}
			for _, n := range c.nodes {
				if n != lag {
					if err := n.Snapshot(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
			}
			lag.restart()
			c.must(writer, tenant("after"))
			c.converged(c.nodes...)
			if lag.Stats().Snapshot == 0 {
				t.Fatal("no snapshot was installed: the test does not test")
			}
			c.eventually("the journal is complete", func() bool {
				v, err := lag.VerifyJournal(t.Context(), nil)
				return err == nil && v.Records >= 61
			})
			lag.restart() // and once more from its own disk
			c.converged(c.nodes...)
		})
	}
}

// Row 4: a leader whose disk hangs ends itself, and the others go on.
func TestRow04ALeaderWithAHungDiskIsReplaced(t *testing.T) {
	t.Parallel()
	net, f := newNetwork(), &faults{}
	c := start(t, 3, func(name string, cfg *cluster.Config) {
		net.attach(name, cfg)
		f.attach(name, cfg)
	})
	l := c.waitLeader()
	log := f.of(l.name)
	log.hang.Store(true)
	t.Cleanup(func() { close(log.resume) })
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, _ = l.Propose(ctx, tenant("hangs")) // its outcome is unknown
	}()
	began := time.Now()
	select {
	case <-l.ended:
	case <-time.After(patience):
		t.Fatal("the leader goes on with a hung disk")
	}
	net.isolate(l.name, true) // the process is gone
	for _, n := range c.nodes {
		if n != l {
			c.must(n, tenant("goes-on"))
			break
		}
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Fatalf("replaced after %v", took)
	}
}

// Row 5: after one failed write nothing is written any more, and the process
// ends; the acknowledged survives.
func TestRow05OneFailedWriteEndsTheProcess(t *testing.T) {
	t.Parallel()
	f := &faults{}
	c := start(t, 1, f.attach)
	n := c.nodes[0]
	c.must(n, tenant("before"))
	log := f.of("node1")
	full := error(fmt.Errorf("write: %w", syscall.ENOSPC))
	log.fail.Store(&full)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := n.Propose(ctx, tenant("lost")); err == nil {
		t.Fatal("a write that failed was acknowledged")
	}
	select {
	case <-n.ended:
	case <-time.After(patience):
		t.Fatal("the process goes on after a failed write")
	}
	if !strings.Contains(n.fatal[0].Err.Error(), "no space") {
		t.Fatalf("the reason does not say what happened: %v", n.fatal[0].Err)
	}
	log.fail.Store(nil) // a retry would succeed
	writes := log.writes.Load()
	_, _ = n.Propose(ctx, tenant("retry"))
	if log.writes.Load() != writes {
		t.Fatal("the store was written again after a failure")
	}
	n.restart()
	c.ready(n)
	c.must(n, tenant("after"))
	if fsm.Tenants.Get(n.State().Read(), "before") == nil {
		t.Fatal("an acknowledged write is gone")
	}
}

// Row 6: a leader that keeps its followers and commits nothing ends itself.
func TestRow06ALeaderThatCannotCommitEndsItself(t *testing.T) {
	t.Parallel()
	c := start(t, 2, func(_ string, cfg *cluster.Config) {
		cfg.Timing = cluster.SlowTiming()
		cfg.CommitDeadline = 500 * time.Millisecond
	})
	l := c.waitLeader()
	other := c.follower()
	other.kill() // the transfer below waits for it, and refuses writes meanwhile
	transfer := l.Raft().LeadershipTransferToServer(raft.ServerID(other.Self().ID), raft.ServerAddress(other.Self().Address))
	if l.CommitsInTime(t.Context()) {
		t.Fatal("it commits without a quorum")
	}
	select {
	case <-l.ended:
		if l.fatal[0].ExitStatus != cluster.ExitRestart {
			t.Fatalf("ended with %+v", l.fatal[0])
		}
	case <-time.After(patience):
		t.Fatal("the leader goes on")
	}
	_ = transfer.Error()
}

// Row 7: after the loss of the leader the cluster commits again soon.
func TestRow07LeaderLossIsShort(t *testing.T) {
	t.Parallel()
	c := start(t, 3, nil)
	for range 3 {
		l := c.waitLeader()
		other := c.follower()
		l.kill()
		began := time.Now()
		c.must(other, tenant(fmt.Sprint("t", began.UnixNano())))
		if took := time.Since(began); took > 8*time.Second {
			t.Fatalf("no commit for %v", took)
		}
		l.restart()
		c.converged(c.nodes...)
	}
}

// Row 8: a retry with the same request ID is carried out once and gets the
// first answer, on any node and through a change of leader.
func TestRow08ARetryGetsTheFirstAnswer(t *testing.T) {
	t.Parallel()
	c := start(t, 3, nil)
	e := tenant("once")
	e.RequestID = "request-1"
	first := c.must(c.nodes[0], e)
	l := c.waitLeader()
	l.kill()
	var alive *node
	for _, n := range c.nodes {
		if n != l {
			alive = n
		}
	}
	again := c.must(alive, e)
	if !again.Replayed || again.Index != first.Index {
		t.Fatalf("the retry: %+v, the first: %+v", again, first)
	}
	other := tenant("another")
	other.RequestID = "request-1"
	out, err := alive.Propose(t.Context(), other)
	if err != nil || out.Err == nil {
		t.Fatalf("another body under the same request ID: %+v %v", out, err)
	}
	// Without a quorum the outcome of what was sent is unknown, and says so.
	for _, n := range c.nodes {
		if n != l && n != alive {
			n.kill()
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	_, err = alive.Propose(ctx, tenant("perhaps"))
	if code := api.CodeOf(err); code != api.CodeUnknown && code != api.CodeNoLeader {
		t.Fatalf("without a quorum: %v", err)
	}
}

// Row 9: an acknowledged entry is in the state of the node that acknowledged.
func TestRow09AcknowledgedMeansApplied(t *testing.T) {
	t.Parallel()
	c := start(t, 1, nil)
	for i := range 50 {
		out := c.must(c.nodes[0], tenant(fmt.Sprint("t", i)))
		if got := c.nodes[0].State().Index(); got < out.Index {
			t.Fatalf("index %d was acknowledged at %d", out.Index, got)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.nodes[0].WaitIndex(ctx, 1<<40); api.CodeOf(err) != api.CodeUnavailable {
		t.Fatalf("waiting for the far future: %v", err)
	}
}

// Row 10 and 20: the loops of a new leader begin only when its state has
// everything that was acknowledged, end with the leadership, and never run on
// two terms at once; a loop that is slow to end does not hold Raft up.
func TestRow10LoopsBeginBehindTheBarrier(t *testing.T) {
	t.Parallel()
	c := start(t, 3, nil)
	var acknowledged atomic.Uint64
	var behind, running atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, n := range c.nodes {
		go func() {
			_ = n.Lead(ctx, func(ctx context.Context) error {
				running.Add(1)
				defer running.Add(-1)
				if n.State().Index() < acknowledged.Load() {
					behind.Add(1)
				}
				<-ctx.Done()
				<-time.After(300 * time.Millisecond) // slow to end
				return nil
			})
		}()
	}
	c.eventually("the leader's loop runs", func() bool { return running.Load() == 1 })
	for i := range 3 {
		acknowledged.Store(c.must(c.nodes[i], tenant(fmt.Sprint("t", i))).Index)
		l := c.waitLeader()
		if err := l.Raft().LeadershipTransfer().Error(); err != nil {
			t.Logf("transfer: %v", err)
		}
		acknowledged.Store(c.must(c.nodes[i], tenant(fmt.Sprint("u", i))).Index)
		c.eventually("one loop runs again", func() bool { return running.Load() == 1 })
	}
	if behind.Load() != 0 {
		t.Fatal("a loop began before the state was complete")
	}
}

// Row 12: the replicated clock never goes back.
func TestRow12TimeNeverGoesBack(t *testing.T) {
	t.Parallel()
	c := start(t, 1, nil)
	ahead := tenant("ahead")
	ahead.Time = time.Now().Add(time.Hour).UTC()
	c.must(c.nodes[0], ahead)
	before := c.nodes[0].State().Read().Time()
	late := tenant("late")
	late.Time = time.Now().UTC()
	_, _ = c.nodes[0].Propose(t.Context(), late) // whether it is accepted is the state machine's to say
	if now := c.nodes[0].State().Read().Time(); now.Before(before) {
		t.Fatalf("time went from %v back to %v", before, now)
	}
}

// Row 15: an entry over 256 KiB is refused before it is sent anywhere.
func TestRow15BigEntriesAreRefused(t *testing.T) {
	t.Parallel()
	c := start(t, 1, nil)
	e := tenant("big")
	e.Body = []byte(`{"name":"big","description":"` + strings.Repeat("x", fsm.EntrySizeMax) + `"}`)
	if _, err := c.nodes[0].Propose(t.Context(), e); api.CodeOf(err) != api.CodeLimit {
		t.Fatalf("a big entry: %v", err)
	}
}

// Row 17: a member without a vote is a full replica and takes writes and reads.
func TestRow17ANonvoterIsAFullReplica(t *testing.T) {
	t.Parallel()
	c := start(t, 1, nil)
	n := newNode(t, "replica", nil)
	c.join(n, false)
	out := c.must(n, tenant("through-the-replica"))
	if _, err := n.ReadIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n.State().Index() < out.Index {
		t.Fatal("the replica misses its own write")
	}
	for _, m := range c.nodes[0].Configuration() {
		if m.Name == "replica" && m.Voter {
			t.Fatal("it votes")
		}
	}
	keys, err := n.GossipKeys(t.Context())
	if err != nil || len(keys) != 1 {
		t.Fatalf("gossip keys of a replica: %d %v", len(keys), err)
	}
	c.eventually("the leader knows how it is", func() bool {
		for _, h := range c.nodes[0].Health() {
			if h.ID == n.Self().ID {
				return !h.LastContact.IsZero() && h.Applied > 0
			}
		}
		return false
	})
}

// Row 18: a second init, and an init or join into a used directory, are refused.
func TestRow18ACreatedDirectoryIsNotCreatedAgain(t *testing.T) {
	t.Parallel()
	c := start(t, 1, nil)
	n := c.nodes[0]
	if _, err := cluster.Init(n.cfg, cluster.InitOptions{Name: "node1", Region: "here", Key: adminKey()}); api.CodeOf(err) != api.CodeConflict {
		t.Fatalf("init while it runs: %v", err)
	}
	token := c.token()
	n.kill()
	if _, err := cluster.Init(n.cfg, cluster.InitOptions{Name: "node1", Region: "here", Key: adminKey()}); api.CodeOf(err) != api.CodeConflict {
		t.Fatalf("second init: %v", err)
	}
	if _, err := cluster.Join(t.Context(), n.cfg, cluster.JoinOptions{Token: token, Name: "node2"}); api.CodeOf(err) != api.CodeConflict {
		t.Fatalf("join into a used directory: %v", err)
	}
	if err := os.Remove(n.cfg.DataDir + "/identity.json"); err != nil {
		t.Fatal(err)
	}
	if _, err := cluster.Init(n.cfg, cluster.InitOptions{Name: "node1", Region: "here", Key: adminKey()}); api.CodeOf(err) != api.CodeConflict {
		t.Fatalf("init over a log: %v", err)
	}
}

// Row 19: a node that comes back under another address is found again.
func TestRow19AddressesMayChange(t *testing.T) {
	t.Parallel()
	c := start(t, 3, nil)
	n := c.follower()
	n.kill()
	l := listen(t, "127.0.0.1:0")
	n.cfg.Listener, n.cfg.Listen, n.cfg.Advertise = l, l.Addr().String(), l.Addr().String()
	n.ended = make(chan struct{})
	n.open()
	c.ready(n) // the others learn where it is
	row := fsm.Nodes.Get(n.State().Read(), n.name)
	c.eventually("the node tells the leader", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		e := fsm.RegisterNode.Entry(fsm.NodeRegister{ID: n.Self().ID, PrevEpoch: row.Epoch, Nonce: "n", Address: l.Addr().String(), ClusterVersion: 1})
		e.RequestID = "register"
		out, err := n.Propose(ctx, e)
		if err == nil && out.Err != nil {
			t.Fatal(out.Err)
		}
		return err == nil
	})
	c.must(c.waitLeader(), tenant("after-the-move"))
	c.eventually("it follows again", func() bool { return fsm.Tenants.Get(n.State().Read(), "after-the-move") != nil })
	c.eventually("its certificate names the new address", func() bool {
		return n.Certificate().Leaf.VerifyHostname("127.0.0.1") == nil
	})
}

// Row 21: what Apply would not understand never reaches the log.
func TestRow21WhatIsNotUnderstoodIsNotProposed(t *testing.T) {
	t.Parallel()
	c := start(t, 2, nil)
	for _, e := range []fsm.Entry{
		{Op: "no.such", Body: []byte(`{}`)},
		{Op: "tenant.put", Body: []byte(`{"name":"x","no_such_field":1}`)},
		{Op: "tenant.put", Body: []byte(`{"name":"x"} {"name":"y"}`)},
		{Op: "tenant.put", Body: []byte(`[`)},
		{Op: "tenant.put"},
	} {
		for _, n := range c.nodes {
			if _, err := n.Propose(t.Context(), e); err == nil {
				t.Fatalf("%s %s was taken", e.Op, e.Body)
			}
		}
	}
	c.must(c.nodes[0], tenant("still-alive"))
	c.converged(c.nodes...)
}

// Row 23: a planned stop of the leader hands the lead over and loses nothing.
func TestRow23AShutdownHandsTheLeadOver(t *testing.T) {
	t.Parallel()
	c := start(t, 3, nil)
	l := c.waitLeader()
	other := c.follower()
	stop := make(chan struct{})
	failed := make(chan error, 1)
	go func() {
		defer close(failed)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			out, err := other.Propose(ctx, tenant(fmt.Sprint("t", i)))
			cancel()
			if err = errors.Join(err, refusal(out)); err != nil {
				failed <- err
				return
			}
		}
	}()
	if err := l.Shutdown(t.Context()); err != nil {
		t.Fatalf("shutdown: %v", err)
	}
	close(stop)
	if err := <-failed; err != nil {
		t.Fatalf("a write failed: %v", err)
	}
	if _, err := l.Propose(t.Context(), tenant("late")); api.CodeOf(err) != api.CodeUnavailable {
		t.Fatalf("a stopped node took a write: %v", err)
	}
	l.restart()
	c.converged(c.nodes...)
}

func refusal(o fsm.Outcome) error {
	if o.Err == nil {
		return nil
	}
	return o.Err
}
