package dir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

var _ plugins.Stager = (*Storage)(nil)

// stage is an image that arrives in a pool. It has the pool open and the
// image's lock.
type stage struct {
	*plugins.Part
	s       *Storage
	pool    *pool
	image   plugins.ImageSpec
	stored  *plugins.Stored
	release func()
}

// StageImage implements plugins.Stager.
func (s *Storage) StageImage(ctx context.Context, spec plugins.PoolSpec, image plugins.ImageSpec) (plugins.Stage, error) {
	if err := errors.Join(checkID(image.ID), checkFormat(image.Format)); err != nil {
		return nil, err
	}
	if image.SizeBytes < 0 || image.SizeBytes > api.ImageSizeMax {
		return nil, api.Invalid("size_bytes", "is %d", image.SizeBytes).Allow("0 to %d", api.ImageSizeMax).On(api.KindImage, image.ID)
	}
	p, err := openPool(ctx, spec)
	if err != nil {
		return nil, err
	}
	release, err := s.makes.take(ctx, p.Path, image.ID)
	if err != nil {
		p.close()
		return nil, err
	}
	st := &stage{s: s, pool: p, image: image, release: release}
	found, err := p.find(api.KindImage, image.ID)
	if err == nil {
		st.stored = &found
		return st, nil
	}
	if api.CodeOf(err) == api.CodeNotFound {
		st.Part, err = plugins.OpenPart(ctx, p.root, imagesDir, image)
	}
	if err == nil && image.SizeBytes > 0 {
		err = st.Reserve(image.SizeBytes)
	}
	if err != nil {
		return nil, errors.Join(err, st.Close())
	}
	return st, nil
}

// StagedBytes implements plugins.Stager.
func (s *Storage) StagedBytes(ctx context.Context, spec plugins.PoolSpec, id string) (int64, error) {
	if err := checkID(id); err != nil {
		return 0, err
	}
	p, err := openPool(ctx, spec)
	if err != nil {
		return 0, err
	}
	defer p.close()
	if found, err := p.find(api.KindImage, id); err == nil {
		return found.FileBytes, nil
	}
	info, err := p.root.Stat(plugins.PartName(imagesDir, id))
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
func (st *stage) Reserve(sizeBytes int64) error { return st.pool.checkSpace(sizeBytes - st.Offset()) }

// Write implements plugins.Stage.
func (st *stage) Write(b []byte) (int, error) {
	n, err := st.Part.Write(b)
	return n, st.pool.full(err)
}

// Commit implements plugins.Stage.
func (st *stage) Commit(ctx context.Context) (plugins.Stored, error) {
	virtual, err := st.Verify()
	if err == nil && st.image.Format == api.FormatQCOW2 {
		err = st.s.compare(ctx, filepath.Join(st.pool.Path, st.Name()), virtual)
		if api.CodeOf(err) == api.CodeInvalid {
			st.Discard()
		}
	}
	if err == nil {
		err = st.pool.root.Chmod(st.Name(), imageMode)
	}
	if err == nil {
		err = st.pool.publish(st.Name(), filepath.Join(imagesDir, st.image.ID+"."+st.image.Format))
	}
	if e, ok := errors.AsType[*api.Error](err); ok {
		return plugins.Stored{}, e.On(api.KindImage, st.image.ID)
	}
	if err != nil {
		return plugins.Stored{}, st.pool.full(fmt.Errorf("store image %s: %w", st.image.ID, err))
	}
	st.Taken()
	st.s.logger.Info("image stored", "id", st.image.ID, "pool", st.pool.Name, "size_bytes", st.Offset())
	return st.pool.find(api.KindImage, st.image.ID)
}

// Close implements plugins.Stage.
func (st *stage) Close() error {
	var err error
	if st.Part != nil {
		err = st.Part.Close()
	}
	st.pool.close()
	st.release()
	return err
}
