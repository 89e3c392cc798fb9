package agent_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/debvisor/debvisor/agent"
	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// fuse ends an agent at its nth contact with the world: before it (odd) or
// after it (even), as the death of the process would.
type fuse struct {
	left   atomic.Int64
	cancel func()
}

func (f *fuse) burn() bool {
	if f.left.Add(-1) == 0 {
		f.cancel()
	}
	return f.left.Load() <= 0
}

// around carries out act unless the fuse has burnt before; what was done after
// it burnt is not known to the agent.
func around[T any](f *fuse, act func() (T, error)) (T, error) {
	var none T
	if f.burn() {
		return none, context.Canceled
	}
	out, err := act()
	if f.burn() {
		return none, context.Canceled
	}
	return out, err
}

func try(f *fuse, act func() error) error {
	_, err := around(f, func() (struct{}, error) { return struct{}{}, act() })
	return err
}

type fusedCluster struct {
	agent.Cluster
	fuse *fuse
}

func (c fusedCluster) Propose(ctx context.Context, e fsm.Entry) (fsm.Outcome, error) {
	return around(c.fuse, func() (fsm.Outcome, error) { return c.Cluster.Propose(ctx, e) })
}

type fusedHypervisor struct {
	plugins.Hypervisor
	fuse *fuse
}

func (h fusedHypervisor) Start(ctx context.Context, spec plugins.DomainSpec) error {
	return try(h.fuse, func() error { return h.Hypervisor.Start(ctx, spec) })
}

func (h fusedHypervisor) Stop(ctx context.Context, id string, grace time.Duration) error {
	return try(h.fuse, func() error { return h.Hypervisor.Stop(ctx, id, grace) })
}

func (h fusedHypervisor) Remove(ctx context.Context, id string) error {
	return try(h.fuse, func() error { return h.Hypervisor.Remove(ctx, id) })
}

type fusedStorage struct {
	plugins.Storage
	fuse *fuse
}

func (s fusedStorage) CreateVolume(ctx context.Context, pool plugins.PoolSpec, v plugins.VolumeSpec) (plugins.Stored, error) {
	return around(s.fuse, func() (plugins.Stored, error) { return s.Storage.CreateVolume(ctx, pool, v) })
}

func (s fusedStorage) DeleteVolume(ctx context.Context, pool plugins.PoolSpec, id string) error {
	return try(s.fuse, func() error { return s.Storage.DeleteVolume(ctx, pool, id) })
}

func (s fusedStorage) ImportImage(ctx context.Context, pool plugins.PoolSpec, i plugins.ImageSpec, r io.Reader) (plugins.Stored, error) {
	return around(s.fuse, func() (plugins.Stored, error) { return s.Storage.ImportImage(ctx, pool, i, r) })
}

// wire makes the host's next start end at the nth contact.
func (h *host) wire(n int64) {
	f := &fuse{cancel: func() { h.cancel() }}
	f.left.Store(n)
	h.change = func(c *agent.Config) {
		c.Cluster, c.Hypervisor = fusedCluster{c.Cluster, f}, fusedHypervisor{c.Hypervisor, f}
		c.Snapshots = fusedSnapshotter{c.Snapshots, f}
		for driver, s := range c.Storage {
			c.Storage[driver] = fusedStorage{s, f}
		}
	}
}

// wish asks for one of everything: a clone to be started, a guest to be
// stopped, one to be restarted, one to be deleted.
func (h *host) wish() {
	h.t.Helper()
	v := vm("new")
	v.Disks = []api.Disk{{Name: "root", Image: "tiny"}}
	h.create(v)
	h.power("stop", api.PowerOff)
	h.drop("gone")
	h.log.must(h.t, fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: "t1", Verb: api.TaskRestart, Kind: api.KindVM, Object: "default/again"}))
}

