package agent_test

import (
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

func TestVMStartsStopsAndGoesAway(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(vm("web"))
	if i := h.instance(id); !i.Simulated || i.StartedAt.IsZero() || i.SpecRevision != h.vm("web").Modified {
		t.Errorf("got %+v, want a simulated guest with its start time and revision", i)
	}
	h.power("web", api.PowerOff)
	h.untilState(id, api.InstanceStopped)
	h.power("web", api.PowerOn)
	h.untilState(id, api.InstanceRunning)
	h.drop("web")
	h.until("everything is gone", func(v *fsm.View) bool { return fsm.Instances.Len(v) == 0 && fsm.Replicas.Len(v) == 0 })
	if d, here := h.domain(id); here {
		t.Fatalf("got %v, want no domain", d)
	}
}

func TestGuestSurvivesARestartOfTheAgent(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(vm("web"))
	started := h.instance(id).StartedAt
	h.end()
	before, index := h.log.proposed.Load(), h.log.f.Index()
	h.start()
	seq := fsm.Leases.Get(h.log.f.Read(), h.name).Seq
	h.until("a few renewals have passed", func(v *fsm.View) bool { return fsm.Leases.Get(v, h.name).Seq > seq+4 })
	if d, _ := h.domain(id); !d.StartedAt.Equal(started) || h.instance(id).Restarts != 0 {
		t.Fatalf("the guest was started again: %v, was %v", d.StartedAt, started)
	}
	if got := h.log.proposed.Load() - before; got > 2 {
		records, _ := h.log.f.Recent(index, 100)
		for _, r := range records {
			for _, c := range r.Changes {
				t.Logf("%s: %s/%s\n%s\n%s", r.Op, c.Kind, c.Key, c.Before, c.After)
			}
		}
		t.Fatalf("%d entries after a restart that changed nothing, want the registration and at most a report of the node", got)
	}
}

// within fails unless the state satisfies ok within a second from now.
func (h *host) within(what string, ok func(v *fsm.View) bool) {
	h.t.Helper()
	began := time.Now()
	h.until(what, ok)
	if took := time.Since(began); took > time.Second {
		h.t.Errorf("it took %v until %s, want a second", took, what)
	}
}

func TestGuestThatDiesIsNoticedWithinASecondAndStartedAgain(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(vm("web"))
	for n := uint64(1); n <= 2; n++ {
		if err := h.hv.Crash(id); err != nil {
			t.Fatal(err)
		}
		h.within("the crash is known", func(v *fsm.View) bool {
			i := fsm.Instances.Get(v, id)
			return strings.Contains(i.Reason, "crashed") && (i.State == api.InstanceFailed || i.Restarts == n)
		})
		h.until("the guest runs again", func(v *fsm.View) bool {
			i := fsm.Instances.Get(v, id)
			return i.State == api.InstanceRunning && i.Restarts == n && len(i.Drift) == 0
		})
	}
}

func TestGuestDestroyedFromOutsideIsStartedAgain(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(vm("web"))
	if err := h.hv.Stop(t.Context(), id, 0); err != nil {
		t.Fatal(err)
	}
	h.until("the guest runs again", func(v *fsm.View) bool {
		i := fsm.Instances.Get(v, id)
		return i.State == api.InstanceRunning && i.Restarts == 1 && strings.Contains(i.Reason, "destroyed")
	})
	shown := false
	records, _ := h.log.f.Recent(0, 8000)
	for _, r := range records {
		for _, c := range r.Changes {
			shown = shown || c.Key == id && strings.Contains(string(c.After), "destroyed outside debvisor, wanted running")
		}
	}
	if !shown {
		t.Error("the drift was never shown")
	}
}

func TestGuestThatShutItselfDownStaysOffUntilAsked(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(vm("web"))
	off := func() {
		t.Helper()
		if err := h.hv.PowerOff(id); err != nil {
			t.Fatal(err)
		}
		h.within("the shutdown is shown as drift", func(v *fsm.View) bool {
			i := fsm.Instances.Get(v, id)
			return i.State == api.InstanceStopped && len(i.Drift) == 1 && strings.Contains(i.Drift[0], "shut itself down")
		})
	}
	off()
	h.end()
	h.start()
	if d, _ := h.domain(id); d.State != api.InstanceStopped {
		t.Fatalf("the guest is %s after a restart of the agent, want stopped", d.State)
	}
	h.power("web", api.PowerOn)
	h.untilState(id, api.InstanceRunning)
	off()
	h.task("t1", api.TaskRestart, "web", "")
	h.untilTask("t1", api.TaskDone)
	h.untilState(id, api.InstanceRunning)
	off()
	h.power("web", api.PowerOff)
	h.until("the wish is met", func(v *fsm.View) bool { return len(fsm.Instances.Get(v, id).Drift) == 0 })
	h.power("web", api.PowerOn)
	h.untilState(id, api.InstanceRunning)
	if got := h.instance(id).Restarts; got != 0 {
		t.Errorf("%d restarts are counted, want none", got)
	}
}

func TestChangeBehindOurBackIsShownAsDrift(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(vm("web"))
	if err := h.hv.Tamper(id, 32*api.MiB); err != nil {
		t.Fatal(err)
	}
	h.within("the memory is shown", func(v *fsm.View) bool {
		i := fsm.Instances.Get(v, id)
		return len(i.Drift) == 1 && strings.Contains(i.Drift[0], "memory_bytes")
	})
	if err := h.hv.Pause(id); err != nil {
		t.Fatal(err)
	}
	h.within("the pause is shown", func(v *fsm.View) bool {
		i := fsm.Instances.Get(v, id)
		return i.State == api.InstancePaused && len(i.Drift) == 2
	})
	h.task("t1", api.TaskRestart, "web", `{"force":true}`)
	h.untilTask("t1", api.TaskDone)
	h.until("a restart heals both", func(v *fsm.View) bool {
		i := fsm.Instances.Get(v, id)
		return i.State == api.InstanceRunning && len(i.Drift) == 0
	})
}

func TestGuestOfAnotherGenIsDestroyed(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(vm("web"))
	h.end()
	h.log.must(t, fsm.ConfirmOffNode.Entry(fsm.NodeConfirmOff{Node: h.name, Epoch: h.epoch()}))
	h.start()
	h.until("the guest of the old gen is gone", func(*fsm.View) bool { _, here := h.domain(id); return !here })
	old := h.instance(id).Gen
	h.assign(id)
	h.untilState(id, api.InstanceRunning)
	if d, _ := h.domain(id); d.Gen != old+1 {
		t.Fatalf("the guest runs at gen %d, want %d", d.Gen, old+1)
	}
}

func TestGuestOfAnotherGenIsReplacedWhereItIsOwned(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(vm("web"))
	h.end()
	h.log.must(t, fsm.ConfirmOffNode.Entry(fsm.NodeConfirmOff{Node: h.name, Epoch: h.epoch()}))
	h.log.must(t, fsm.RegisterNode.Entry(fsm.NodeRegister{ID: h.id, PrevEpoch: h.epoch(), Address: "127.0.0.1:1"}))
	h.assign(id)
	h.start()
	h.until("the guest runs at the new gen", func(v *fsm.View) bool {
		d, _ := h.domain(id)
		return d.State == api.InstanceRunning && d.Gen == h.instance(id).Gen && h.instance(id).State == api.InstanceRunning
	})
}

func TestDomainThatNoRowNamesIsDestroyedOnceTheTablesAreKnown(t *testing.T) {
	t.Parallel()
	_, hosts := newLog(t, "node1")
	h := hosts["node1"]
	h.open()
	const stray = "0b7e4a52-5b7c-4f0e-9d0a-3c1f5e1f0a11"
	if err := h.hv.Start(t.Context(), plugins.DomainSpec{ID: stray, Name: "default.stray", ClusterID: clusterID, Gen: 3, CPUs: 1, MemoryBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	_ = h.hv.Close()
	h.log.broken.Store(true)
	h.launch()
	wait := time.NewTimer(3 * h.timings.SyncWait)
	<-wait.C
	if d, _ := h.domain(stray); d.State != api.InstanceRunning {
		t.Fatalf("without a leader the guest is %q, want untouched", d.State)
	}
	h.log.broken.Store(false)
	h.until("the stray is gone", func(*fsm.View) bool { _, here := h.domain(stray); return !here })
}

func TestStartThatFailsIsReportedAndTriedAgain(t *testing.T) {
	t.Parallel()
	h := one(t)
	image := h.image("kernel")
	v := vm("web")
	v.Boot = &api.DirectBoot{Kernel: "kernel"}
	id := h.create(v)
	h.until("the failure has a reason", func(v *fsm.View) bool {
		i := fsm.Instances.Get(v, id)
		return i.State == api.InstanceFailed && strings.Contains(i.Reason, "no node that is up has a copy")
	})
	h.upload(image)
	h.untilState(id, api.InstanceRunning)
}

func TestBreakOfTheHypervisorRestartsNoGuest(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(vm("web"))
	started := h.instance(id).StartedAt
	h.hv.Break(api.Errorf(api.CodeUnavailable, "the socket is gone"))
	h.until("node and instance say so", func(v *fsm.View) bool {
		n, i := fsm.Nodes.Get(v, h.name), fsm.Instances.Get(v, id)
		return !n.Hypervisor.Healthy && strings.Contains(n.Hypervisor.Reason, "the socket is gone") &&
			i.State == api.InstanceRunning && strings.Contains(i.Reason, "cannot be reached")
	})
	h.hv.Heal()
	h.until("all is as it was", func(v *fsm.View) bool {
		i := fsm.Instances.Get(v, id)
		return fsm.Nodes.Get(v, h.name).Hypervisor.Healthy && i.State == api.InstanceRunning && i.Reason == "" && i.StartedAt.Equal(started) && i.Restarts == 0
	})
}

func TestWithoutAQuorumTheNodeGoesOnByItsReplica(t *testing.T) {
	t.Parallel()
	h := one(t)
	a, b := h.run(vm("a")), h.run(vm("b"))
	h.log.broken.Store(true)
	if err := h.hv.Crash(a); err != nil {
		t.Fatal(err)
	}
	h.power("b", api.PowerOff) // committed before the quorum was lost, seen after
	h.until("the machine follows the replica", func(*fsm.View) bool {
		x, _ := h.domain(a)
		y, _ := h.domain(b)
		return x.State == api.InstanceRunning && y.State == api.InstanceStopped
	})
	h.end() // and so after a restart
	if err := h.hv.Crash(a); err != nil {
		t.Fatal(err)
	}
	h.launch()
	h.until("the guest runs again", func(*fsm.View) bool { d, _ := h.domain(a); return d.State == api.InstanceRunning })
	h.log.broken.Store(false)
	h.untilState(b, api.InstanceStopped)
	h.until("the start is told", func(v *fsm.View) bool {
		d, _ := h.domain(a)
		i := fsm.Instances.Get(v, a)
		return i.State == api.InstanceRunning && i.StartedAt.Equal(d.StartedAt)
	})
}

func TestGuestsThatAreAskedToStopHoldUpNobody(t *testing.T) {
	t.Parallel()
	h := one(t, func(h *host) { h.boot, h.timings.StopGrace = time.Hour, time.Hour }) // they never answer
	var ids []string
	for n := range 20 {
		ids = append(ids, h.run(vm(fmt.Sprintf("web-%d", n))))
	}
	for n := range ids {
		h.power(fmt.Sprintf("web-%d", n), api.PowerOff)
	}
	h.run(vm("other"))
	h.task("t1", api.TaskStop, "web-3", "")
	h.untilTask("t1", api.TaskDone)
	h.untilState(ids[3], api.InstanceStopped)
	h.power("web-5", api.PowerOn)
	if d, _ := h.domain(ids[5]); d.State != api.InstanceRunning {
		t.Fatalf("a guest whose power was on again is %s", d.State)
	}
	h.drop("web-6")
	h.until("a deleted one is forced", func(v *fsm.View) bool { return fsm.Instances.Get(v, ids[6]) == nil })
}

func TestStopIsForcedWhenTheGuestDoesNotAnswer(t *testing.T) {
	t.Parallel()
	h := one(t, func(h *host) { h.boot = time.Hour })
	id := h.run(vm("web"))
	h.power("web", api.PowerOff)
	h.untilState(id, api.InstanceStopped)
	if d, _ := h.domain(id); d.Reason != "destroyed" {
		t.Fatalf("it ended as %q, want destroyed", d.Reason)
	}
}

func TestConsoleIsOfOwnGuestsOnly(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(vm("web"))
	c, err := h.agent.Console(t.Context(), id, true)
	if err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 8)
	if _, err := io.ReadFull(c, head); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.agent.Console(t.Context(), "0b7e4a52-5b7c-4f0e-9d0a-3c1f5e1f0a11", true); api.CodeOf(err) != api.CodeNotFound {
		t.Fatalf("got %v, want not_found", err)
	}
}

// A backoff that has grown while nothing was committed does not hold up what
// can be told as soon as something is.
func TestWhatWentUnheardIsToldWithTheNextCommits(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(vm("web"))
	var refused, renewals, late atomic.Int64
	twist := func(e fsm.Entry) (bool, error) {
		switch {
		case e.Op == fsm.RenewNodes.Op():
			renewals.Add(1)
		case e.Op == fsm.ReportInstance.Op() && refused.Load() < 5:
			refused.Add(1)
			renewals.Store(0)
			return false, noLeader()
		case e.Op == fsm.ReportInstance.Op():
			late.CompareAndSwap(0, renewals.Load())
		}
		return true, nil
	}
	h.log.twist.Store(&twist)
	h.power("web", api.PowerOff)
	h.untilState(id, api.InstanceStopped)
	if got := late.Load(); got > 30 {
		t.Errorf("%d renewals were committed before the report was proposed again, want as many as pass in a quarter of a second", got)
	}
}
