package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// The folders of a pool.
const (
	imagesDir  = "images"
	volumesDir = "volumes"
)

// Storage simulates volumes; images are kept for real and checked. It
// implements plugins.Storage. The file of a volume holds a record that says
// so, not a disk. The file system is the only memory, so that several
// simulated machines can share a pool.
type Storage struct {
	logger interface{ Debug(string, ...any) }
	mu     sync.RWMutex // DeleteImage excludes the making of clones
	makes  keyed        // one maker per object
}

var _ plugins.Storage = (*Storage)(nil)

// volumeRecord is what a simulated volume's file holds.
type volumeRecord struct {
	Note      string `json:"note"`
	ID        string `json:"id"`
	Format    string `json:"format"`
	SizeBytes int64  `json:"size_bytes"`
	Image     string `json:"image,omitzero"`
	Source    string `json:"source,omitzero"` // ID of the volume that it was cloned or copied from
	Linked    bool   `json:"linked,omitzero"`

	Data      string           `json:"data,omitzero"` // what a test wrote, in place of a disk
	Snapshots []volumeSnapshot `json:"snapshots,omitzero"`
}

const volumeNote = "simulated volume of debvisor: no data is kept"

// OpenStorage opens the simulated storage. Pools say where they are, so
// Config.Dir holds nothing of it.
func OpenStorage(config Config) (*Storage, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Storage{logger: config.Logger}, nil
}

// Status implements plugins.Storage. The figures are those of the real file
// system below.
func (s *Storage) Status(ctx context.Context, pool plugins.PoolSpec) (api.PoolStatus, error) {
	root, err := openPool(ctx, pool)
	if err != nil {
		return api.PoolStatus{Pool: pool.Name}, err
	}
	defer func() { _ = root.Close() }()
	var fs syscall.Statfs_t
	if err := syscall.Statfs(pool.Path, &fs); err != nil {
		return api.PoolStatus{Pool: pool.Name}, fmt.Errorf("measure pool %s: %w", pool.Name, err)
	}
	return api.PoolStatus{Pool: pool.Name, TotalBytes: int64(fs.Blocks) * fs.Bsize, FreeBytes: int64(fs.Bavail) * fs.Bsize}, nil
}

// CreateVolume implements plugins.Storage.
func (s *Storage) CreateVolume(ctx context.Context, pool plugins.PoolSpec, volume plugins.VolumeSpec) (plugins.Stored, error) {
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
	s.mu.RLock()
	defer s.mu.RUnlock()
	size := volume.SizeBytes
	if volume.Image != "" {
		image, err := findImage(root, pool, volume.Image)
		if err != nil {
			return none, err
		}
		if size == 0 {
			size = image.SizeBytes
		} else if size < image.SizeBytes {
			return none, api.Invalid("size_bytes", "is %d, less than the image has", size).Allow("at least %d", image.SizeBytes)
		}
	}
	if size < 1 || size > api.VolumeSizeMax {
		return none, api.Invalid("size_bytes", "is %d", size).Allow("1 to %d", api.VolumeSizeMax)
	}
	if err := s.checkSpace(ctx, pool, 0); err != nil {
		return none, err
	}
	record := volumeRecord{Note: volumeNote, ID: volume.ID, Format: volume.Format, SizeBytes: size, Image: volume.Image}
	if err := putVolume(root, record); err != nil {
		return none, err
	}
	s.logger.Debug("simulated volume made", "id", volume.ID, "pool", pool.Name)
	return findVolume(root, pool, volume.ID)
}

// DeleteVolume implements plugins.Storage.
func (s *Storage) DeleteVolume(ctx context.Context, pool plugins.PoolSpec, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	root, err := openPool(ctx, pool)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	defer s.makes.lock(pool.Path, id)()
	return removeObject(root, volumesDir, id)
}

