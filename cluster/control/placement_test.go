package control_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster/control"
	"github.com/debvisor/debvisor/fsm"
)

func TestHighestPriorityThenOldestIsPlacedFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.register(1, 2)
		c.create("old", nil)
		c.create("young", nil)
		c.create("vip", func(vm *api.VM) { vm.Priority = 10 })
		l := lead(t, c, newControl(t, c, nil), 2)
		defer l.stop()
		pass(time.Second)
		if c.owner("vip") != "node1" || c.owner("old") != "node1" || c.owner("young") != "" {
			t.Fatalf("got vip on %q, old on %q, young on %q", c.owner("vip"), c.owner("old"), c.owner("young"))
		}
		held := c.instance("young")
		if held == nil || held.State != api.InstancePending || held.Reason != "none of 1 nodes has room" {
			t.Fatalf("young is not held with its reason: %+v", held)
		}
	})
}

func TestHoldIsRecordedOncePerReason(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		epoch := c.register(1, 1)
		c.create("first", nil)
		c.create("web", nil)
		l := lead(t, c, newControl(t, c, nil), 2)
		defer l.stop()
		for range 20 {
			l.pass(time.Second)
			c.do(fsm.ReportNode.Entry(fsm.NodeReport{Node: "node1", Epoch: epoch,
				Capacity: api.Capacity{CPUs: 1024, MemoryBytes: api.GiB}}))
		}
		if got := c.count(fsm.HoldInstance.Op()); got != 1 {
			t.Fatalf("got %d holds for one reason, want 1", got)
		}
		c.join(2, "", false)
		c.register(2, 0)
		l.pass(10 * time.Second)
		if got := c.instance("web").Reason; got != "none of 2 nodes has room" {
			t.Fatalf("the reason shown is %q", got)
		}
	})
}

func TestRoomGoesToThoseThatWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		epoch := c.register(1, 1)
		c.create("first", nil)
		l := lead(t, c, newControl(t, c, nil), 2)
		defer l.stop()
		pass(time.Second)
		c.create("second", nil)
		pass(time.Second)
		if c.owner("second") != "" {
			t.Fatal("second was placed without room")
		}
		vm, i := c.vm("first"), c.instance("first")
		c.do(fsm.VMs.Delete(vm.Tenant, vm.Name, vm.Modified))
		c.do(fsm.ForgetInstance.Entry(fsm.InstanceEnd{VM: vm.ID, Gen: i.Gen, Node: "node1", Epoch: epoch}))
		pass(100 * time.Millisecond)
		if got := c.owner("second"); got != "node1" {
			t.Fatalf("second is on %q after room was made", got)
		}
	})
}

func TestStoppedOrOwnedVMsAreNotPlaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.register(1, 8)
		c.create("off", func(vm *api.VM) { vm.Power = api.PowerOff })
		c.create("on", nil)
		l := lead(t, c, newControl(t, c, nil), 2)
		defer l.stop()
		l.pass(time.Minute)
		if c.instance("off") != nil {
			t.Fatal("a VM that is off got an instance")
		}
		if i := c.instance("on"); i.Gen != i.Created {
			t.Fatalf("a VM that has an owner was assigned again: gen %d after %d", i.Gen, i.Created)
		}
		c.do(fsm.PowerVM.Entry(fsm.VMPower{Tenant: api.DefaultTenant, Name: "off", Power: api.PowerOn}))
		pass(100 * time.Millisecond)
		if got := c.owner("off"); got != "node1" {
			t.Fatalf("after power on it is on %q", got)
		}
		// A node that is fenced keeps what it owns.
		pass(20 * time.Second)
		if c.node(1).Lease != api.NodeFenced || c.owner("on") != "node1" {
			t.Fatalf("lease %s, owner %q: want a fenced node that keeps its VM", c.node(1).Lease, c.owner("on"))
		}
	})
}

func TestUnknownOutcomeIsSettledUnderOneRequestID(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.register(1, 1)
		tries := map[string]int{}
		c.setIntercept(func(e fsm.Entry) (bool, error) {
			if e.Op != fsm.AssignInstance.Op() {
				return false, nil
			}
			tries[e.RequestID]++
			if tries[e.RequestID] < 3 {
				return false, api.Errorf(api.CodeUnknown, "the leader changed")
			}
			return false, nil
		})
		c.create("web", nil)
		l := lead(t, c, newControl(t, c, nil), 2)
		pass(5 * time.Second)
		l.stop()
		if len(tries) != 1 || c.owner("web") != "node1" || c.instance("web").Gen != c.instance("web").Created {
			t.Fatalf("got %d request IDs, owner %q", len(tries), c.owner("web"))
		}
	})
}

func TestPlacementSurvivesACommitOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.register(1, 10)
		attempts := 0
		c.setIntercept(func(e fsm.Entry) (bool, error) {
			if e.Op != fsm.AssignInstance.Op() {
				return false, nil
			}
			attempts++
			return true, errors.New("the disk is on fire")
		})
		for i := range 10 {
			c.create(fmt.Sprintf("vm%d", i), nil)
		}
		l := lead(t, c, newControl(t, c, nil), 2)
		defer l.stop()
		l.pass(8 * time.Second)
		if attempts > 200 {
			t.Fatalf("%d attempts in 8 s: the loop does not back off", attempts)
		}
		c.setIntercept(nil)
		l.pass(6 * time.Second)
		for i := range 10 {
			if c.owner(fmt.Sprintf("vm%d", i)) != "node1" {
				t.Fatalf("vm%d was not placed once proposals committed again", i)
			}
		}
	})
}

