package sim

import (
	"context"
	"fmt"
	"slices"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

var _ plugins.Updater = (*Hypervisor)(nil)

// Update implements plugins.Updater. A simulated guest can do what one of QEMU
// can: it takes disks and interfaces at once, gives them away once it has
// booted, takes CPUs and gives none back.
func (h *Hypervisor) Update(ctx context.Context, spec plugins.DomainSpec) error {
	if err := h.usable(ctx); err != nil {
		return err
	}
	if err := h.check(spec); err != nil {
		return err
	}
	d := h.acquire(spec.ID, false)
	if d == nil {
		return api.Errorf(api.CodeNotFound, "no such domain").On(api.KindVM, spec.Name)
	}
	defer h.release(d)
	old := d.record.Load()
	switch {
	case old == nil:
		return api.Errorf(api.CodeNotFound, "no such domain").On(api.KindVM, spec.Name)
	case !old.executing():
		return api.Errorf(api.CodeConflict, "the domain does not execute").On(api.KindVM, spec.Name).Do("start it")
	case old.Spec.Gen != spec.Gen:
		return api.Errorf(api.CodeConflict, "the domain executes with gen %d, not %d", old.Spec.Gen, spec.Gen).On(api.KindVM, spec.Name)
	}
	return h.save(d, old.updated(spec, old.booted(h.config.BootTime)), "updated")
}

// updated is the record of a guest that was given another spec while it ran.
// Its Spec is what the guest has.
func (r *record) updated(spec plugins.DomainSpec, booted bool) *record {
	out := r.with(r.State, r.Reason)
	have := r.Spec
	out.Pending, out.Held, out.Retry = nil, nil, false
	wait := func(format string, args ...any) {
		if len(out.Pending) < api.PendingMax {
			out.Pending = append(out.Pending, fmt.Sprintf(format, args...))
		}
	}
	now := spec
	now.Name = have.Name
	out.keepDisks(&now, r, booted, wait)
	keepSize(&now, &have, wait)
	// What lasts is that of the start, and so stays in the record's spec.
	was := plugins.LastingOf(have)
	for _, l := range plugins.LastingOf(spec) {
		if i := slices.IndexFunc(was, func(w plugins.Lasting) bool { return w.Field == l.Field }); i >= 0 && was[i] != l {
			wait("%s", l.Waits(was[i]))
		}
	}
	now.CPUsMax, now.CPU, now.Topology, now.MemoryMaxBytes = have.MostCPUs(), have.CPU, have.Topology, have.MostMemory()
	now.Machine, now.Firmware, now.TPM, now.NoRNG = have.Machine, have.Firmware, have.TPM, have.NoRNG
	now.Graphics, now.Video, now.Boot, now.Seed = have.Graphics, have.Video, have.Boot, have.Seed
	out.Spec = now
	return out
}

// keepDisks leaves the guest what it cannot give away now: the disk that it
// booted from, and any disk while it boots. A disk keeps the properties that
// it was plugged in with.
func (r *record) keepDisks(now *plugins.DomainSpec, before *record, booted bool, wait func(string, ...any)) {
	have := before.Spec
	disks := slices.Clone(now.Disks)
	for _, d := range append(slices.Clone(have.Disks), before.Held...) {
		i := slices.IndexFunc(disks, func(n plugins.DiskSpec) bool { return n.Name == d.Name })
		switch {
		case i >= 0 && disks[i].Source == d.Source:
			limits := disks[i].Limits
			disks[i] = d
			disks[i].Limits = limits
			continue
		case d.Name == before.Boot:
			wait("disks.%s: the guest has booted from it and keeps it; at the next start", d.Name)
		case !booted:
			wait("disks.%s: the guest was asked for it and has not let go of it yet", d.Name)
			r.Retry = true
		default:
			continue
		}
		if i >= 0 {
			disks[i] = d
		}
		r.Held = append(r.Held, d)
	}
	now.Disks = slices.DeleteFunc(disks, func(d plugins.DiskSpec) bool {
		return slices.ContainsFunc(r.Held, func(h plugins.DiskSpec) bool { return h.Name == d.Name })
	})
}

func keepSize(now, have *plugins.DomainSpec, wait func(string, ...any)) {
	if most := have.MostCPUs(); now.CPUs < have.CPUs || now.CPUs > most {
		wait("cpus: %d, the guest has %d of at most %d; at the next start", now.CPUs, have.CPUs, most)
		now.CPUs = have.CPUs
	}
	if now.MemoryBytes > have.MostMemory() {
		wait("memory_bytes: %s, the guest has %s; at the next start", api.FormatSize(now.MemoryBytes), api.FormatSize(have.MemoryBytes))
		now.MemoryBytes = have.MemoryBytes
	}
}
