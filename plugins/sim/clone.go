package sim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

var _ plugins.Volumes = (*Storage)(nil)

// GrowVolume implements plugins.Volumes.
func (s *Storage) GrowVolume(ctx context.Context, pool plugins.PoolSpec, id string, sizeBytes int64) (plugins.Stored, error) {
	var none plugins.Stored
	if sizeBytes < 1 || sizeBytes > api.VolumeSizeMax {
		return none, api.Invalid("size_bytes", "is %d", sizeBytes).Allow("1 to %d", api.VolumeSizeMax).On(api.KindVolume, id)
	}
	if err := checkID(id); err != nil {
		return none, err
	}
	root, err := openPool(ctx, pool)
	if err != nil {
		return none, err
	}
	defer func() { _ = root.Close() }()
	defer s.makes.lock(pool.Path, id)()
	found, err := findVolume(root, pool, id)
	if err != nil || found.SizeBytes >= sizeBytes {
		return found, err
	}
	if err := s.checkSpace(ctx, pool, 0); err != nil {
		return none, err
	}
	record, err := readVolume(root, filepath.Base(found.Source.Path))
	if err != nil {
		return none, err
	}
	record.SizeBytes = sizeBytes
	if err := putVolume(root, record); err != nil {
		return none, err
	}
	return findVolume(root, pool, id)
}

// CloneVolume implements plugins.Volumes.
func (s *Storage) CloneVolume(ctx context.Context, pool plugins.PoolSpec, source string, volume plugins.VolumeSpec) (plugins.Stored, error) {
	if err := checkID(source); err != nil {
		return plugins.Stored{}, err
	}
	if volume.Format != api.FormatQCOW2 || volume.ID == source {
		return plugins.Stored{}, api.Invalid("format", "is %q; a linked clone is another qcow2 volume", volume.Format).Allow(api.FormatQCOW2)
	}
	root, err := openPool(ctx, pool)
	if err != nil {
		return plugins.Stored{}, err
	}
	defer func() { _ = root.Close() }()
	from, err := findVolume(root, pool, source)
	if err != nil {
		return plugins.Stored{}, err
	}
	if from.Source.Format != api.FormatQCOW2 {
		return plugins.Stored{}, api.Errorf(api.CodeConflict, "is raw: it cannot share what it holds").On(api.KindVolume, source).Do("make a full clone")
	}
	return s.duplicate(ctx, pool, volume, from, true)
}

// CopyVolume implements plugins.Volumes.
func (s *Storage) CopyVolume(ctx context.Context, pool plugins.PoolSpec, volume plugins.VolumeSpec, from plugins.Stored, progress func(int)) (plugins.Stored, error) {
	if _, err := os.Stat(from.Source.Path); err != nil {
		return plugins.Stored{}, fmt.Errorf("copy volume %s: %w", from.ID, err)
	}
	if progress != nil {
		progress(50)
	}
	return s.duplicate(ctx, pool, volume, from, false)
}

func (s *Storage) duplicate(ctx context.Context, pool plugins.PoolSpec, volume plugins.VolumeSpec, from plugins.Stored, linked bool) (plugins.Stored, error) {
	var none plugins.Stored
	if err := errors.Join(checkID(volume.ID), checkFormat(volume.Format)); err != nil {
		return none, err
	}
	root, err := openPool(ctx, pool)
	if err != nil {
		return none, err
	}
	defer func() { _ = root.Close() }()
	defer s.makes.lock(pool.Path, volume.ID)()
	if found, err := findVolume(root, pool, volume.ID); err == nil || api.CodeOf(err) != api.CodeNotFound {
		return found, err
	}
	size := max(volume.SizeBytes, from.SizeBytes)
	if volume.SizeBytes != 0 && volume.SizeBytes < from.SizeBytes || size > api.VolumeSizeMax {
		return none, api.Invalid("size_bytes", "is %d", volume.SizeBytes).Allow("%d to %d", from.SizeBytes, api.VolumeSizeMax).On(api.KindVolume, volume.ID)
	}
	if err := s.checkSpace(ctx, pool, 0); err != nil {
		return none, err
	}
	record := volumeRecord{Note: volumeNote, ID: volume.ID, Format: volume.Format, SizeBytes: size, Source: from.ID, Linked: linked}
	if record.Data, err = ReadVolume(from.Source.Path); err != nil {
		return none, err
	}
	if err := putVolume(root, record); err != nil {
		return none, err
	}
	return findVolume(root, pool, volume.ID)
}

// growFile makes the volume of a simulated guest's disk larger, by its path.
func growFile(path string, sizeBytes int64) error {
	return alterVolume(path, func(v *volumeRecord) error {
		v.SizeBytes = max(v.SizeBytes, sizeBytes)
		return nil
	})
}
