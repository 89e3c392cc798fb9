package agent_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/debvisor/debvisor/agent"
	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// measured is a storage whose pools have a fixed size and are used to a percent.
type measured struct {
	plugins.Storage
	used *atomic.Int64
}

func (s measured) Status(ctx context.Context, pool plugins.PoolSpec) (api.PoolStatus, error) {
	status, err := s.Storage.Status(ctx, pool)
	status.TotalBytes = 100 * api.GiB
	status.FreeBytes = (100 - s.used.Load()) * api.GiB
	return status, err
}

// filling makes the host's pools show how full they are said to be.
func filling(used *atomic.Int64) func(*host) {
	return func(h *host) {
		h.timings.Measure = 20 * time.Millisecond
		h.change = func(c *agent.Config) { c.Storage[api.PoolDir] = measured{c.Storage[api.PoolDir], used} }
	}
}

func (h *host) untilWarned(words string) {
	h.t.Helper()
	h.until("the node says of its pool: "+words, func(v *fsm.View) bool {
		for _, p := range fsm.Nodes.Get(v, h.name).Pools {
			return p.Warning == "" && words == "" || words != "" && strings.Contains(p.Warning, words)
		}
		return false
	})
}

func TestPoolThatFillsUpIsWarnedOf(t *testing.T) {
	t.Parallel()
	var used atomic.Int64
	used.Store(50)
	h := one(t, filling(&used))
	h.untilWarned("")
	used.Store(81)
	h.untilWarned("over 80 %")
	used.Store(95)
	h.untilWarned("nearly full (over 90 %)")
	used.Store(79) // within the calm below the threshold
	h.untilWarned("over 80 %")
	used.Store(70)
	h.untilWarned("")
}

func TestGuestThatWaitsForSpaceGoesOnWhenThereIsSome(t *testing.T) {
	t.Parallel()
	var used atomic.Int64
	used.Store(100)
	h := one(t, filling(&used))
	v := vm("web")
	id := h.run(v)
	if err := h.hv.FailStorage(id); err != nil {
		t.Fatal(err)
	}
	h.until("the reason is shown", func(v *fsm.View) bool {
		i := fsm.Instances.Get(v, id)
		return i.State == api.InstancePaused && strings.Contains(i.Reason, "a pool is full") && len(i.Drift) == 0
	})
	used.Store(50)
	edited := *h.vm("web") // any look at the VM will do; another comes by itself
	edited.Description = "looked at"
	put(h, fsm.VMs.Put, edited)
	h.untilState(id, api.InstanceRunning)
}
