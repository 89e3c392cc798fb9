package agent

import (
	"sync"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// stableAfter is how long a guest must run for its earlier ends to be
// forgotten, failed starts included.
const stableAfter = 10 * time.Minute

// restartDelays lists what a guest waits before it is started again after it
// ended by itself, or after its start failed.
func restartDelays() []time.Duration {
	return []time.Duration{0, time.Second, 5 * time.Second, 30 * time.Second, time.Minute}
}

// guest is what the agent remembers of a VM between two looks at it. Losing
// it at a restart costs a delay, nothing else. Only the job of its key uses
// it, but for waits.
type guest struct {
	ends      int       // in a row
	noticed   bool      // the end of the guest was seen and nothing has started since
	why       string    // how it ended
	drift     string    // what is shown of that
	restarts  uint64    // as to be reported
	notBefore time.Time // of the next start
	revision  uint64    // of the VM and …
	gen       uint64    // … gen that notBefore is about: a change of either ends the wait
	failure   string    // of the last start
	startedAt time.Time // of the guest that runs
	seenAt    time.Time // when that was noticed
	reason    string    // that goes with it
	askedAt   time.Time // when the guest was first asked to stop

	updates     int       // in a row that did not do all
	updateAfter time.Time // the next one, unless the VM is edited
	updateOf    uint64    // revision that it is about
	updateError string    // of the last one
}

// guests is every guest that the agent has looked at.
type guests struct {
	mu    sync.Mutex // guards the maps
	byID  map[string]*guest
	waits map[string]map[string]bool // ID of a volume or image to the VMs that wait for it
}

func (g *guests) of(id string) *guest {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.byID == nil {
		g.byID, g.waits = map[string]*guest{}, map[string]map[string]bool{}
	}
	one := g.byID[id]
	if one == nil {
		one = &guest{}
		g.byID[id] = one
	}
	return one
}

func (g *guests) known(id string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.byID[id] != nil
}

func (g *guests) forget(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.byID, id)
	for _, vms := range g.waits {
		delete(vms, id)
	}
}

// wait notes that the VM waits for a volume or image.
func (g *guests) wait(id, thing string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.waits[thing] == nil {
		g.waits[thing] = map[string]bool{}
	}
	g.waits[thing][id] = true
}

// waiting takes the VMs that wait for a volume or image.
func (g *guests) waiting(thing string) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []string
	for id := range g.waits[thing] {
		out = append(out, id)
	}
	delete(g.waits, thing)
	return out
}

// runs notes that the guest executes.
func (g *guest) runs(startedAt, now time.Time) {
	if !g.startedAt.Equal(startedAt) || g.seenAt.IsZero() {
		g.startedAt, g.seenAt = startedAt, now
		g.reason = ""
		if g.noticed {
			g.reason = "started again: " + g.why
		}
	}
	if now.Sub(g.seenAt) > stableAfter {
		g.ends = 0
	}
	g.noticed, g.failure, g.drift, g.askedAt = false, "", "", time.Time{}
}

// ended notes once that the guest ended by itself.
func (g *guest) ended(row *api.Instance, vm *api.VM, why, drift string, now time.Time) {
	if g.noticed {
		return
	}
	if !g.seenAt.IsZero() && now.Sub(g.seenAt) > stableAfter {
		g.ends = 0
	}
	g.noticed, g.why, g.drift, g.restarts = true, why, drift, row.Restarts+1
	g.delay(row, vm, now)
}

// delay puts off the next start.
func (g *guest) delay(row *api.Instance, vm *api.VM, now time.Time) {
	delays := restartDelays()
	g.notBefore = now.Add(delays[min(g.ends, len(delays)-1)])
	g.ends++
	g.revision, g.gen = vm.Modified, row.Gen
}

// waitLeft is how long to wait until the next start. A change of the VM, or of
// its owner, ends the wait.
func (g *guest) waitLeft(row *api.Instance, vm *api.VM, now time.Time) time.Duration {
	if g.revision != vm.Modified || g.gen != row.Gen {
		return 0
	}
	return max(0, g.notBefore.Sub(now))
}

// reportOf begins a report that repeats what the row says for good.
func reportOf(row *api.Instance, state, reason string) fsm.InstanceReport {
	return fsm.InstanceReport{VM: row.Name, Gen: row.Gen, State: state, Reason: reason,
		Simulated: row.Simulated, Restarts: row.Restarts, RestartedTask: row.RestartedTask}
}
