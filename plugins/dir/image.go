package dir

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// ImportImage implements plugins.Storage.
func (s *Storage) ImportImage(ctx context.Context, spec plugins.PoolSpec, image plugins.ImageSpec, r io.Reader) (plugins.Stored, error) {
	var none plugins.Stored
	if err := errors.Join(checkID(image.ID), checkFormat(image.Format)); err != nil {
		return none, err
	}
	if image.SizeBytes < 1 || image.SizeBytes > api.ImageSizeMax {
		return none, api.Invalid("size_bytes", "is %d", image.SizeBytes).Allow("1 to %d", api.ImageSizeMax).On(api.KindImage, image.ID)
	}
	p, err := openPool(ctx, spec)
	if err != nil {
		return none, err
	}
	defer p.close()
	release, err := s.makes.take(ctx, p.Path, image.ID)
	if err != nil {
		return none, err
	}
	defer release()
	if found, err := p.find(api.KindImage, image.ID); err == nil || api.CodeOf(err) != api.CodeNotFound {
		return found, err
	}
	if err := p.checkSpace(image.SizeBytes); err != nil {
		return none, err
	}
	name := temp(api.KindImage, image.Format)
	err = s.receive(ctx, p, name, image, r)
	if err == nil {
		err = p.publish(name, filepath.Join(imagesDir, image.ID+"."+image.Format))
	}
	if err != nil {
		_ = p.root.Remove(name)
		return none, p.full(fmt.Errorf("store image %s: %w", image.ID, err))
	}
	s.logger.Info("image stored", "id", image.ID, "pool", p.Name, "size_bytes", image.SizeBytes)
	return p.find(api.KindImage, image.ID)
}

// receive writes the temporary file of an image and judges it.
func (s *Storage) receive(ctx context.Context, p *pool, name string, image plugins.ImageSpec, r io.Reader) error {
	f, err := p.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, imageMode)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	n, err := copyWhile(ctx, io.MultiWriter(f, sum), io.LimitReader(r, image.SizeBytes+1))
	if err != nil {
		return err
	}
	wrong := func(field, format string, args ...any) error {
		return api.Invalid(field, format, args...).On(api.KindImage, image.ID).Do("upload the file whose checksum you gave, in full")
	}
	switch got := hex.EncodeToString(sum.Sum(nil)); {
	case n > image.SizeBytes:
		return wrong("size_bytes", "the file has more than the %d bytes it was to have", image.SizeBytes)
	case n < image.SizeBytes:
		return wrong("size_bytes", "the file ended after %d of %d bytes", n, image.SizeBytes)
	case got != image.SHA256:
		return wrong("sha256", "the file has %s and was to have %s", got, image.SHA256)
	}
	virtual, err := plugins.InspectImage(f, n, image.Format)
	if err == nil && image.Format == api.FormatQCOW2 {
		err = s.compare(ctx, filepath.Join(p.Path, name), virtual)
	}
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e.On(api.KindImage, image.ID)
	}
	return err
}

// copyWhile copies until the end, an error or the end of the context.
func copyWhile(ctx context.Context, w io.Writer, r io.Reader) (int64, error) {
	var total int64
	for {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		n, err := io.CopyN(w, r, copyPiece)
		total += n
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// compare asks qemu-img for a second opinion: it must see the same disk as
// plugins.InspectImage did, and no other file behind it.
func (s *Storage) compare(ctx context.Context, path string, virtual int64) error {
	out, err := s.inspect(ctx, path)
	if err != nil {
		return api.Invalid("image", "qemu-img cannot read it: %v", err).Do("convert it anew: qemu-img convert -O qcow2 SOURCE IMAGE")
	}
	var seen struct {
		Format      string `json:"format"`
		VirtualSize int64  `json:"virtual-size"`
		Backing     string `json:"backing-filename"`
		FullBacking string `json:"full-backing-filename"`
		Specific    struct {
			Data struct {
				DataFile string `json:"data-file"`
				Corrupt  bool   `json:"corrupt"`
			} `json:"data"`
		} `json:"format-specific"`
	}
	if err := json.Unmarshal(out, &seen); err != nil {
		return fmt.Errorf("read what qemu-img says: %w", err)
	}
	if seen.Format != api.FormatQCOW2 || seen.VirtualSize != virtual || seen.Backing != "" || seen.FullBacking != "" ||
		seen.Specific.Data.DataFile != "" || seen.Specific.Data.Corrupt {
		return api.Invalid("image", "qemu-img sees another disk than its header tells").Do("convert it anew: qemu-img convert -O qcow2 SOURCE IMAGE")
	}
	return nil
}

// OpenImage implements plugins.Storage.
func (s *Storage) OpenImage(ctx context.Context, spec plugins.PoolSpec, id string) (io.ReadCloser, error) {
	p, err := openPool(ctx, spec)
	if err != nil {
		return nil, err
	}
	defer p.close()
	image, err := p.find(api.KindImage, id)
	if err != nil {
		return nil, err
	}
	f, err := p.root.Open(filepath.Join(imagesDir, filepath.Base(image.Source.Path)))
	if err != nil {
		return nil, fmt.Errorf("open image %s: %w", id, err)
	}
	return f, nil
}

// DeleteImage implements plugins.Storage.
func (s *Storage) DeleteImage(ctx context.Context, spec plugins.PoolSpec, id string) error {
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
	unlock, err := p.lock(ctx, syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	used, err := p.backings()
	if err != nil {
		return err
	}
	for backing, file := range used {
		if strings.HasPrefix(backing, filepath.Join(imagesDir, id)+".") {
			volume, _, _ := strings.Cut(file, ".")
			return api.Errorf(api.CodeConflict, "volume %s is a linked clone of it", volume).On(api.KindImage, id).Do("delete that volume first")
		}
	}
	return p.remove(api.KindImage, id)
}

// head is what a pool has to know of a qcow2 file of its own.
type head struct {
	sizeBytes int64
	backing   string
	snapshots uint32
	l1Entries uint32
	l1Offset  int64
}

// readHead reads the header of a file that is in the pool already. One that is
// not qcow2 is an error; what a pool took in was judged before.
func readHead(r io.ReaderAt) (head, error) {
	const nameMax = 1023 // longest name of a backing file in qcow2
	fixed := make([]byte, 64)
	if _, err := r.ReadAt(fixed, 0); err != nil {
		return head{}, fmt.Errorf("read qcow2 header: %w", err)
	}
	if string(fixed[:4]) != "QFI\xfb" {
		return head{}, errors.New("not a qcow2 file")
	}
	h := head{sizeBytes: int64(binary.BigEndian.Uint64(fixed[24:])), snapshots: binary.BigEndian.Uint32(fixed[60:]),
		l1Entries: binary.BigEndian.Uint32(fixed[36:]), l1Offset: int64(binary.BigEndian.Uint64(fixed[40:]))}
	if at, n := binary.BigEndian.Uint64(fixed[8:]), binary.BigEndian.Uint32(fixed[16:]); at > 0 && n <= nameMax {
		name := make([]byte, n)
		if _, err := r.ReadAt(name, int64(at)); err != nil {
			return head{}, fmt.Errorf("read qcow2 header: %w", err)
		}
		h.backing = string(name)
	}
	return h, nil
}
