package dir

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

var _ plugins.Volumes = (*Storage)(nil)

// GrowVolume implements plugins.Volumes.
func (s *Storage) GrowVolume(ctx context.Context, spec plugins.PoolSpec, id string, sizeBytes int64) (plugins.Stored, error) {
	var none plugins.Stored
	if sizeBytes < 1 || sizeBytes > api.VolumeSizeMax {
		return none, api.Invalid("size_bytes", "is %d", sizeBytes).Allow("1 to %d", api.VolumeSizeMax).On(api.KindVolume, id)
	}
	p, err := openPool(ctx, spec)
	if err != nil {
		return none, err
	}
	defer p.close()
	release, err := s.makes.take(ctx, p.Path, id)
	if err != nil {
		return none, err
	}
	defer release()
	have, err := p.find(api.KindVolume, id)
	if err != nil || have.SizeBytes >= sizeBytes {
		return have, err
	}
	if err := p.checkSpace(volumeHead); err != nil {
		return none, err
	}
	sizeBytes = (sizeBytes + blockBytes - 1) / blockBytes * blockBytes
	// qemu-img honours the lock of a QEMU that has the file open.
	if err := s.run(ctx, "resize", "-q", "-f", have.Source.Format, have.Source.Path, strconv.FormatInt(sizeBytes, 10)); err != nil {
		return none, p.full(fmt.Errorf("grow volume %s: %w", id, err))
	}
	s.logger.Info("volume grown", "id", id, "pool", p.Name, "size_bytes", sizeBytes)
	return p.find(api.KindVolume, id)
}

// CloneVolume implements plugins.Volumes. The source's file becomes a base under
// another name, and the source goes on as an empty layer on it. A source whose
// layer is still empty gives its clones the base that it has.
func (s *Storage) CloneVolume(ctx context.Context, spec plugins.PoolSpec, source string, volume plugins.VolumeSpec) (plugins.Stored, error) {
	var none plugins.Stored
	if err := errors.Join(checkID(volume.ID), checkID(source)); err != nil {
		return none, err
	}
	if volume.Format != api.FormatQCOW2 || volume.ID == source {
		return none, api.Invalid("format", "is %q; a linked clone is another qcow2 volume", volume.Format).Allow(api.FormatQCOW2).On(api.KindVolume, volume.ID)
	}
	p, err := openPool(ctx, spec)
	if err != nil {
		return none, err
	}
	defer p.close()
	for _, id := range []string{min(volume.ID, source), max(volume.ID, source)} {
		release, err := s.makes.take(ctx, p.Path, id)
		if err != nil {
			return none, err
		}
		defer release()
	}
	if found, err := p.find(api.KindVolume, volume.ID); err == nil || api.CodeOf(err) != api.CodeNotFound {
		return found, err
	}
	unlock, err := p.lock(ctx, syscall.LOCK_EX)
	if err != nil {
		return none, err
	}
	defer unlock()
	from, err := p.find(api.KindVolume, source)
	if err != nil {
		return none, err
	}
	if volume.SizeBytes, err = cloneSize(volume, from); err != nil {
		return none, err
	}
	if err := p.checkSpace(2 * volumeHead); err != nil {
		return none, err
	}
	base, err := s.freeze(ctx, p, from)
	if err == nil {
		err = s.layer(ctx, p, base, volume.SizeBytes, func(name string) error {
			return p.publish(name, filepath.Join(volumesDir, volume.ID+"."+api.FormatQCOW2))
		})
	}
	if err != nil {
		return none, p.full(fmt.Errorf("clone volume %s: %w", source, err))
	}
	s.logger.Info("volume cloned", "id", volume.ID, "source", source, "pool", p.Name, "base", base)
	return p.find(api.KindVolume, volume.ID)
}

