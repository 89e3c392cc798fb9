package agent_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/debvisor/debvisor/agent"
	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// peer opens a stream of a migration to another host of the test, as a tunnel
// between the nodes does.
func (h *host) peer(ctx context.Context, node string, s agent.MigrationStream) (net.Conn, error) {
	to := h.peers[node]
	if to == nil || to.dead() {
		return nil, api.Errorf(api.CodeUnavailable, "node %s cannot be reached", node)
	}
	serve, err := to.agent.Arrive(ctx, h.id, s)
	if err != nil {
		return nil, err
	}
	here, there := net.Pipe()
	life, end := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() {
		defer there.Close()
		stop := context.AfterFunc(life, func() { _ = there.Close() })
		defer stop()
		serve(life, there)
	})
	ended := to.ended
	go func() {
		select {
		case <-ended: // of the process there: its connections end with it
		case <-life.Done():
		}
		end()
	}()
	h.t.Cleanup(func() { end(); served.Wait() })
	if died := h.ended; died != nil {
		context.AfterFunc(life, func() { _ = here.Close() })
		go func() {
			select {
			case <-died:
				_ = here.Close()
			case <-life.Done():
			}
		}()
	}
	return here, nil
}

// pair is two started hosts and a leader that dispatches migrations.
func pair(t *testing.T, change ...func(*host)) (from, to *host) {
	t.Helper()
	_, hosts := newLog(t, "node1", "node2")
	for _, h := range hosts {
		for _, f := range change {
			f(h)
		}
	}
	hosts["node1"].start()
	hosts["node2"].start()
	return hosts["node1"], hosts["node2"]
}

// ask submits a migration of the VM to the host.
func (h *host) ask(task, vm string, args api.MigrateArgs) {
	h.t.Helper()
	args.Node = h.name
	raw := fmt.Sprintf(`{"node":%q,"copy_storage":%v,"bandwidth_bytes_max":%d}`, args.Node, args.CopyStorage, args.BandwidthBytesMax)
	h.log.must(h.t, fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: task, Verb: api.TaskMigrate, Kind: api.KindVM, Object: api.Key(api.DefaultTenant, vm), Args: []byte(raw)}))
}

// leadMoves does the leader's part of migrations to the host: it releases what
// a registration left behind and dispatches what waits.
func (h *host) leadMoves(v *fsm.View, task string) {
	t := fsm.Tasks.Get(v, task)
	vm := fsm.VMs.Get(v, t.Object)
	i := fsm.Instances.Get(v, vm.ID)
	owner := fsm.Nodes.Get(v, i.Owner)
	switch {
	case t.State == api.TaskRunning && owner != nil && (owner.Name != t.Node || owner.Epoch != t.Epoch):
		_, _ = h.log.apply(fsm.ReleaseTask.Entry(fsm.TaskReport{Name: t.Name, Node: t.Node, Epoch: t.Epoch, Attempt: t.Attempt}))
	case t.State == api.TaskPending && owner != nil && owner.Lease == api.NodeLive && i.Migration == nil && i.State == api.InstanceRunning && i.Owner != h.name &&
		!time.Now().Before(t.NotBefore):
		_, _ = h.log.apply(fsm.DispatchTask.Entry(fsm.TaskDispatch{Name: t.Name, Node: owner.Name, Epoch: owner.Epoch, Attempt: t.Attempt,
			Decision: &api.Decision{Node: h.name, Summary: "as was asked for"}}))
	}
}

// arrived waits until the VM runs on the host and nowhere else, and everything
// is tidy.
func (h *host) arrived(task, vm string, from *host) {
	h.t.Helper()
	id := h.vm(vm).ID
	h.until("vm "+vm+" runs on "+h.name+" only", func(v *fsm.View) bool {
		h.leadMoves(v, task)
		i := fsm.Instances.Get(v, id)
		here, ok := h.domain(id)
		_, left := from.domain(id)
		return fsm.Tasks.Get(v, task).State == api.TaskDone && i.Owner == h.name && i.Migration == nil && i.State == api.InstanceRunning &&
			ok && here.State == api.InstanceRunning && here.Gen == i.Gen && !left && len(copiesOn(v, from.name)) == 0
	})
}