// lead does the leader's part until the task has ended and all wishes are met.
func (h *host) lead(started time.Time, gone string) {
	h.t.Helper()
	h.until("all wishes are met", func(v *fsm.View) bool {
		node, task := fsm.Nodes.Get(v, h.name), fsm.Tasks.Get(v, "t1")
		report := fsm.TaskReport{Name: "t1", Node: task.Node, Epoch: task.Epoch, Attempt: task.Attempt}
		switch {
		case node.Lease == api.NodeLive && task.State == api.TaskRunning && task.Epoch != node.Epoch:
			_, _ = h.log.apply(fsm.ReleaseTask.Entry(report))
		case node.Lease == api.NodeLive && task.State == api.TaskPending:
			_, _ = h.log.apply(fsm.DispatchTask.Entry(fsm.TaskDispatch{Name: "t1", Node: h.name, Epoch: node.Epoch, Attempt: task.Attempt}))
		}
		state := func(name string) string { return fsm.Instances.Get(v, fsm.VMs.Get(v, "default/"+name).ID).State }
		return task.State == api.TaskDone && state("new") == api.InstanceRunning && state("stop") == api.InstanceStopped &&
			state("again") == api.InstanceRunning && fsm.Instances.Get(v, gone) == nil && fsm.Replicas.Len(v) == 4 // three volumes, an image
	})
	for name, want := range map[string]string{"new": api.InstanceRunning, "stop": api.InstanceStopped, "again": api.InstanceRunning} {
		id := h.vm(name).ID
		d, _ := h.domain(id)
		i := h.instance(id)
		if d.State != want || d.Gen != i.Gen || want == api.InstanceRunning && !d.StartedAt.Equal(i.StartedAt) {
			h.t.Errorf("%s: the machine has %+v, the row %+v", name, d, i)
		}
	}
	if d, _ := h.domain(h.vm("again").ID); !d.StartedAt.After(started) {
		h.t.Error("the restart did not happen")
	}
	if _, here := h.domain(gone); here {
		h.t.Error("the deleted guest is there")
	}
}

// settled is a host with what wish is about, not yet wished for.
func settled(t *testing.T) (h *host, started time.Time, gone string) {
	t.Helper()
	h = one(t)
	h.upload(h.image("tiny"))
	h.run(vm("stop"))
	started = h.instance(h.run(vm("again"))).StartedAt
	return h, started, h.run(vm("gone"))
}

func TestDeathAtAnyPointLeadsToTheSameState(t *testing.T) {
	t.Parallel()
	points := 44 // contacts of the whole script, and some more
	if testing.Short() {
		points = 12
	}
	for n := 1; n <= points; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			h, started, gone := settled(t)
			h.end()
			h.wire(int64(n))
			before := h.epoch()
			h.launch()
			h.meet(before)
			h.change = nil
			h.cancel()
			<-h.ended
			h.start()
			h.lead(started, gone)
		})
	}
}

// meet wishes once the node is registered, or has died before, and lets the
// agent work until it dies or has done all.
func (h *host) meet(before uint64) {
	h.t.Helper()
	h.until("the node is registered, or dead", func(*fsm.View) bool { return h.dead() || h.epoch() > before })
	h.wish()
	if _, err := h.log.apply(fsm.DispatchTask.Entry(fsm.TaskDispatch{Name: "t1", Node: h.name, Epoch: h.epoch()})); err != nil {
		h.t.Fatal(err)
	}
	select {
	case <-h.ended:
	case <-time.After(time.Second): // there were fewer contacts than that
	}
}

func (h *host) dead() bool {
	select {
	case <-h.ended:
		return true
	default:
		return false
	}
}

func TestUnknownOutcomesLeadToTheSameState(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			h, started, gone := settled(t)
			dice := rand.New(rand.NewPCG(seed, 1))
			rolls := make(chan int, 4096) // several goroutines propose
			for range cap(rolls) {
				rolls <- dice.IntN(6)
			}
			close(rolls)
			twist := func(fsm.Entry) (bool, error) {
				switch <-rolls {
				case 1:
					return true, api.Errorf(api.CodeUnknown, "the answer was lost")
				case 2:
					return false, api.Errorf(api.CodeUnknown, "the question was lost")
				case 3:
					return false, noLeader()
				}
				return true, nil
			}
			h.log.twist.Store(&twist)
			h.wish()
			h.lead(started, gone)
		})
	}
}
