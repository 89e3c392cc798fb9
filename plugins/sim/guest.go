package sim

import (
	"context"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

var _ plugins.GuestAgent = (*Hypervisor)(nil)

// simulatedFilesystems is how many file systems each simulated guest has.
const simulatedFilesystems = 1

// onGuest does work with the record of a guest that has booted: its agent
// answers then.
func (h *Hypervisor) onGuest(ctx context.Context, id string, do func(d *domain, r *record) error) error {
	if err := h.usable(ctx); err != nil {
		return err
	}
	d := h.find(id)
	if d == nil {
		return api.Errorf(api.CodeConflict, "the guest does not run").On(api.KindVM, id).Do("start it first")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.record.Load()
	switch {
	case r == nil || !r.executing():
		return api.Errorf(api.CodeConflict, "the guest does not run").On(api.KindVM, id).Do("start it first")
	case !r.booted(h.config.BootTime):
		return api.Errorf(api.CodeUnavailable, "the guest's agent does not answer yet").On(api.KindVM, id).Do("wait until it has booted")
	}
	return do(d, r)
}

func (r *record) frozen(now time.Time) bool { return now.Before(r.FrozenUntil) }

// GuestInfo implements plugins.GuestAgent.
func (h *Hypervisor) GuestInfo(ctx context.Context, id string) (info api.GuestInfo, err error) {
	err = h.onGuest(ctx, id, func(_ *domain, r *record) error {
		now := time.Now().UTC()
		info = api.GuestInfo{AgentVersion: "simulated", Hostname: "simulated", OS: "simulated", Frozen: r.frozen(now), Time: now,
			Addresses: addresses(r.Spec.NICs), Filesystems: []api.GuestFilesystem{{Mount: "/", Device: "vda", Type: "ext4"}}}
		return nil
	})
	return info, err
}

// FreezeGuest implements plugins.GuestAgent. The limit is in the record, so that
// it passes whatever becomes of this process.
func (h *Hypervisor) FreezeGuest(ctx context.Context, id string, limit time.Duration) (int, error) {
	err := h.onGuest(ctx, id, func(d *domain, r *record) error {
		now := time.Now().UTC()
		if r.frozen(now) {
			return api.Errorf(api.CodeConflict, "its file systems are frozen already").On(api.KindVM, id)
		}
		frozen := r.with(r.State, r.Reason)
		frozen.FrozenUntil = now.Add(limit)
		return h.save(d, frozen, "frozen")
	})
	if err != nil {
		return 0, err
	}
	return simulatedFilesystems, nil
}

// ThawGuest implements plugins.GuestAgent.
func (h *Hypervisor) ThawGuest(ctx context.Context, id string) (thawed int, err error) {
	err = h.onGuest(ctx, id, func(d *domain, r *record) error {
		if !r.frozen(time.Now()) {
			return nil
		}
		thawed = simulatedFilesystems
		out := r.with(r.State, r.Reason)
		out.FrozenUntil = time.Time{}
		return h.save(d, out, "thawed")
	})
	return thawed, err
}

// SetGuestPassword implements plugins.GuestAgent. The only account is root, and
// its password is not kept.
func (h *Hypervisor) SetGuestPassword(ctx context.Context, id string, set api.GuestPasswordSet) error {
	if err := set.Validate(); err != nil {
		return err
	}
	return h.onGuest(ctx, id, func(*domain, *record) error {
		if set.Account != "root" {
			return api.Invalid("account", "the guest refuses %q", set.Account).Allow("an account of the guest")
		}
		return nil
	})
}

// SetGuestTime implements plugins.GuestAgent.
func (h *Hypervisor) SetGuestTime(ctx context.Context, id string) error {
	return h.onGuest(ctx, id, func(*domain, *record) error { return nil })
}
