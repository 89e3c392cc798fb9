package plugins

import "context"

// Snapshotter keeps earlier states of a guest's disks, and of its memory. A
// snapshot lies within the disks themselves, under its ID. Only debvisor's
// snapshots, whose IDs are UUIDs, are touched. Calls about one guest do not
// overlap, nor with Start, Stop and Remove.
type Snapshotter interface {
	// Snapshot takes all disks of the guest at one instant, whether it executes
	// or not, or none of them: a failure leaves nothing behind. One that exists
	// whole already is found; what an interrupted call left is done anew. Memory
	// of a guest that does not execute is CodeConflict. The guest stands still
	// while its memory is written.
	Snapshot(ctx context.Context, spec SnapshotSpec) (SnapshotTaken, error)

	// RevertSnapshot puts the disks of a guest that does not execute (else
	// CodeConflict) back, all or none: after a failure they are as they were
	// before. An interrupted call is to be repeated, or undone by AbortRevert. A
	// disk without the snapshot is CodeNotFound.
	RevertSnapshot(ctx context.Context, spec SnapshotSpec) error

	// AbortRevert makes disks whole that an interrupted RevertSnapshot left: all
	// as before, or all put back. Where there is nothing to do it is no error.
	AbortRevert(ctx context.Context, spec SnapshotSpec) error

	// StartSnapshot starts the guest where it was when its memory was kept, on
	// disks that RevertSnapshot put back. domain gives what may have changed
	// since: name, gen, revision; what the guest sees is as it was, from
	// spec.Machine. A guest of that gen and revision that goes on already is left
	// alone. After a failure the guest does not execute.
	StartSnapshot(ctx context.Context, domain DomainSpec, spec SnapshotSpec) error

	// DeleteSnapshot removes it from the disks, whether the guest executes or
	// not. A disk without it is no error. Other snapshots are untouched.
	DeleteSnapshot(ctx context.Context, spec SnapshotSpec) error

	// PruneSnapshots removes from disks of a guest that does not execute every
	// snapshot of debvisor's whose ID is not in keep.
	PruneSnapshots(ctx context.Context, disks []DiskSpec, keep []string) error
}

// SnapshotSpec names a snapshot and the disks that it is about.
type SnapshotSpec struct {
	ID       string // UUID
	DomainID string // UUID of the guest
	Disks    []DiskSpec
	Memory   bool   // with the guest's memory
	Machine  string // StartSnapshot: what Snapshot returned
}

// SnapshotTaken tells of a snapshot that was taken.
type SnapshotTaken struct {
	MemoryBytes int64  // written for the memory
	Machine     string // the guest as the hypervisor describes it, with memory; at most api.SnapshotMachineMax bytes
}
