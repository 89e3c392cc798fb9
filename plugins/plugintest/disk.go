package plugintest

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// DiskMachine is what checks of plugins.Disks need.
type DiskMachine struct {
	Hypervisor plugins.Hypervisor
	Disks      plugins.Disks
	Store      VolumeStore
	Here       plugins.PoolSpec
	There      plugins.PoolSpec
	Spec       plugins.DomainSpec                           // of a guest without disks
	Booted     func(t testing.TB, id string)                // blocks until the guest uses its disks
	Grown      func(t testing.TB, id string, bytes int64)   // fails unless the guest sees the disk so large
	Writes     func(t testing.TB, id string, text string)   // the guest writes to its disk, durably
	Reads      func(t testing.TB, at plugins.Source) string // first bytes of a disk; nil: no data is kept
}

const diskPatience = 2 * time.Minute

// Disks checks plugins.Disks on one machine, whose guest boots once: growing,
// copying, giving up and moving follow one another.
func Disks(t *testing.T, m DiskMachine) {
	disk := create(t, m.Store, m.Here, api.FormatQCOW2, 16*api.MiB)
	target := func() plugins.Stored {
		t.Helper()
		made, err := m.Store.CreateVolume(t.Context(), m.There, plugins.VolumeSpec{ID: disk.ID, Format: api.FormatQCOW2, SizeBytes: 32 * api.MiB})
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	spec := m.Spec
	spec.Disks = []plugins.DiskSpec{{Name: "data", Source: disk.Source, Bus: "virtio", Cache: "none"}}
	m.refuseStopped(t, spec.ID, disk.Source)
	if err := m.Hypervisor.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	m.Booted(t, spec.ID)

	m.grow(t, spec.ID, disk.Source)
	m.Writes(t, spec.ID, "one")

	to := target()
	m.begin(t, spec.ID, disk.Source, to.Source)
	elsewhere := create(t, m.Store, m.There, api.FormatQCOW2, 32*api.MiB)
	wantCode(t, m.Disks.CopyDisk(t.Context(), spec.ID, disk.Source, elsewhere.Source), api.CodeConflict, "a second copy of one disk")
	for range 2 {
		if err := m.Disks.CancelCopy(t.Context(), spec.ID, disk.Source, to.Source); err != nil {
			t.Fatalf("CancelCopy: %v", err)
		}
	}
	m.want(t, spec.ID, disk.Source, to.Source, plugins.DiskCopy{})
	wantCode(t, m.Disks.PivotDisk(t.Context(), spec.ID, disk.Source, to.Source), api.CodeConflict, "a pivot without a copy")
	if err := m.Store.DeleteVolume(t.Context(), m.There, disk.ID); err != nil {
		t.Fatal(err)
	}

	to = target()
	m.begin(t, spec.ID, disk.Source, to.Source)
	m.Writes(t, spec.ID, "two")
	for range 2 {
		if err := m.Disks.PivotDisk(t.Context(), spec.ID, disk.Source, to.Source); err != nil {
			t.Fatalf("PivotDisk: %v", err)
		}
	}
	m.want(t, spec.ID, disk.Source, to.Source, plugins.DiskCopy{Pivoted: true, Percent: 100})
	if err := m.Store.DeleteVolume(t.Context(), m.Here, disk.ID); err != nil {
		t.Fatal(err)
	}
	m.Writes(t, spec.ID, "three")
	if all, err := m.Hypervisor.Domains(t.Context()); err != nil || len(all) != 1 || len(all[0].Drift) > 0 {
		t.Errorf("after the move the guest is %+v, %v; want no drift", all, err)
	}
	if err := m.Hypervisor.Stop(t.Context(), spec.ID, 0); err != nil {
		t.Fatal(err)
	}
	if m.Reads != nil {
		if got := m.Reads(t, to.Source); got[:min(5, len(got))] != "three" {
			t.Errorf("the moved disk begins with %.20q, want what the guest wrote last", got)
		}
	}
	m.refuseStopped(t, spec.ID, to.Source)
}

func (m *DiskMachine) grow(t *testing.T, id string, disk plugins.Source) {
	t.Helper()
	for range 2 {
		if err := m.Disks.GrowDisk(t.Context(), id, disk, 32*api.MiB); err != nil {
			t.Fatalf("GrowDisk: %v", err)
		}
	}
	m.Grown(t, id, 32*api.MiB)
	if listed, err := m.Store.List(t.Context(), m.Here); err != nil || len(listed) != 1 || listed[0].SizeBytes != 32*api.MiB {
		t.Errorf("the volume is %+v, %v; want 32 MiB", listed, err)
	}
	if err := m.Disks.Unpause(t.Context(), id); err != nil {
		t.Errorf("Unpause of a guest that runs: %v", err)
	}
}

func (m *DiskMachine) refuseStopped(t *testing.T, id string, at plugins.Source) {
	t.Helper()
	other := plugins.Source{Path: at.Path + ".other", Format: at.Format}
	wantCode(t, m.Disks.GrowDisk(t.Context(), id, at, api.GiB), api.CodeNotFound, "GrowDisk of a guest that is off")
	wantCode(t, m.Disks.CopyDisk(t.Context(), id, at, other), api.CodeNotFound, "CopyDisk of a guest that is off")
	wantCode(t, m.Disks.PivotDisk(t.Context(), id, at, other), api.CodeNotFound, "PivotDisk of a guest that is off")
	wantCode(t, m.Disks.Unpause(t.Context(), id), api.CodeNotFound, "Unpause of a guest that is off")
	wantCode(t, m.Disks.CancelCopy(t.Context(), id, at, other), api.CodeNotFound, "CancelCopy of a guest that is off")
	_, err := m.Disks.DiskCopy(t.Context(), id, at, other)
	wantCode(t, err, api.CodeNotFound, "DiskCopy of a guest that is off")
	_, err = m.Disks.DiskCopy(t.Context(), uuid.NewString(), at, other)
	wantCode(t, err, api.CodeNotFound, "DiskCopy of an unknown guest")
}

// begin starts a copy, twice, and waits until it is complete.
func (m *DiskMachine) begin(t *testing.T, id string, from, to plugins.Source) {
	t.Helper()
	for range 2 {
		if err := m.Disks.CopyDisk(t.Context(), id, from, to); err != nil {
			t.Fatalf("CopyDisk: %v", err)
		}
	}
	deadline := time.After(diskPatience)
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for {
		c, err := m.Disks.DiskCopy(t.Context(), id, from, to)
		if err != nil || !c.Active || c.Pivoted || c.Percent < 0 || c.Percent > 100 {
			t.Fatalf("the copy is %+v, %v", c, err)
		}
		if c.Complete {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("the copy is not complete within %v: %+v", diskPatience, c)
		case <-poll.C:
		}
	}
}

func (m *DiskMachine) want(t *testing.T, id string, from, to plugins.Source, want plugins.DiskCopy) {
	t.Helper()
	if got, err := m.Disks.DiskCopy(t.Context(), id, from, to); err != nil || got != want {
		t.Errorf("the copy is %+v, %v; want %+v", got, err, want)
	}
}
