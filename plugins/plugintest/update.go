package plugintest

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// Updates is one adapter under test and the machine below it.
type Updates struct {
	// Open opens the adapter as both of its contracts.
	Open func(t testing.TB) (plugins.Hypervisor, plugins.Updater)
	// Spec describes a guest with a disk named root, one CPU of at most three,
	// memory that may grow by at least 32 MiB, a drive for discs named cd and no
	// interface, which prints Ready on its console when it has booted.
	Spec  func(t testing.TB) plugins.DomainSpec
	Ready string
	// Source is a further empty disk, or a disc.
	Source func(t testing.TB, name string) plugins.Source
	// Bridges are two networks of the machine.
	Bridges [2]string
	// Seen checks what the guest itself sees after a change: how many disks beside
	// root and how many interfaces it has. Nil: nothing sees it.
	Seen func(t testing.TB, h plugins.Hypervisor, id string, disks, nics int)
}

// Updater checks one adapter with one guest, which goes through all changes in
// turn.
func Updater(t *testing.T, m Updates) {
	s := &updateSuite{Updates: m}
	s.h, s.u = m.Open(t)
	t.Cleanup(func() { _ = s.h.Close() })
	s.refusals(t)
	s.spec = m.Spec(t)
	s.spec.Gen, s.spec.SpecRevision = 7, 42
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if err := errors.Join(s.h.Stop(ctx, s.spec.ID, 0), s.h.Remove(ctx, s.spec.ID)); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	if err := s.h.Start(t.Context(), s.spec); err != nil {
		t.Fatal(err)
	}
	(&hypervisorSuite{Hypervisors{Ready: m.Ready}}).awaitReady(t, s.h, s.spec.ID)
	s.started = *find(t, s.h, s.spec.ID)
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"AnEditThatChangesNothingIsRecorded", s.nothing},
		{"DisksComeAndGo", s.disks},
		{"TheBootDiskStays", s.bootDisk},
		{"LimitsOfDisksMove", s.limits},
		{"InterfacesComeGoAndMove", s.nics},
		{"DiscsComeAndGo", s.discs},
		{"CPUsAreAdded", s.cpus},
		{"MemoryMoves", s.memory},
		{"WhatLastsWaitsForTheNextStart", s.lasting},
		{"AMissingFileChangesNothing", s.missingFile},
		{"TheNextStartEndsTheWait", s.nextStart},
	} {
		if !t.Run(test.name, test.run) {
			return
		}
	}
}

type updateSuite struct {
	Updates
	h       plugins.Hypervisor
	u       plugins.Updater
	spec    plugins.DomainSpec
	started plugins.Domain
}

// update gives the guest the spec under a new revision, and calls again until
// the guest has done its part.
func (s *updateSuite) update(t *testing.T) *plugins.Domain {
	t.Helper()
	s.spec.SpecRevision++
	var last error
	d := await(t, s.h, s.spec.ID, "updated", func(d *plugins.Domain) bool {
		if d != nil && d.SpecRevision == s.spec.SpecRevision && !d.Unsettled {
			return true
		}
		last = s.u.Update(t.Context(), s.spec)
		return last != nil
	})
	if last != nil {
		t.Fatalf("Update: %v", last)
	}
	if !d.StartedAt.Equal(s.started.StartedAt) || d.Gen != s.spec.Gen || d.State != api.InstanceRunning {
		t.Errorf("the guest is another one: %+v, was %+v", d, s.started)
	}
	if len(d.Drift) > 0 {
		t.Errorf("an update shows as drift: %q", d.Drift)
	}
	return d
}

// settled is update, after which nothing may wait.
func (s *updateSuite) settled(t *testing.T, what string) {
	t.Helper()
	if d := s.update(t); len(d.Pending) > 0 || d.Holding {
		t.Errorf("%s: got pending %q, holding %v, want neither", what, d.Pending, d.Holding)
	}
}

// waits is update, after which exactly one edit waits whose text begins so.
func (s *updateSuite) waits(t *testing.T, what, prefix string) *plugins.Domain {
	t.Helper()
	d := s.update(t)
	if len(d.Pending) != 1 || !strings.HasPrefix(d.Pending[0], prefix) || !strings.Contains(d.Pending[0], "at the next start") {
		t.Errorf("%s: got pending %q, want one that begins with %q and says when", what, d.Pending, prefix)
	}
	return d
}

