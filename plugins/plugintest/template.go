package plugintest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"testing"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// TemplateStore is a storage that makes images of volumes.
type TemplateStore interface {
	plugins.Storage
	plugins.Templates
}

// Templates checks one adapter for pools that are directories. open is called
// for each test.
func Templates(t *testing.T, open func(t testing.TB) TemplateStore) {
	t.Run("AVolumeBecomesAnImage", func(t *testing.T) {
		t.Parallel()
		templateOfVolume(t, open(t))
	})
	t.Run("WhatIsNotThereIsSaid", func(t *testing.T) {
		t.Parallel()
		store, pool := open(t), newPool(t)
		silent := func(int) {}
		_, err := store.MakeImage(t.Context(), pool, uuid.NewString(), uuid.NewString(), silent)
		wantCode(t, err, api.CodeNotFound, "no such volume")
		_, err = store.MakeImage(t.Context(), pool, "../x", uuid.NewString(), silent)
		wantCode(t, err, api.CodeInvalid, "a path as a volume")
		_, err = store.MakeImage(t.Context(), pool, uuid.NewString(), "/etc/passwd", silent)
		wantCode(t, err, api.CodeInvalid, "a path as an image")
		if left := files(t, pool); len(left) != 0 {
			t.Errorf("left behind: %q", left)
		}
	})
	t.Run("AnEndedContextLeavesNothing", func(t *testing.T) {
		t.Parallel()
		store, pool := open(t), newPool(t)
		volume, err := store.CreateVolume(t.Context(), pool, plugins.VolumeSpec{ID: uuid.NewString(), Format: api.FormatQCOW2, SizeBytes: api.GiB})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := store.MakeImage(ctx, pool, volume.ID, uuid.NewString(), func(int) {}); err == nil {
			t.Error("it was made")
		}
		if left := files(t, pool); len(left) != 1 {
			t.Errorf("left behind: %q", left)
		}
	})
}

func templateOfVolume(t *testing.T, store TemplateStore) {
	pool := newPool(t)
	content := QCOW2(uint64(64*api.MiB), nil)
	base, err := store.ImportImage(t.Context(), pool, imageSpec(content, api.FormatQCOW2), bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	volume, err := store.CreateVolume(t.Context(), pool, plugins.VolumeSpec{ID: uuid.NewString(), Format: api.FormatQCOW2, Image: base.ID, SizeBytes: 96 * api.MiB})
	if err != nil {
		t.Fatal(err)
	}
	id := uuid.NewString()
	made, err := store.MakeImage(t.Context(), pool, volume.ID, id, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	if made.ID != id || made.Kind != api.KindImage || made.SizeBytes != 96*api.MiB || made.Source.Format != api.FormatQCOW2 {
		t.Errorf("made %+v", made)
	}
	r, err := store.OpenImage(t.Context(), pool, id)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	sum := sha256.New()
	n, err := io.Copy(sum, r)
	if err != nil || n != made.FileBytes || hex.EncodeToString(sum.Sum(nil)) != made.SHA256 {
		t.Errorf("the image has %d bytes and %x, said were %d and %s: %v", n, sum.Sum(nil), made.FileBytes, made.SHA256, err)
	}
	again, err := store.MakeImage(t.Context(), pool, volume.ID, id, func(int) {})
	if err != nil || again != made {
		t.Errorf("again: %+v, %v; want %+v", again, err, made)
	}
	// It stands on its own, and can itself be cloned.
	if err := store.DeleteVolume(t.Context(), pool, volume.ID); err != nil {
		t.Error(err)
	}
	if err := store.DeleteImage(t.Context(), pool, base.ID); err != nil {
		t.Errorf("the first image is still in use: %v", err)
	}
	if _, err := store.CreateVolume(t.Context(), pool, plugins.VolumeSpec{ID: uuid.NewString(), Format: api.FormatQCOW2, Image: id}); err != nil {
		t.Errorf("clone: %v", err)
	}
	wantCode(t, store.DeleteImage(t.Context(), pool, id), api.CodeConflict, "an image with a clone")
}
