package fsm_test

import (
	"fmt"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// TestARowChangedTwiceIsOneChange holds for entries with few changes and with many.
func TestARowChangedTwiceIsOneChange(t *testing.T) {
	t.Parallel()
	for _, vms := range []int{1, 8, 9, 40} {
		c := newCluster(t)
		var twice fsm.Operations
		for i := range vms {
			v := vm(fmt.Sprintf("vm-%d", i))
			v.Disks = nil
			if out := put(c, fsm.VMs.Put, v); out.Err != nil {
				t.Fatal(out.Err)
			}
		}
		for _, power := range []string{api.PowerOff, api.PowerOn, api.PowerOff} {
			for i := range vms {
				e := fsm.PowerVM.Entry(fsm.VMPower{Tenant: api.DefaultTenant, Name: fmt.Sprintf("vm-%d", i), Power: power})
				twice.Operations = append(twice.Operations, fsm.Operation{Op: e.Op, Body: e.Body})
			}
		}
		plan, _, err := c.f.Plan([]fsm.Entry{fsm.ApplyMany.Entry(twice)})
		if err != nil || len(plan.Changes) != vms {
			t.Fatalf("planned %d changes of %d VMs, %v", len(plan.Changes), vms, err)
		}
		refused := twice
		refused.Operations = append(refused.Operations, fsm.Operation{Op: fsm.PowerVM.Op(), Body: []byte(`{"tenant":"default","name":"missing","power":"on"}`)})
		before := c.f.Read().StateHash()
		if out := c.propose(fsm.ApplyMany.Entry(refused)); out.Err == nil || c.f.Read().StateHash() != before {
			t.Fatalf("with %d VMs: a refused entry left rows behind, %v", vms, out.Err)
		}
		c.do(fsm.ApplyMany.Entry(twice))
		records, _ := c.f.Recent(c.index-1, 1)
		if len(records) != 1 || len(records[0].Changes) != vms {
			t.Fatalf("got %d changes, want %d", len(records[0].Changes), vms)
		}
		for _, ch := range records[0].Changes {
			if ch.Action() != "update" || string(ch.After) != string(fsm.VMs.JSON(c.f.Read(), ch.Key)) {
				t.Fatalf("%s %s: %s", ch.Action(), ch.Key, ch.After)
			}
		}
	}
}
