package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

const (
	tinyName      = "tiny"
	tinyFile      = "guest/tiny.qcow2" // beside the program
	simulatedSize = 1 << 20            // bytes of the image for simulated guests
	simulatedText = "This image is for simulated guests. Nothing boots from it.\n"
)

// devImage is an image that the cluster is to have.
type devImage struct {
	image api.Image
	open  func() (io.ReadSeekCloser, error)
}

// provideImages uploads the images that were asked for, or a tiny one, unless
// they are there.
func (d *dev) provideImages(ctx context.Context, c *client.Client) error {
	wanted, err := d.wantedImages()
	if err != nil {
		return err
	}
	for _, w := range wanted {
		if err := d.provide(ctx, c, w); err != nil {
			return fmt.Errorf("image %s: %w", w.image.Name, err)
		}
	}
	return nil
}

func (d *dev) wantedImages() ([]*devImage, error) {
	var out []*devImage
	for _, text := range d.options.images {
		name, file, ok := strings.Cut(text, "=")
		if !ok || name == "" || file == "" {
			return nil, &usageError{err: fmt.Errorf("--image %q is not NAME=FILE", text)}
		}
		w, err := d.imageFile(name, file)
		if err != nil {
			return nil, err
		}
		out = append(out, w)
	}
	if len(out) > 0 {
		return out, nil
	}
	if d.state.Hypervisor == hypervisorSim {
		return []*devImage{simulatedImage()}, nil
	}
	file := filepath.Join(filepath.Dir(d.program), filepath.FromSlash(tinyFile))
	if !fileExists(file) {
		d.a.notef("no image: %s does not exist; make guest builds it, or give one with --image NAME=FILE", file)
		return nil, nil
	}
	w, err := d.imageFile(tinyName, file)
	return []*devImage{w}, err
}

func (d *dev) imageFile(name, file string) (*devImage, error) {
	w := &devImage{open: func() (io.ReadSeekCloser, error) { return os.Open(file) }}
	w.image.Name, w.image.Tenant = name, api.DefaultTenant
	return w, d.a.measureImage(file, &w.image)
}

// simulatedImage is enough for guests that do not exist.
func simulatedImage() *devImage {
	content := append([]byte(simulatedText), make([]byte, simulatedSize-len(simulatedText))...)
	sum := sha256.Sum256(content)
	return &devImage{
		image: api.Image{
			Meta:   api.Meta{Name: tinyName, Tenant: api.DefaultTenant},
			Format: api.FormatRaw, SHA256: hex.EncodeToString(sum[:]), SizeBytes: simulatedSize, Description: "for simulated guests",
		},
		open: func() (io.ReadSeekCloser, error) { return inMemory{bytes.NewReader(content)}, nil },
	}
}

// provide makes the catalogue entry and uploads the bytes, as far as either is
// missing.
func (d *dev) provide(ctx context.Context, c *client.Client, w *devImage) error {
	have, err := getImage(ctx, c, w.image.Tenant, w.image.Name, client.ReadOptions{})
	switch {
	case api.CodeOf(err) == api.CodeNotFound:
		made, err := client.Resource[api.Image](c, api.KindImage).Put(ctx, &w.image)
		if err != nil {
			return err
		}
		have = &imageRow{Image: *made}
	case err != nil:
		return err
	case len(have.Nodes) > 0:
		return nil
	}
	return d.a.sendImage(ctx, c, &have.Image, w.open)
}

// inMemory is a file that is not one.
type inMemory struct{ *bytes.Reader }

// Close implements io.Closer.
func (inMemory) Close() error { return nil }
