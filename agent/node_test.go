package agent_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/debvisor/debvisor/agent"
	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	if _, err := agent.New(agent.Config{}); err == nil {
		t.Error("an empty configuration was accepted")
	}
	l := &log{f: fsm.New()}
	renew := func(context.Context, fsm.Renewal) error { return nil }
	if _, err := agent.New(agent.Config{ID: "x", Name: "n", DataDir: "relative", Cluster: l, Renew: renew}); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("got %v for a relative directory, want invalid", err)
	}
	if _, err := agent.New(agent.Config{ID: "x", Name: "n", DataDir: t.TempDir(), Cluster: l, Renew: renew}); err == nil {
		t.Error("a node without a hypervisor was accepted that is no witness")
	}
}

func TestNodeReportsItsMachine(t *testing.T) {
	t.Parallel()
	h := one(t)
	h.until("the machine is known", func(v *fsm.View) bool {
		n := fsm.Nodes.Get(v, h.name)
		return n.Hypervisor.Healthy && n.Hypervisor.Simulated && n.Capacity.CPUs == 64 && len(n.Pools) == 1 && n.Pools[0].Pool == fsm.DefaultPool && n.Pools[0].TotalBytes > 0
	})
}

func TestFencedNodeRegistersAgain(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(vm("web"))
	epoch, started := h.epoch(), h.instance(id).StartedAt
	h.until("the node is fenced", func(v *fsm.View) bool {
		_, err := h.log.apply(fsm.ExpireNode.Entry(fsm.NodeExpire{Node: h.name, Epoch: epoch, Seq: fsm.Leases.Get(v, h.name).Seq}))
		return err == nil
	})
	h.until("it is back", func(v *fsm.View) bool {
		n := fsm.Nodes.Get(v, h.name)
		return n.Lease == api.NodeLive && n.Epoch == epoch+1
	})
	if d, _ := h.domain(id); !d.StartedAt.Equal(started) {
		t.Error("its guest was touched")
	}
	h.power("web", api.PowerOff)
	h.untilState(id, api.InstanceStopped)
}

func TestSecondProcessOfTheSameIdentityEndsTheFirst(t *testing.T) {
	t.Parallel()
	h := one(t)
	h.log.must(t, fsm.RegisterNode.Entry(fsm.NodeRegister{ID: h.id, PrevEpoch: h.epoch(), Address: "127.0.0.1:2"}))
	if err := h.wait(); !errors.Is(err, agent.ErrIdentity) {
		t.Fatalf("got %v, want ErrIdentity", err)
	}
}

func TestRegistrationThatLosesEndsTheProcess(t *testing.T) {
	t.Parallel()
	l, hosts := newLog(t, "node1")
	h := hosts["node1"]
	var once atomic.Bool
	twist := func(e fsm.Entry) (bool, error) {
		if e.Op == fsm.RegisterNode.Op() && once.CompareAndSwap(false, true) { // another one comes first
			l.must(t, fsm.RegisterNode.Entry(fsm.NodeRegister{ID: h.id, PrevEpoch: h.epoch(), Address: "127.0.0.1:2"}))
		}
		return true, nil
	}
	l.twist.Store(&twist)
	h.launch()
	if err := h.wait(); !errors.Is(err, agent.ErrIdentity) {
		t.Fatalf("got %v, want ErrIdentity", err)
	}
}

func TestLostAnswerToARegistrationIsAskedForAgain(t *testing.T) {
	t.Parallel()
	l, hosts := newLog(t, "node1")
	h := hosts["node1"]
	var lost atomic.Int64
	twist := func(e fsm.Entry) (bool, error) {
		if e.Op == fsm.RegisterNode.Op() && lost.Add(1) <= 2 {
			return true, api.Errorf(api.CodeUnknown, "the answer was lost")
		}
		return true, nil
	}
	l.twist.Store(&twist)
	h.start()
	if got := h.epoch(); got != 1 {
		t.Fatalf("epoch %d after answers were lost, want 1", got)
	}
}

func TestRemovedNodeEndsWithTheReason(t *testing.T) {
	t.Parallel()
	l, hosts := newLog(t, "node1", "node2")
	hosts["node1"].start()
	h := hosts["node2"]
	h.start()
	l.must(t, fsm.RemoveNode.Entry(fsm.NodeRemove{Node: "node2", Reason: "sold"}))
	if err := h.wait(); !errors.Is(err, agent.ErrRemoved) || !strings.Contains(err.Error(), "sold") {
		t.Fatalf("got %v, want ErrRemoved with the reason", err)
	}
}

func TestWitnessOnlyKeepsItsLease(t *testing.T) {
	t.Parallel()
	l, hosts := newLog(t, "node1")
	h := hosts["node1"]
	h.change = func(c *agent.Config) {
		*c = agent.Config{ID: c.ID, Name: c.Name, DataDir: c.DataDir, Address: c.Address, Witness: true, Cluster: c.Cluster, Renew: c.Renew, Timings: c.Timings}
	}
	h.launch()
	h.until("it renews", func(v *fsm.View) bool { r := fsm.Leases.Get(v, h.name); return r != nil && r.Seq > 2 })
	if got := l.proposed.Load(); got != 1 {
		t.Errorf("%d entries, want the registration only", got)
	}
	if _, err := h.agent.Console(t.Context(), "x", false); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("console: got %v, want conflict", err)
	}
}

func TestIdleGuestsWriteNothing(t *testing.T) {
	t.Parallel()
	h := one(t)
	var ids []string
	for n := range 500 {
		v := vm(fmt.Sprintf("web-%d", n))
		if n >= 50 {
			v.Disks = nil // a file less each
		}
		ids = append(ids, h.create(v))
	}
	h.until("all run", func(v *fsm.View) bool {
		for _, id := range ids {
			if fsm.Instances.Get(v, id).State != api.InstanceRunning {
				return false
			}
		}
		return true
	})
	before, seq := h.log.proposed.Load(), fsm.Leases.Get(h.log.f.Read(), h.name).Seq
	h.until("renewals have passed", func(v *fsm.View) bool { return fsm.Leases.Get(v, h.name).Seq > seq+10 })
	if got := h.log.proposed.Load() - before; got != 0 {
		t.Fatalf("%d entries were written while nothing changed", got)
	}
}
