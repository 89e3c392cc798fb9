// Package agent is what works on the machine of a node: loops that watch the
// replicated tables and the hypervisor, compute what differs, act, and propose
// what became of it. The agent never decides where a VM runs, and changes
// replicated state through Propose only.
//
// Everything is level-triggered: a key ("instance/ID", "replica/NAME", …) is
// put into one queue whenever something about it may have changed, and the
// worker that takes it looks at the rows and at the machine as they are then.
// Acting twice is harmless; being killed anywhere is too.
//
// # What becomes of a guest that ended
//
// With the VM's power on, a guest that crashed, or was destroyed outside
// debvisor, is started again: at once the first time, then after 1, 5, 30 and
// 60 seconds. A guest that shut itself down from the inside stays off, because
// whoever typed "poweroff" meant it: its instance shows as stopped, with drift
// that says so. A start, a restart or any change of the VM starts it again. The
// rule needs no memory: the guest carries the revision of the VM that it was
// started from, and nobody touched the VM as long as the row still has it.
//
// # What is not done without certainty
//
// Until the agent has read the tables through the leader once, it destroys no
// guest that the tables do not name and deletes no volume: its replica may be
// older than the machine. Guests of VMs with ha=none that the replica gives to
// this node are started and stopped without a quorum.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
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

// Cluster is what the agent needs of the replicated state.
type Cluster interface {
	// State is the local replica.
	State() *fsm.FSM
	// Propose blocks until the entry was carried out or refused and the local
	// replica has it, or ctx ends. The error is the outcome's, or says why
	// nothing is known.
	Propose(ctx context.Context, e fsm.Entry) (fsm.Outcome, error)
	// ReadIndex returns the index that the local replica must reach to be as
	// new as the cluster was when the call began.
	ReadIndex(ctx context.Context) (uint64, error)
}

// Config is what an agent is made of.
type Config struct {
	ID      string // of the node: random, from its data directory
	Name    string // of the node
	DataDir string // absolute; pools without a path, and the agent's records, are below it
	Address string // host:port of the node's one port
	Version string // of the binary
	Witness bool   // runs no guests: Hypervisor, Storage, Network and Fetch may be nil

	Cluster    Cluster
	Hypervisor plugins.Hypervisor
	Updater    plugins.Updater              // nil: an edit of a VM waits for its guest's next start
	Storage    map[string]plugins.Storage   // by driver of the pool
	Volumes    map[string]plugins.Volumes   // of the same drivers; one that is missing makes volumes and changes none
	Disks      plugins.Disks                // nil: disks of running guests stay as they are
	Stagers    map[string]plugins.Stager    // of the same drivers
	Templates  map[string]plugins.Templates // of the same drivers
	Network    plugins.Network
	Foreign    plugins.Foreign     // nil: guests of others are not listed
	Outbound   *http.Client        // for URLs that users name: guarded; nil: none is fetched
	Snapshots  plugins.Snapshotter // nil: tasks about snapshots fail
	Guests     plugins.GuestAgent  // nil: guests' agents are not asked
	Screens    plugins.Screens     // nil: the hypervisor shows no displays
	Logs       plugins.Logs        // nil: the hypervisor keeps no console logs
	Meter      plugins.Meter       // nil: no statistics
	Migrator   plugins.Migrator    // nil: guests of this node do not move while they run

	// Peer opens a stream to the agent of another node, which takes it with
	// Arrive. It is needed with a Migrator.
	Peer func(ctx context.Context, node string, s MigrationStream) (net.Conn, error)

	// Fetch reads an image from another node. The reader fails when the peer
	// has not sent all.
	Fetch func(ctx context.Context, node, imageID string) (io.ReadCloser, error)
	// Renew hands a renewal to the leader and blocks until it is committed.
	Renew func(ctx context.Context, r fsm.Renewal) error

	Workers int // objects worked on at a time, not counting those that wait for a guest, a peer or a commit; 0 means 8
	Timings Timings
	Logger  hclog.Logger     // nil: silent
	Clock   func() time.Time // nil: time.Now; its differences must not follow changes of the wall clock
}

