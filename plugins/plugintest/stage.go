package plugintest

import (
	"bytes"
	"errors"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// Stages is a storage that takes images in pieces.
type Stages interface {
	plugins.Storage
	plugins.Stager
}

// Stager checks one adapter for pools that are directories. open is called for
// each test.
func Stager(t *testing.T, open func(t testing.TB) Stages) {
	s := &stagerSuite{open: open}
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"PiecesBecomeAnImage", s.pieces},
		{"WhatIsWrongIsThrownAway", s.wrong},
		{"WhatIsMissingIsWaitedFor", s.missing},
		{"ResetBeginsAnew", s.reset},
		{"SizeIsLearned", s.learned},
		{"OneAtATime", s.exclusive},
		{"BadRequestsAreRefused", s.badRequests},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t)
		})
	}
}

type stagerSuite struct{ open func(t testing.TB) Stages }

func stage(t testing.TB, s Stages, pool plugins.PoolSpec, image plugins.ImageSpec) plugins.Stage {
	t.Helper()
	st, err := s.StageImage(t.Context(), pool, image)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func staged(t testing.TB, s Stages, pool plugins.PoolSpec, id string, want int64) {
	t.Helper()
	if n, err := s.StagedBytes(t.Context(), pool, id); err != nil || n != want {
		t.Errorf("%d bytes have arrived, want %d: %v", n, want, err)
	}
}

func write(t testing.TB, st plugins.Stage, b []byte) {
	t.Helper()
	if n, err := st.Write(b); err != nil || n != len(b) {
		t.Fatalf("Write: %d of %d, %v", n, len(b), err)
	}
}

func closed(t testing.TB, st plugins.Stage) {
	t.Helper()
	if err := st.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func (s *stagerSuite) pieces(t *testing.T) {
	store, pool := s.open(t), newPool(t)
	content := QCOW2(uint64(64*api.MiB), nil)
	image := imageSpec(content, api.FormatQCOW2)
	staged(t, store, pool, image.ID, 0)
	cut := len(content) / 3
	for i, piece := range [][]byte{content[:cut], content[cut : 2*cut], content[2*cut:]} {
		st := stage(t, store, pool, image)
		if st.Stored() != nil || st.Offset() != int64(i*cut) {
			t.Fatalf("piece %d begins at %d, stored %v", i, st.Offset(), st.Stored())
		}
		if want := map[bool]string{true: "", false: "from there"}[i == 0]; st.Note() != want {
			t.Errorf("the note is %q, want %q", st.Note(), want)
		}
		if i == 0 {
			if err := st.Reset("from there"); err != nil {
				t.Fatal(err)
			}
		}
		write(t, st, piece)
		if i < 2 {
			closed(t, st)
			staged(t, store, pool, image.ID, int64((i+1)*cut))
			if _, err := store.OpenImage(t.Context(), pool, image.ID); api.CodeOf(err) != api.CodeNotFound {
				t.Errorf("half of an image is opened: %v", err)
			}
			if listed, err := store.List(t.Context(), pool); err != nil || len(listed) != 0 {
				t.Errorf("half of an image is listed: %+v, %v", listed, err)
			}
			continue
		}
		stored, err := st.Commit(t.Context())
		if err != nil || stored.ID != image.ID || stored.SizeBytes != 64*api.MiB || stored.FileBytes != int64(len(content)) {
			t.Fatalf("Commit: %+v, %v", stored, err)
		}
		closed(t, st)
	}
	again := stage(t, store, pool, image)
	defer closed(t, again)
	if again.Stored() == nil || again.Stored().ID != image.ID {
		t.Errorf("a stored image is not found: %+v", again.Stored())
	}
	staged(t, store, pool, image.ID, int64(len(content)))
	if left := files(t, pool); len(left) != 1 {
		t.Errorf("left behind: %q", left)
	}
}

func (s *stagerSuite) wrong(t *testing.T) {
	store, pool := s.open(t), newPool(t)
	good := QCOW2(uint64(64*api.MiB), nil)
	backed := QCOW2(uint64(64*api.MiB), func(b []byte) { b[15], b[19] = 104, 11 })
	for name, c := range map[string]struct {
		image   plugins.ImageSpec
		content []byte
	}{
		"another checksum": {imageSpec(append([]byte("x"), good[1:]...), api.FormatQCOW2), good},
		"too long":         {imageSpec(good, api.FormatQCOW2), append(bytes.Clone(good), 'x')},
		"a backing file":   {imageSpec(backed, api.FormatQCOW2), backed},
		"qcow2 as raw":     {imageSpec(good, api.FormatRaw), good},
	} {
		st := stage(t, store, pool, c.image)
		_, err := st.Write(c.content)
		if err == nil {
			_, err = st.Commit(t.Context())
		}
		wantCode(t, err, api.CodeInvalid, name)
		closed(t, st)
		staged(t, store, pool, c.image.ID, 0)
	}
	if left := files(t, pool); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}

func (s *stagerSuite) missing(t *testing.T) {
	store, pool := s.open(t), newPool(t)
	content := QCOW2(uint64(64*api.MiB), nil)
	image := imageSpec(content, api.FormatQCOW2)
	st := stage(t, store, pool, image)
	write(t, st, content[:100])
	_, err := st.Commit(t.Context())
	wantCode(t, err, api.CodeUnavailable, "a part of an image")
	closed(t, st)
	staged(t, store, pool, image.ID, 100)
}

func (s *stagerSuite) reset(t *testing.T) {
	store, pool := s.open(t), newPool(t)
	content := []byte("the right content")
	image := imageSpec(content, api.FormatRaw)
	st := stage(t, store, pool, image)
	write(t, st, []byte("wrong"))
	if err := st.Reset("second source"); err != nil || st.Offset() != 0 || st.Note() != "second source" {
		t.Fatalf("Reset: offset %d, note %q, %v", st.Offset(), st.Note(), err)
	}
	write(t, st, content)
	if _, err := st.Commit(t.Context()); err != nil {
		t.Error(err)
	}
	closed(t, st)
}

func (s *stagerSuite) learned(t *testing.T) {
	store, pool := s.open(t), newPool(t)
	content := []byte("of any size")
	image := imageSpec(content, api.FormatRaw)
	image.SizeBytes = 0
	st := stage(t, store, pool, image)
	write(t, st, content)
	stored, err := st.Commit(t.Context())
	if err != nil || stored.FileBytes != int64(len(content)) {
		t.Errorf("got %+v, %v", stored, err)
	}
	closed(t, st)
	full := stage(t, store, pool, imageSpec([]byte("y"), api.FormatRaw))
	defer closed(t, full)
	wantCode(t, full.Reserve(1<<62), api.CodeLimit, "a file larger than the disk")
}

func (s *stagerSuite) exclusive(t *testing.T) {
	store, pool := s.open(t), newPool(t)
	content := bytes.Repeat([]byte("debvisor"), 1000)
	image := imageSpec(content, api.FormatRaw)
	var wait sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wait.Go(func() {
			st, err := store.StageImage(t.Context(), pool, image)
			if err != nil {
				errs[i] = err
				return
			}
			if st.Stored() == nil {
				_, err = st.Write(content[st.Offset():])
				if err == nil {
					_, err = st.Commit(t.Context())
				}
			}
			errs[i] = errors.Join(err, st.Close())
		})
	}
	wait.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	staged(t, store, pool, image.ID, int64(len(content)))
}

func (s *stagerSuite) badRequests(t *testing.T) {
	store, pool := s.open(t), newPool(t)
	good := imageSpec([]byte("x"), api.FormatRaw)
	for name, spoil := range map[string]func(*plugins.ImageSpec){
		"id is a path":  func(i *plugins.ImageSpec) { i.ID = "../../etc/passwd" },
		"format":        func(i *plugins.ImageSpec) { i.Format = "vmdk" },
		"negative size": func(i *plugins.ImageSpec) { i.SizeBytes = -1 },
		"too large":     func(i *plugins.ImageSpec) { i.SizeBytes = api.ImageSizeMax + 1 },
	} {
		image := good
		spoil(&image)
		_, err := store.StageImage(t.Context(), pool, image)
		wantCode(t, err, api.CodeInvalid, name)
	}
	_, err := store.StagedBytes(t.Context(), pool, "../x")
	wantCode(t, err, api.CodeInvalid, "StagedBytes of a path")
	image := good
	image.ID = uuid.NewString()
	greedy := pool
	greedy.ReserveBytes = 1 << 62
	_, err = store.StageImage(t.Context(), greedy, image)
	wantCode(t, err, api.CodeLimit, "the reserve")
}