func (s *updateSuite) seen(t *testing.T, disks, nics int) {
	t.Helper()
	if s.Seen != nil {
		s.Seen(t, s.h, s.spec.ID, disks, nics)
	}
}

func (s *updateSuite) refusals(t *testing.T) {
	spec := s.Spec(t)
	wantCode(t, s.u.Update(t.Context(), spec), api.CodeNotFound, "Update of an unknown domain")
	bad := spec
	bad.ID = "../../etc"
	wantCode(t, s.u.Update(t.Context(), bad), api.CodeInvalid, "Update of a path")
	bad = spec
	bad.ClusterID = uuid.NewString()
	wantCode(t, s.u.Update(t.Context(), bad), api.CodeInvalid, "Update of another cluster's domain")
}

func (s *updateSuite) nothing(t *testing.T) {
	other := s.spec
	other.Gen++
	wantCode(t, s.u.Update(t.Context(), other), api.CodeConflict, "Update with another gen")
	s.settled(t, "a new revision")
}

func (s *updateSuite) disks(t *testing.T) {
	root := s.spec.Disks
	virtio := plugins.DiskSpec{Name: "data", Source: s.Source(t, "data"), Serial: "data-1"}
	scsi := plugins.DiskSpec{Name: "more", Source: s.Source(t, "more"), Bus: "scsi", Cache: "writeback"}
	s.spec.Disks = append(root[:1:1], virtio, scsi)
	s.settled(t, "two disks more")
	s.seen(t, 2, 0)
	if err := s.u.Update(t.Context(), s.spec); err != nil {
		t.Errorf("the same update again: %v", err)
	}
	s.spec.Disks = append(root[:1:1], scsi)
	s.settled(t, "the first of them gone")
	s.seen(t, 1, 0)
	moved := scsi
	moved.Source = s.Source(t, "other")
	s.spec.Disks = append(root[:1:1], moved)
	s.settled(t, "another volume under the same name")
	s.seen(t, 1, 0)
	changed := moved
	changed.Cache = "writethrough"
	s.spec.Disks = append(root[:1:1], changed)
	s.waits(t, "another cache", "disks.more: ")
	s.spec.Disks = root[:1:1]
	s.settled(t, "no disk but root")
	s.seen(t, 0, 0)
}

func (s *updateSuite) bootDisk(t *testing.T) {
	root := s.spec.Disks
	s.spec.Disks = nil
	if d := s.waits(t, "no root", "disks.root: "); !d.Holding {
		t.Errorf("the guest lost the disk that it runs from: %+v", d)
	}
	s.spec.Disks = root
	s.settled(t, "root again")
}

func (s *updateSuite) limits(t *testing.T) {
	for _, l := range []api.IOLimits{{ReadIOPSMax: 100, WriteBytesPerSecondMax: api.MiB}, {ReadIOPSMax: 200}, {}} {
		disks := append(s.spec.Disks[:0:0], s.spec.Disks...)
		disks[0].Limits = l
		s.spec.Disks = disks
		s.settled(t, "other limits")
	}
}

func (s *updateSuite) nics(t *testing.T) {
	first := plugins.NICSpec{Bridge: s.Bridges[0], MAC: "52:54:00:00:00:01"}
	second := plugins.NICSpec{Bridge: s.Bridges[1], MAC: "52:54:00:00:00:02", LinkDown: true}
	for _, step := range []struct {
		what string
		nics []plugins.NICSpec
	}{
		{"one interface", []plugins.NICSpec{first}},
		{"another one, with its link down", []plugins.NICSpec{first, second}},
		{"the first on another network", []plugins.NICSpec{{Bridge: s.Bridges[1], MAC: first.MAC}, second}},
		{"links changed", []plugins.NICSpec{{Bridge: s.Bridges[1], MAC: first.MAC, LinkDown: true}, {Bridge: s.Bridges[1], MAC: second.MAC}}},
		{"none", nil},
	} {
		s.spec.NICs = step.nics
		s.settled(t, step.what)
		s.seen(t, 0, len(step.nics))
	}
}