// cloneSize is the size of a clone.
func cloneSize(volume plugins.VolumeSpec, from plugins.Stored) (int64, error) {
	if volume.SizeBytes != 0 && volume.SizeBytes < from.SizeBytes {
		return 0, api.Invalid("size_bytes", "is %d, less than the source has", volume.SizeBytes).
			Allow("%d or more, or nothing for the source's own size", from.SizeBytes).On(api.KindVolume, volume.ID)
	}
	size := max(volume.SizeBytes, from.SizeBytes)
	if size > api.VolumeSizeMax {
		return 0, api.Invalid("size_bytes", "is %d", size).Allow("up to %d", api.VolumeSizeMax).On(api.KindVolume, volume.ID)
	}
	return (size + blockBytes - 1) / blockBytes * blockBytes, nil
}

// freeze returns the base that holds what the volume holds now. The caller has
// the pool's lock. Killed anywhere, it leaves the volume as it was, and at most
// a base that nobody names.
func (s *Storage) freeze(ctx context.Context, p *pool, volume plugins.Stored) (base string, err error) {
	if volume.Source.Format != api.FormatQCOW2 {
		return "", api.Errorf(api.CodeConflict, "is raw: it cannot share what it holds").On(api.KindVolume, volume.ID).Do("make a full clone")
	}
	name := filepath.Join(volumesDir, filepath.Base(volume.Source.Path))
	f, err := p.root.Open(name)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	head, err := readHead(f)
	if err != nil {
		return "", err
	}
	if head.snapshots > 0 {
		return "", api.Errorf(api.CodeConflict, "has snapshots, which a linked clone would take from it").On(api.KindVolume, volume.ID).
			Do("make a full clone, or delete the snapshots first")
	}
	under := p.backing(volume)
	if empty, err := head.empty(f); err != nil {
		return "", err
	} else if empty && strings.HasPrefix(under, basesDir+"/") {
		return under, nil
	}
	base = filepath.Join(basesDir, uuid.NewString()+"."+api.FormatQCOW2)
	if err := p.root.Link(name, base); err != nil {
		return "", err
	}
	if err := p.syncDir(basesDir); err != nil {
		return "", err
	}
	err = s.layer(ctx, p, base, volume.SizeBytes, func(temp string) error {
		if err := p.root.Rename(temp, name); err != nil {
			return err
		}
		return p.syncDir(volumesDir)
	})
	if err != nil {
		_ = p.root.Remove(base)
	}
	return base, err
}

// layer makes an empty volume on a base, and lets done give it its name.
func (s *Storage) layer(ctx context.Context, p *pool, base string, sizeBytes int64, done func(name string) error) error {
	name := temp(api.KindVolume, api.FormatQCOW2)
	err := s.run(ctx, "create", "-q", "-f", api.FormatQCOW2, "-b", filepath.Join("..", base), "-F", api.FormatQCOW2,
		filepath.Join(p.Path, name), strconv.FormatInt(sizeBytes, 10))
	if err == nil {
		err = p.root.Chmod(name, volumeMode)
	}
	if err == nil {
		err = done(name)
	}
	if err != nil {
		_ = p.root.Remove(name)
	}
	return err
}

// empty reports whether nothing was written since the file was made: no part of
// the disk has a table.
func (h *head) empty(r io.ReaderAt) (bool, error) {
	const entriesMax = 4 << 20 // of the largest volume; QEMU opens no larger table
	if h.l1Entries > entriesMax {
		return false, fmt.Errorf("a qcow2 file has a table of %d entries", h.l1Entries)
	}
	table := make([]byte, 8*h.l1Entries)
	if _, err := r.ReadAt(table, h.l1Offset); err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("read qcow2 table: %w", err)
	}
	for i := range h.l1Entries {
		if binary.BigEndian.Uint64(table[8*i:]) != 0 {
			return false, nil
		}
	}
	return true, nil
}

// backing is the file below a volume, named from the pool's root; empty: none.
func (p *pool) backing(volume plugins.Stored) string {
	return p.backingOf(filepath.Join(volumesDir, filepath.Base(volume.Source.Path)))
}

