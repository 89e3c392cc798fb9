package libvirt

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

var _ plugins.Snapshotter = (*Hypervisor)(nil)

// Snapshots lie within the qcow2 files, under the ID of the snapshot, and
// libvirt keeps none of its own records of them: with those it would refuse to
// migrate a guest. A guest that executes is asked through QEMU's monitor, the
// files of one that does not through qemu-img; the lock that QEMU holds on its
// files keeps the two apart.

// onSnapshot finds the guest and does work on its snapshots while nothing else
// changes it. f is nil when there is no domain.
func (h *Hypervisor) onSnapshot(ctx context.Context, spec plugins.SnapshotSpec, do func(ctx context.Context, f *found) error) error {
	if err := errors.Join(checkID(spec.ID), checkID(spec.DomainID)); err != nil {
		return err
	}
	for _, d := range spec.Disks {
		if d.Source.Format != api.FormatQCOW2 || d.Source.Path == "" {
			return api.Invalid("disks", "%s is %s, which cannot hold snapshots", d.Name, d.Source.Format).Allow(api.FormatQCOW2)
		}
	}
	return h.exclusive(ctx, spec.DomainID, func(ctx context.Context) error {
		c, err := h.connect(ctx)
		if err != nil {
			return err
		}
		f, err := h.look(ctx, c, spec.DomainID)
		if err != nil {
			return err
		}
		return do(ctx, f)
	})
}

// Snapshot implements plugins.Snapshotter.
func (h *Hypervisor) Snapshot(ctx context.Context, spec plugins.SnapshotSpec) (taken plugins.SnapshotTaken, err error) {
	err = h.onSnapshot(ctx, spec, func(ctx context.Context, f *found) error {
		if f != nil && f.executing() {
			taken, err = h.snapshotRunning(ctx, f, spec)
			return err
		}
		if spec.Memory {
			return api.Errorf(api.CodeConflict, "the guest does not execute, so it has no memory").On(api.KindVM, spec.DomainID)
		}
		return plugins.SnapshotDisks(ctx, images{h}, spec.Disks, spec.ID)
	})
	return taken, err
}

func jobID(snapshot string) string { return "debvisor-" + snapshot }

// snapshotRunning takes all disks in one step of QEMU, or its memory and all
// disks in one of its jobs, during which the guest stands still.
func (h *Hypervisor) snapshotRunning(ctx context.Context, f *found, spec plugins.SnapshotSpec) (taken plugins.SnapshotTaken, err error) {
	m, err := h.monitor(ctx, f)
	if err != nil {
		return taken, err
	}
	defer m.close()
	if err := m.finish(ctx, jobID(spec.ID)); err != nil && api.CodeOf(err) != api.CodeInvalid {
		return taken, err // one that an interrupted call began may go on
	}
	nodes, have, err := m.nodes(ctx, spec)
	if err != nil {
		return taken, err
	}
	if have > 0 && have < len(nodes) {
		if err := m.drop(ctx, spec); err != nil {
			return taken, err
		}
		have = 0
	}
	if have == 0 {
		if err := m.take(ctx, nodes, spec); err != nil {
			return taken, err
		}
	}
	if !spec.Memory {
		return taken, nil
	}
	all, err := m.blocks(ctx)
	if err != nil {
		return taken, err
	}
	if b := all[spec.Disks[0].Source.Path]; b != nil && b.snapshot(spec.ID) != nil {
		taken.MemoryBytes = b.snapshot(spec.ID).MemoryBytes
	}
	err = m.conn.call(ctx, func(l *libvirt.Libvirt) (err error) {
		taken.Machine, err = l.DomainGetXMLDesc(f.handle, libvirt.DomainXMLMigratable)
		return err
	})
	if err == nil && len(taken.Machine) > api.SnapshotMachineMax {
		err = api.Errorf(api.CodeLimit, "the guest's description has %d bytes", len(taken.Machine)).Allow("at most %d", api.SnapshotMachineMax)
	}
	return taken, err
}

