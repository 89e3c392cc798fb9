package sim

import (
	"context"
	"slices"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

var _ plugins.Disks = (*Hypervisor)(nil)

// diskCopy is a simulated copy of a disk.
type diskCopy struct {
	From, To plugins.Source
	BegunAt  time.Time
}

// withDisk finds an executing guest that has a disk of one of the sources, and
// its place in the spec. The guest is locked until release is called.
func (h *Hypervisor) withDisk(ctx context.Context, id string, sources ...plugins.Source) (d *domain, at int, err error) {
	if err := h.usable(ctx); err != nil {
		return nil, 0, err
	}
	d = h.acquire(id, false)
	if d == nil {
		return nil, 0, plugins.MissingDisk(id)
	}
	r := d.record.Load()
	if r != nil && r.executing() {
		at = slices.IndexFunc(r.Spec.Disks, func(disk plugins.DiskSpec) bool { return slices.Contains(sources, disk.Source) })
		if at >= 0 {
			return d, at, nil
		}
	}
	h.release(d)
	return nil, 0, plugins.MissingDisk(id)
}

// GrowDisk implements plugins.Disks.
func (h *Hypervisor) GrowDisk(ctx context.Context, id string, disk plugins.Source, sizeBytes int64) error {
	d, _, err := h.withDisk(ctx, id, disk)
	if err != nil {
		return err
	}
	defer h.release(d)
	return growFile(disk.Path, sizeBytes)
}

// CopyDisk implements plugins.Disks. The copy is complete after Config.CopyTime.
func (h *Hypervisor) CopyDisk(ctx context.Context, id string, from, to plugins.Source) error {
	d, _, err := h.withDisk(ctx, id, from)
	if err != nil {
		return err
	}
	defer h.release(d)
	r := *d.record.Load()
	for _, c := range r.Copies {
		if c.From != from {
			continue
		}
		if c.To == to {
			return nil
		}
		return api.Errorf(api.CodeConflict, "the disk is being copied elsewhere").On(api.KindVM, id).Do("wait for that copy, or cancel its task")
	}
	r.Copies = append(slices.Clone(r.Copies), diskCopy{From: from, To: to, BegunAt: time.Now().UTC()})
	return h.save(d, &r, "copy begun")
}

// DiskCopy implements plugins.Disks.
func (h *Hypervisor) DiskCopy(ctx context.Context, id string, from, to plugins.Source) (plugins.DiskCopy, error) {
	d, at, err := h.withDisk(ctx, id, from, to)
	if err != nil {
		return plugins.DiskCopy{}, err
	}
	defer h.release(d)
	r := d.record.Load()
	if r.Spec.Disks[at].Source == to {
		return plugins.DiskCopy{Pivoted: true, Percent: 100}, nil
	}
	for _, c := range r.Copies {
		if c.From == from && c.To == to {
			return h.progress(c), h.mirror(c)
		}
	}
	return plugins.DiskCopy{}, nil
}

// mirror makes both copies equal, once that is what they are.
func (h *Hypervisor) mirror(c diskCopy) error {
	if !h.progress(c).Complete {
		return nil
	}
	text, err := ReadVolume(c.From.Path)
	if err != nil {
		return err
	}
	return WriteVolume(c.To.Path, text)
}

func (h *Hypervisor) progress(c diskCopy) plugins.DiskCopy {
	gone := time.Since(c.BegunAt)
	if gone >= h.config.CopyTime {
		return plugins.DiskCopy{Active: true, Complete: true, Percent: 100}
	}
	return plugins.DiskCopy{Active: true, Percent: int(100 * gone / h.config.CopyTime)}
}

// PivotDisk implements plugins.Disks.
func (h *Hypervisor) PivotDisk(ctx context.Context, id string, from, to plugins.Source) error {
	d, at, err := h.withDisk(ctx, id, from, to)
	if err != nil {
		return err
	}
	defer h.release(d)
	r := *d.record.Load()
	if r.Spec.Disks[at].Source == to {
		return nil
	}
	i := slices.IndexFunc(r.Copies, func(c diskCopy) bool { return c.From == from && c.To == to })
	if i < 0 || !h.progress(r.Copies[i]).Complete {
		return api.Errorf(api.CodeConflict, "the copy of the disk is not complete").On(api.KindVM, id)
	}
	if err := h.mirror(r.Copies[i]); err != nil {
		return err
	}
	r.Copies = slices.Delete(slices.Clone(r.Copies), i, i+1)
	r.Spec.Disks = slices.Clone(r.Spec.Disks)
	r.Spec.Disks[at].Source = to
	return h.save(d, &r, "disk moved")
}

// CancelCopy implements plugins.Disks.
func (h *Hypervisor) CancelCopy(ctx context.Context, id string, from, to plugins.Source) error {
	d, _, err := h.withDisk(ctx, id, from, to)
	if err != nil {
		return err
	}
	defer h.release(d)
	r := *d.record.Load()
	r.Copies = slices.DeleteFunc(slices.Clone(r.Copies), func(c diskCopy) bool { return c.From == from && c.To == to })
	return h.save(d, &r, "copy cancelled")
}

// BreakCopies ends every copy of a guest's disks, as an error of the storage
// does: the guest goes on with what it had.
func (h *Hypervisor) BreakCopies(id string) error {
	return h.alter(id, "copy broken", func(r *record) *record {
		out := *r
		out.Copies = nil
		return &out
	})
}

// Unpause implements plugins.Disks.
func (h *Hypervisor) Unpause(ctx context.Context, id string) error {
	if err := h.usable(ctx); err != nil {
		return err
	}
	d := h.acquire(id, false)
	if d == nil {
		return plugins.MissingDisk(id)
	}
	defer h.release(d)
	r := d.record.Load()
	if r == nil || !r.executing() {
		return plugins.MissingDisk(id)
	}
	if r.State != api.InstancePaused || r.Reason != reasonIOError {
		return nil
	}
	return h.save(d, r.with(api.InstanceRunning, "unpaused"), "resumed")
}

const reasonIOError = "i/o error"

// FailStorage pauses an executing guest as QEMU does whose disk takes no more.
func (h *Hypervisor) FailStorage(id string) error {
	return h.alter(id, "paused", func(r *record) *record { return r.with(api.InstancePaused, reasonIOError) })
}