func copiesOn(v *fsm.View, node string) (out []string) {
	for r := range fsm.Replicas.By(v, "node", node) {
		if r.Kind == api.KindVolume {
			out = append(out, r.Name)
		}
	}
	return out
}

func TestAGuestMovesWithItsDisksAndKeepsRunning(t *testing.T) {
	t.Parallel()
	from, to := pair(t)
	id := from.run(vm("web"))
	started := from.instance(id).StartedAt
	gen := from.instance(id).Gen
	to.ask("t1", "web", api.MigrateArgs{CopyStorage: true})
	to.arrived("t1", "web", from)
	i := to.instance(id)
	if !i.StartedAt.Equal(started) || i.Gen != gen+1 || i.Restarts != 0 || i.MigrationNote != "" {
		t.Errorf("the instance is %+v; it began at %v with gen %d", i, started, gen)
	}
	if i.Decision == nil || i.Decision.Node != "node2" {
		t.Errorf("the decision is %+v", i.Decision)
	}
	from.ask("t2", "web", api.MigrateArgs{CopyStorage: true}) // and back
	from.arrived("t2", "web", to)
	if i := from.instance(id); i.Gen != gen+2 || !i.StartedAt.Equal(started) {
		t.Errorf("back again the instance is %+v", i)
	}
}

func TestAGuestWithLocalDisksStaysUnlessTheyAreCopied(t *testing.T) {
	t.Parallel()
	from, to := pair(t)
	id := from.run(vm("web"))
	to.ask("t1", "web", api.MigrateArgs{})
	from.until("the task has failed", func(v *fsm.View) bool {
		to.leadMoves(v, "t1")
		return fsm.Tasks.Get(v, "t1").State == api.TaskFailed
	})
	task := fsm.Tasks.Get(from.log.f.Read(), "t1")
	if !strings.Contains(task.Error.Error(), "copy_storage") {
		t.Errorf("the error is %v", task.Error)
	}
	if i := from.instance(id); i.Owner != "node1" || i.Migration != nil || i.State != api.InstanceRunning {
		t.Errorf("the instance is %+v", i)
	}
}

func TestACancelledMigrationLeavesTheGuestWhereItWas(t *testing.T) {
	t.Parallel()
	from, to := pair(t)
	id := from.run(vm("web"))
	to.ask("t1", "web", api.MigrateArgs{CopyStorage: true, BandwidthBytesMax: api.MiB}) // takes a minute
	from.until("memory is being copied", func(v *fsm.View) bool {
		to.leadMoves(v, "t1")
		return strings.Contains(fsm.Tasks.Get(v, "t1").Step, "left of")
	})
	if p := fsm.Tasks.Get(from.log.f.Read(), "t1").Percent; p < 1 || p > 99 {
		t.Errorf("the task is at %d %%", p)
	}
	from.log.must(t, fsm.CancelTask.Entry(fsm.TaskName{Name: "t1"}))
	from.until("the task is cancelled and nothing is left", func(v *fsm.View) bool {
		d, here := from.domain(id)
		_, there := to.domain(id)
		i := fsm.Instances.Get(v, id)
		return fsm.Tasks.Get(v, "t1").State == api.TaskCancelled && i.Migration == nil && i.State == api.InstanceRunning &&
			here && d.State == api.InstanceRunning && !there && len(copiesOn(v, "node2")) == 0
	})
	if note := from.instance(id).MigrationNote; !strings.Contains(note, "node2") {
		t.Errorf("the note is %q", note)
	}
}

