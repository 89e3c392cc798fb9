package dir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// CreateVolume implements plugins.Storage. Volumes are thin: space is taken as
// the guest writes. A raw volume with an image is a copy, since raw cannot
// refer to another file.
func (s *Storage) CreateVolume(ctx context.Context, spec plugins.PoolSpec, volume plugins.VolumeSpec) (plugins.Stored, error) {
	var none plugins.Stored
	if err := errors.Join(checkID(volume.ID), checkFormat(volume.Format)); err != nil {
		return none, err
	}
	p, err := openPool(ctx, spec)
	if err != nil {
		return none, err
	}
	defer p.close()
	release, err := s.makes.take(ctx, p.Path, volume.ID)
	if err != nil {
		return none, err
	}
	defer release()
	if found, err := p.find(api.KindVolume, volume.ID); err == nil || api.CodeOf(err) != api.CodeNotFound {
		return found, err
	}
	unlock, err := p.lock(ctx, syscall.LOCK_SH)
	if err != nil {
		return none, err
	}
	defer unlock()
	image, err := p.base(&volume)
	if err != nil {
		return none, err
	}
	need := volumeHead
	if image != nil && volume.Format == api.FormatRaw {
		need = image.UsedBytes
	}
	if err := p.checkSpace(need); err != nil {
		return none, err
	}
	name := temp(api.KindVolume, volume.Format)
	err = s.fill(ctx, p, name, volume, image)
	if err == nil {
		err = p.root.Chmod(name, volumeMode)
	}
	if err == nil {
		err = p.publish(name, filepath.Join(volumesDir, volume.ID+"."+volume.Format))
	}
	if err != nil {
		_ = p.root.Remove(name)
		return none, p.full(fmt.Errorf("make volume %s: %w", volume.ID, err))
	}
	s.logger.Info("volume made", "id", volume.ID, "pool", p.Name, "size_bytes", volume.SizeBytes, "image", volume.Image)
	return p.find(api.KindVolume, volume.ID)
}

// base finds the image of the volume, if it has one, and settles the size.
func (p *pool) base(volume *plugins.VolumeSpec) (*plugins.Stored, error) {
	var image *plugins.Stored
	if volume.Image != "" {
		found, err := p.find(api.KindImage, volume.Image)
		if err != nil {
			return nil, err
		}
		image = &found
		virtual := (found.SizeBytes + blockBytes - 1) / blockBytes * blockBytes
		if volume.SizeBytes == 0 {
			volume.SizeBytes = virtual
		}
		if volume.SizeBytes < virtual {
			return nil, api.Invalid("size_bytes", "is %d, less than the image has", volume.SizeBytes).
				Allow("%d or more, or nothing for the image's own size", virtual).On(api.KindVolume, volume.ID)
		}
	}
	if volume.SizeBytes < 1 || volume.SizeBytes > api.VolumeSizeMax {
		return nil, api.Invalid("size_bytes", "is %d", volume.SizeBytes).Allow("1 to %d", api.VolumeSizeMax).On(api.KindVolume, volume.ID)
	}
	volume.SizeBytes = (volume.SizeBytes + blockBytes - 1) / blockBytes * blockBytes
	return image, nil
}

// fill writes the temporary file of a new volume.
func (s *Storage) fill(ctx context.Context, p *pool, name string, volume plugins.VolumeSpec, image *plugins.Stored) error {
	path, size := filepath.Join(p.Path, name), strconv.FormatInt(volume.SizeBytes, 10)
	if volume.Format == api.FormatRaw {
		if image != nil {
			if err := s.run(ctx, "convert", "-q", "-f", image.Source.Format, "-O", api.FormatRaw, image.Source.Path, path); err != nil {
				return err
			}
		}
		f, err := p.root.OpenFile(name, os.O_CREATE|os.O_RDWR, volumeMode)
		if err != nil {
			return err
		}
		return errors.Join(f.Truncate(volume.SizeBytes), f.Close())
	}
	args := []string{"create", "-q", "-f", api.FormatQCOW2}
	if image != nil {
		// Relative to the folder of the volume: the pool may move.
		backing := filepath.Join("..", imagesDir, filepath.Base(image.Source.Path))
		args = append(args, "-b", backing, "-F", image.Source.Format)
	}
	return s.run(ctx, append(args, path, size)...)
}

// DeleteVolume implements plugins.Storage.
func (s *Storage) DeleteVolume(ctx context.Context, spec plugins.PoolSpec, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	p, err := openPool(ctx, spec)
	if err != nil {
		return err
	}
	defer p.close()
	release, err := s.makes.take(ctx, p.Path, id)
	if err != nil {
		return err
	}
	defer release()
	volume, err := p.find(api.KindVolume, id)
	if api.CodeOf(err) == api.CodeNotFound {
		return nil
	}
	base := err == nil && strings.HasPrefix(p.backing(volume), basesDir+"/")
	if err := p.remove(api.KindVolume, id); err != nil || !base {
		return err
	}
	return p.sweep(ctx)
}
