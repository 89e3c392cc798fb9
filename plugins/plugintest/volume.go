package plugintest

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// VolumeStore is a storage that also works on the volumes that it has made.
type VolumeStore interface {
	plugins.Storage
	plugins.Volumes
}

// Volumes checks plugins.Volumes of an adapter for pools that are directories.
// write puts a text at the beginning of a volume's disk, as a guest does, and
// read returns its first bytes; both are nil where no data is kept.
func Volumes(t *testing.T, open func(t testing.TB) VolumeStore, write func(t testing.TB, s plugins.Source, text string), read func(t testing.TB, s plugins.Source) string) {
	s := &volumeSuite{open: open, write: write, read: read}
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"VolumesGrowAndNeverShrink", s.grow},
		{"LinkedClonesAreIndependent", s.linked},
		{"FullClonesStandAlone", s.full},
		{"ManyCloneAtOnce", s.many},
		{"BadClonesAreRefused", s.bad},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t)
		})
	}
}

type volumeSuite struct {
	open  func(t testing.TB) VolumeStore
	write func(t testing.TB, s plugins.Source, text string)
	read  func(t testing.TB, s plugins.Source) string
}

func (s *volumeSuite) put(t testing.TB, source plugins.Source, text string) {
	t.Helper()
	if s.write != nil {
		s.write(t, source, text)
	}
}

func (s *volumeSuite) want(t testing.TB, source plugins.Source, text string) {
	t.Helper()
	if s.read == nil {
		return
	}
	if got := s.read(t, source); !strings.HasPrefix(got, text) {
		t.Errorf("%s begins with %.20q, want %q", filepath.Base(source.Path), got, text)
	}
}

