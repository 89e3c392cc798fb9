package agent_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/debvisor/debvisor/agent"
	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/sim"
)

const (
	clusterID = "11111111-1111-4111-8111-111111111111"
	patience  = 20 * time.Second
)

// log applies proposals straight to a state machine, as a cluster of one would.
type log struct {
	mu       sync.Mutex
	f        *fsm.FSM
	index    uint64
	proposed atomic.Int64
	broken   atomic.Bool // proposals fail as they do without a quorum
}

func (l *log) State() *fsm.FSM                           { return l.f }
func (l *log) ReadIndex(context.Context) (uint64, error) { return l.f.Index(), nil }

func (l *log) Propose(_ context.Context, e fsm.Entry) (fsm.Outcome, error) {
	if l.broken.Load() {
		return fsm.Outcome{}, api.Errorf(api.CodeNoLeader, "nobody leads")
	}
	if e.Op != fsm.RenewNodes.Op() {
		l.proposed.Add(1)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.index++
	e.Time = time.Now().UTC()
	raw, err := e.Encode()
	if err != nil {
		return fsm.Outcome{}, err
	}
	out, _, err := l.f.ApplyBatch([]fsm.Committed{{Index: l.index, Term: 1, Data: raw}})
	if err != nil {
		return fsm.Outcome{}, err
	}
	if out[0].Err != nil {
		return out[0], out[0].Err
	}
	return out[0], nil
}

func (l *log) must(t testing.TB, e fsm.Entry) {
	t.Helper()
	if _, err := l.Propose(t.Context(), e); err != nil {
		t.Fatalf("%s: %v", e.Op, err)
	}
}

// host is one machine with a simulated hypervisor and its agent.
type host struct {
	t    testing.TB
	log  *log
	name string
	id   string
	dir  string
	hv   *sim.Hypervisor

	fetched atomic.Int64
	peers   map[string]*host
	agent   *agent.Agent
	end     func() error
	ended   chan struct{} // closed when Run has returned
}

func newLog(t testing.TB, names ...string) (*log, map[string]*host) {
	t.Helper()
	l := &log{f: fsm.New()}
	hosts := map[string]*host{}
	for i, name := range names {
		hosts[name] = &host{t: t, log: l, name: name, id: fmt.Sprintf("%08d-0000-4000-8000-000000000000", i+1), dir: t.TempDir(), peers: hosts}
	}
	first := hosts[names[0]]
	l.must(t, fsm.InitCluster.Entry(fsm.ClusterInit{ClusterID: clusterID, Region: "here", Version: fsm.VersionMin,
		Node: fsm.NodeJoin{ID: first.id, Name: first.name, Address: "127.0.0.1:1"},
		Key:  fsm.KeyCreate{Name: "root", Hash: fmt.Sprintf("%064d", 1), Role: api.RoleAdmin}}))
	for _, name := range names[1:] {
		hash := fmt.Sprintf("%064s", name)
		l.must(t, fsm.CreateToken.Entry(fsm.TokenCreate{Name: name, Hash: hash, Expires: time.Now().Add(time.Minute)}))
		l.must(t, fsm.JoinNode.Entry(fsm.NodeJoin{ID: hosts[name].id, Name: name, Address: "127.0.0.1:1", TokenHash: hash}))
	}
	return l, hosts
}

// start runs the agent and returns when the node is registered.
func (h *host) start() {
	h.t.Helper()
	cfg := sim.Config{Dir: filepath.Join(h.dir, "sim"), ClusterID: clusterID, CPUs: 64, MemoryBytes: 256 * api.GiB}
	hv, err := sim.OpenHypervisor(cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	storage, err := sim.OpenStorage(cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	network, err := sim.OpenNetwork(cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	h.hv = hv
	before := h.epoch()
	h.agent, err = agent.New(agent.Config{ID: h.id, Name: h.name, DataDir: h.dir, Address: "127.0.0.1:1", Cluster: h.log,
		Hypervisor: hv, Storage: map[string]plugins.Storage{api.PoolDir: storage}, Network: network,
		Fetch: func(ctx context.Context, node, image string) (io.ReadCloser, error) {
			h.fetched.Add(1)
			return h.peers[node].agent.OpenImage(ctx, image)
		},
		Renew: func(ctx context.Context, r fsm.Renewal) error {
			_, err := h.log.Propose(ctx, fsm.RenewNodes.Entry(fsm.Renewals{Renewals: []fsm.Renewal{r}}))
			return err
		}})
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.ended = make(chan struct{})
	var failed error
	go func() {
		defer close(h.ended)
		failed = h.agent.Run(ctx)
	}()
	h.end = func() error {
		cancel()
		<-h.ended
		err := failed
		_ = hv.Close()
		h.end = func() error { return nil }
		return err
	}
	h.t.Cleanup(func() { _ = h.end() })
	h.until("the node is registered", func(v *fsm.View) bool {
		n := fsm.Nodes.Get(v, h.name)
		return n.Lease == api.NodeLive && n.Epoch > before && n.Capacity.CPUs > 0
	})
}

func (h *host) epoch() uint64 {
	if n := fsm.Nodes.Get(h.log.f.Read(), h.name); n != nil {
		return n.Epoch
	}
	return 0
}

// until waits for the state to satisfy ok.
func (h *host) until(what string, ok func(v *fsm.View) bool) {
	h.t.Helper()
	deadline := time.After(patience)
	for {
		ch := h.log.f.Advanced()
		if ok(h.log.f.Read()) {
			return
		}
		select {
		case <-ch:
		case <-deadline:
			for i := range fsm.Instances.All(h.log.f.Read()) {
				h.t.Logf("instance %s: %s %s gen %d owner %s", i.VM, i.State, i.Reason, i.Gen, i.Owner)
			}
			for r := range fsm.Replicas.All(h.log.f.Read()) {
				h.t.Logf("replica %s %s on %s: %s %s", r.Kind, r.Of, r.Node, r.State, r.Reason)
			}
			h.t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func vm(name string) api.VM {
	return api.VM{Meta: api.Meta{Name: name, Tenant: api.DefaultTenant}, CPUs: 1, MemoryBytes: 64 * api.MiB,
		Disks: []api.Disk{{Name: "root", SizeBytes: api.GiB}}}
}

// create makes a VM and gives it to the host.
func (h *host) create(v api.VM) string {
	h.t.Helper()
	e, err := fsm.VMs.Put(&v)
	if err != nil {
		h.t.Fatal(err)
	}
	h.log.must(h.t, e)
	id := fsm.VMs.Get(h.log.f.Read(), api.Key(v.Tenant, v.Name)).ID
	h.assign(id, 0)
	return id
}

func (h *host) assign(id string, gen uint64) {
	h.t.Helper()
	h.log.must(h.t, fsm.AssignInstance.Entry(fsm.Assignment{VM: id, Gen: gen, Node: h.name, Epoch: h.epoch(), Decision: api.Decision{Node: h.name, Summary: "test"}}))
}

func (h *host) instance(id string) *api.Instance { return fsm.Instances.Get(h.log.f.Read(), id) }

func (h *host) untilState(id, state string) {
	h.t.Helper()
	h.until(id+" is "+state, func(v *fsm.View) bool {
		i := fsm.Instances.Get(v, id)
		return i != nil && i.State == state && i.OwnerEpoch == h.epoch()
	})
}

func (h *host) power(name, power string) {
	h.t.Helper()
	h.log.must(h.t, fsm.PowerVM.Entry(fsm.VMPower{Tenant: api.DefaultTenant, Name: name, Power: power}))
}

func (h *host) drop(name string) {
	h.t.Helper()
	v := fsm.VMs.Get(h.log.f.Read(), api.Key(api.DefaultTenant, name))
	h.log.must(h.t, fsm.VMs.Delete(v.Tenant, v.Name, v.Modified))
}

func TestVMStartsStopsAndGoesAway(t *testing.T) {
	t.Parallel()
	_, hosts := newLog(t, "node1")
	h := hosts["node1"]
	h.start()
	id := h.create(vm("web"))
	h.untilState(id, api.InstanceRunning)
	if i := h.instance(id); !i.Simulated || i.StartedAt.IsZero() {
		t.Errorf("got %+v, want a simulated guest with its start time", i)
	}
	h.power("web", api.PowerOff)
	h.untilState(id, api.InstanceStopped)
	h.power("web", api.PowerOn)
	h.untilState(id, api.InstanceRunning)
	h.drop("web")
	h.until("everything is gone", func(v *fsm.View) bool {
		return fsm.Instances.Len(v) == 0 && fsm.Replicas.Len(v) == 0
	})
	if list, err := h.hv.Domains(t.Context()); err != nil || len(list) != 0 {
		t.Fatalf("got %v, %v; want no domain", list, err)
	}
}

func TestGuestSurvivesARestartOfTheAgent(t *testing.T) {
	t.Parallel()
	_, hosts := newLog(t, "node1")
	h := hosts["node1"]
	h.start()
	id := h.create(vm("web"))
	h.untilState(id, api.InstanceRunning)
	started := h.instance(id).StartedAt
	if err := h.end(); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.untilState(id, api.InstanceRunning)
	if got := h.instance(id); !got.StartedAt.Equal(started) || got.Restarts != 0 {
		t.Fatalf("the guest was started again: %v, was %v", got.StartedAt, started)
	}
}

func TestGuestThatDiesIsNoticedAndStartedAgain(t *testing.T) {
	t.Parallel()
	_, hosts := newLog(t, "node1")
	h := hosts["node1"]
	h.start()
	id := h.create(vm("web"))
	h.untilState(id, api.InstanceRunning)
	from := time.Now()
	if err := h.hv.Crash(id); err != nil {
		t.Fatal(err)
	}
	h.until("the end is noticed", func(v *fsm.View) bool { return fsm.Instances.Get(v, id).Restarts == 1 })
	t.Logf("noticed after %v", time.Since(from))
	h.untilState(id, api.InstanceRunning)
}

func TestGuestThatPowersItselfOffStaysOffUntilItIsStarted(t *testing.T) {
	t.Parallel()
	_, hosts := newLog(t, "node1")
	h := hosts["node1"]
	h.start()
	id := h.create(vm("web"))
	h.untilState(id, api.InstanceRunning)
	if err := h.hv.PowerOff(id); err != nil {
		t.Fatal(err)
	}
	h.untilState(id, api.InstanceStopped)
	if i := h.instance(id); i.Restarts != 0 || len(i.Drift) != 1 {
		t.Fatalf("got %d restarts, drift %v; want a guest that is off and says why", i.Restarts, i.Drift)
	}
	h.power("web", api.PowerOn)
	h.untilState(id, api.InstanceRunning)
	if i := h.instance(id); len(i.Drift) != 0 {
		t.Fatalf("drift %v stayed", i.Drift)
	}
}

func TestGuestOfAnotherGenIsEnded(t *testing.T) {
	t.Parallel()
	_, hosts := newLog(t, "node1")
	h := hosts["node1"]
	h.start()
	id := h.create(vm("web"))
	h.untilState(id, api.InstanceRunning)
	if err := h.end(); err != nil {
		t.Fatal(err)
	}
	h.log.must(t, fsm.ConfirmOffNode.Entry(fsm.NodeConfirmOff{Node: h.name, Epoch: h.epoch()}))
	h.start()
	h.until("the guest of the old gen is gone", func(*fsm.View) bool {
		list, err := h.hv.Domains(t.Context())
		if err == nil && len(list) > 0 {
			h.log.must(t, fsm.TrimTokens.Entry(fsm.TokensTrim{})) // moves the index, so that this is looked at again
		}
		return err == nil && len(list) == 0
	})
	before := h.instance(id).Gen
	h.assign(id, before)
	h.untilState(id, api.InstanceRunning)
	if got := h.instance(id).Gen; got <= before {
		t.Fatalf("gen %d, want more than %d", got, before)
	}
}

func TestImageIsFetchedOnceForManyClones(t *testing.T) {
	t.Parallel()
	l, hosts := newLog(t, "node1", "node2")
	hosts["node1"].start()
	hosts["node2"].start()
	content := bytes.Repeat([]byte("debvisor"), 1<<16)
	sum := sha256.Sum256(content)
	image := api.Image{Meta: api.Meta{Name: "tiny", Tenant: api.DefaultTenant}, Format: api.FormatRaw, SHA256: hex.EncodeToString(sum[:]), SizeBytes: int64(len(content))}
	e, err := fsm.Images.Put(&image)
	if err != nil {
		t.Fatal(err)
	}
	l.must(t, e)
	row := fsm.Images.Get(l.f.Read(), "default/tiny")
	if err := hosts["node1"].agent.ImportImage(t.Context(), row, bytes.NewReader(content[1:])); err == nil {
		t.Fatal("a file cut short was imported")
	}
	if err := hosts["node1"].agent.ImportImage(t.Context(), row, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for n := range 10 {
		v := vm(fmt.Sprintf("web-%d", n))
		v.Disks = []api.Disk{{Name: "root", Image: "tiny"}}
		ids = append(ids, hosts["node2"].create(v))
	}
	for _, id := range ids {
		hosts["node2"].untilState(id, api.InstanceRunning)
	}
	if got := hosts["node2"].fetched.Load(); got != 1 {
		t.Fatalf("the image was fetched %d times, want once", got)
	}
}

func TestHypervisorThatBreaksRestartsNoGuest(t *testing.T) {
	t.Parallel()
	_, hosts := newLog(t, "node1")
	h := hosts["node1"]
	h.start()
	id := h.create(vm("web"))
	h.untilState(id, api.InstanceRunning)
	started := h.instance(id).StartedAt
	h.hv.Break(api.Errorf(api.CodeUnavailable, "the socket is gone"))
	h.until("the node says so", func(v *fsm.View) bool { return !fsm.Nodes.Get(v, h.name).Hypervisor.Healthy })
	h.hv.Heal()
	h.until("the node is well", func(v *fsm.View) bool { return fsm.Nodes.Get(v, h.name).Hypervisor.Healthy })
	h.until("the guest is as it was", func(v *fsm.View) bool {
		i := fsm.Instances.Get(v, id)
		return i.State == api.InstanceRunning && i.Reason == "" && i.StartedAt.Equal(started)
	})
}

func TestRestartHappensOncePerTask(t *testing.T) {
	t.Parallel()
	l, hosts := newLog(t, "node1")
	h := hosts["node1"]
	h.start()
	id := h.create(vm("web"))
	h.untilState(id, api.InstanceRunning)
	started := h.instance(id).StartedAt
	l.must(t, fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: "t1", Verb: api.TaskRestart, Kind: api.KindVM, Object: "default/web"}))
	l.must(t, fsm.DispatchTask.Entry(fsm.TaskDispatch{Name: "t1", Node: h.name, Epoch: h.epoch()}))
	h.until("the task ends", func(v *fsm.View) bool { return fsm.Tasks.Get(v, "t1").Ended() })
	task := fsm.Tasks.Get(l.f.Read(), "t1")
	if task.State != api.TaskDone {
		t.Fatalf("got %s (%v), want done", task.State, task.Error)
	}
	if i := h.instance(id); !i.StartedAt.After(started) || i.RestartedTask != "t1" {
		t.Fatalf("the guest was not restarted: %+v", i)
	}
}

func TestForcedStopEndsTheGuest(t *testing.T) {
	t.Parallel()
	l, hosts := newLog(t, "node1")
	h := hosts["node1"]
	h.start()
	id := h.create(vm("web"))
	h.untilState(id, api.InstanceRunning)
	l.must(t, fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: "t1", Verb: api.TaskStop, Kind: api.KindVM, Object: "default/web"}))
	l.must(t, fsm.DispatchTask.Entry(fsm.TaskDispatch{Name: "t1", Node: h.name, Epoch: h.epoch()}))
	h.until("the task ends", func(v *fsm.View) bool { return fsm.Tasks.Get(v, "t1").State == api.TaskDone })
	h.untilState(id, api.InstanceStopped)
}

func TestWithoutAQuorumGuestsGoOnAndAreReportedLater(t *testing.T) {
	t.Parallel()
	l, hosts := newLog(t, "node1")
	h := hosts["node1"]
	h.start()
	id := h.create(vm("web"))
	h.untilState(id, api.InstanceRunning)
	l.broken.Store(true)
	if err := h.hv.Crash(id); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Propose(t.Context(), fsm.TrimTokens.Entry(fsm.TokensTrim{})); api.CodeOf(err) != api.CodeNoLeader {
		t.Fatalf("got %v, want no leader", err)
	}
	l.broken.Store(false)
	h.until("the end is told", func(v *fsm.View) bool { return fsm.Instances.Get(v, id).Restarts > 0 })
	h.untilState(id, api.InstanceRunning)
}

func TestIdleGuestsWriteNothing(t *testing.T) {
	t.Parallel()
	l, hosts := newLog(t, "node1")
	h := hosts["node1"]
	h.start()
	var ids []string
	for n := range 200 {
		ids = append(ids, h.create(vm(fmt.Sprintf("web-%d", n))))
	}
	for _, id := range ids {
		h.untilState(id, api.InstanceRunning)
	}
	before, seq := l.proposed.Load(), fsm.Leases.Get(l.f.Read(), h.name).Seq
	h.until("a few renewals have passed", func(v *fsm.View) bool { return fsm.Leases.Get(v, h.name).Seq > seq+4 })
	if got := l.proposed.Load() - before; got != 0 {
		t.Fatalf("%d entries were written while nothing changed", got)
	}
}

func TestRemovedNodeEndsWithTheReason(t *testing.T) {
	t.Parallel()
	l, hosts := newLog(t, "node1", "node2")
	hosts["node1"].start()
	h := hosts["node2"]
	h.start()
	l.must(t, fsm.RemoveNode.Entry(fsm.NodeRemove{Node: "node2", Reason: "sold"}))
	select {
	case <-h.ended:
	case <-time.After(patience):
		t.Fatal("the agent of a removed node goes on")
	}
	if err := h.end(); !errors.Is(err, agent.ErrRemoved) || !bytes.Contains([]byte(err.Error()), []byte("sold")) {
		t.Fatalf("got %v, want ErrRemoved with the reason", err)
	}
}
