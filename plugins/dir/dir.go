// Package dir implements plugins.Storage on directories of this machine, or on
// one that several machines mount: PATH/images/ID.FORMAT and
// PATH/volumes/ID.FORMAT, and PATH/bases for what linked clones of a volume
// share. Volumes made from an image are qcow2 files whose
// backing file is named relative to them, so a pool can be moved as a whole.
//
// Bytes that come from outside are judged by plugins.InspectImage before
// qemu-img sees them, and qemu-img is always told the format.
package dir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// The layout of a pool.
const (
	imagesDir   = "images"
	volumesDir  = "volumes"
	basesDir    = "bases" // what linked clones share: once a volume, written by none since
	lockName    = ".lock"
	tempPrefix  = ".new-"
	leftoverAge = 24 * time.Hour        // an older temporary file belongs to nobody
	lockEvery   = 20 * time.Millisecond // pace of waiting for another machine
	dirMode     = fs.FileMode(0o711)    // QEMU may run as another user: it enters, it cannot list
	imageMode   = fs.FileMode(0o644)    // shared by the guests cloned from it, written by none
	volumeMode  = fs.FileMode(0o600)    // libvirt hands it to QEMU's user
	blockBytes  = 512                   // of what stat counts
	volumeHead  = int64(1 * api.MiB)    // what a new thin volume takes at most
	copyPiece   = 1 << 20               // bytes between two looks at the context
)

// Config has no required field.
type Config struct {
	QemuImg string       // path of qemu-img; empty: found in PATH
	Logger  hclog.Logger // nil: silent
}

// Storage keeps volumes and images in directories. It is safe for use from
// several goroutines and, on shared directories, from several machines.
type Storage struct {
	qemuImg string
	logger  hclog.Logger
	makes   locks
}

var _ plugins.Storage = (*Storage)(nil)

// Open looks for qemu-img. Without it the error is CodeUnavailable and names
// the package to install.
func Open(config Config) (*Storage, error) {
	s := &Storage{qemuImg: config.QemuImg, logger: config.Logger, makes: locks{held: map[string]*lock{}}}
	if s.logger == nil {
		s.logger = hclog.NewNullLogger()
	}
	if s.qemuImg == "" {
		path, err := exec.LookPath("qemu-img")
		if err != nil {
			return nil, api.Errorf(api.CodeUnavailable, "qemu-img is not installed").Do("install the Debian package qemu-utils")
		}
		s.qemuImg = path
	}
	return s, nil
}

// Status implements plugins.Storage.
func (s *Storage) Status(ctx context.Context, pool plugins.PoolSpec) (api.PoolStatus, error) {
	status := api.PoolStatus{Pool: pool.Name}
	p, err := openPool(ctx, pool)
	if err != nil {
		return status, err
	}
	defer p.close()
	for _, dir := range []string{imagesDir, volumesDir} {
		p.removeLeftovers(dir, s.logger)
	}
	status.TotalBytes, status.FreeBytes, err = p.measure()
	return status, err
}

// List implements plugins.Storage.
func (s *Storage) List(ctx context.Context, pool plugins.PoolSpec) ([]plugins.Stored, error) {
	p, err := openPool(ctx, pool)
	if err != nil {
		return nil, err
	}
	defer p.close()
	out := []plugins.Stored{}
	for _, kind := range []string{api.KindImage, api.KindVolume} {
		names, err := p.objects(kind)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			stored, err := p.describe(kind, name)
			if errors.Is(err, fs.ErrNotExist) {
				continue // removed since it was listed
			}
			if err != nil {
				return nil, err
			}
			out = append(out, stored)
		}
	}
	return out, nil
}

// pool is an opened pool. All access by name stays below its directory.
type pool struct {
	plugins.PoolSpec
	root *os.Root
}

func openPool(ctx context.Context, spec plugins.PoolSpec) (*pool, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(spec.Path) || filepath.Clean(spec.Path) != spec.Path || spec.Path == "/" {
		return nil, api.Invalid("path", "is %q", spec.Path).Allow("a clean absolute path below the root").On(api.KindPool, spec.Name)
	}
	if spec.Shared {
		if err := checkShared(spec); err != nil {
			return nil, err
		}
	}
	for _, dir := range []string{imagesDir, volumesDir, basesDir} {
		if err := os.MkdirAll(filepath.Join(spec.Path, dir), dirMode); err != nil {
			return nil, api.Errorf(api.CodeUnavailable, "its directory cannot be made: %v", err).On(api.KindPool, spec.Name).
				Do("mend the path on this node, or leave the node out of the pool's nodes")
		}
	}
	root, err := os.OpenRoot(spec.Path)
	if err != nil {
		return nil, fmt.Errorf("open pool %s: %w", spec.Name, err)
	}
	return &pool{PoolSpec: spec, root: root}, nil
}

func (p *pool) close() { _ = p.root.Close() }

// measure returns the size of the file system and what is free for us.
func (p *pool) measure() (total, free int64, err error) {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(p.Path, &stat); err != nil {
		return 0, 0, fmt.Errorf("measure pool %s: %w", p.Name, err)
	}
	return int64(stat.Blocks) * stat.Bsize, int64(stat.Bavail) * stat.Bsize, nil
}

// checkSpace refuses what would take the pool's reserve.
func (p *pool) checkSpace(need int64) error {
	_, free, err := p.measure()
	if err != nil {
		return err
	}
	if free-need < p.ReserveBytes {
		return api.Errorf(api.CodeLimit, "%s are free, %s are needed and %s are kept in reserve", api.FormatSize(free), api.FormatSize(need),
			api.FormatSize(p.ReserveBytes)).On(api.KindPool, p.Name).Do("free space, use another pool or lower reserve_bytes")
	}
	return nil
}

