package sim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

var _ plugins.Snapshotter = (*Hypervisor)(nil)

// volumeSnapshot is what a simulated volume was.
type volumeSnapshot struct {
	Name string `json:"name"`
	Data string `json:"data,omitzero"`
}

// diskFiles reaches the snapshots in the files of simulated volumes.
type diskFiles struct{}

// alterVolume replaces the record in the file of a simulated volume.
func alterVolume(path string, change func(*volumeRecord) error) error {
	root, err := os.OpenRoot(filepath.Dir(filepath.Dir(path)))
	if errors.Is(err, fs.ErrNotExist) {
		return missing(api.KindVolume, filepath.Base(path))
	}
	if err != nil {
		return fmt.Errorf("open simulated volume: %w", err)
	}
	defer func() { _ = root.Close() }()
	v, err := readVolume(root, filepath.Base(path))
	if errors.Is(err, fs.ErrNotExist) {
		return missing(api.KindVolume, filepath.Base(path))
	}
	if err == nil {
		err = change(&v)
	}
	if err != nil {
		return err
	}
	return putVolume(root, v)
}

// errLooked ends a look that changes nothing.
var errLooked = errors.New("looked")

func look(path string, at func(*volumeRecord)) error {
	err := alterVolume(path, func(v *volumeRecord) error {
		at(v)
		return errLooked
	})
	if errors.Is(err, errLooked) {
		return nil
	}
	return err
}

// WriteVolume plays a guest that writes to the disk at path.
func WriteVolume(path, data string) error {
	return alterVolume(path, func(v *volumeRecord) error {
		v.Data = data
		return nil
	})
}

// ReadVolume is what was written to the disk at path last.
func ReadVolume(path string) (data string, err error) {
	err = look(path, func(v *volumeRecord) { data = v.Data })
	return data, err
}

// SnapshotNames implements plugins.DiskSnapshots.
func (diskFiles) SnapshotNames(_ context.Context, disk plugins.DiskSpec) (names []string, err error) {
	err = look(disk.Source.Path, func(v *volumeRecord) {
		for _, s := range v.Snapshots {
			names = append(names, s.Name)
		}
	})
	return names, err
}

// TakeDisk implements plugins.DiskSnapshots.
func (diskFiles) TakeDisk(_ context.Context, disk plugins.DiskSpec, name string) error {
	if disk.Source.Format != api.FormatQCOW2 {
		return api.Invalid("disks", "%s is %s, which cannot hold snapshots", disk.Name, disk.Source.Format).Allow("qcow2")
	}
	return alterVolume(disk.Source.Path, func(v *volumeRecord) error {
		v.Snapshots = append(v.Snapshots, volumeSnapshot{Name: name, Data: v.Data})
		return nil
	})
}

// ApplyDisk implements plugins.DiskSnapshots.
func (diskFiles) ApplyDisk(_ context.Context, disk plugins.DiskSpec, name string) error {
	return alterVolume(disk.Source.Path, func(v *volumeRecord) error {
		for _, s := range v.Snapshots {
			if s.Name == name {
				v.Data = s.Data
				return nil
			}
		}
		return api.Errorf(api.CodeNotFound, "disk %s has no snapshot %s", disk.Name, name)
	})
}

// DropDisk implements plugins.DiskSnapshots.
func (diskFiles) DropDisk(_ context.Context, disk plugins.DiskSpec, name string) error {
	return alterVolume(disk.Source.Path, func(v *volumeRecord) error {
		var left []volumeSnapshot
		for _, s := range v.Snapshots {
			if s.Name != name {
				left = append(left, s)
			}
		}
		v.Snapshots = left
		return nil
	})
}

// machineState is what a simulated hypervisor keeps of a guest with its memory.
type machineState struct {
	Spec   plugins.DomainSpec
	Memory string
}

// withDomain runs do while nothing else changes the guest. The record is nil
// when there is none.
func (h *Hypervisor) withDomain(ctx context.Context, spec plugins.SnapshotSpec, do func(d *domain, r *record) error) error {
	if err := h.usable(ctx); err != nil {
		return err
	}
	if err := errors.Join(checkID(spec.ID), checkID(spec.DomainID)); err != nil {
		return err
	}
	d := h.acquire(spec.DomainID, true)
	defer h.release(d)
	return do(d, d.record.Load())
}

// Snapshot implements plugins.Snapshotter.
func (h *Hypervisor) Snapshot(ctx context.Context, spec plugins.SnapshotSpec) (taken plugins.SnapshotTaken, err error) {
	err = h.withDomain(ctx, spec, func(_ *domain, r *record) error {
		if spec.Memory && (r == nil || !r.executing()) {
			return api.Errorf(api.CodeConflict, "the guest does not execute, so it has no memory").On(api.KindVM, spec.DomainID)
		}
		if spec.Memory {
			raw, err := json.Marshal(machineState{r.Spec, r.Memory})
			if err != nil {
				return fmt.Errorf("encode guest: %w", err)
			}
			taken = plugins.SnapshotTaken{MemoryBytes: r.Spec.MemoryBytes, Machine: string(raw)}
		}
		return plugins.SnapshotDisks(ctx, diskFiles{}, spec.Disks, spec.ID)
	})
	return taken, err
}

