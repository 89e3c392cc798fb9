package plugins

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/debvisor/debvisor/api"
)

// DiskSnapshots reaches the snapshots within single disks of a guest that does
// not execute. The functions below make them a Snapshotter's, for all disks or
// none, whatever a crash interrupts. Each method is durable when it returns.
type DiskSnapshots interface {
	// SnapshotNames lists them in the order in which they were taken.
	SnapshotNames(ctx context.Context, disk DiskSpec) ([]string, error)
	// TakeDisk adds one under a name that is free.
	TakeDisk(ctx context.Context, disk DiskSpec, name string) error
	// ApplyDisk makes the disk what it was at the snapshot, which stays.
	ApplyDisk(ctx context.Context, disk DiskSpec, name string) error
	// DropDisk removes one that is there.
	DropDisk(ctx context.Context, disk DiskSpec, name string) error
}

// revertName is the snapshot of each disk as it was before a revert. While the
// first disk has it, a revert is unfinished and all disks have it.
const revertName = "debvisor-revert"

// SnapshotDisks takes the snapshot of all disks, or of none. One that all disks
// have is found; one that some have is what an interrupted call left, and taken
// anew: the guest may have executed since.
func SnapshotDisks(ctx context.Context, d DiskSnapshots, disks []DiskSpec, id string) error {
	have, err := diskCount(ctx, d, disks, id)
	if err != nil || have == len(disks) {
		return err
	}
	if have > 0 {
		if err := DropDisks(ctx, d, disks, id); err != nil {
			return err
		}
	}
	for _, disk := range disks {
		if err := d.TakeDisk(ctx, disk, id); err != nil {
			return errors.Join(fmt.Errorf("snapshot disk %s: %w", disk.Name, err), DropDisks(context.WithoutCancel(ctx), d, disks, id))
		}
	}
	return nil
}

// DropDisks removes the snapshot of that name from each disk that has it.
func DropDisks(ctx context.Context, d DiskSnapshots, disks []DiskSpec, name string) error {
	var all []error
	for _, disk := range disks {
		names, err := d.SnapshotNames(ctx, disk)
		if err == nil && slices.Contains(names, name) {
			err = d.DropDisk(ctx, disk, name)
		}
		if err != nil {
			all = append(all, fmt.Errorf("delete snapshot of disk %s: %w", disk.Name, err))
		}
	}
	return errors.Join(all...)
}

// RevertDisks puts all disks back to the snapshot. After a failure they are as
// they were; an interrupted call is finished by the same call, or settled by
// SettleRevert.
func RevertDisks(ctx context.Context, d DiskSnapshots, disks []DiskSpec, id string) error {
	for _, disk := range disks {
		names, err := d.SnapshotNames(ctx, disk)
		if err != nil {
			return fmt.Errorf("look at disk %s: %w", disk.Name, err)
		}
		if !slices.Contains(names, id) {
			return api.Errorf(api.CodeNotFound, "disk %s does not have the snapshot", disk.Name).Do("delete the snapshot: it cannot be reverted to")
		}
	}
	begun, err := revertBegun(ctx, d, disks)
	if err != nil {
		return err
	}
	if !begun {
		if err := beginRevert(ctx, d, disks); err != nil {
			return err
		}
	}
	for _, disk := range disks {
		if err := d.ApplyDisk(ctx, disk, id); err != nil {
			return errors.Join(fmt.Errorf("put disk %s back: %w", disk.Name, err), SettleRevert(context.WithoutCancel(ctx), d, disks))
		}
	}
	return DropDisks(ctx, d, disks, revertName) // the first disk first: from then on the revert is done
}

// beginRevert keeps every disk as it is. The first disk comes last.
func beginRevert(ctx context.Context, d DiskSnapshots, disks []DiskSpec) error {
	if err := DropDisks(ctx, d, disks, revertName); err != nil { // what an interrupted beginning or end left
		return err
	}
	for _, disk := range slices.Backward(disks) {
		if err := d.TakeDisk(ctx, disk, revertName); err != nil {
			return errors.Join(fmt.Errorf("keep disk %s: %w", disk.Name, err), DropDisks(context.WithoutCancel(ctx), d, disks, revertName))
		}
	}
	return nil
}

func revertBegun(ctx context.Context, d DiskSnapshots, disks []DiskSpec) (bool, error) {
	if len(disks) == 0 {
		return false, nil
	}
	have, err := diskCount(ctx, d, disks[:1], revertName)
	return have > 0, err
}

// SettleRevert makes disks whole that an interrupted RevertDisks left: as
// before it, unless it had put back all of them.
func SettleRevert(ctx context.Context, d DiskSnapshots, disks []DiskSpec) error {
	begun, err := revertBegun(ctx, d, disks)
	if err != nil {
		return err
	}
	if begun {
		for _, disk := range disks {
			if err := d.ApplyDisk(ctx, disk, revertName); err != nil {
				return fmt.Errorf("put disk %s back to what it was before the revert: %w", disk.Name, err)
			}
		}
	}
	return DropDisks(ctx, d, disks, revertName)
}

// PruneDisks removes every snapshot that match says is debvisor's and that is
// not in keep.
func PruneDisks(ctx context.Context, d DiskSnapshots, disks []DiskSpec, match func(name string) bool, keep []string) error {
	var all []error
	for _, disk := range disks {
		names, err := d.SnapshotNames(ctx, disk)
		for _, name := range names {
			if err == nil && match(name) && !slices.Contains(keep, name) {
				err = d.DropDisk(ctx, disk, name)
			}
		}
		if err != nil {
			all = append(all, fmt.Errorf("prune disk %s: %w", disk.Name, err))
		}
	}
	return errors.Join(all...)
}

func diskCount(ctx context.Context, d DiskSnapshots, disks []DiskSpec, name string) (int, error) {
	have := 0
	for _, disk := range disks {
		names, err := d.SnapshotNames(ctx, disk)
		if err != nil {
			return 0, fmt.Errorf("look at disk %s: %w", disk.Name, err)
		}
		if slices.Contains(names, name) {
			have++
		}
	}
	return have, nil
}