// full turns "no space left on device" into the error for people.
func (p *pool) full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || err != nil && strings.Contains(err.Error(), "No space left on device") {
		return api.Errorf(api.CodeLimit, "the file system is full").On(api.KindPool, p.Name).Do("free space or use another pool")
	}
	return err
}

func folder(kind string) string {
	if kind == api.KindImage {
		return imagesDir
	}
	return volumesDir
}

// objects lists the file names of one kind, ordered. Other files are none of ours.
func (p *pool) objects(kind string) ([]string, error) {
	entries, err := fs.ReadDir(p.root.FS(), folder(kind))
	if err != nil {
		return nil, fmt.Errorf("list pool %s: %w", p.Name, err)
	}
	var out []string
	for _, e := range entries {
		id, format, _ := strings.Cut(e.Name(), ".")
		if e.Type().IsRegular() && checkID(id) == nil && checkFormat(format) == nil {
			out = append(out, e.Name())
		}
	}
	slices.Sort(out)
	return out, nil
}

// find returns what is stored under the ID, in whatever format, or CodeNotFound.
func (p *pool) find(kind, id string) (plugins.Stored, error) {
	if err := checkID(id); err != nil {
		return plugins.Stored{}, err
	}
	for _, format := range []string{api.FormatQCOW2, api.FormatRaw} {
		stored, err := p.describe(kind, id+"."+format)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && stored.Damage != "" {
			return plugins.Stored{}, damaged(p.PoolSpec, stored)
		}
		return stored, err
	}
	return plugins.Stored{}, api.Errorf(api.CodeNotFound, "is not in pool %s of this node", p.Name).On(kind, id)
}

// describe tells what a file is; it is an error only when the file cannot be
// looked at.
func (p *pool) describe(kind, name string) (plugins.Stored, error) {
	id, format, _ := strings.Cut(name, ".")
	path := filepath.Join(folder(kind), name)
	f, err := p.root.Open(path)
	if err != nil {
		return plugins.Stored{}, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return plugins.Stored{}, fmt.Errorf("look at %s %s: %w", kind, id, err)
	}
	stored := plugins.Stored{
		Kind: kind, ID: id, SizeBytes: info.Size(), UsedBytes: info.Size(),
		Source: plugins.Source{Path: filepath.Join(p.Path, path), Format: format},
	}
	if kind == api.KindImage {
		stored.FileBytes = info.Size()
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		stored.UsedBytes = stat.Blocks * blockBytes
	}
	if format == api.FormatQCOW2 {
		head, err := readHead(f)
		if err != nil {
			stored.SizeBytes, stored.UsedBytes, stored.Damage = 0, 0, err.Error()
			return stored, nil
		}
		stored.SizeBytes = head.sizeBytes
	}
	return stored, nil
}

// publish gives a finished temporary file its name, durably. It never
// replaces: when another machine was faster, theirs stays and ours goes.
func (p *pool) publish(temp, name string) error {
	f, err := p.root.OpenFile(temp, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := p.root.Link(temp, name); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := p.root.Remove(temp); err != nil {
		return err
	}
	return p.syncDir(filepath.Dir(name))
}

func (p *pool) syncDir(name string) error {
	f, err := p.root.Open(name)
	if err != nil {
		return fmt.Errorf("sync pool %s: %w", p.Name, err)
	}
	return errors.Join(f.Sync(), f.Close())
}

func (p *pool) remove(kind, id string) error {
	for _, format := range []string{api.FormatQCOW2, api.FormatRaw} {
		err := p.root.Remove(filepath.Join(folder(kind), id+"."+format))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("delete %s %s: %w", kind, id, err)
		}
	}
	return p.syncDir(folder(kind))
}

// temp names a new temporary file in the folder of kind.
func temp(kind, format string) string {
	return filepath.Join(folder(kind), tempPrefix+uuid.NewString()+"."+format)
}

// removeLeftovers deletes what an interrupted process left long ago.
func (p *pool) removeLeftovers(dir string, logger hclog.Logger) {
	entries, err := fs.ReadDir(p.root.FS(), dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !strings.HasPrefix(e.Name(), tempPrefix) || time.Since(info.ModTime()) < leftoverAge {
			continue
		}
		if err := p.root.Remove(filepath.Join(dir, e.Name())); err == nil {
			logger.Info("leftover of an interrupted write removed", "pool", p.Name, "file", e.Name())
		}
	}
}

// lock takes the pool's lock, which other machines honour on a shared
// directory: shared while a clone is made, exclusive while an image goes.
func (p *pool) lock(ctx context.Context, how int) (release func(), err error) {
	f, err := p.root.OpenFile(lockName, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock pool %s: %w", p.Name, err)
	}
	tick := time.NewTicker(lockEvery)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock pool %s: %w", p.Name, err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
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

// locks hands out one lock per object whose waiters can give up.
type locks struct {
	mu   sync.Mutex // guards held
	held map[string]*lock
}

type lock struct {
	token chan struct{}
	users int
}

// take blocks until nobody else of this process works on the object, or ctx ends.
func (l *locks) take(ctx context.Context, pool, id string) (release func(), err error) {
	key := pool + "\x00" + id
	l.mu.Lock()
	k := l.held[key]
	if k == nil {
		k = &lock{token: make(chan struct{}, 1)}
		l.held[key] = k
	}
	k.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.held, key)
		}
	}
	select {
	case k.token <- struct{}{}:
		return func() { <-k.token; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
