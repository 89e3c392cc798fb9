package sim

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

var _ plugins.Templates = (*Storage)(nil)

// MakeImage implements plugins.Templates. A simulated volume holds nothing, so
// the image is an empty one of its size.
func (s *Storage) MakeImage(ctx context.Context, pool plugins.PoolSpec, volumeID, imageID string, progress func(int)) (plugins.MadeImage, error) {
	var none plugins.MadeImage
	if err := errors.Join(checkID(volumeID), checkID(imageID)); err != nil {
		return none, err
	}
	root, err := openPool(ctx, pool)
	if err != nil {
		return none, err
	}
	defer func() { _ = root.Close() }()
	defer s.makes.lock(pool.Path, imageID)()
	found, err := findImage(root, pool, imageID)
	if api.CodeOf(err) == api.CodeNotFound {
		volume, err := findVolume(root, pool, volumeID)
		if err != nil {
			return none, err
		}
		progress(50)
		temp := filepath.Join(imagesDir, tempPrefix+uuid.NewString())
		if err := writeSynced(root, temp, emptyQCOW2(volume.SizeBytes)); err != nil {
			return none, fmt.Errorf("make image %s: %w", imageID, err)
		}
		if err := root.Rename(temp, filepath.Join(imagesDir, imageID+"."+api.FormatQCOW2)); err != nil {
			return none, fmt.Errorf("make image %s: %w", imageID, err)
		}
		if err := syncDir(root, imagesDir); err != nil {
			return none, err
		}
		found, err = findImage(root, pool, imageID)
		if err != nil {
			return none, err
		}
	} else if err != nil {
		return none, err
	}
	content, err := root.ReadFile(filepath.Join(imagesDir, filepath.Base(found.Source.Path)))
	sum := sha256.Sum256(content)
	return plugins.MadeImage{Stored: found, SHA256: hex.EncodeToString(sum[:])}, err
}

// emptyQCOW2 is an image of that virtual size without data (docs/interop/
// qcow2.txt of QEMU): a header, a refcount table and block, and an L1 table.
func emptyQCOW2(virtualBytes int64) []byte {
	const cluster = 1 << 16
	entries := (virtualBytes + cluster*cluster/8 - 1) / (cluster * cluster / 8)
	clusters := 3 + (entries*8+cluster-1)/cluster
	image := make([]byte, clusters*cluster)
	copy(image, "QFI\xfb")
	be32 := func(at int, v uint32) { binary.BigEndian.PutUint32(image[at:], v) }
	be64 := func(at int, v uint64) { binary.BigEndian.PutUint64(image[at:], v) }
	be32(4, 3)   // version
	be32(20, 16) // cluster bits
	be64(24, uint64(virtualBytes))
	be32(36, uint32(entries))
	be64(40, 3*cluster) // L1 table
	be64(48, 1*cluster) // refcount table
	be32(56, 1)
	be32(96, 4) // 16-bit refcounts
	be32(100, 104)
	be64(1*cluster, 2*cluster)
	for i := range clusters {
		binary.BigEndian.PutUint16(image[2*cluster+2*i:], 1)
	}
	return image
}