func (s *updateSuite) discs(t *testing.T) {
	empty := s.spec.CDROMs
	for _, disc := range []string{"one.iso", "two.iso", ""} {
		drives := append(empty[:0:0], empty...)
		if drives[0].Source = (plugins.Source{}); disc != "" {
			drives[0].Source = s.Source(t, disc)
		}
		s.spec.CDROMs = drives
		s.settled(t, "disc "+disc)
	}
}

func (s *updateSuite) cpus(t *testing.T) {
	s.spec.CPUs = 3
	s.settled(t, "two CPUs more")
	s.spec.CPUs = 2
	s.waits(t, "a CPU less", "cpus: 2, the guest has 3")
	s.spec.CPUs = 3
	s.settled(t, "as many as it has")
}

func (s *updateSuite) memory(t *testing.T) {
	have := s.spec.MemoryBytes
	s.spec.MemoryBytes += 32 * api.MiB
	s.settled(t, "more memory")
	s.spec.MemoryBytes = have
	s.settled(t, "less memory")
	s.spec.MemoryBytes, s.spec.MemoryMaxBytes = s.spec.MemoryMaxBytes+64*api.MiB, 0
	if d := s.update(t); len(d.Pending) != 2 || !strings.HasPrefix(d.Pending[0], "memory_bytes: ") || !strings.HasPrefix(d.Pending[1], "memory_max_bytes: ") {
		t.Errorf("more memory than it can have: got pending %q", d.Pending)
	}
	s.spec.MemoryBytes, s.spec.MemoryMaxBytes = have, s.Spec(t).MemoryMaxBytes
	s.settled(t, "memory as before")
}

func (s *updateSuite) lasting(t *testing.T) {
	was := s.spec
	s.spec.NoRNG = true
	s.waits(t, "no random source", "rng: off, the guest has on")
	s.spec = was
	s.spec.SpecRevision += 10
	s.settled(t, "the random source again")
	s.spec.CDROMs = append(s.spec.CDROMs[:1:1], plugins.CDROMSpec{Name: "second"})
	s.update(t)
	s.spec.CDROMs = s.spec.CDROMs[:1:1]
	s.settled(t, "one drive again")
}

func (s *updateSuite) missingFile(t *testing.T) {
	was, disks := find(t, s.h, s.spec.ID), s.spec.Disks
	s.spec.Disks = append(disks[:1:1], plugins.DiskSpec{Name: "gone", Source: plugins.Source{Path: "/nonexistent/disk.raw", Format: api.FormatRaw}})
	s.spec.SpecRevision++
	wantCode(t, s.u.Update(t.Context(), s.spec), api.CodeNotFound, "Update with a disk that is not there")
	if d := find(t, s.h, s.spec.ID); d == nil || d.SpecRevision != was.SpecRevision {
		t.Errorf("an update that failed is recorded: %+v, was %+v", d, was)
	}
	s.spec.Disks = disks
}

func (s *updateSuite) nextStart(t *testing.T) {
	s.spec.CPUs, s.spec.NoRNG = 2, true
	if d := s.update(t); len(d.Pending) != 2 {
		t.Errorf("got pending %q, want the CPUs and the random source", d.Pending)
	}
	if err := s.h.Stop(t.Context(), s.spec.ID, 0); err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.u.Update(t.Context(), s.spec), api.CodeConflict, "Update of a stopped domain")
	if d := find(t, s.h, s.spec.ID); d == nil || len(d.Pending) > 0 || d.Unsettled || d.Holding {
		t.Errorf("a stopped guest waits for something: %+v", d)
	}
	if err := s.h.Start(t.Context(), s.spec); err != nil {
		t.Fatal(err)
	}
	(&hypervisorSuite{Hypervisors{Ready: s.Ready}}).awaitReady(t, s.h, s.spec.ID) // its balloon is full by then
	d := await(t, s.h, s.spec.ID, "without anything that waits", func(d *plugins.Domain) bool { return d != nil && len(d.Pending) == 0 })
	if len(d.Drift) > 0 || d.SpecRevision != s.spec.SpecRevision {
		t.Errorf("after the next start the guest is %+v", d)
	}
}
