package dir

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// makeLook is how often the growing file of an image is looked at.
const makeLook = time.Second

var _ plugins.Templates = (*Storage)(nil)

// MakeImage implements plugins.Templates.
func (s *Storage) MakeImage(ctx context.Context, spec plugins.PoolSpec, volumeID, imageID string, progress func(int)) (plugins.MadeImage, error) {
	var none plugins.MadeImage
	if err := errors.Join(checkID(volumeID), checkID(imageID)); err != nil {
		return none, err
	}
	p, err := openPool(ctx, spec)
	if err != nil {
		return none, err
	}
	defer p.close()
	release, err := s.makes.take(ctx, p.Path, imageID)
	if err != nil {
		return none, err
	}
	defer release()
	found, err := p.find(api.KindImage, imageID)
	if api.CodeOf(err) == api.CodeNotFound {
		err = s.flatten(ctx, p, volumeID, imageID, progress)
		if err == nil {
			found, err = p.find(api.KindImage, imageID)
		}
	}
	if err != nil {
		return none, err
	}
	sum, err := p.checksum(ctx, found)
	return plugins.MadeImage{Stored: found, SHA256: sum}, err
}

// flatten writes everything that the volume and its image hold into one file.
func (s *Storage) flatten(ctx context.Context, p *pool, volumeID, imageID string, progress func(int)) error {
	unlock, err := p.lock(ctx, syscall.LOCK_SH) // nobody deletes the volume's image meanwhile
	if err != nil {
		return err
	}
	defer unlock()
	volume, err := p.find(api.KindVolume, volumeID)
	if err != nil {
		return err
	}
	need := volume.UsedBytes + p.backingBytes(volume)
	if err := p.checkSpace(need); err != nil {
		return err
	}
	name := temp(api.KindImage, api.FormatQCOW2)
	stop := p.watchGrowth(name, need, progress)
	err = s.run(ctx, "convert", "-q", "-f", volume.Source.Format, "-O", api.FormatQCOW2, volume.Source.Path, filepath.Join(p.Path, name))
	stop()
	if err == nil {
		err = p.root.Chmod(name, imageMode)
	}
	if err == nil {
		err = p.publish(name, filepath.Join(imagesDir, imageID+"."+api.FormatQCOW2))
	}
	if err != nil {
		_ = p.root.Remove(name)
		return p.full(fmt.Errorf("make image %s: %w", imageID, err))
	}
	s.logger.Info("image made of a volume", "id", imageID, "volume", volumeID, "pool", p.Name)
	return nil
}

// backingBytes is what the image behind a volume takes; 0 without one.
func (p *pool) backingBytes(volume plugins.Stored) int64 {
	f, err := p.root.Open(filepath.Join(volumesDir, filepath.Base(volume.Source.Path)))
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }()
	head, err := readHead(f)
	if err != nil || head.backing == "" {
		return 0
	}
	info, err := p.root.Stat(filepath.Join(imagesDir, filepath.Base(head.backing)))
	if err != nil {
		return 0
	}
	return info.Size()
}

// watchGrowth tells how much of about that many bytes a file has, until stop.
func (p *pool) watchGrowth(name string, about int64, progress func(int)) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(makeLook)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			if info, err := p.root.Stat(name); err == nil {
				if stat, ok := info.Sys().(*syscall.Stat_t); ok {
					progress(int(min(99, 100*stat.Blocks*blockBytes/max(about, 1))))
				}
			}
		}
	}()
	return func() { close(done); <-ended }
}

func (p *pool) checksum(ctx context.Context, image plugins.Stored) (string, error) {
	f, err := p.root.OpenFile(filepath.Join(imagesDir, filepath.Base(image.Source.Path)), os.O_RDONLY, 0)
	if err != nil {
		return "", fmt.Errorf("read image %s: %w", image.ID, err)
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	if _, err := copyWhile(ctx, sum, f); err != nil {
		return "", fmt.Errorf("read image %s: %w", image.ID, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
