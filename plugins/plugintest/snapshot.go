package plugintest

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// Snapshotters is one adapter under test, with guests to play with.
type Snapshotters struct {
	// Open opens the adapter on the machine.
	Open func(t testing.TB) (plugins.Hypervisor, plugins.Snapshotter)
	// Spec describes a guest that boots without its two disks, which it may
	// write to and which are blank.
	Spec func(t testing.TB) plugins.DomainSpec
	// Await waits until the guest that was started has booted, or goes on.
	Await func(t testing.TB, h plugins.Hypervisor, id string)
	// Write lets the running guest write to the beginning of a disk, Read lets it
	// read that again. Remember and Recall do so with its memory.
	Write    func(t testing.TB, h plugins.Hypervisor, spec plugins.DomainSpec, disk int, text string)
	Read     func(t testing.TB, h plugins.Hypervisor, spec plugins.DomainSpec, disk int) string
	Remember func(t testing.TB, h plugins.Hypervisor, id, text string)
	Recall   func(t testing.TB, h plugins.Hypervisor, id string) string
	// Names lists the snapshots within a disk of a guest that does not execute.
	Names func(t testing.TB, disk plugins.DiskSpec) []string
}

// Snapshotter checks one adapter, with one guest that is started some times.
func Snapshotter(t *testing.T, m Snapshotters) {
	h, s := m.Open(t)
	t.Cleanup(func() { _ = h.Close() })
	r := &snapshotRun{Snapshotters: m, h: h, s: s, spec: m.Spec(t)}
	t.Cleanup(func() {
		_ = h.Stop(t.Context(), r.spec.ID, 0)
		_ = h.Remove(t.Context(), r.spec.ID)
	})
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"BadSpecsAreRefused", r.refusals},
		{"DisksOfAGuestThatIsOff", r.off},
		{"DisksOfARunningGuest", r.running},
		{"MemoryOfARunningGuest", r.memory},
		{"DeletedWhileTheGuestRuns", r.deleted},
		{"PrunedOfWhatIsNotKept", r.pruned},
	} {
		if !t.Run(step.name, step.run) {
			return // each goes on from the one before
		}
	}
}

type snapshotRun struct {
	Snapshotters
	h    plugins.Hypervisor
	s    plugins.Snapshotter
	spec plugins.DomainSpec

	off1, run1, mem1 plugins.SnapshotSpec
}

func (r *snapshotRun) of(memory bool) plugins.SnapshotSpec {
	return plugins.SnapshotSpec{ID: uuid.NewString(), DomainID: r.spec.ID, Disks: r.spec.Disks, Memory: memory}
}

func (r *snapshotRun) start(t *testing.T) {
	t.Helper()
	r.spec.Gen++
	if err := r.h.Start(t.Context(), r.spec); err != nil {
		t.Fatal(err)
	}
	r.Await(t, r.h, r.spec.ID)
}

func (r *snapshotRun) stop(t *testing.T) {
	t.Helper()
	if err := r.h.Stop(t.Context(), r.spec.ID, 0); err != nil {
		t.Fatal(err)
	}
}

func (r *snapshotRun) write(t *testing.T, text string) {
	t.Helper()
	for i := range r.spec.Disks {
		r.Write(t, r.h, r.spec, i, text)
	}
}

func (r *snapshotRun) want(t *testing.T, text string) {
	t.Helper()
	for i := range r.spec.Disks {
		if got := r.Read(t, r.h, r.spec, i); got != text {
			t.Errorf("disk %d holds %q, want %q", i, got, text)
		}
	}
}

func (r *snapshotRun) code(t *testing.T, what string, err error, want api.Code) {
	t.Helper()
	if api.CodeOf(err) != want {
		t.Errorf("%s: %v, want %q", what, err, want)
	}
}

func (r *snapshotRun) refusals(t *testing.T) {
	raw := r.of(false)
	raw.Disks = slices.Clone(raw.Disks)
	raw.Disks[1].Source.Format = api.FormatRaw
	_, err := r.s.Snapshot(t.Context(), raw)
	r.code(t, "a raw disk", err, api.CodeInvalid)
	unnamed := r.of(false)
	unnamed.ID = "one"
	_, err = r.s.Snapshot(t.Context(), unnamed)
	r.code(t, "an ID that is none", err, api.CodeInvalid)
	_, err = r.s.Snapshot(t.Context(), r.of(true))
	r.code(t, "memory of a guest that is off", err, api.CodeConflict)
	r.code(t, "a revert to what was never taken", r.s.RevertSnapshot(t.Context(), r.of(false)), api.CodeNotFound)
	r.code(t, "a deletion of what was never taken", r.s.DeleteSnapshot(t.Context(), r.of(false)), "")
	r.code(t, "an abort of nothing", r.s.AbortRevert(t.Context(), r.of(false)), "")
	missing := r.of(false)
	missing.Disks = slices.Clone(missing.Disks)
	missing.Disks[1].Source.Path += ".missing"
	if _, err := r.s.Snapshot(t.Context(), missing); err == nil {
		t.Error("a missing disk is snapshot")
	}
	if names := r.Names(t, r.spec.Disks[0]); len(names) != 0 {
		t.Errorf("what was refused left %v", names)
	}
}