func TestAStopEndsTheMigration(t *testing.T) {
	t.Parallel()
	from, to := pair(t)
	id := from.run(vm("web"))
	to.ask("t1", "web", api.MigrateArgs{CopyStorage: true, BandwidthBytesMax: api.MiB})
	from.until("memory is being copied", func(v *fsm.View) bool {
		to.leadMoves(v, "t1")
		return strings.Contains(fsm.Tasks.Get(v, "t1").Step, "left of")
	})
	from.power("web", api.PowerOff)
	from.until("the guest is off where it was", func(v *fsm.View) bool {
		i := fsm.Instances.Get(v, id)
		return fsm.Tasks.Get(v, "t1").Ended() && i.Owner == "node1" && i.Migration == nil && i.State == api.InstanceStopped && len(copiesOn(v, "node2")) == 0
	})
}

// TestStreamsWithoutAMigrationAreRefused: only what the replicated state knows
// of gets in.
func TestStreamsWithoutAMigrationAreRefused(t *testing.T) {
	t.Parallel()
	from, to := pair(t)
	id := from.run(vm("web"))
	gen := from.instance(id).Gen
	for name, s := range map[string]agent.MigrationStream{
		"no migration": {VM: id, Gen: gen, Channel: "control"},
		"unknown":      {VM: "33333333-3333-4333-8333-333333333333", Gen: 1, Channel: "control"},
		"no channel":   {VM: id, Gen: gen},
		"long channel": {VM: id, Gen: gen, Channel: strings.Repeat("x", 100)},
	} {
		if _, err := to.agent.Arrive(t.Context(), from.id, s); err == nil {
			t.Errorf("%s: the stream was taken", name)
		}
	}
	to.ask("t1", "web", api.MigrateArgs{CopyStorage: true, BandwidthBytesMax: api.MiB})
	from.until("memory is being copied", func(v *fsm.View) bool {
		to.leadMoves(v, "t1")
		return strings.Contains(fsm.Tasks.Get(v, "t1").Step, "left of")
	})
	for name, test := range map[string]struct {
		peer string
		s    agent.MigrationStream
	}{
		"another node":  {"99999999-0000-4000-8000-000000000000", agent.MigrationStream{VM: id, Gen: gen, Channel: "memory"}},
		"another gen":   {from.id, agent.MigrationStream{VM: id, Gen: gen + 1, Channel: "memory"}},
		"control again": {from.id, agent.MigrationStream{VM: id, Gen: gen, Channel: "control"}},
	} {
		if _, err := to.agent.Arrive(t.Context(), test.peer, test.s); err == nil {
			t.Errorf("%s: the stream was taken", name)
		}
	}
}

// fusedMigrator ends its agent before or after each contact.
type fusedMigrator struct {
	plugins.Migrator
	fuse *fuse
}

func (m fusedMigrator) Describe(ctx context.Context, id string) (plugins.GuestUse, error) {
	return around(m.fuse, func() (plugins.GuestUse, error) { return m.Migrator.Describe(ctx, id) })
}

func (m fusedMigrator) Send(ctx context.Context, d plugins.Departure) error {
	commit := d.Commit
	d.Commit = func(ctx context.Context, downtime func() time.Duration) error {
		err := try(m.fuse, func() error { return commit(ctx, downtime) })
		if errors.Is(err, context.Canceled) {
			return plugins.ErrUndecided // it died: the guest is left as it is
		}
		return err
	}
	dial := d.Dial
	d.Dial = func(ctx context.Context, channel string) (net.Conn, error) {
		return around(m.fuse, func() (net.Conn, error) { return dial(ctx, channel) })
	}
	return try(m.fuse, func() error { return m.Migrator.Send(ctx, d) })
}

func (m fusedMigrator) Receive(ctx context.Context, a plugins.Arrival, control net.Conn) error {
	return try(m.fuse, func() error { return m.Migrator.Receive(ctx, a, control) })
}

func (m fusedMigrator) Continue(ctx context.Context, id string, gen uint64) error {
	return try(m.fuse, func() error { return m.Migrator.Continue(ctx, id, gen) })
}

// runners watches that the guest never executes on two hosts at once.
type runners struct {
	hosts  []*host
	id     string
	double atomic.Bool
}