// ImportImage implements plugins.Storage.
func (s *Storage) ImportImage(ctx context.Context, pool plugins.PoolSpec, image plugins.ImageSpec, r io.Reader) (plugins.Stored, error) {
	var none plugins.Stored
	if err := errors.Join(checkID(image.ID), checkFormat(image.Format)); err != nil {
		return none, err
	}
	root, err := openPool(ctx, pool)
	if err != nil {
		return none, err
	}
	defer func() { _ = root.Close() }()
	defer s.makes.lock(pool.Path, image.ID)()
	if found, err := findImage(root, pool, image.ID); err == nil || api.CodeOf(err) != api.CodeNotFound {
		return found, err
	}
	if err := s.checkSpace(ctx, pool, image.SizeBytes); err != nil {
		return none, err
	}
	temp := filepath.Join(imagesDir, tempPrefix+uuid.NewString())
	if err := receive(ctx, root, temp, image, r); err != nil {
		_ = root.Remove(temp)
		return none, err
	}
	if err := root.Rename(temp, filepath.Join(imagesDir, image.ID+"."+image.Format)); err != nil {
		_ = root.Remove(temp)
		return none, fmt.Errorf("store image %s: %w", image.ID, err)
	}
	if err := syncDir(root, imagesDir); err != nil {
		return none, err
	}
	return findImage(root, pool, image.ID)
}

// OpenImage implements plugins.Storage.
func (s *Storage) OpenImage(ctx context.Context, pool plugins.PoolSpec, id string) (io.ReadCloser, error) {
	root, err := openPool(ctx, pool)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	image, err := findImage(root, pool, id)
	if err != nil {
		return nil, err
	}
	f, err := root.Open(filepath.Join(imagesDir, filepath.Base(image.Source.Path)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, missing(api.KindImage, id)
	}
	if err != nil {
		return nil, fmt.Errorf("open image %s: %w", id, err)
	}
	return f, nil
}

// DeleteImage implements plugins.Storage.
func (s *Storage) DeleteImage(ctx context.Context, pool plugins.PoolSpec, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	root, err := openPool(ctx, pool)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	defer s.makes.lock(pool.Path, id)()
	s.mu.Lock()
	defer s.mu.Unlock()
	names, err := objects(root, volumesDir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if v, err := readVolume(root, name); err == nil && v.Image == id {
			return api.Errorf(api.CodeConflict, "volume %s is a linked clone of it", v.ID).On(api.KindImage, id).Do("delete that volume first")
		}
	}
	return removeObject(root, imagesDir, id)
}

// List implements plugins.Storage.
func (s *Storage) List(ctx context.Context, pool plugins.PoolSpec) ([]plugins.Stored, error) {
	root, err := openPool(ctx, pool)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	var out []plugins.Stored
	for _, kind := range []struct {
		kind, dir string
		find      func(*os.Root, plugins.PoolSpec, string) (plugins.Stored, error)
	}{{api.KindImage, imagesDir, findImage}, {api.KindVolume, volumesDir, findVolume}} {
		names, err := objects(root, kind.dir)
		if err != nil {
			return nil, err
		}
		slices.Sort(names)
		for _, name := range names {
			id, format, _ := strings.Cut(name, ".")
			stored, err := kind.find(root, pool, id)
			if api.CodeOf(err) == api.CodeNotFound {
				continue // removed since it was listed
			}
			if err != nil {
				source := plugins.Source{Path: filepath.Join(pool.Path, kind.dir, name), Format: format}
				stored = plugins.Stored{Kind: kind.kind, ID: id, Source: source, Damage: err.Error()}
			}
			out = append(out, stored)
		}
	}
	return out, ctx.Err()
}

func (s *Storage) checkSpace(ctx context.Context, pool plugins.PoolSpec, need int64) error {
	status, err := s.Status(ctx, pool)
	if err != nil {
		return err
	}
	if status.FreeBytes-need < pool.ReserveBytes {
		return api.Errorf(api.CodeLimit, "%s are free, %s needed, and %s are kept in reserve", api.FormatSize(status.FreeBytes),
			api.FormatSize(need), api.FormatSize(pool.ReserveBytes)).On(api.KindPool, pool.Name).Do("free space, or lower reserve_bytes")
	}
	return nil
}
