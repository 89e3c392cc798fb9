package agent_test

import (
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// await polls until a condition holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestStatisticsAreOfWhatRunsHere(t *testing.T) {
	t.Parallel()
	h := one(t, func(h *host) { h.timings.Sample = 500 * time.Millisecond })
	web := vm("web")
	web.Disks = nil
	h.run(web)
	id := fsm.VMs.Get(h.log.f.Read(), "default/web").ID
	await(t, "the VM's figures", func() bool {
		v, err := h.agent.VM(t.Context(), id, api.StatsQuery{})
		return err == nil && v.Now.CPUPercent > 0 && v.Tenant == "default" && v.Name == "web" && v.CPUs == web.CPUs && v.Node == "node1" && v.Now.MemoryBytes > 0
	})
	var all []api.VMStats
	var err error
	await(t, "the list", func() bool { all, err = h.agent.VMStats(); return err == nil })
	if err != nil || len(all) != 1 || all[0].ID != id {
		t.Errorf("got %+v, %v", all, err)
	}
	node, err := h.agent.NodeStats(api.StatsQuery{Window: time.Hour, Step: time.Minute})
	if err != nil || node.VMs != 1 || node.CPUs != 64 || node.StepSeconds != 60 || node.Points == nil {
		t.Errorf("got %+v, %v", node, err)
	}
	if counters, _ := h.agent.Counters(); len(counters) != 1 || counters["default/web"].CPUTime <= 0 {
		t.Errorf("got %+v", counters)
	}
	if _, err := h.agent.VM(t.Context(), "00000000-0000-4000-8000-00000000dead", api.StatsQuery{}); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("an unknown VM: %v, want CodeNotFound", err)
	}
	// While the hypervisor is away there are no figures, rather than old ones.
	h.hv.Break(api.Errorf(api.CodeUnavailable, "the socket is gone"))
	await(t, "the figures' end", func() bool {
		_, err := h.agent.NodeStats(api.StatsQuery{})
		return api.CodeOf(err) == api.CodeUnavailable
	})
	h.hv.Heal()
	await(t, "the figures' return", func() bool {
		_, err := h.agent.NodeStats(api.StatsQuery{})
		return err == nil
	})
}
