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
	"strings"
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
	patience  = 30 * time.Second
)

// log applies proposals straight to a state machine, as a cluster of one would.
type log struct {
	mu       sync.Mutex
	f        *fsm.FSM
	index    uint64
	proposed atomic.Int64
	broken   atomic.Bool                                     // there is no quorum
	twist    atomic.Pointer[func(e fsm.Entry) (bool, error)] // decides whether to apply, and what to answer instead
}

func (l *log) State() *fsm.FSM { return l.f }

func (l *log) ReadIndex(context.Context) (uint64, error) {
	if l.broken.Load() {
		return 0, noLeader()
	}
	return l.f.Index(), nil
}

func noLeader() error { return api.Errorf(api.CodeNoLeader, "nobody leads") }

func (l *log) Propose(ctx context.Context, e fsm.Entry) (fsm.Outcome, error) {
	if err := ctx.Err(); err != nil {
		return fsm.Outcome{}, err
	}
	if l.broken.Load() {
		return fsm.Outcome{}, noLeader()
	}
	if e.Op != fsm.RenewNodes.Op() {
		l.proposed.Add(1)
		if !strings.HasPrefix(e.By, "node:") || !l.f.Agents(e.Op) { // as the leader demands of what nodes forward
			return fsm.Outcome{}, api.Errorf(api.CodeForbidden, "%s is not in the name of a node, or not for agents to propose", e.Op)
		}
	}
	if twist := l.twist.Load(); twist != nil {
		apply, answer := (*twist)(e)
		if answer != nil {
			if apply {
				_, _ = l.apply(e)
			}
			return fsm.Outcome{}, answer
		}
	}
	out, err := l.apply(e)
	if out.Err != nil {
		return out, nil // a refusal is no error of Propose
	}
	return out, err
}

