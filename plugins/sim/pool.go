package sim

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// keyed hands out one lock per (pool, object). Its zero value is ready.
type keyed struct {
	mu    sync.Mutex // guards locks and their users
	locks map[string]*keyedLock
}

type keyedLock struct {
	mu    sync.Mutex
	users int
}

// lock blocks until nobody else holds that key and returns its release.
func (k *keyed) lock(pool, id string) func() {
	key := pool + "\x00" + id
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[string]*keyedLock{}
	}
	l := k.locks[key]
	if l == nil {
		l = &keyedLock{}
		k.locks[key] = l
	}
	l.users++
	k.mu.Unlock()
	l.mu.Lock()
	return func() {
		l.mu.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.locks, key)
		}
	}
}

// openPool makes the folders of the pool where they are missing.
func openPool(ctx context.Context, pool plugins.PoolSpec) (*os.Root, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(pool.Path) {
		return nil, api.Invalid("path", "is %q", pool.Path).Allow("an absolute directory").On(api.KindPool, pool.Name)
	}
	for _, dir := range []string{imagesDir, volumesDir} {
		if err := os.MkdirAll(filepath.Join(pool.Path, dir), 0o750); err != nil {
			return nil, api.Errorf(api.CodeUnavailable, "its directory cannot be made: %v", err).On(api.KindPool, pool.Name)
		}
	}
	root, err := os.OpenRoot(pool.Path)
	if err != nil {
		return nil, fmt.Errorf("open pool %s: %w", pool.Name, err)
	}
	return root, nil
}

func checkID(id string) error {
	if parsed, err := uuid.Parse(id); err != nil || parsed.String() != id {
		return api.Invalid("id", "is %q", id).Allow("a UUID in lower case")
	}
	return nil
}

func checkFormat(format string) error {
	if format != api.FormatQCOW2 && format != api.FormatRaw {
		return api.Invalid("format", "is %q", format).Allow("qcow2, raw")
	}
	return nil
}

func missing(kind, id string) error {
	return api.Errorf(api.CodeNotFound, "is not in this pool").On(kind, id)
}

// objects lists the files of a folder that are images or volumes.
func objects(root *os.Root, dir string) ([]string, error) {
	entries, err := fs.ReadDir(root.FS(), dir)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	var out []string
	for _, e := range entries {
		id, format, _ := strings.Cut(e.Name(), ".")
		if checkID(id) == nil && checkFormat(format) == nil {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

func removeObject(root *os.Root, dir, id string) error {
	for _, format := range []string{api.FormatQCOW2, api.FormatRaw} {
		err := root.Remove(filepath.Join(dir, id+"."+format))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("delete %s: %w", id, err)
		}
	}
	return syncDir(root, dir)
}

func findImage(root *os.Root, pool plugins.PoolSpec, id string) (plugins.Stored, error) {
	if err := checkID(id); err != nil {
		return plugins.Stored{}, err
	}
	for _, format := range []string{api.FormatQCOW2, api.FormatRaw} {
		name := filepath.Join(imagesDir, id+"."+format)
		f, err := root.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return plugins.Stored{}, fmt.Errorf("open image %s: %w", id, err)
		}
		defer func() { _ = f.Close() }()
		stat, err := f.Stat()
		if err != nil {
			return plugins.Stored{}, fmt.Errorf("open image %s: %w", id, err)
		}
		virtual, err := plugins.InspectImage(f, stat.Size(), format)
		if err != nil {
			return plugins.Stored{}, err
		}
		source := plugins.Source{Path: filepath.Join(pool.Path, name), Format: format}
		return plugins.Stored{Kind: api.KindImage, ID: id, Source: source, SizeBytes: virtual, UsedBytes: stat.Size(), FileBytes: stat.Size()}, nil
	}
	return plugins.Stored{}, missing(api.KindImage, id)
}

func findVolume(root *os.Root, pool plugins.PoolSpec, id string) (plugins.Stored, error) {
	for _, format := range []string{api.FormatQCOW2, api.FormatRaw} {
		name := id + "." + format
		v, err := readVolume(root, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return plugins.Stored{}, err
		}
		source := plugins.Source{Path: filepath.Join(pool.Path, volumesDir, name), Format: format}
		return plugins.Stored{Kind: api.KindVolume, ID: id, Source: source, SizeBytes: v.SizeBytes}, nil
	}
	return plugins.Stored{}, missing(api.KindVolume, id)
}

func readVolume(root *os.Root, name string) (volumeRecord, error) {
	var v volumeRecord
	raw, err := root.ReadFile(filepath.Join(volumesDir, name))
	if err != nil {
		return v, fmt.Errorf("read volume %s: %w", name, err)
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		return v, fmt.Errorf("simulated volume %s is damaged: %w", name, err)
	}
	return v, nil
}

func putVolume(root *os.Root, v volumeRecord) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode volume %s: %w", v.ID, err)
	}
	name := v.ID + "." + v.Format
	temp := filepath.Join(volumesDir, tempPrefix+name)
	err = writeSynced(root, temp, raw)
	if err == nil {
		err = root.Rename(temp, filepath.Join(volumesDir, name))
	}
	if err != nil {
		_ = root.Remove(temp)
		return fmt.Errorf("write volume %s: %w", v.ID, err)
	}
	return syncDir(root, volumesDir)
}

// receive writes the image to a temporary file and judges it.
func receive(ctx context.Context, root *os.Root, temp string, image plugins.ImageSpec, r io.Reader) error {
	f, err := root.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return fmt.Errorf("store image %s: %w", image.ID, err)
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), io.LimitReader(&contextReader{ctx, r}, image.SizeBytes+1))
	if err != nil {
		return fmt.Errorf("receive image %s: %w", image.ID, err)
	}
	if n != image.SizeBytes {
		found := fmt.Sprintf("%d bytes", n)
		if n > image.SizeBytes {
			found = "more"
		}
		return api.Invalid("size_bytes", "the image was to have %d bytes and has %s", image.SizeBytes, found).On(api.KindImage, image.ID)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != image.SHA256 {
		return api.Invalid("sha256", "the image was to have %s and has %s", image.SHA256, got).On(api.KindImage, image.ID)
	}
	if _, err := plugins.InspectImage(f, n, image.Format); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("store image %s: %w", image.ID, err)
	}
	return nil
}

// contextReader ends a copy when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