// Timings are durations that tests shorten. Zero means the default.
type Timings struct {
	Renew       time.Duration // between renewals; 500 ms
	Lease       time.Duration // that a renewal is good for, from when it was sent; 5 s
	Resync      time.Duration // between looks at every object; 60 s
	StopGrace   time.Duration // from asking a guest to stop until it is forced; 60 s
	DeleteGrace time.Duration // the same for the guest of a deleted VM; 5 s
	Unreachable time.Duration // of the hypervisor, until its guests' instances say so; 5 s
	SyncWait    time.Duration // for the leader at start, before local knowledge has to do; 15 s
	Measure     time.Duration // between measurements of machine and pools; 15 s
	Sample      time.Duration // between readings of the counters; api.StatsInterval
	Trial       time.Duration // within which the leader must be reached after a network change, else it is taken back; 15 s
	TrialHold   time.Duration // after it, before reaching the leader counts; 2 s
}

func (t Timings) withDefaults() Timings {
	for _, f := range []struct {
		value *time.Duration
		zero  time.Duration
	}{
		{&t.Renew, 500 * time.Millisecond}, {&t.Lease, 5 * time.Second}, {&t.Resync, time.Minute},
		{&t.StopGrace, time.Minute}, {&t.DeleteGrace, 5 * time.Second}, {&t.Unreachable, 5 * time.Second},
		{&t.SyncWait, 15 * time.Second}, {&t.Measure, 15 * time.Second}, {&t.Sample, api.StatsInterval},
		{&t.Trial, 15 * time.Second}, {&t.TrialHold, 2 * time.Second},
	} {
		if *f.value == 0 {
			*f.value = f.zero
		}
	}
	return t
}

const (
	workersDefault = 8
	asideMax       = 128             // jobs that wait beside the workers
	proposeTimeout = 5 * time.Second // for one proposal; it is made again later
	actTimeout     = 2 * time.Minute // for one call to the hypervisor, its grace not counted
)

// Errors that end Run for good.
var (
	// ErrRemoved is wrapped by what Run returns when the node was removed from
	// the cluster.
	ErrRemoved = errors.New("this node is no longer a member")
	// ErrIdentity is wrapped by what Run returns when another process has
	// registered with this node's identity.
	ErrIdentity = errors.New("a second machine or process runs with the identity of this node")
)

// errUnregistered ends a proposal that needs an epoch while there is none.
var errUnregistered = errors.New("this node is not registered yet")

// Agent runs the loops of one node.
type Agent struct {
	config Config
	log    hclog.Logger
	node   nodeState

	queue    *queue
	slots    chan struct{} // one token for each job that works
	aside    chan struct{} // one token for each job that waits beside them
	domains  *domains
	records  *records
	arrivals arrivals
	guests   guests
	brake    brake

	networks networks

	imports singleflight.Group
	fetches chan struct{} // one token for each image being fetched
	stored  storedVolumes
	copies  copies
	claims  claims
	seen    leftovers
	stats   stats

	life     context.Context // of Run
	synced   chan struct{}   // closed once the tables were read through the leader
	syncOnce sync.Once
	running  atomic.Bool
}

// New makes an agent. It reads the records that an earlier one left in the
// data directory; a damaged one is an error that names the file.
func New(config Config) (*Agent, error) {
	if config.Cluster == nil || config.Renew == nil || config.ID == "" || config.Name == "" {
		return nil, errors.New("agent: identity, name, cluster and renewals are needed")
	}
	if !filepath.IsAbs(config.DataDir) {
		return nil, api.Invalid("data_dir", "is %q", config.DataDir).Allow("an absolute directory")
	}
	if !config.Witness && (config.Hypervisor == nil || config.Network == nil || config.Fetch == nil) {
		return nil, errors.New("agent: a node that is no witness needs a hypervisor, a network and peers to fetch from")
	}
	if config.Migrator != nil && config.Peer == nil {
		return nil, errors.New("agent: a migrator needs a way to other nodes")
	}
	if config.Workers <= 0 {
		config.Workers = workersDefault
	}
	if config.Logger == nil {
		config.Logger = hclog.NewNullLogger()
	}
	if config.Clock == nil {
		config.Clock = time.Now
	}
	config.Timings = config.Timings.withDefaults()
	a := &Agent{
		config: config, log: config.Logger, queue: newQueue(), domains: newDomains(),
		slots: make(chan struct{}, config.Workers), aside: make(chan struct{}, asideMax), fetches: make(chan struct{}, fetchesMax),
		synced: make(chan struct{}),
	}
	a.node.kick = make(chan struct{}, 1)
	a.node.measure = make(chan struct{}, 1)
	a.stats.early = make(chan struct{}, 1)
	if config.Witness {
		return a, nil
	}
	records, err := openRecords(filepath.Join(config.DataDir, "guests"))
	if err != nil {
		return nil, err
	}
	a.records = records
	return a, nil
}