// nodes are the names of QEMU's nodes of the disks, and how many of them have
// the snapshot already.
func (m *monitor) nodes(ctx context.Context, spec plugins.SnapshotSpec) (names []string, have int, err error) {
	all, err := m.blocks(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, d := range spec.Disks {
		b := all[d.Source.Path]
		if b == nil || b.ReadOnly {
			return nil, 0, api.Errorf(api.CodeConflict, "disk %s is not attached to the running guest, or not for writing", d.Name).
				Do("restart the VM, so that it runs with the disks that it should have")
		}
		names = append(names, b.Name)
		if b.snapshot(spec.ID) != nil {
			have++
		}
	}
	return names, have, nil
}

func (m *monitor) take(ctx context.Context, nodes []string, spec plugins.SnapshotSpec) error {
	if spec.Memory {
		err := m.ask(ctx, "snapshot-save", map[string]any{"job-id": jobID(spec.ID), "tag": spec.ID, "vmstate": nodes[0], "devices": nodes}, nil)
		if err != nil {
			return err
		}
		return m.finish(ctx, jobID(spec.ID))
	}
	type action struct {
		Type string            `json:"type"`
		Data map[string]string `json:"data"`
	}
	var actions []action
	for _, n := range nodes {
		actions = append(actions, action{"blockdev-snapshot-internal-sync", map[string]string{"device": n, "name": spec.ID}})
	}
	return m.ask(ctx, "transaction", map[string]any{"actions": actions}, nil)
}

// drop removes the snapshot from the disks of a running guest that have it.
func (m *monitor) drop(ctx context.Context, spec plugins.SnapshotSpec) error {
	all, err := m.blocks(ctx)
	if err != nil {
		return err
	}
	for _, d := range spec.Disks {
		b := all[d.Source.Path]
		if b == nil || b.snapshot(spec.ID) == nil {
			continue
		}
		if err := m.ask(ctx, "blockdev-snapshot-delete-internal-sync", map[string]string{"device": b.Name, "name": spec.ID}, nil); err != nil {
			return err
		}
	}
	return nil
}

// idle refuses work that a guest which executes forbids.
func idle(f *found) error {
	if f != nil && f.executing() {
		return api.Errorf(api.CodeConflict, "the domain executes").On(api.KindVM, f.xml.Name).Do("stop it first")
	}
	return nil
}

// RevertSnapshot implements plugins.Snapshotter.
func (h *Hypervisor) RevertSnapshot(ctx context.Context, spec plugins.SnapshotSpec) error {
	return h.onSnapshot(ctx, spec, func(ctx context.Context, f *found) error {
		if err := idle(f); err != nil {
			return err
		}
		return plugins.RevertDisks(ctx, images{h}, spec.Disks, spec.ID)
	})
}

// AbortRevert implements plugins.Snapshotter.
func (h *Hypervisor) AbortRevert(ctx context.Context, spec plugins.SnapshotSpec) error {
	return h.onSnapshot(ctx, spec, func(ctx context.Context, f *found) error {
		if err := idle(f); err != nil {
			return err
		}
		return plugins.SettleRevert(ctx, images{h}, spec.Disks)
	})
}

// DeleteSnapshot implements plugins.Snapshotter. Disks that the running guest
// does not have are reached through their files.
func (h *Hypervisor) DeleteSnapshot(ctx context.Context, spec plugins.SnapshotSpec) error {
	return h.onSnapshot(ctx, spec, func(ctx context.Context, f *found) error {
		if f == nil || !f.executing() {
			return plugins.DropDisks(ctx, images{h}, spec.Disks, spec.ID)
		}
		m, err := h.monitor(ctx, f)
		if err != nil {
			return err
		}
		defer m.close()
		if err := m.finish(ctx, jobID(spec.ID)); err != nil && api.CodeOf(err) != api.CodeInvalid {
			return err
		}
		all, err := m.blocks(ctx)
		if err != nil {
			return err
		}
		var loose []plugins.DiskSpec
		for _, d := range spec.Disks {
			if all[d.Source.Path] == nil {
				loose = append(loose, d)
			}
		}
		return errors.Join(m.drop(ctx, spec), plugins.DropDisks(ctx, images{h}, loose, spec.ID))
	})
}

// PruneSnapshots implements plugins.Snapshotter.
func (h *Hypervisor) PruneSnapshots(ctx context.Context, disks []plugins.DiskSpec, keep []string) error {
	return plugins.PruneDisks(ctx, images{h}, disks, func(name string) bool { return uuid.Validate(name) == nil }, keep)
}

// StartSnapshot implements plugins.Snapshotter: QEMU is started as it was, and
// stands still until it has read the memory.
func (h *Hypervisor) StartSnapshot(ctx context.Context, domain plugins.DomainSpec, spec plugins.SnapshotSpec) error {
	if err := checkSpec(domain, h.config.ClusterID); err != nil {
		return err
	}
	return h.onSnapshot(ctx, spec, func(ctx context.Context, f *found) error {
		c, err := h.connect(ctx)
		if err != nil {
			return err
		}
		if f != nil && f.executing() {
			if f.mark.Gen != domain.Gen || f.mark.Revision != domain.SpecRevision {
				return idle(f)
			}
			if f.state == libvirt.DomainRunning {
				return nil
			}
			// What an interrupted call left stands still at an unknown point.
			if err := c.call(ctx, func(l *libvirt.Libvirt) error { return l.DomainDestroyFlags(f.handle, 0) }); err != nil {
				return err
			}
		}
		if _, err := h.prepare(ctx, c, domain); err != nil { // the files beside the disks
			return err
		}
		text, err := remade(spec.Machine, domain, time.Now())
		if err != nil {
			return err
		}
		return h.resume(ctx, c, domain, spec, text)
	})
}

// resume defines the guest, starts it standing still, lets it read its memory
// and go on. After a failure it is ended.
func (h *Hypervisor) resume(ctx context.Context, c *conn, domain plugins.DomainSpec, spec plugins.SnapshotSpec, text string) error {
	h.remember(domain.ID)
	f := &found{}
	err := c.call(context.WithoutCancel(ctx), func(l *libvirt.Libvirt) (err error) {
		if f.handle, err = l.DomainDefineXMLFlags(text, 0); err != nil {
			return err
		}
		_, err = l.DomainCreateWithFlags(f.handle, uint32(libvirt.DomainStartPaused|libvirt.DomainStartForceBoot))
		return err
	})
	if err != nil {
		return err
	}
	if err = h.load(ctx, f, spec); err == nil {
		err = c.call(context.WithoutCancel(ctx), func(l *libvirt.Libvirt) error { return l.DomainResume(f.handle) })
	}
	if err == nil {
		h.config.Logger.Info("guest goes on from a snapshot", "id", domain.ID, "name", domain.Name, "snapshot", spec.ID)
		return nil
	}
	ended := c.call(context.WithoutCancel(ctx), func(l *libvirt.Libvirt) error { return l.DomainDestroyFlags(f.handle, 0) })
	return errors.Join(fmt.Errorf("restore the guest's memory: %w", err), ended)
}

func (h *Hypervisor) load(ctx context.Context, f *found, spec plugins.SnapshotSpec) error {
	m, err := h.monitor(ctx, f)
	if err != nil {
		return err
	}
	defer m.close()
	nodes, have, err := m.nodes(ctx, spec)
	if err != nil {
		return err
	}
	if have < len(nodes) {
		return api.Errorf(api.CodeNotFound, "%d of %d disks have the snapshot", have, len(nodes))
	}
	err = m.ask(ctx, "snapshot-load", map[string]any{"job-id": jobID(spec.ID), "tag": spec.ID, "vmstate": nodes[0], "devices": nodes}, nil)
	if err != nil {
		return err
	}
	return m.finish(ctx, jobID(spec.ID))
}

// remade is the description of a guest as libvirt gave it, with the mark and
// the name of now: what the guest's memory knows of its machine must not change.
func remade(machine string, domain plugins.DomainSpec, now time.Time) (string, error) {
	d, err := decodeDomain(machine)
	if err != nil {
		return "", api.Invalid("machine", "is no description of a guest: %v", err)
	}
	if d.UUID != domain.ID {
		return "", api.Invalid("machine", "describes guest %s, not %s", d.UUID, domain.ID)
	}
	w := d.essentials()
	body := markBody{Cluster: domain.ClusterID, ID: domain.ID, Gen: domain.Gen, Revision: domain.SpecRevision,
		Started: now.UTC().Format(time.RFC3339Nano), Hash: w.hash(), Wanted: w, Fixed: fixedOf(domain)}
	if d.Metadata != nil && d.Metadata.Mark != nil { // the guest is still the one that was started then
		body.Fixed, body.Pending = d.Metadata.Mark.Fixed, d.Metadata.Mark.Pending
	}
	metadata, err := xml.Marshal(struct {
		XMLName xml.Name `xml:"metadata"`
		Mark    *mark
	}{Mark: &mark{XMLName: markName(), markBody: body}})
	if err != nil {
		return "", fmt.Errorf("encode mark: %w", err)
	}
	name, err := xml.Marshal(struct {
		XMLName xml.Name `xml:"name"`
		Text    string   `xml:",chardata"`
	}{Text: domain.Name})
	if err != nil {
		return "", fmt.Errorf("encode name: %w", err)
	}
	return replaceChildren(machine, map[string]string{"metadata": string(metadata), "name": string(name)})
}

// replaceChildren replaces elements right below the root of a document, and
// leaves every other byte as it is.
func replaceChildren(text string, with map[string]string) (string, error) {
	decoder := xml.NewDecoder(strings.NewReader(text))
	var out bytes.Buffer
	depth, copied, replaced := 0, 0, map[string]bool{}
	for {
		before := int(decoder.InputOffset())
		token, err := decoder.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", api.Invalid("machine", "is not XML: %v", err)
		}
		switch t := token.(type) {
		case xml.StartElement:
			if depth == 1 && with[t.Name.Local] != "" && !replaced[t.Name.Local] {
				out.WriteString(text[copied:before] + with[t.Name.Local])
				replaced[t.Name.Local] = true
				if err := skipElement(decoder); err != nil {
					return "", err
				}
				copied = int(decoder.InputOffset())
				continue
			}
			depth++
		case xml.EndElement:
			depth--
		}
	}
	if len(replaced) != len(with) {
		return "", api.Invalid("machine", "lacks a name or metadata")
	}
	out.WriteString(text[copied:])
	return out.String(), nil
}

// skipElement reads to the end of the element that was just begun.
func skipElement(decoder *xml.Decoder) error {
	for depth := 1; depth > 0; {
		token, err := decoder.RawToken()
		if err != nil {
			return api.Invalid("machine", "is not XML: %v", err)
		}
		switch token.(type) {
		case xml.StartElement:
			depth++
		case xml.EndElement:
			depth--
		}
	}
	return nil
}