func (l *log) apply(e fsm.Entry) (fsm.Outcome, error) {
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

// must applies an entry of a user or the leader.
func (l *log) must(t testing.TB, e fsm.Entry) {
	t.Helper()
	if _, err := l.apply(e); err != nil {
		t.Fatalf("%s: %v", e.Op, err)
	}
}

// host is one machine with a simulated hypervisor and its agent.
type host struct {
	t       testing.TB
	log     *log
	name    string
	id      string
	dir     string
	timings agent.Timings
	boot    time.Duration                            // of simulated guests
	change  func(config *agent.Config)               // of the next start
	fetch   func(node string) (io.ReadCloser, error) // instead of the peer's image; nil answers are passed over

	hv       *sim.Hypervisor
	copyTime time.Duration
	storage  *sim.Storage
	network  *sim.Network
	fetched  atomic.Int64
	peers    map[string]*host
	agent    *agent.Agent
	cancel   context.CancelFunc
	ended    chan struct{} // closes when Run has returned
	err      error         // that Run returned
}

func newLog(t testing.TB, names ...string) (*log, map[string]*host) {
	t.Helper()
	l := &log{f: fsm.New()}
	hosts := map[string]*host{}
	for i, name := range names {
		hosts[name] = &host{t: t, log: l, name: name, id: fmt.Sprintf("%08d-0000-4000-8000-000000000000", i+1), dir: t.TempDir(), peers: hosts,
			timings: agent.Timings{StopGrace: 200 * time.Millisecond, DeleteGrace: 100 * time.Millisecond, Renew: 50 * time.Millisecond,
				Unreachable: 50 * time.Millisecond, SyncWait: 300 * time.Millisecond, Trial: time.Second, TrialHold: 10 * time.Millisecond}}
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

// one is a cluster of one started host.
func one(t testing.TB, change ...func(*host)) *host {
	t.Helper()
	_, hosts := newLog(t, "node1")
	h := hosts["node1"]
	for _, f := range change {
		f(h)
	}
	h.start()
	return h
}

// open opens the simulated machine.
func (h *host) open() {
	h.t.Helper()
	config := sim.Config{Dir: filepath.Join(h.dir, "sim"), ClusterID: clusterID, CPUs: 64, MemoryBytes: 256 * api.GiB, BootTime: h.boot, CopyTime: h.copyTime}
	var errs [3]error
	h.hv, errs[0] = sim.OpenHypervisor(config)
	h.storage, errs[1] = sim.OpenStorage(config)
	h.network, errs[2] = sim.OpenNetwork(config)
	if err := errors.Join(errs[:]...); err != nil {
		h.t.Fatal(err)
	}
}

// launch opens the machine and runs the agent on it.
func (h *host) launch() {
	h.t.Helper()
	h.open()
	config := agent.Config{ID: h.id, Name: h.name, DataDir: h.dir, Address: "127.0.0.1:1", Cluster: h.log,
		Hypervisor: h.hv, Updater: h.hv, Storage: map[string]plugins.Storage{api.PoolDir: h.storage}, Network: h.network, Timings: h.timings,
		Volumes: map[string]plugins.Volumes{api.PoolDir: h.storage}, Disks: h.hv, Snapshots: h.hv, Guests: h.hv,
		Screens: h.hv, Logs: h.hv, Meter: h.hv,
		Fetch: h.fetchImage, Migrator: h.hv, Peer: h.peer,
		Stagers: map[string]plugins.Stager{api.PoolDir: h.storage}, Templates: map[string]plugins.Templates{api.PoolDir: h.storage},
		Renew: func(ctx context.Context, r fsm.Renewal) error {
			_, err := h.log.Propose(ctx, fsm.RenewNodes.Entry(fsm.Renewals{Renewals: []fsm.Renewal{r}}))
			return err
		}}
	if h.change != nil {
		h.change(&config)
	}
	made, err := agent.New(config)
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	hv, ended := h.hv, make(chan struct{})
	h.agent, h.cancel, h.ended = made, cancel, ended
	go func() {
		defer close(ended)
		h.err = made.Run(ctx)
		_ = hv.Close()
	}()
	h.t.Cleanup(func() { cancel(); <-ended })
}

func (h *host) fetchImage(ctx context.Context, node, image string) (io.ReadCloser, error) {
	h.fetched.Add(1)
	if h.fetch != nil {
		if r, err := h.fetch(node); r != nil || err != nil {
			return r, err
		}
	}
	return h.peers[node].agent.OpenImage(ctx, image)
}

// start is launch, and waits until the node is registered and measured.
func (h *host) start() {
	h.t.Helper()
	before := h.epoch()
	h.launch()
	h.until("the node is registered", func(v *fsm.View) bool {
		n := fsm.Nodes.Get(v, h.name)
		return n.Lease == api.NodeLive && n.Epoch > before && n.Capacity.CPUs > 0
	})
}

// end stops the agent as the end of its process would.
func (h *host) end() {
	h.t.Helper()
	h.cancel()
	if err := h.wait(); err != nil {
		h.t.Fatalf("the agent ended with %v, want nothing", err)
	}
}

// wait blocks until the agent has ended by itself.
func (h *host) wait() error {
	h.t.Helper()
	select {
	case <-h.ended:
		return h.err
	case <-time.After(patience):
		h.t.Fatal("the agent does not end")
		return nil
	}
}

func (h *host) epoch() uint64 {
	if n := fsm.Nodes.Get(h.log.f.Read(), h.name); n != nil {
		return n.Epoch
	}
	return 0
}

// until waits for the state to satisfy ok. Renewals make the state move, so
// that ok may look at other things as well.
func (h *host) until(what string, ok func(v *fsm.View) bool) {
	h.t.Helper()
	deadline := time.After(patience)
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		ch := h.log.f.Advanced()
		if ok(h.log.f.Read()) {
			return
		}
		select {
		case <-ch:
		case <-poll.C:
		case <-deadline:
			for i := range fsm.Instances.All(h.log.f.Read()) {
				h.t.Logf("instance %s: %s %q gen %d owner %s %v, pending %q", i.VM, i.State, i.Reason, i.Gen, i.Owner, i.Drift, i.Pending)
			}
			for r := range fsm.Replicas.All(h.log.f.Read()) {
				h.t.Logf("replica %s %s on %s: %s %s", r.Kind, r.Of, r.Node, r.State, r.Reason)
			}
			for task := range fsm.Tasks.All(h.log.f.Read()) {
				h.t.Logf("task %s of %s: %s at epoch %d, attempt %d, %q %v", task.Name, task.Object, task.State, task.Epoch, task.Attempt, task.Step, task.Error)
			}
			h.t.Logf("%s is %+v", h.name, fsm.Nodes.Get(h.log.f.Read(), h.name))
			h.t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func vm(name string) api.VM {
	return api.VM{Meta: api.Meta{Name: name, Tenant: api.DefaultTenant}, CPUs: 1, MemoryBytes: 64 * api.MiB,
		Disks: []api.Disk{{Name: "root", SizeBytes: api.GiB}}}
}

// put writes an object as a user would.
func put[T any](h *host, entry func(*T) (fsm.Entry, error), v T) {
	h.t.Helper()
	e, err := entry(&v)
	if err != nil {
		h.t.Fatal(err)
	}
	h.log.must(h.t, e)
}

func (h *host) vm(name string) *api.VM {
	return fsm.VMs.Get(h.log.f.Read(), api.Key(api.DefaultTenant, name))
}

// create makes a VM and gives it to the host.
func (h *host) create(v api.VM) string {
	h.t.Helper()
	put(h, fsm.VMs.Put, v)
	id := h.vm(v.Name).ID
	h.assign(id)
	return id
}

// run is create, and waits until the guest executes.
func (h *host) run(v api.VM) string {
	h.t.Helper()
	id := h.create(v)
	h.untilState(id, api.InstanceRunning)
	return id
}

func (h *host) assign(id string) {
	h.t.Helper()
	var gen uint64
	if i := h.instance(id); i != nil {
		gen = i.Gen
	}
	h.log.must(h.t, fsm.AssignInstance.Entry(fsm.Assignment{VM: id, Gen: gen, Node: h.name, Epoch: h.epoch(),
		Decision: api.Decision{Node: h.name, Summary: "test"}}))
}

func (h *host) instance(id string) *api.Instance { return fsm.Instances.Get(h.log.f.Read(), id) }

func (h *host) untilState(id, state string) {
	h.t.Helper()
	h.until(id+" is "+state, func(v *fsm.View) bool {
		i := fsm.Instances.Get(v, id)
		return i != nil && i.State == state
	})
}

func (h *host) power(name, power string) {
	h.t.Helper()
	h.log.must(h.t, fsm.PowerVM.Entry(fsm.VMPower{Tenant: api.DefaultTenant, Name: name, Power: power}))
}

func (h *host) drop(name string) {
	h.t.Helper()
	v := h.vm(name)
	h.log.must(h.t, fsm.VMs.Delete(v.Tenant, v.Name, v.Modified))
}

// domain is the guest as the machine has it.
func (h *host) domain(id string) (plugins.Domain, bool) {
	list, err := h.hv.Domains(context.Background())
	if err != nil {
		return plugins.Domain{}, false
	}
	for _, d := range list {
		if d.ID == id {
			return d, true
		}
	}
	return plugins.Domain{}, false
}

// task submits and dispatches a task for a VM.
func (h *host) task(name, verb, vm, args string) {
	h.t.Helper()
	submit := fsm.TaskSubmit{Name: name, Verb: verb, Kind: api.KindVM, Object: api.Key(api.DefaultTenant, vm)}
	if args != "" {
		submit.Args = []byte(args)
	}
	h.log.must(h.t, fsm.SubmitTask.Entry(submit))
	h.dispatch(name)
}

func (h *host) dispatch(name string) {
	h.t.Helper()
	h.log.must(h.t, fsm.DispatchTask.Entry(fsm.TaskDispatch{Name: name, Node: h.name, Epoch: h.epoch(),
		Attempt: fsm.Tasks.Get(h.log.f.Read(), name).Attempt}))
}

func (h *host) untilTask(name, state string) {
	h.t.Helper()
	h.until("task "+name+" is "+state, func(v *fsm.View) bool { return fsm.Tasks.Get(v, name).State == state })
}

func imageContent() []byte { return bytes.Repeat([]byte("debvisor"), 1<<13) }

// image makes the catalogue entry of imageContent.
func (h *host) image(name string) *api.Image {
	h.t.Helper()
	content := imageContent()
	sum := sha256.Sum256(content)
	put(h, fsm.Images.Put, api.Image{Meta: api.Meta{Name: name, Tenant: api.DefaultTenant}, Format: api.FormatRaw,
		SHA256: hex.EncodeToString(sum[:]), SizeBytes: int64(len(content))})
	return fsm.Images.Get(h.log.f.Read(), api.Key(api.DefaultTenant, name))
}

// upload stores imageContent on the host.
func (h *host) upload(image *api.Image) {
	h.t.Helper()
	if err := h.agent.ImportImage(h.t.Context(), image, 0, bytes.NewReader(imageContent())); err != nil {
		h.t.Fatal(err)
	}
}