// Run works until ctx ends, and waits for everything that it started; guests
// go on. It returns nil when ctx ended, and otherwise why this process must
// end: ErrRemoved or ErrIdentity. It may be called once.
func (a *Agent) Run(ctx context.Context) error {
	if a.running.Swap(true) {
		return errors.New("agent: runs already")
	}
	group, ctx := errgroup.WithContext(ctx)
	a.life = ctx
	loops := []func(context.Context) error{a.keepLease}
	if !a.config.Witness {
		loops = append(loops, a.watchDomains, a.follow, a.resync, a.work, a.measureNode, a.meter)
	}
	for _, loop := range loops {
		group.Go(func() error {
			if err := loop(ctx); err != nil && ctx.Err() == nil {
				return err
			}
			return nil
		})
	}
	return group.Wait()
}

// view is the local replica as it is now.
func (a *Agent) view() *fsm.View { return a.config.Cluster.State().Read() }

// isSynced reports whether the tables were read through the leader.
func (a *Agent) isSynced() bool {
	select {
	case <-a.synced:
		return true
	default:
		return false
	}
}

// propose proposes and never blocks longer than proposeTimeout. While there
// seems to be no quorum it fails at once.
func (a *Agent) propose(ctx context.Context, e fsm.Entry) (fsm.Outcome, error) {
	state := a.config.Cluster.State()
	if !a.brake.open(a.config.Clock(), state.Index()) {
		return fsm.Outcome{}, api.Errorf(api.CodeNoLeader, "nothing can be committed at present")
	}
	within, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	e.By = a.principal()
	out, err := a.config.Cluster.Propose(within, e)
	if undecided(err) && ctx.Err() == nil {
		a.brake.pull(a.config.Clock(), state.Index())
	}
	// A refusal has been committed, whatever its code is: there is a quorum.
	if err == nil && out.Err != nil {
		err = out.Err
	}
	if err != nil {
		return out, &proposeError{op: e.Op, err: err}
	}
	return out, nil
}

// principal is in whose name this node proposes; the leader checks it against
// the node's certificate.
func (a *Agent) principal() string { return "node:" + a.config.Name }

// undecided reports whether the cluster gave no answer.
func undecided(err error) bool {
	switch api.CodeOf(err) {
	case "", api.CodeInvalid, api.CodeNotFound, api.CodeConflict, api.CodeForbidden, api.CodeLimit:
		return false
	}
	return true
}

// proposeError is a proposal that was refused or not answered.
type proposeError struct {
	op  string
	err error
}

// Error implements error.
func (p *proposeError) Error() string { return fmt.Sprintf("propose %s: %v", p.op, p.err) }

// Unwrap implements the interface of package errors.
func (p *proposeError) Unwrap() error { return p.err }

// brake keeps jobs from waiting for a quorum one after the other.
type brake struct {
	mu     sync.Mutex // guards below
	pulled time.Time
	index  uint64
}

const brakeTime = 2 * time.Second

// open reports whether a proposal has a chance: nothing failed lately, or
// something was committed since.
func (b *brake) open(now time.Time, index uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pulled.IsZero() || now.Sub(b.pulled) >= brakeTime || index > b.index
}

func (b *brake) pull(now time.Time, index uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pulled, b.index = now, index
}

// apart runs f without holding up the workers: for waits that use nothing of
// the machine. Only a job calls it.
func (a *Agent) apart(f func()) {
	select {
	case a.aside <- struct{}{}:
	default: // too many wait already: wait in the worker's place
		f()
		return
	}
	<-a.slots
	f()
	a.slots <- struct{}{}
	<-a.aside
}