// idle refuses work that a guest which executes forbids.
func idle(r *record) error {
	if r != nil && r.executing() {
		return api.Errorf(api.CodeConflict, "the domain executes").On(api.KindVM, r.Spec.Name).Do("stop it first")
	}
	return nil
}

// RevertSnapshot implements plugins.Snapshotter.
func (h *Hypervisor) RevertSnapshot(ctx context.Context, spec plugins.SnapshotSpec) error {
	return h.withDomain(ctx, spec, func(_ *domain, r *record) error {
		if err := idle(r); err != nil {
			return err
		}
		return plugins.RevertDisks(ctx, diskFiles{}, spec.Disks, spec.ID)
	})
}

// AbortRevert implements plugins.Snapshotter.
func (h *Hypervisor) AbortRevert(ctx context.Context, spec plugins.SnapshotSpec) error {
	return h.withDomain(ctx, spec, func(_ *domain, r *record) error {
		if err := idle(r); err != nil {
			return err
		}
		return plugins.SettleRevert(ctx, diskFiles{}, spec.Disks)
	})
}

// StartSnapshot implements plugins.Snapshotter.
func (h *Hypervisor) StartSnapshot(ctx context.Context, spec plugins.DomainSpec, snapshot plugins.SnapshotSpec) error {
	if err := h.check(spec); err != nil {
		return err
	}
	var state machineState
	if err := json.Unmarshal([]byte(snapshot.Machine), &state); err != nil {
		return api.Invalid("machine", "is no guest of this simulator: %v", err)
	}
	return h.withDomain(ctx, snapshot, func(d *domain, r *record) error {
		if r != nil && r.executing() {
			if r.Spec.Gen == spec.Gen && r.Spec.SpecRevision == spec.SpecRevision {
				return nil
			}
			return idle(r)
		}
		if err := plugins.RevertDisks(ctx, diskFiles{}, snapshot.Disks, snapshot.ID); err != nil {
			return err
		}
		if err := h.takeName(spec.Name, spec.ID); err != nil {
			return err
		}
		now := &record{Spec: state.Spec, State: api.InstanceRunning, Reason: "from snapshot", StartedAt: time.Now().UTC(), Memory: state.Memory}
		now.Spec.ID, now.Spec.Name, now.Spec.Gen, now.Spec.SpecRevision = spec.ID, spec.Name, spec.Gen, spec.SpecRevision
		if err := h.save(d, now, "restored"); err != nil {
			return err
		}
		h.wakeAtBoot(d, now)
		return nil
	})
}

// DeleteSnapshot implements plugins.Snapshotter.
func (h *Hypervisor) DeleteSnapshot(ctx context.Context, spec plugins.SnapshotSpec) error {
	return h.withDomain(ctx, spec, func(*domain, *record) error {
		return plugins.DropDisks(ctx, diskFiles{}, spec.Disks, spec.ID)
	})
}

// PruneSnapshots implements plugins.Snapshotter.
func (h *Hypervisor) PruneSnapshots(ctx context.Context, disks []plugins.DiskSpec, keep []string) error {
	if err := h.usable(ctx); err != nil {
		return err
	}
	return plugins.PruneDisks(ctx, diskFiles{}, disks, func(name string) bool { return uuid.Validate(name) == nil }, keep)
}

// Remember plays a guest that holds a text in its memory.
func (h *Hypervisor) Remember(id, text string) error {
	return h.alter(id, "written", func(r *record) *record {
		out := r.with(r.State, r.Reason)
		out.Memory = text
		return out
	})
}

// Memory is what the guest holds in its memory; empty unless it executes.
func (h *Hypervisor) Memory(id string) string {
	if d := h.find(id); d != nil {
		if r := d.record.Load(); r != nil && r.executing() {
			return r.Memory
		}
	}
	return ""
}

// SnapshotNames lists the snapshots within the disk at path.
func SnapshotNames(path string) ([]string, error) {
	return diskFiles{}.SnapshotNames(context.Background(), plugins.DiskSpec{Source: plugins.Source{Path: path}})
}

// TakeSnapshot plays a process that died after it had taken one within a disk.
func TakeSnapshot(path, name string) error {
	return diskFiles{}.TakeDisk(context.Background(), plugins.DiskSpec{Source: plugins.Source{Path: path, Format: api.FormatQCOW2}}, name)
}
