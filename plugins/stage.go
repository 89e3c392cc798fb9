package plugins

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/debvisor/debvisor/api"
)

// Stager takes in images that may arrive in several pieces, with interruptions
// of hours between them and the end of the process in the middle.
type Stager interface {
	// StageImage opens what has arrived of an image. One caller has it at a time,
	// another waits. An image that is stored already is found: Stage.Stored says
	// so. SizeBytes may be 0: then any size is taken whose checksum is right.
	StageImage(ctx context.Context, pool PoolSpec, image ImageSpec) (Stage, error)

	// StagedBytes tells how much of an image has arrived, without waiting; 0 for
	// none. Of an image that is stored it is the length of its file.
	StagedBytes(ctx context.Context, pool PoolSpec, id string) (int64, error)
}

// Stage is an image that arrives. What has arrived stays after Close, for about
// a day, until it was stored or found to be wrong.
type Stage interface {
	// Stored is the image if it is there already, else nil.
	Stored() *Stored
	// Offset is how much has arrived.
	Offset() int64
	// Note is what Reset was told; empty where nothing is known of the source.
	Note() string
	// Reset throws away what has arrived, and keeps a note about what will.
	Reset(note string) error
	// Reserve refuses, with CodeLimit, a file of that size that has no room.
	Reserve(sizeBytes int64) error
	// Write appends. More than the image was to have is CodeInvalid, and ends what
	// has arrived.
	io.Writer
	// Commit verifies what has arrived as ImportImage does, and stores it. What is
	// wrong is CodeInvalid, and thrown away.
	Commit(ctx context.Context) (Stored, error)
	// Close lets go of it, with or without Commit.
	Close() error
}

const (
	partPrefix  = ".new-part-" // adapters remove what begins with .new- and is old
	partNote    = ".note"
	partMode    = fs.FileMode(0o600)
	partNoteMax = 1024
	partPiece   = 1 << 20 // bytes between two looks at the context
)

// Part is the file of an image that arrives, for adapters whose pools are
// directories.
type Part struct {
	root   *os.Root
	name   string
	image  ImageSpec
	file   *os.File
	sum    hash.Hash
	offset int64
	note   string
}

// PartName is the name of that file in a folder.
func PartName(dir, id string) string { return filepath.Join(dir, partPrefix+id) }

// OpenPart opens the part of an image below root, and computes the checksum of
// what is there.
func OpenPart(ctx context.Context, root *os.Root, dir string, image ImageSpec) (*Part, error) {
	p := &Part{root: root, name: PartName(dir, image.ID), image: image, sum: sha256.New()}
	f, err := root.OpenFile(p.name, os.O_RDWR|os.O_CREATE, partMode)
	if err != nil {
		return nil, fmt.Errorf("open part of image %s: %w", image.ID, err)
	}
	p.file = f
	if err := p.recall(ctx); err != nil {
		_ = f.Close()
		return nil, err
	}
	return p, nil
}

func (p *Part) recall(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.CopyN(p.sum, p.file, partPiece)
		p.offset += n
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read part of image %s: %w", p.image.ID, err)
		}
	}
	if p.offset > p.most() {
		return p.Reset("")
	}
	note, err := p.root.ReadFile(p.name + partNote)
	if err == nil && len(note) <= partNoteMax {
		p.note = string(note)
	}
	return nil
}

// most is the largest that the file may become.
func (p *Part) most() int64 {
	if p.image.SizeBytes > 0 {
		return p.image.SizeBytes
	}
	return api.ImageSizeMax
}

// Name is the path of the file below the root.
func (p *Part) Name() string { return p.name }

// Offset is how much has arrived.
func (p *Part) Offset() int64 { return p.offset }

// Note is what Reset was told last.
func (p *Part) Note() string { return p.note }

// Reset throws away what has arrived.
func (p *Part) Reset(note string) error {
	if len(note) > partNoteMax {
		note = ""
	}
	_, err := p.file.Seek(0, io.SeekStart)
	if err = errors.Join(err, p.file.Truncate(0)); err != nil {
		return fmt.Errorf("empty part of image %s: %w", p.image.ID, err)
	}
	p.sum.Reset()
	p.offset, p.note = 0, note
	if note == "" {
		if err := p.root.Remove(p.name + partNote); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget the source of image %s: %w", p.image.ID, err)
		}
		return nil
	}
	if err := p.root.WriteFile(p.name+partNote, []byte(note), partMode); err != nil {
		return fmt.Errorf("note the source of image %s: %w", p.image.ID, err)
	}
	return nil
}

// Write implements io.Writer.
func (p *Part) Write(b []byte) (int, error) {
	if p.offset+int64(len(b)) > p.most() {
		p.discard()
		return 0, p.wrong("size_bytes", "the file has more than the %d bytes it was to have", p.most())
	}
	n, err := p.file.Write(b)
	p.sum.Write(b[:n])
	p.offset += int64(n)
	return n, err
}

func (p *Part) wrong(field, format string, args ...any) *api.Error {
	return api.Invalid(field, format, args...).On(api.KindImage, p.image.ID).Do("give the file whose checksum you gave, in full")
}

// Verify judges what has arrived. What is CodeInvalid was thrown away.
func (p *Part) Verify() (virtualBytes int64, err error) {
	got := hex.EncodeToString(p.sum.Sum(nil))
	switch {
	case p.image.SizeBytes > 0 && p.offset < p.image.SizeBytes:
		return 0, api.Errorf(api.CodeUnavailable, "%d of %d bytes have arrived", p.offset, p.image.SizeBytes).On(api.KindImage, p.image.ID)
	case p.offset == 0:
		err = p.wrong("size_bytes", "the file is empty")
	case got != p.image.SHA256:
		err = p.wrong("sha256", "the file has %s and was to have %s", got, p.image.SHA256)
	default:
		virtualBytes, err = InspectImage(p.file, p.offset, p.image.Format)
	}
	if api.CodeOf(err) == api.CodeInvalid {
		p.discard()
	}
	return virtualBytes, err
}

// Discard removes the part because it cannot become the image.
func (p *Part) Discard() { p.discard() }

func (p *Part) discard() {
	_ = p.Reset("")
	_ = p.root.Remove(p.name)
}

// Taken is to be called when the file was given its name: the note goes.
func (p *Part) Taken() { _ = p.root.Remove(p.name + partNote) }

// Close lets go of the file. An empty part leaves nothing behind.
func (p *Part) Close() error {
	if p.offset == 0 {
		p.discard()
	}
	return p.file.Close()
}
