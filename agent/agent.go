// Package agent holds the loops that run on every node: they see in the local
// replica of the tables what this node has to do, do it through the contracts
// of package plugins, and propose what became of it.
//
// The agent decides no placement and touches no guest that the tables do not
// give to this node. Every loop is level triggered: it compares what the
// tables say with what the machine has and takes the next step, so acting
// twice is harmless and being killed anywhere is too.
//
// A VM whose power is on is kept running: a guest that crashed or was ended
// behind our back is started again, with a growing pause while it does not
// stay up. A guest that powered itself off stays off, since whoever typed
// "poweroff" meant it; its instance says so, and a start, a restart or any
// change of the VM starts it again.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// Limits and intervals of an agent.
const (
	DefaultWorkers  = 16
	RenewInterval   = 500 * time.Millisecond // between renewals of the node's lease
	probeInterval   = 15 * time.Second
	resyncInterval  = time.Minute // everything is looked at again this often
	proposeTimeout  = 5 * time.Second
	listInterval    = 50 * time.Millisecond // at least, between two listings of the domains
	watchInterval   = 10 * time.Millisecond // changes of the tables are gathered for this long
	stopGrace       = 60 * time.Second      // for a guest to shut down when asked
	stopGraceSim    = 100 * time.Millisecond
	retryMin        = 200 * time.Millisecond
	retryMax        = 30 * time.Second
	registerRetry   = 500 * time.Millisecond
	reportedTextMax = api.TextLengthMax
)

// Cluster is what the agent needs of this node's member of the cluster.
type Cluster interface {
	State() *fsm.FSM
	Propose(ctx context.Context, e fsm.Entry) (fsm.Outcome, error)
	ReadIndex(ctx context.Context) (uint64, error)
}

// Config makes an agent.
type Config struct {
	ID      string // of the node
	Name    string
	DataDir string // pools without a path lie in pools/NAME below it
	Address string // host:port of the node
	Version string // of the binary
	Witness bool   // votes, runs no guests: the plugins may be nil

	Cluster    Cluster
	Hypervisor plugins.Hypervisor
	Storage    map[string]plugins.Storage // by driver of the pool
	Network    plugins.Network

	// Fetch reads an image from the node of that name.
	Fetch func(ctx context.Context, node, imageID string) (io.ReadCloser, error)
	// Renew hands a renewal of this node's lease to the leader.
	Renew func(ctx context.Context, r fsm.Renewal) error

	Share   int // the machine is shared by this many nodes, each reports its part; 0 and 1: it is this node's alone
	Workers int // objects worked on at once; 0: DefaultWorkers
	Logger  hclog.Logger
}

// ErrRemoved is wrapped by what Run returns on a node that was removed from
// the cluster.
var ErrRemoved = errors.New("this node was removed from the cluster")

// Agent runs one node. Make it with New, then call Run once.
type Agent struct {
	cfg   Config
	log   hclog.Logger
	epoch atomic.Uint64 // 0: not registered
	queue *queue

	domains  *domains
	memories memories
	images   singleflight.Group // by pool and image
	sources  sync.Map           // pool/volume ID to plugins.Source
	stats    stats
}

// stats counts what the agent did, for metrics.
type stats struct {
	Starts, Stops, Failures atomic.Uint64
}

// New makes an agent. It starts nothing. It fails when the Config lacks what
// every agent needs.
func New(cfg Config) (*Agent, error) {
	if cfg.Cluster == nil || cfg.Renew == nil || cfg.ID == "" || cfg.Name == "" {
		return nil, errors.New("agent: identity, name, cluster and renewals are needed")
	}
	if cfg.Workers <= 0 {
		cfg.Workers = DefaultWorkers
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	a := &Agent{cfg: cfg, log: cfg.Logger}
	a.domains = newDomains()
	a.queue = newQueue(cfg.Workers, a.handle)
	return a, nil
}

// Run registers the node and works until ctx ends, which is no error. It waits
// for everything it started; guests go on. An error means that this node
// cannot be part of the cluster: ErrRemoved, or another process has its
// identity.
func (a *Agent) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.runNode(ctx) })
	g.Go(func() error { return a.renew(ctx) })
	if !a.cfg.Witness {
		g.Go(func() error { a.queue.run(ctx); return nil })
		g.Go(func() error { a.watchTables(ctx); return nil })
		g.Go(func() error { a.watchDomains(ctx); return nil })
		g.Go(func() error { a.listDomains(ctx); return nil })
		g.Go(func() error { a.probe(ctx); return nil })
	}
	err := g.Wait()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// propose proposes an entry of this node's own and waits a bounded time.
