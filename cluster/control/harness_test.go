package control_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster/control"
	"github.com/debvisor/debvisor/fsm"
)

// cluster is a log of one replica: what is proposed is applied at once.
type cluster struct {
	tb testing.TB
	f  *fsm.FSM

	mu        sync.Mutex
	index     uint64
	proposed  []fsm.Entry                            // what was committed
	intercept func(fsm.Entry) (lose bool, err error) // fails a proposal before it (lose) or after it is committed
}

func (c *cluster) State() *fsm.FSM { return c.f }

func (c *cluster) Propose(ctx context.Context, e fsm.Entry) (fsm.Outcome, error) {
	if err := ctx.Err(); err != nil {
		return fsm.Outcome{}, api.Errorf(api.CodeUnavailable, "%v", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var failure error
	if c.intercept != nil {
		lose, err := c.intercept(e)
		if lose {
			return fsm.Outcome{}, err
		}
		failure = err
	}
	e.Time = time.Now()
	raw, err := e.Encode()
	if err != nil {
		return fsm.Outcome{}, err
	}
	c.index++
	out, _, err := c.f.ApplyBatch([]fsm.Committed{{Index: c.index, Term: 1, Data: raw}})
	if err != nil {
		c.tb.Errorf("apply %s: %v", e.Op, err)
		return fsm.Outcome{}, err
	}
	c.proposed = append(c.proposed, e)
	if failure != nil {
		return fsm.Outcome{}, failure
	}
	return out[0], nil
}

func (c *cluster) setIntercept(f func(fsm.Entry) (bool, error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.intercept = f
}

// count tells how many entries of the op were committed.
func (c *cluster) count(op string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, e := range c.proposed {
		if e.Op == op {
			n++
		}
	}
	return n
}

// try commits an entry of a user or an agent.
func (c *cluster) try(e fsm.Entry) error {
	out, err := c.Propose(context.Background(), e)
	if err == nil && out.Err != nil {
		return out.Err
	}
	return err
}

func (c *cluster) do(e fsm.Entry) {
	c.tb.Helper()
	if err := c.try(e); err != nil {
		c.tb.Fatalf("%s: %v", e.Op, err)
	}
}

func newCluster(tb testing.TB) *cluster {
	tb.Helper()
	c := &cluster{tb: tb, f: fsm.New()}
	c.do(fsm.InitCluster.Entry(fsm.ClusterInit{
		ClusterID: "11111111-1111-4111-8111-111111111111", Region: "here", Version: fsm.VersionMin,
		Node: fsm.NodeJoin{ID: nodeID(1), Name: "node1", Address: "127.0.0.1:7443"},
		Key:  fsm.KeyCreate{Name: "root", Hash: fmt.Sprintf("%064d", 1), Role: api.RoleAdmin},
	}))
	return c
}

func nodeID(n int) string { return fmt.Sprintf("%08d-0000-4000-8000-000000000000", n) }

func nodeName(n int) string { return fmt.Sprintf("node%d", n) }

// join admits node n; node 1 is there from the beginning.
func (c *cluster) join(n int, zone string, witness bool) {
	c.tb.Helper()
	hash := nodeHash(n)
	c.do(fsm.CreateToken.Entry(fsm.TokenCreate{Name: fmt.Sprintf("t%d", n), Hash: hash, Expires: time.Now().Add(time.Hour)}))
	c.do(fsm.JoinNode.Entry(fsm.NodeJoin{ID: nodeID(n), Name: nodeName(n), Address: fmt.Sprintf("127.0.0.%d:7443", n),
		Zone: zone, Witness: witness, TokenHash: hash}))
}

// register begins a new epoch of node n, with room for that many GiB of guests.
func (c *cluster) register(n, gib int) uint64 {
	c.tb.Helper()
	prev := c.node(n).Epoch
	c.do(fsm.RegisterNode.Entry(fsm.NodeRegister{ID: nodeID(n), PrevEpoch: prev, Nonce: fmt.Sprint(prev), Address: fmt.Sprintf("127.0.0.%d:7443", n)}))
	c.do(fsm.ReportNode.Entry(fsm.NodeReport{Node: nodeName(n), Epoch: prev + 1,
		Hypervisor: api.HypervisorInfo{Driver: "sim", Healthy: true}, Capacity: api.Capacity{CPUs: 1024, MemoryBytes: int64(gib) * api.GiB}}))
	return prev + 1
}

func (c *cluster) node(n int) api.Node {
	c.tb.Helper()
	row := fsm.Nodes.Get(c.f.Read(), nodeName(n))
	if row == nil {
		c.tb.Fatalf("no node %d", n)
	}
	return *row
}

// create makes a VM of 1 GiB without disks.
func (c *cluster) create(name string, change func(*api.VM)) {
	c.tb.Helper()
	if err := c.tryCreate(name, change); err != nil {
		c.tb.Fatal(err)
	}
}

func (c *cluster) tryCreate(name string, change func(*api.VM)) error {
	c.tb.Helper()
	vm := api.VM{Meta: api.Meta{Name: name, Tenant: api.DefaultTenant}, CPUs: 1, MemoryBytes: api.GiB}
	if change != nil {
		change(&vm)
	}
	e, err := fsm.VMs.Put(&vm)
	if err != nil {
		c.tb.Fatal(err)
	}
	return c.try(e)
}

func (c *cluster) vm(name string) *api.VM {
	return fsm.VMs.Get(c.f.Read(), api.Key(api.DefaultTenant, name))
}

// instance is what became of a VM, or nil.
func (c *cluster) instance(name string) *api.Instance {
	vm := c.vm(name)
	if vm == nil {
		return nil
	}
	return fsm.Instances.Get(c.f.Read(), vm.ID)
}

func (c *cluster) owner(name string) string {
	if i := c.instance(name); i != nil {
		return i.Owner
	}
	return ""
}

// virtual is a clock of the time of the test.
type virtual struct{ start time.Time }

func (virtual) Now() time.Time           { return time.Now() }
func (v virtual) Elapsed() time.Duration { return time.Since(v.start) }

// firstFit places by memory on the first node by name that has room.
type firstFit struct{}

type firstFitRound struct {
	view *fsm.View
	free map[string]int64
	list []*api.Node
}

func (firstFit) Begin(view *fsm.View) control.Round {
	r := &firstFitRound{view: view, free: map[string]int64{}}
	for n := range fsm.Nodes.All(view) {
		if n.Lease == api.NodeLive && !n.Witness && !n.Unschedulable {
			r.list, r.free[n.Name] = append(r.list, n), n.Capacity.MemoryBytes
		}
	}
	for vm := range fsm.VMs.All(view) {
		if i := fsm.Instances.Get(view, vm.ID); i != nil {
			r.free[i.Owner] -= vm.MemoryBytes
		}
	}
	return r
}

func (r *firstFitRound) Decide(vm *api.VM, now time.Time) api.Decision {
	for _, n := range r.list {
		if r.free[n.Name] >= vm.MemoryBytes {
			r.free[n.Name] -= vm.MemoryBytes
			return api.Decision{Node: n.Name, Summary: n.Name + " has room", At: now}
		}
	}
	return api.Decision{Summary: fmt.Sprintf("none of %d nodes has room", len(r.list)), At: now}
}

// Move implements control.Round.
func (r *firstFitRound) Move(vm *api.VM, from string, args api.MigrateArgs, now time.Time) api.Decision {
	for _, n := range r.list {
		if n.Name != from && (args.Node == "" || args.Node == n.Name) {
			return api.Decision{Node: n.Name, Summary: n.Name + " takes it", At: now}
		}
	}
	return api.Decision{Summary: "no node takes it", At: now, Candidates: []api.Candidate{{Node: "node2", Reasons: []string{"too small", "too slow"}}}}
}

// raftSide is a Raft configuration that changes when it is told to.
type raftSide struct {
	mu      sync.Mutex
	servers []control.Server
	down    map[string]bool
	since   time.Time
	log     []string
}

func (r *raftSide) Configuration() ([]control.Server, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]control.Server(nil), r.servers...), nil
}

func (r *raftSide) set(what, id string, change func(*control.Server)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = append(r.log, what+" "+id)
	for i := range r.servers {
		if r.servers[i].ID == id {
			change(&r.servers[i])
			return nil
		}
	}
	s := control.Server{ID: id}
	change(&s)
	r.servers = append(r.servers, s)
	return nil
}

func (r *raftSide) AddVoter(_ context.Context, id, _ string) error {
	return r.set("promote", id, func(s *control.Server) { s.Voter = true })
}

func (r *raftSide) AddNonvoter(_ context.Context, id, _ string) error {
	return r.set("add", id, func(*control.Server) {})
}

func (r *raftSide) Demote(_ context.Context, id string) error {
	return r.set("demote", id, func(s *control.Server) { s.Voter = false })
}

func (r *raftSide) Remove(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = append(r.log, "remove "+id)
	for i := range r.servers {
		if r.servers[i].ID == id {
			r.servers = append(r.servers[:i:i], r.servers[i+1:]...)
			return nil
		}
	}
	return errors.New("no such server")
}

func (r *raftSide) Healthy(id string) (bool, time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down[id] {
		return false, time.Since(r.since) + time.Hour
	}
	return true, 0
}

func (r *raftSide) voters() map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]bool{}
	for _, s := range r.servers {
		if s.Voter {
			out[s.ID] = true
		}
	}
	return out
}

