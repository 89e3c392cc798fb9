package plugins

import (
	"context"

	"github.com/debvisor/debvisor/api"
)

// Volumes works on volumes that a Storage has made. Nobody writes to the
// volume, or to the one that is read, during a call: the caller sees to it.
type Volumes interface {
	// GrowVolume makes the volume at least that large, for guests that do not
	// execute; Disks does it for others. A volume that is as large is found; an
	// unknown one is CodeNotFound, a pool without room CodeLimit.
	GrowVolume(ctx context.Context, pool PoolSpec, id string, sizeBytes int64) (Stored, error)

	// CloneVolume makes the volume as a linked clone of source in the same pool, or
	// finds the one of that ID. What source held is from then on kept where
	// neither changes it, for as long as one of them needs it. A size of zero is
	// the source's; a smaller one is CodeInvalid.
	CloneVolume(ctx context.Context, pool PoolSpec, source string, volume VolumeSpec) (Stored, error)

	// CopyVolume makes the volume with everything that from holds, or finds the one
	// of that ID. It appears when it is complete; an interrupted copy leaves
	// nothing. progress, unless nil, is called now and then with 0 to 100.
	CopyVolume(ctx context.Context, pool PoolSpec, volume VolumeSpec, from Stored, progress func(percent int)) (Stored, error)
}

// Disks changes the disks of guests that execute. A disk is named by the
// source that its bytes come from. A guest that does not execute, or has no such
// disk, is CodeNotFound.
type Disks interface {
	// GrowDisk makes the volume below the disk that large and tells the guest. One
	// that is as large already is no error.
	GrowDisk(ctx context.Context, id string, disk Source, sizeBytes int64) error

	// CopyDisk starts to copy the disk to another source of the same size, which
	// exists. From when the copy is complete on, each write of the guest goes to
	// both before the guest is told that it is done. It goes on by itself; the same
	// copy under way is no error, another one of the disk is CodeConflict.
	CopyDisk(ctx context.Context, id string, from, to Source) error

	// DiskCopy tells how far the copy is, and which of both the guest uses.
	DiskCopy(ctx context.Context, id string, from, to Source) (DiskCopy, error)

	// PivotDisk makes the guest use the complete copy only. One that uses it
	// already is no error; a copy that is not complete is CodeConflict.
	PivotDisk(ctx context.Context, id string, from, to Source) error

	// Unpause lets a guest go on that was paused because its storage failed. One
	// that is paused for another reason, or runs, is left alone and no error.
	Unpause(ctx context.Context, id string) error

	// CancelCopy ends a copy; the guest goes on with the source that it had. No
	// copy is no error.
	CancelCopy(ctx context.Context, id string, from, to Source) error
}

// DiskCopy is a copy of a disk under a guest.
type DiskCopy struct {
	Active   bool // it goes on: until it is complete, and while both are kept equal
	Complete bool // both are equal
	Pivoted  bool // the guest uses the copy; neither of the others is true
	Percent  int  // 0 to 100
}

// MissingDisk is the error for a guest that does not execute with such a disk.
func MissingDisk(id string) error {
	return api.Errorf(api.CodeNotFound, "the guest does not execute with such a disk").On(api.KindVM, id)
}