func (a *Agent) propose(ctx context.Context, e fsm.Entry) (fsm.Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	e.By = "node:" + a.cfg.Name
	return a.cfg.Cluster.Propose(ctx, e)
}

func (a *Agent) view() *fsm.View { return a.cfg.Cluster.State().Read() }

// pool resolves a pool on this machine.
func (a *Agent) pool(v *fsm.View, name string) (plugins.PoolSpec, plugins.Storage, error) {
	p := fsm.Pools.Get(v, name)
	if p == nil {
		return plugins.PoolSpec{}, nil, api.Errorf(api.CodeNotFound, "does not exist").On(api.KindPool, name)
	}
	return a.resolve(p)
}

func (a *Agent) resolve(p *api.Pool) (plugins.PoolSpec, plugins.Storage, error) {
	storage := a.cfg.Storage[p.Driver]
	if storage == nil {
		return plugins.PoolSpec{}, nil, api.Errorf(api.CodeUnavailable, "this node has no driver %q", p.Driver).On(api.KindPool, p.Name)
	}
	if !p.On(a.cfg.Name) {
		return plugins.PoolSpec{}, nil, api.Errorf(api.CodeUnavailable, "is not on node %s", a.cfg.Name).On(api.KindPool, p.Name)
	}
	path := p.Path
	if path == "" {
		path = filepath.Join(a.cfg.DataDir, "pools", p.Name)
	}
	return plugins.PoolSpec{Name: p.Name, Path: path, ReserveBytes: p.ReserveBytes}, storage, nil
}

// Console opens the serial console of a guest that runs on this node, with
// what its log kept first if replay is true. Closing it ends it.
func (a *Agent) Console(ctx context.Context, vmID string, replay bool) (io.ReadWriteCloser, error) {
	if a.cfg.Witness {
		return nil, api.Errorf(api.CodeNotFound, "a witness runs no guests").On(api.KindInstance, vmID)
	}
	if i := fsm.Instances.Get(a.view(), vmID); i == nil || i.Owner != a.cfg.Name {
		return nil, api.Errorf(api.CodeNotFound, "does not run on node %s", a.cfg.Name).On(api.KindInstance, vmID)
	}
	return a.cfg.Hypervisor.Console(ctx, vmID, replay)
}

// reason is a failure as a person reads it in a row: one line, bounded.
func reason(err error) string {
	if err == nil {
		return ""
	}
	return api.CleanText(err.Error(), reportedTextMax)
}

// final reports whether the tables have moved on, so that repeating a proposal
// makes no sense.
func final(err error) bool {
	switch api.CodeOf(err) {
	case api.CodeConflict, api.CodeNotFound, api.CodeInvalid, api.CodeForbidden:
		return true
	}
	return false
}

// pause is the wait before the next attempt after that many failures.
func pause(failures int) time.Duration {
	d := retryMin
	for range min(failures, 10) {
		d *= 2
	}
	return min(d, retryMax)
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// key names an object in the queue.
type key struct{ kind, name string }

// handle takes the next step for one object.
func (a *Agent) handle(ctx context.Context, k key) (again time.Duration, err error) {
	if a.epoch.Load() == 0 {
		return registerRetry, nil
	}
	switch k.kind {
	case api.KindInstance:
		return a.reconcileInstance(ctx, k.name)
	case api.KindReplica:
		return a.reconcileReplica(ctx, k.name)
	case api.KindNetwork:
		return 0, a.reconcileNetworks(ctx)
	case api.KindTask:
		return 0, a.failTask(ctx, k.name)
	}
	return 0, fmt.Errorf("no loop for %s", k.kind)
}