// leader runs a Control on node 1 until stop is called.
type leader struct {
	*control.Control
	c    *cluster
	stop func()
}

// pass lets virtual time go by while the agents of all live nodes but those
// silent renew their leases.
func (l leader) pass(d time.Duration, silent ...int) {
	const every = 500 * time.Millisecond
	for ; d > 0; d -= every {
		for lease := range fsm.Leases.All(l.c.f.Read()) {
			if slices.ContainsFunc(silent, func(n int) bool { return nodeName(n) == lease.Name }) {
				continue
			}
			// A fenced node has no lease to renew; the rest is checked by the tests.
			_ = l.Renew(fsm.Renewal{Node: lease.Name, Epoch: lease.Epoch, Seq: lease.Seq + 1})
		}
		pass(min(d, every))
	}
}

func newRaft() *raftSide {
	return &raftSide{servers: []control.Server{{ID: nodeID(1), Voter: true}}, down: map[string]bool{}, since: time.Now()}
}

func newControl(tb testing.TB, c *cluster, change func(*control.Config)) *control.Control {
	tb.Helper()
	clock := virtual{time.Now().Add(-time.Hour)}
	conf := control.Config{Cluster: c, Self: "node1", ID: nodeID(1), Placer: firstFit{}, Membership: newRaft(),
		Stamps: control.NewStamps(c.f, clock), Clock: clock}
	if change != nil {
		change(&conf)
	}
	ctl, err := control.New(conf)
	if err != nil {
		tb.Fatal(err)
	}
	return ctl
}

// lead makes node 1 the leader of the term.
func lead(tb testing.TB, c *cluster, ctl *control.Control, term uint64) leader {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ctl.Run(ctx, term) }()
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				tb.Errorf("Run: %v", err)
			}
		})
	}
	return leader{ctl, c, stop}
}

// pass lets virtual time go by, and waits until everybody is idle.
func pass(d time.Duration) {
	timer := time.NewTimer(d)
	<-timer.C
	synctest.Wait()
}

// inBubble lets rapid run within synctest, where a test may not be asked for
// its deadline.
type inBubble struct{ testing.TB }

func nodeHash(n int) string { return fmt.Sprintf("%064d", n) }
