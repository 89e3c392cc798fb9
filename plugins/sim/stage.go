package sim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

var _ plugins.Stager = (*Storage)(nil)

// stage is an image that arrives in a pool, kept for real.
type stage struct {
	*plugins.Part
	s       *Storage
	pool    plugins.PoolSpec
	root    *os.Root
	image   plugins.ImageSpec
	stored  *plugins.Stored
	release func()
}

// StageImage implements plugins.Stager.
func (s *Storage) StageImage(ctx context.Context, pool plugins.PoolSpec, image plugins.ImageSpec) (plugins.Stage, error) {
	if err := errors.Join(checkID(image.ID), checkFormat(image.Format)); err != nil {
		return nil, err
	}
	if image.SizeBytes < 0 || image.SizeBytes > api.ImageSizeMax {
		return nil, api.Invalid("size_bytes", "is %d", image.SizeBytes).Allow("0 to %d", api.ImageSizeMax).On(api.KindImage, image.ID)
	}
	root, err := openPool(ctx, pool)
	if err != nil {
		return nil, err
	}
	st := &stage{s: s, pool: pool, root: root, image: image, release: s.makes.lock(pool.Path, image.ID)}
	found, err := findImage(root, pool, image.ID)
	if err == nil {
		st.stored = &found
		return st, nil
	}
	if api.CodeOf(err) == api.CodeNotFound {
		st.Part, err = plugins.OpenPart(ctx, root, imagesDir, image)
	}
	if err == nil && image.SizeBytes > 0 {
		err = s.checkSpace(ctx, pool, image.SizeBytes-st.Offset())
	}
	if err != nil {
		return nil, errors.Join(err, st.Close())
	}
	return st, nil
}

// StagedBytes implements plugins.Stager.
func (s *Storage) StagedBytes(ctx context.Context, pool plugins.PoolSpec, id string) (int64, error) {
	if err := checkID(id); err != nil {
		return 0, err
	}
	root, err := openPool(ctx, pool)
	if err != nil {
		return 0, err
	}
	defer func() { _ = root.Close() }()
	if found, err := findImage(root, pool, id); err == nil {
		return found.FileBytes, nil
	}
	info, err := root.Stat(plugins.PartName(imagesDir, id))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look for part of image %s: %w", id, err)
	}
	return info.Size(), nil
}

// Stored implements plugins.Stage.
func (st *stage) Stored() *plugins.Stored { return st.stored }

// Reserve implements plugins.Stage.
func (st *stage) Reserve(sizeBytes int64) error {
	return st.s.checkSpace(context.Background(), st.pool, sizeBytes-st.Offset())
}

// Commit implements plugins.Stage.
func (st *stage) Commit(context.Context) (plugins.Stored, error) {
	if _, err := st.Verify(); err != nil {
		return plugins.Stored{}, err
	}
	if err := st.root.Rename(st.Name(), filepath.Join(imagesDir, st.image.ID+"."+st.image.Format)); err != nil {
		return plugins.Stored{}, fmt.Errorf("store image %s: %w", st.image.ID, err)
	}
	if err := syncDir(st.root, imagesDir); err != nil {
		return plugins.Stored{}, err
	}
	st.Taken()
	return findImage(st.root, st.pool, st.image.ID)
}

// Close implements plugins.Stage.
func (st *stage) Close() error {
	var err error
	if st.Part != nil {
		err = st.Part.Close()
	}
	st.release()
	return errors.Join(err, st.root.Close())
}
