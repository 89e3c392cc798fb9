// Package control holds the loops that run on the leader only: they place VMs,
// expire the leases of silent nodes, hand tasks to nodes, choose the voters and
// clear away what is no longer needed.
//
// Every loop reads the replicated state, computes what should follow, and
// proposes it. What it proposes says which state it was computed from, so that
// Apply refuses what came too late: acting twice is harmless, and so is being
// stopped anywhere. No loop ever touches a machine.
package control

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// Cluster is what the loops need of this node's part in the cluster.
type Cluster interface {
	// State is the replica of this node.
	State() *fsm.FSM
	// Propose commits an entry and returns what became of it; a refusal by the
	// state machine is in the outcome. When it returns without an error, State
	// has applied the entry.
	Propose(ctx context.Context, e fsm.Entry) (fsm.Outcome, error)
}

// Config is what a Control is made of. Every field without a stated default is
// required.
type Config struct {
	Cluster    Cluster
	Self       string // name of this node
	ID         string // its ID, which is its server's too
	Placer     Placer
	Membership Membership
	Secrets    Secrets         // nil: they are not changed
	Stamps     *Stamps         // of this node, kept up to date whoever leads
	Clock      Clock           // nil: the system's
	Logger     hclog.Logger    // nil: no log
	Doers      map[string]Doer // verbs of tasks that the leader carries out besides its own
}

// Control is the leader's work on one node. It exists on every node; Run is
// called while the node leads.
type Control struct {
	cluster    Cluster
	self       string
	id         string
	placer     Placer
	membership Membership
	secrets    Secrets
	stamps     *Stamps
	clock      Clock
	log        hclog.Logger
	doers      map[string]Doer

	mu       sync.Mutex
	term     uint64                 // of the running scope; 0: this node does not lead; guarded by mu
	renewals map[string]fsm.Renewal // by node, to be proposed next; guarded by mu
}

// New checks the configuration and makes a Control that does nothing yet.
func New(c Config) (*Control, error) {
	if c.Cluster == nil || c.Placer == nil || c.Membership == nil || c.Stamps == nil || c.Self == "" || c.ID == "" {
		return nil, errors.New("control needs a cluster, its own name and ID, a placer, a membership and stamps")
	}
	if c.Clock == nil {
		c.Clock = SystemClock()
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	made := &Control{
		cluster: c.Cluster, self: c.Self, id: c.ID, placer: c.Placer, membership: c.Membership, secrets: c.Secrets, stamps: c.Stamps, clock: c.Clock,
		log: c.Logger.Named("control"), doers: map[string]Doer{},
	}
	maps.Copy(made.doers, c.Doers)
	made.doers[api.TaskDrain], made.doers[api.TaskBalance] = made.drain, made.balance
	return made, nil
}

// Run does the leader's work in the scope of one term. It blocks until ctx
// ends, waits for everything that it started, and returns nil. Calls must not
// overlap. The caller has passed the barrier of its own term.
func (c *Control) Run(ctx context.Context, term uint64) error {
	if term == 0 {
		return errors.New("a leader has a term")
	}
	c.enter(term)
	defer c.enter(0)
	c.log.Info("leading", "term", term)
	defer c.log.Info("no longer leading", "term", term)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.runPlacement(ctx) })
	g.Go(func() error { return c.runLeases(ctx) })
	g.Go(func() error { return c.runTasks(ctx, term) })
	g.Go(func() error { return c.runMembership(ctx) })
	g.Go(func() error { return c.runHygiene(ctx) })
	g.Go(func() error { return c.runSnapshots(ctx) })
	if c.secrets != nil {
		g.Go(func() error { return c.runSecrets(ctx) })
	}
	return g.Wait()
}

func (c *Control) enter(term uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.term, c.renewals = term, map[string]fsm.Renewal{}
}

// wait blocks for d, or until ctx ends or woken closes. It reports whether ctx
// goes on. A nil woken never closes; a negative d waits for the others alone.
func wait(ctx context.Context, d time.Duration, woken <-chan struct{}) bool {
	var expired <-chan time.Time
	if d >= 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		expired = timer.C
	}
	select {
	case <-ctx.Done():
	case <-woken:
	case <-expired:
	}
	return ctx.Err() == nil
}