func (p *pool) backingOf(name string) string {
	if filepath.Ext(name) != "."+api.FormatQCOW2 {
		return ""
	}
	f, err := p.root.Open(name)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	head, err := readHead(f)
	if err != nil || head.backing == "" {
		return ""
	}
	return filepath.Join(filepath.Dir(name), head.backing)
}

// backings is every file that another one lies on, and the name of one that
// does.
func (p *pool) backings() (map[string]string, error) {
	out := map[string]string{}
	for _, dir := range []string{basesDir, volumesDir} {
		entries, err := fs.ReadDir(p.root.FS(), dir)
		if err != nil {
			return nil, fmt.Errorf("list pool %s: %w", p.Name, err)
		}
		for _, e := range entries {
			if under := p.backingOf(filepath.Join(dir, e.Name())); under != "" {
				out[under] = e.Name()
			}
		}
	}
	return out, nil
}

// sweep removes the bases that no volume needs any more.
func (p *pool) sweep(ctx context.Context) error {
	unlock, err := p.lock(ctx, syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	for again := true; again; { // a base may have been the last that lay on another
		again = false
		used, err := p.backings()
		if err != nil {
			return err
		}
		entries, err := fs.ReadDir(p.root.FS(), basesDir)
		if err != nil {
			return fmt.Errorf("list pool %s: %w", p.Name, err)
		}
		for _, e := range entries {
			name := filepath.Join(basesDir, e.Name())
			if _, needed := used[name]; needed {
				continue
			}
			if err := p.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove a base of pool %s: %w", p.Name, err)
			}
			again = true
		}
	}
	return p.syncDir(basesDir)
}

// CopyVolume implements plugins.Volumes.
func (s *Storage) CopyVolume(ctx context.Context, spec plugins.PoolSpec, volume plugins.VolumeSpec, from plugins.Stored, progress func(int)) (plugins.Stored, error) {
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
	if volume.SizeBytes, err = cloneSize(volume, from); err != nil {
		return none, err
	}
	need, err := s.measure(ctx, from.Source, volume.Format)
	if err != nil {
		return none, fmt.Errorf("measure volume %s: %w", from.ID, err)
	}
	if err := p.checkSpace(need); err != nil {
		return none, err
	}
	name := temp(api.KindVolume, volume.Format)
	err = s.copyInto(ctx, p, name, volume, from, progress)
	if err == nil {
		err = p.publish(name, filepath.Join(volumesDir, volume.ID+"."+volume.Format))
	}
	if err != nil {
		_ = p.root.Remove(name)
		return none, p.full(fmt.Errorf("copy volume %s: %w", from.ID, err))
	}
	s.logger.Info("volume copied", "id", volume.ID, "pool", p.Name, "from", from.Source.Path, "size_bytes", volume.SizeBytes)
	return p.find(api.KindVolume, volume.ID)
}

func (s *Storage) copyInto(ctx context.Context, p *pool, name string, volume plugins.VolumeSpec, from plugins.Stored, progress func(int)) error {
	f, err := p.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, volumeMode)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	path := filepath.Join(p.Path, name)
	err = s.runFor(ctx, copyTimeout, progress, "convert", "-p", "-f", from.Source.Format, "-O", volume.Format, from.Source.Path, path)
	if err != nil || volume.SizeBytes <= from.SizeBytes {
		return err
	}
	return s.run(ctx, "resize", "-q", "-f", volume.Format, path, strconv.FormatInt(volume.SizeBytes, 10))
}

// measure is how many bytes a copy takes.
func (s *Storage) measure(ctx context.Context, source plugins.Source, format string) (int64, error) {
	out, err := execute(ctx, inspectTimeout, nil, s.qemuImg, "measure", "--output=json", "-f", source.Format, "-O", format, source.Path)
	if err != nil {
		return 0, err
	}
	var answer struct {
		Required int64 `json:"required"`
	}
	if err := json.Unmarshal(out, &answer); err != nil {
		return 0, fmt.Errorf("read what qemu-img says: %w", err)
	}
	return answer.Required, nil
}