func (r *runners) look() int {
	running := 0
	for _, h := range r.hosts {
		if d, ok := h.domain(r.id); ok && d.State == api.InstanceRunning {
			running++
		}
	}
	if running > 1 {
		r.double.Store(true)
	}
	return running
}

// TestDeathAtAnyPointOfAMigrationLeavesOneRunner ends either agent before and
// after each of its contacts with the world during a migration, starts it again,
// and waits for the migration to be done after all.
func TestDeathAtAnyPointOfAMigrationLeavesOneRunner(t *testing.T) {
	t.Parallel()
	points := 40
	if testing.Short() {
		points = 10
	}
	for _, side := range []string{"node1", "node2"} {
		for n := 1; n <= points; n++ {
			t.Run(fmt.Sprintf("%s/%d", side, n), func(t *testing.T) {
				t.Parallel()
				from, to := pair(t)
				dies := from.peers[side]
				id := from.run(vm("web"))
				started := from.instance(id).StartedAt
				dies.end()
				dies.wireMoves(int64(n))
				before := dies.epoch()
				dies.launch()
				from.until("the node is registered, or dead", func(*fsm.View) bool { return dies.dead() || dies.epoch() > before })
				watch := &runners{hosts: []*host{from, to}, id: id}
				to.ask("t1", "web", api.MigrateArgs{CopyStorage: true})
				from.until("the agent is dead, or the guest has arrived", func(v *fsm.View) bool {
					watch.look()
					to.leadMoves(v, "t1")
					i := fsm.Instances.Get(v, id)
					return dies.dead() || i.Owner == "node2" && i.State == api.InstanceRunning && watch.look() == 1
				})
				dies.change = nil
				dies.cancel()
				<-dies.ended
				watch.look()
				dies.start()
				to.arrived("t1", "web", from)
				if watch.look(); watch.double.Load() {
					t.Error("the guest ran on both hosts")
				}
				if i := to.instance(id); !i.StartedAt.Equal(started) {
					t.Errorf("the guest was started anew: at %v, then at %v", started, i.StartedAt)
				}
			})
		}
	}
}

// wireMoves is wire with the contacts of migrations.
func (h *host) wireMoves(n int64) {
	h.wire(n)
	wired := h.change
	h.change = func(c *agent.Config) {
		wired(c)
		f := c.Cluster.(fusedCluster).fuse
		c.Migrator = fusedMigrator{c.Migrator, f}
		open := c.Peer
		c.Peer = func(ctx context.Context, node string, s agent.MigrationStream) (net.Conn, error) {
			return around(f, func() (net.Conn, error) { return open(ctx, node, s) })
		}
	}
}

func TestAVMOfADeadSourceWaitsUntilTheDestinationLetGo(t *testing.T) {
	t.Parallel()
	from, to := pair(t)
	id := from.run(vm("web"))
	to.ask("t1", "web", api.MigrateArgs{CopyStorage: true, BandwidthBytesMax: api.MiB})
	from.until("memory is being copied", func(v *fsm.View) bool {
		to.leadMoves(v, "t1")
		return strings.Contains(fsm.Tasks.Get(v, "t1").Step, "left of")
	})
	from.log.broken.Store(true) // both die, and say nothing
	to.cancel()
	<-to.ended
	from.cancel()
	<-from.ended
	from.log.broken.Store(false)
	from.log.must(t, fsm.ConfirmOffNode.Entry(fsm.NodeConfirmOff{Node: "node1", Epoch: from.epoch()}))
	if i := from.instance(id); i.Owner != "node1" || i.Migration == nil || !i.Migration.FromOff {
		t.Fatalf("the VM was taken from the source although the destination may hold it: %+v", i)
	}
	to.start()
	to.until("the VM waits for a new place", func(v *fsm.View) bool {
		i := fsm.Instances.Get(v, id)
		return i.Owner == "" && i.State == api.InstancePending && i.Migration == nil && len(copiesOn(v, "node2")) == 0
	})
}
