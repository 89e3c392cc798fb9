package sim

import (
	"fmt"

	"github.com/debvisor/debvisor/api"
)

// Crash makes an executing guest die by itself, as after a panic. A guest that
// does not execute is CodeNotFound.
func (h *Hypervisor) Crash(id string) error {
	return h.alter(id, "crashed", func(r *record) *record { return r.ended(api.InstanceFailed, "crashed") })
}

// PowerOff makes an executing guest shut itself down, as after "poweroff"
// typed inside it. A guest that does not execute is CodeNotFound.
func (h *Hypervisor) PowerOff(id string) error {
	return h.alter(id, "shutdown", func(r *record) *record { return r.ended(api.InstanceStopped, "shutdown") })
}

// Pause suspends an executing guest behind the agent's back.
func (h *Hypervisor) Pause(id string) error {
	return h.alter(id, "suspended", func(r *record) *record { return r.with(api.InstancePaused, "user") })
}

// Resume ends what Pause did.
func (h *Hypervisor) Resume(id string) error {
	return h.alter(id, "resumed", func(r *record) *record { return r.with(api.InstanceRunning, "unpaused") })
}

// Tamper gives an executing guest another amount of memory behind the agent's
// back, which then shows as drift. The wanted amount ends the drift.
func (h *Hypervisor) Tamper(id string, memoryBytes int64) error {
	return h.alter(id, "changed", func(r *record) *record {
		out := r.with(r.State, r.Reason)
		out.Drift = nil
		if memoryBytes != r.Spec.MemoryBytes {
			out.Drift = []string{fmt.Sprintf("memory_bytes: %s, wanted %s", api.FormatSize(memoryBytes), api.FormatSize(r.Spec.MemoryBytes))}
		}
		return out
	})
}

// Break makes the hypervisor unreachable: event channels close and every call
// is CodeUnavailable with reason in its message, until Heal. Guests go on, and
// Crash and the like still work.
func (h *Hypervisor) Break(reason error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.broken = reason
	for r := range h.readers {
		r.end()
	}
}

// Heal ends what Break did. Event channels stay closed.
func (h *Hypervisor) Heal() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.broken = nil
}

func (h *Hypervisor) alter(id, change string, with func(*record) *record) error {
	d := h.find(id)
	if d == nil {
		return api.Errorf(api.CodeNotFound, "no simulated guest %s", id)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.record.Load()
	if r == nil || !r.executing() {
		return api.Errorf(api.CodeNotFound, "simulated guest %s does not execute", id)
	}
	return h.save(d, with(r), change)
}
