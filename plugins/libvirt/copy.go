package libvirt

import (
	"context"
	"encoding/xml"
	"fmt"
	"slices"

	"github.com/digitalocean/go-libvirt"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

var _ plugins.Disks = (*Hypervisor)(nil)

// mirrorXML is the copy under way of a disk, as libvirt tells it.
type mirrorXML struct {
	Type   string         `xml:"type,attr,omitempty"`
	Job    string         `xml:"job,attr,omitempty"`
	Ready  string         `xml:"ready,attr,omitempty"`
	Source *diskSourceXML `xml:"source"`
	Format *modelTypeXML  `xml:"format"`
}

// sourceXML is how a source stands in the definition of a disk.
func sourceXML(s plugins.Source) *diskSourceXML { return &diskSourceXML{File: s.Path} }

func (s *diskSourceXML) is(source plugins.Source) bool {
	return s != nil && *s == *sourceXML(source)
}

// withDisk does something with a disk of an executing guest of ours while
// nothing else changes the guest.
func (h *Hypervisor) withDisk(ctx context.Context, id string, do func(ctx context.Context, c *conn, f *found, disk *diskXML) error, sources ...plugins.Source) error {
	if err := checkID(id); err != nil {
		return err
	}
	return h.exclusive(ctx, id, func(ctx context.Context) error {
		c, err := h.connect(ctx)
		if err != nil {
			return err
		}
		f, err := h.look(ctx, c, id)
		if err != nil {
			return err
		}
		if f == nil || !f.executing() {
			return plugins.MissingDisk(id)
		}
		for i := range f.xml.Devices.Disks {
			disk := &f.xml.Devices.Disks[i]
			if slices.ContainsFunc(sources, disk.Source.is) {
				return do(ctx, c, f, disk)
			}
		}
		return plugins.MissingDisk(id)
	})
}

// GrowDisk implements plugins.Disks. QEMU makes the volume larger and tells
// the guest of it.
func (h *Hypervisor) GrowDisk(ctx context.Context, id string, disk plugins.Source, sizeBytes int64) error {
	return h.withDisk(ctx, id, func(ctx context.Context, c *conn, f *found, d *diskXML) error {
		var capacity uint64
		err := c.call(ctx, func(l *libvirt.Libvirt) (err error) {
			_, capacity, _, err = l.DomainGetBlockInfo(f.handle, d.Target.Dev, 0)
			return err
		})
		if err != nil || capacity >= uint64(sizeBytes) {
			return err
		}
		return c.call(ctx, func(l *libvirt.Libvirt) error {
			return l.DomainBlockResize(f.handle, d.Target.Dev, uint64(sizeBytes), libvirt.DomainBlockResizeBytes)
		})
	}, disk)
}

// CopyDisk implements plugins.Disks: QEMU mirrors the disk. Synchronous writes
// keep both equal once it is complete, so that losing either loses nothing.
func (h *Hypervisor) CopyDisk(ctx context.Context, id string, from, to plugins.Source) error {
	return h.withDisk(ctx, id, func(ctx context.Context, c *conn, f *found, d *diskXML) error {
		if d.Mirror != nil {
			if d.Mirror.Source.is(to) {
				return nil
			}
			return api.Errorf(api.CodeConflict, "the disk %s is being copied elsewhere", d.Target.Dev).On(api.KindVM, f.xml.Name).
				Do("wait for that copy, or cancel its task")
		}
		target := diskXML{Type: "file", Device: "disk", Driver: &diskDriverXML{Name: "qemu", Type: to.Format, Discard: "unmap"}, Source: sourceXML(to),
			Target: d.Target}
		text, err := xml.Marshal(struct {
			XMLName xml.Name `xml:"disk"`
			diskXML
		}{diskXML: target})
		if err != nil {
			return fmt.Errorf("encode disk: %w", err)
		}
		return c.call(ctx, func(l *libvirt.Libvirt) error {
			return l.DomainBlockCopy(f.handle, d.Target.Dev, string(text), nil,
				libvirt.DomainBlockCopyReuseExt|libvirt.DomainBlockCopyTransientJob|libvirt.DomainBlockCopySynchronousWrites)
		})
	}, from)
}

// DiskCopy implements plugins.Disks.
func (h *Hypervisor) DiskCopy(ctx context.Context, id string, from, to plugins.Source) (plugins.DiskCopy, error) {
	var out plugins.DiskCopy
	err := h.withDisk(ctx, id, func(ctx context.Context, c *conn, f *found, d *diskXML) error {
		if d.Source.is(to) {
			out = plugins.DiskCopy{Pivoted: true, Percent: 100}
			return nil
		}
		if d.Mirror == nil || !d.Mirror.Source.is(to) {
			return nil
		}
		out = plugins.DiskCopy{Active: true, Complete: d.Mirror.Ready == "yes"}
		if out.Complete {
			out.Percent = 100
			return nil
		}
		return c.call(ctx, func(l *libvirt.Libvirt) error {
			found, _, _, done, all, err := l.DomainGetBlockJobInfo(f.handle, d.Target.Dev, 0)
			if err == nil && found > 0 && all > 0 {
				out.Percent = int(100 * min(done, all) / all)
			}
			return err
		})
	}, from, to)
	return out, err
}

// PivotDisk implements plugins.Disks.
func (h *Hypervisor) PivotDisk(ctx context.Context, id string, from, to plugins.Source) error {
	return h.withDisk(ctx, id, func(ctx context.Context, c *conn, f *found, d *diskXML) error {
		if !d.Source.is(to) {
			if d.Mirror == nil || !d.Mirror.Source.is(to) || d.Mirror.Ready != "yes" {
				return api.Errorf(api.CodeConflict, "the copy of disk %s is not complete", d.Target.Dev).On(api.KindVM, f.xml.Name)
			}
			err := c.call(context.WithoutCancel(ctx), func(l *libvirt.Libvirt) error {
				return l.DomainBlockJobAbort(f.handle, d.Target.Dev, libvirt.DomainBlockJobAbortPivot)
			})
			if err != nil {
				return err
			}
		}
		return h.remark(ctx, c, f, func(w *wanted) {
			for i := range w.Disks {
				if w.Disks[i].Dev == d.Target.Dev {
					w.Disks[i].Path, w.Disks[i].Format = to.Path, to.Format
				}
			}
		})
	}, from, to)
}

// remark changes what the mark of an executing guest wants, in its definition
// too: what was changed on purpose is no drift.
func (h *Hypervisor) remark(ctx context.Context, c *conn, f *found, edit func(*wanted)) error {
	m := *f.mark
	m.Wanted.Disks, m.Wanted.NICs = slices.Clone(m.Wanted.Disks), slices.Clone(m.Wanted.NICs)
	edit(&m.Wanted)
	if m.Hash = m.Wanted.hash(); m.Hash == f.mark.Hash {
		return nil
	}
	text, err := m.element()
	if err != nil {
		return err
	}
	return c.call(context.WithoutCancel(ctx), func(l *libvirt.Libvirt) error {
		return l.DomainSetMetadata(f.handle, int32(libvirt.DomainMetadataElement), libvirt.OptString{text}, libvirt.OptString{"debvisor"},
			libvirt.OptString{markName().Space}, libvirt.DomainAffectLive|libvirt.DomainAffectConfig)
	})
}

// CancelCopy implements plugins.Disks.
func (h *Hypervisor) CancelCopy(ctx context.Context, id string, from, to plugins.Source) error {
	return h.withDisk(ctx, id, func(ctx context.Context, c *conn, f *found, d *diskXML) error {
		if d.Mirror == nil || !d.Mirror.Source.is(to) {
			return nil
		}
		return c.call(context.WithoutCancel(ctx), func(l *libvirt.Libvirt) error {
			return l.DomainBlockJobAbort(f.handle, d.Target.Dev, 0)
		})
	}, from, to)
}

// Unpause implements plugins.Disks.
func (h *Hypervisor) Unpause(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	return h.exclusive(ctx, id, func(ctx context.Context) error {
		c, err := h.connect(ctx)
		if err != nil {
			return err
		}
		f, err := h.look(ctx, c, id)
		if err != nil {
			return err
		}
		if f == nil || !f.executing() {
			return plugins.MissingDisk(id)
		}
		if f.state != libvirt.DomainPaused || f.reason != int32(libvirt.DomainPausedIoerror) {
			return nil
		}
		return c.call(context.WithoutCancel(ctx), func(l *libvirt.Libvirt) error { return l.DomainResume(f.handle) })
	})
}