func create(t testing.TB, store plugins.Storage, pool plugins.PoolSpec, format string, size int64) plugins.Stored {
	t.Helper()
	made, err := store.CreateVolume(t.Context(), pool, plugins.VolumeSpec{ID: uuid.NewString(), Format: format, SizeBytes: size})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func (s *volumeSuite) grow(t *testing.T) {
	store, pool := s.open(t), newPool(t)
	for _, format := range []string{api.FormatQCOW2, api.FormatRaw} {
		made := create(t, store, pool, format, 16*api.MiB)
		s.put(t, made.Source, "kept")
		for _, step := range []struct{ ask, want int64 }{{32 * api.MiB, 32 * api.MiB}, {32 * api.MiB, 32 * api.MiB}, {api.MiB, 32 * api.MiB}} {
			got, err := store.GrowVolume(t.Context(), pool, made.ID, step.ask)
			if err != nil || got.SizeBytes != step.want || got.Source != made.Source {
				t.Errorf("%s grown to %d: %+v, %v; want %d", format, step.ask, got, err, step.want)
			}
		}
		s.want(t, made.Source, "kept")
		_, err := store.GrowVolume(t.Context(), pool, made.ID, 1<<62)
		wantCode(t, err, api.CodeInvalid, "an absurd size")
		full := pool
		full.ReserveBytes = 1 << 61
		_, err = store.GrowVolume(t.Context(), full, made.ID, api.GiB)
		wantCode(t, err, api.CodeLimit, "growing into the reserve")
	}
	_, err := store.GrowVolume(t.Context(), pool, uuid.NewString(), api.GiB)
	wantCode(t, err, api.CodeNotFound, "growing an unknown volume")
	_, err = store.GrowVolume(t.Context(), pool, "../x", api.GiB)
	wantCode(t, err, api.CodeInvalid, "growing a path")
}

func clone(t testing.TB, store VolumeStore, pool plugins.PoolSpec, source string, size int64) plugins.Stored {
	t.Helper()
	spec := plugins.VolumeSpec{ID: uuid.NewString(), Format: api.FormatQCOW2, SizeBytes: size}
	made, err := store.CloneVolume(t.Context(), pool, source, spec)
	if err != nil {
		t.Fatal(err)
	}
	again, err := store.CloneVolume(t.Context(), pool, source, spec)
	if err != nil || again.Source != made.Source || again.SizeBytes != made.SizeBytes {
		t.Errorf("CloneVolume again: %+v, %v; want %+v", again, err, made)
	}
	return made
}

// linked writes to the source and to clones of it, and to clones of clones, in
// all orders: none sees what is written to another after it was made.
func (s *volumeSuite) linked(t *testing.T) {
	store, pool := s.open(t), newPool(t)
	source := create(t, store, pool, api.FormatQCOW2, 16*api.MiB)
	s.put(t, source.Source, "first")
	a := clone(t, store, pool, source.ID, 0)
	if a.SizeBytes != source.SizeBytes {
		t.Errorf("a clone without a size has %d, want %d", a.SizeBytes, source.SizeBytes)
	}
	b := clone(t, store, pool, source.ID, 32*api.MiB)
	if b.SizeBytes != 32*api.MiB {
		t.Errorf("a larger clone has %d", b.SizeBytes)
	}
	s.put(t, source.Source, "second")
	c := clone(t, store, pool, source.ID, 0)
	s.put(t, a.Source, "of the clone")
	d := clone(t, store, pool, a.ID, 0)
	for at, text := range map[plugins.Source]string{source.Source: "second", a.Source: "of the clone", b.Source: "first", c.Source: "second", d.Source: "of the clone"} {
		s.want(t, at, text)
	}
	if err := store.DeleteVolume(t.Context(), pool, source.ID); err != nil {
		t.Fatal(err)
	}
	for at, text := range map[plugins.Source]string{a.Source: "of the clone", b.Source: "first", c.Source: "second", d.Source: "of the clone"} {
		s.want(t, at, text)
	}
	for _, v := range []plugins.Stored{b, a, d, c} {
		if err := store.DeleteVolume(t.Context(), pool, v.ID); err != nil {
			t.Fatal(err)
		}
	}
	if left := files(t, pool); len(left) > 0 {
		t.Errorf("what nobody needs is left: %v", left)
	}
}

func (s *volumeSuite) full(t *testing.T) {
	store, here, there := s.open(t), newPool(t), newPool(t)
	source := create(t, store, here, api.FormatQCOW2, 16*api.MiB)
	s.put(t, source.Source, "first")
	linked := clone(t, store, here, source.ID, 0)
	for _, format := range []string{api.FormatQCOW2, api.FormatRaw} {
		heard := 0
		spec := plugins.VolumeSpec{ID: uuid.NewString(), Format: format, SizeBytes: 24 * api.MiB}
		copied, err := store.CopyVolume(t.Context(), there, spec, linked, func(percent int) {
			if heard++; percent < 0 || percent > 100 {
				t.Errorf("progress is %d %%", percent)
			}
		})
		if err != nil || copied.SizeBytes != 24*api.MiB || copied.Source.Format != format || heard == 0 {
			t.Errorf("%s copy: %+v, %v, progress heard %d times", format, copied, err, heard)
		}
		again, err := store.CopyVolume(t.Context(), there, spec, linked, nil)
		if err != nil || again.Source != copied.Source {
			t.Errorf("CopyVolume again: %+v, %v", again, err)
		}
		s.want(t, copied.Source, "first")
		spec.ID, spec.SizeBytes = uuid.NewString(), api.MiB
		_, err = store.CopyVolume(t.Context(), there, spec, linked, nil)
		wantCode(t, err, api.CodeInvalid, "a copy smaller than its source")
		full := there
		full.ReserveBytes = 1 << 61
		_, err = store.CopyVolume(t.Context(), full, plugins.VolumeSpec{ID: uuid.NewString(), Format: format}, linked, nil)
		wantCode(t, err, api.CodeLimit, "a copy into the reserve")
	}
	if err := os.RemoveAll(here.Path); err != nil {
		t.Fatal(err)
	}
	listed, err := store.List(t.Context(), there)
	if err != nil || len(listed) != 2 {
		t.Fatalf("%d volumes are there, %v; want 2", len(listed), err)
	}
	for _, v := range listed {
		s.want(t, v.Source, "first")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := store.CopyVolume(ended, there, plugins.VolumeSpec{ID: uuid.NewString(), Format: api.FormatRaw}, listed[0], nil); err == nil {
		t.Error("a copy with an ended context was made")
	}
	if left := files(t, there); len(left) != 2 {
		t.Errorf("the pool has the files %v, want two volumes", left)
	}
}

// many makes 50 clones of one volume at once.
func (s *volumeSuite) many(t *testing.T) {
	store, pool := s.open(t), newPool(t)
	source := create(t, store, pool, api.FormatQCOW2, 16*api.MiB)
	s.put(t, source.Source, "template")
	var wg sync.WaitGroup
	var made [50]plugins.Stored
	for i := range made {
		wg.Go(func() {
			var err error
			made[i], err = store.CloneVolume(t.Context(), pool, source.ID, plugins.VolumeSpec{ID: uuid.NewString(), Format: api.FormatQCOW2})
			if err != nil {
				t.Errorf("clone %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	s.want(t, made[0].Source, "template")
	s.want(t, made[49].Source, "template")
	s.want(t, source.Source, "template")
	if left := files(t, pool); s.write != nil && len(left) != 1+50+1 {
		t.Errorf("the pool has %d files, want the source, 50 clones and one base: %v", len(left), left)
	}
}

func (s *volumeSuite) bad(t *testing.T) {
	store, pool := s.open(t), newPool(t)
	source, raw := create(t, store, pool, api.FormatQCOW2, 16*api.MiB), create(t, store, pool, api.FormatRaw, 16*api.MiB)
	spec := func(change func(*plugins.VolumeSpec)) plugins.VolumeSpec {
		v := plugins.VolumeSpec{ID: uuid.NewString(), Format: api.FormatQCOW2}
		change(&v)
		return v
	}
	none := func(*plugins.VolumeSpec) {}
	for name, test := range map[string]struct {
		source string
		volume plugins.VolumeSpec
		want   api.Code
	}{
		"unknown source":   {uuid.NewString(), spec(none), api.CodeNotFound},
		"source is a path": {"../images/x", spec(none), api.CodeInvalid},
		"ID is a path":     {source.ID, spec(func(v *plugins.VolumeSpec) { v.ID = "../x" }), api.CodeInvalid},
		"raw clone":        {source.ID, spec(func(v *plugins.VolumeSpec) { v.Format = api.FormatRaw }), api.CodeInvalid},
		"raw source":       {raw.ID, spec(none), api.CodeConflict},
		"smaller":          {source.ID, spec(func(v *plugins.VolumeSpec) { v.SizeBytes = api.MiB }), api.CodeInvalid},
		"absurd size":      {source.ID, spec(func(v *plugins.VolumeSpec) { v.SizeBytes = 1 << 62 }), api.CodeInvalid},
		"of itself":        {source.ID, spec(func(v *plugins.VolumeSpec) { v.ID = source.ID }), api.CodeInvalid},
	} {
		_, err := store.CloneVolume(t.Context(), pool, test.source, test.volume)
		wantCode(t, err, test.want, name)
	}
	if left := files(t, pool); len(left) != 2 {
		t.Errorf("refused clones left files: %v", left)
	}
}