// stubborn always answers the same node.
type stubborn struct{ node string }

func (s stubborn) Begin(*fsm.View) control.Round { return s }

func (s stubborn) Decide(*api.VM, time.Time) api.Decision {
	return api.Decision{Node: s.node, Summary: "it must be"}
}

func (s stubborn) Move(vm *api.VM, _ string, _ api.MigrateArgs, now time.Time) api.Decision {
	return s.Decide(vm, now)
}

func TestRefusedAssignmentBecomesTheReason(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.join(2, "", true)
		c.register(2, 4) // a witness: Apply refuses to place on it
		c.create("web", nil)
		l := lead(t, c, newControl(t, c, func(conf *control.Config) { conf.Placer = stubborn{"node2"} }), 2)
		defer l.stop()
		pass(5 * time.Second)
		i := c.instance("web")
		if i == nil || !strings.Contains(i.Reason, "witness") {
			t.Fatalf("got %+v, want the refusal as the reason", i)
		}
	})
}

// TestEveryVMIsPlacedOrHeldWithReason runs random changes against the loop.
func TestEveryVMIsPlacedOrHeldWithReason(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(inBubble{t}, func(rt *rapid.T) {
			c := newCluster(t)
			nodes := rapid.IntRange(1, 4).Draw(rt, "nodes")
			for n := 1; n <= nodes; n++ {
				if n > 1 {
					c.join(n, "", false)
				}
				c.register(n, rapid.IntRange(0, 4).Draw(rt, "gib"))
			}
			l := lead(t, c, newControl(t, c, nil), 2)
			defer l.stop()
			for i := range rapid.IntRange(1, 12).Draw(rt, "steps") {
				placementChange(rt, c, i, nodes)
				pass(time.Duration(rapid.IntRange(0, 300).Draw(rt, "ms")) * time.Millisecond)
			}
			c.setIntercept(nil)
			l.pass(8 * time.Second)
			checkPlacement(rt, c)
		})
	})
}

func placementChange(rt *rapid.T, c *cluster, i, nodes int) {
	c.setIntercept(nil)
	switch rapid.SampledFrom([]string{"create", "create", "create", "power", "delete", "register", "lose"}).Draw(rt, "change") {
	case "create":
		_ = c.tryCreate(fmt.Sprintf("vm%d", i), func(vm *api.VM) { // refused when larger than any node
			vm.MemoryBytes = int64(rapid.IntRange(1, 3).Draw(rt, "memory")) * api.GiB
			vm.Priority = rapid.IntRange(-1, 1).Draw(rt, "priority")
		})
	case "power":
		for vm := range fsm.VMs.All(c.f.Read()) {
			power := rapid.SampledFrom([]string{api.PowerOn, api.PowerOff}).Draw(rt, "power")
			c.do(fsm.PowerVM.Entry(fsm.VMPower{Tenant: vm.Tenant, Name: vm.Name, Power: power}))
		}
	case "delete":
		for vm := range fsm.VMs.All(c.f.Read()) {
			c.do(fsm.VMs.Delete(vm.Tenant, vm.Name, vm.Modified))
			break
		}
	case "register":
		c.register(rapid.IntRange(1, nodes).Draw(rt, "node"), rapid.IntRange(0, 6).Draw(rt, "gib"))
	case "lose":
		n := 0
		c.setIntercept(func(fsm.Entry) (bool, error) {
			n++
			return n%3 == 0, map[bool]error{true: api.Errorf(api.CodeUnavailable, "no quorum")}[n%3 == 0]
		})
	}
}

func checkPlacement(rt *rapid.T, c *cluster) {
	view := c.f.Read()
	used := map[string]int64{}
	for vm := range fsm.VMs.All(view) {
		i := fsm.Instances.Get(view, vm.ID)
		switch {
		case i != nil && i.Owner != "":
			used[i.Owner] += vm.MemoryBytes
		case vm.On() && (i == nil || i.Reason == "" || i.Decision == nil):
			rt.Fatalf("vm %s is neither placed nor held: %+v", vm.Name, i)
		}
	}
	for vm := range fsm.VMs.All(view) {
		if i := fsm.Instances.Get(view, vm.ID); !vm.On() || i.Owner != "" {
			continue
		}
		for n := range fsm.Nodes.All(view) {
			if n.Lease == api.NodeLive && n.Capacity.MemoryBytes-used[n.Name] >= vm.MemoryBytes {
				rt.Fatalf("vm %s is held although %s has room", vm.Name, n.Name)
			}
		}
	}
}

// BenchmarkPlacement is from creating VMs to all of them assigned, on 3 nodes.
func BenchmarkPlacement(b *testing.B) {
	c := newCluster(b)
	for n := 1; n <= 3; n++ {
		if n > 1 {
			c.join(n, "", false)
		}
		c.register(n, 1<<20)
	}
	l := lead(b, c, newControl(b, c, nil), 2)
	defer l.stop()
	b.ResetTimer()
	for i := range b.N {
		c.create(fmt.Sprintf("vm%d", i), nil)
	}
	for i := range b.N {
		for c.owner(fmt.Sprintf("vm%d", i)) == "" {
			advanced := c.f.Advanced()
			if c.owner(fmt.Sprintf("vm%d", i)) == "" {
				<-advanced
			}
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "VMs/s")
}