func (r *snapshotRun) off(t *testing.T) {
	r.off1 = r.of(false)
	for range 2 { // found the second time
		if _, err := r.s.Snapshot(t.Context(), r.off1); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range r.spec.Disks {
		if names := r.Names(t, d); !slices.Equal(names, []string{r.off1.ID}) {
			t.Errorf("disk %s holds %v", d.Name, names)
		}
	}
}

func (r *snapshotRun) running(t *testing.T) {
	r.start(t)
	r.write(t, "old-text")
	r.run1 = r.of(false)
	for range 2 {
		begun := time.Now()
		if _, err := r.s.Snapshot(t.Context(), r.run1); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d disks were kept in %v", len(r.spec.Disks), time.Since(begun))
	}
	r.write(t, "new-text")
	r.code(t, "a revert under a running guest", r.s.RevertSnapshot(t.Context(), r.run1), api.CodeConflict)
	r.want(t, "new-text")
	r.stop(t)
	for range 2 { // again is no error
		if err := r.s.RevertSnapshot(t.Context(), r.run1); err != nil {
			t.Fatal(err)
		}
	}
	r.start(t)
	r.want(t, "old-text")
}

func (r *snapshotRun) memory(t *testing.T) {
	r.Remember(t, r.h, r.spec.ID, "old-thought")
	r.mem1 = r.of(true)
	begun := time.Now()
	taken, err := r.s.Snapshot(t.Context(), r.mem1)
	t.Logf("%s of memory were kept in %v", api.FormatSize(taken.MemoryBytes), time.Since(begun))
	if err != nil {
		t.Fatal(err)
	}
	if taken.MemoryBytes <= 0 || taken.Machine == "" || len(taken.Machine) > api.SnapshotMachineMax {
		t.Fatalf("taken: %d bytes of memory, %d of description", taken.MemoryBytes, len(taken.Machine))
	}
	r.mem1.Machine = taken.Machine
	r.Remember(t, r.h, r.spec.ID, "new-thought") // it goes on
	r.write(t, "new-text")
	r.stop(t)
	if err := r.s.RevertSnapshot(t.Context(), r.mem1); err != nil {
		t.Fatal(err)
	}
	r.spec.Gen++
	r.spec.SpecRevision = 77
	for range 2 {
		if err := r.s.StartSnapshot(t.Context(), r.spec, r.mem1); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.Recall(t, r.h, r.spec.ID); got != "old-thought" {
		t.Errorf("the guest recalls %q", got)
	}
	r.want(t, "old-text")
	all, err := r.h.Domains(t.Context())
	if err != nil || len(all) != 1 || all[0].Gen != r.spec.Gen || all[0].SpecRevision != 77 || all[0].State != api.InstanceRunning || len(all[0].Drift) > 0 {
		t.Errorf("the domain is %+v: %v", all, err)
	}
}

func (r *snapshotRun) deleted(t *testing.T) {
	for range 2 {
		if err := r.s.DeleteSnapshot(t.Context(), r.run1); err != nil {
			t.Fatal(err)
		}
	}
	r.want(t, "old-text")
	r.stop(t)
	r.code(t, "a revert to what was deleted", r.s.RevertSnapshot(t.Context(), r.run1), api.CodeNotFound)
	for _, d := range r.spec.Disks {
		if names := r.Names(t, d); !slices.Equal(names, []string{r.off1.ID, r.mem1.ID}) {
			t.Errorf("disk %s holds %v", d.Name, names)
		}
	}
}

func (r *snapshotRun) pruned(t *testing.T) {
	if err := r.s.PruneSnapshots(t.Context(), r.spec.Disks, []string{r.off1.ID}); err != nil {
		t.Fatal(err)
	}
	for _, d := range r.spec.Disks {
		if names := r.Names(t, d); !slices.Equal(names, []string{r.off1.ID}) {
			t.Errorf("disk %s holds %v", d.Name, names)
		}
	}
}
