package plugintest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// Storage checks one adapter for pools that are directories. open is called
// for each test.
func Storage(t *testing.T, open func(t testing.TB) plugins.Storage) {
	s := &storageSuite{open: open}
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"StatusMakesAndMeasures", s.status},
		{"VolumesComeAndGo", s.volumes},
		{"ImagesComeAndGo", s.images},
		{"ClonesKeepTheirImage", s.clones},
		{"BadImagesAreRefused", s.badImages},
		{"BadRequestsAreRefused", s.badRequests},
		{"OneDamagedFileHidesNoOther", s.damaged},
		{"ReserveIsKept", s.reserve},
		{"MakersOfOneThingAgree", s.parallel},
		{"EndedContextsLeaveNothing", s.contexts},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t)
		})
	}
}

type storageSuite struct {
	open func(t testing.TB) plugins.Storage
}

func newPool(t testing.TB) plugins.PoolSpec {
	return plugins.PoolSpec{Name: "local", Path: filepath.Join(t.TempDir(), "pool")}
}

// QCOW2 makes a small valid image: a header, a refcount table and block, an L1
// table, one L2 table and one cluster of data. edit may spoil it.
func QCOW2(virtualBytes uint64, edit func(image []byte)) []byte {
	const cluster = 1 << 16
	image := make([]byte, 6*cluster)
	copy(image, "QFI\xfb")
	be32 := func(at int, v uint32) { binary.BigEndian.PutUint32(image[at:], v) }
	be64 := func(at int, v uint64) { binary.BigEndian.PutUint64(image[at:], v) }
	be32(4, 3)   // version
	be32(20, 16) // cluster bits
	be64(24, virtualBytes)
	be32(36, uint32((virtualBytes+cluster*cluster/8-1)/(cluster*cluster/8))) // L1 entries
	be64(40, 3*cluster)                                                      // L1 table
	be64(48, 1*cluster)                                                      // refcount table
	be32(56, 1)                                                              // its clusters
	be32(96, 4)                                                              // 16-bit refcounts
	be32(100, 104)                                                           // header length
	be64(1*cluster, 2*cluster)
	for i := range 6 {
		binary.BigEndian.PutUint16(image[2*cluster+2*i:], 1)
	}
	be64(3*cluster, 4*cluster|1<<63)
	be64(4*cluster, 5*cluster|1<<63)
	copy(image[5*cluster:], "first sector of the disk")
	if edit != nil {
		edit(image)
	}
	return image
}

func imageSpec(content []byte, format string) plugins.ImageSpec {
	sum := sha256.Sum256(content)
	return plugins.ImageSpec{ID: uuid.NewString(), Format: format, SHA256: hex.EncodeToString(sum[:]), SizeBytes: int64(len(content))}
}

// files lists every file of the pool but its lock, so that leftovers show.
func files(t testing.TB, pool plugins.PoolSpec) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(pool.Path, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != ".lock" {
			out = append(out, path)
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (s *storageSuite) status(t *testing.T) {
	store, pool := s.open(t), newPool(t)
	status, err := store.Status(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	if status.Pool != pool.Name || status.TotalBytes < 1 || status.FreeBytes < 1 || status.FreeBytes > status.TotalBytes {
		t.Errorf("the status is %+v", status)
	}
	if stat, err := os.Stat(pool.Path); err != nil || !stat.IsDir() {
		t.Errorf("the pool was not made: %v", err)
	}
	blocked := newPool(t)
	if err := os.WriteFile(blocked.Path, []byte("a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = store.Status(t.Context(), blocked)
	wantCode(t, err, api.CodeUnavailable, "Status of a pool whose path is a file")
}

func (s *storageSuite) volumes(t *testing.T) {
	store, pool := s.open(t), newPool(t)
	for _, format := range []string{api.FormatQCOW2, api.FormatRaw} {
		volume := plugins.VolumeSpec{ID: uuid.NewString(), SizeBytes: 64 * api.GiB, Format: format}
		made, err := store.CreateVolume(t.Context(), pool, volume)
		if err != nil {
			t.Fatalf("CreateVolume %s: %v", format, err)
		}
		if made.Kind != api.KindVolume || made.ID != volume.ID || made.SizeBytes != volume.SizeBytes || made.UsedBytes > api.MiB ||
			made.Source.Format != format || !strings.HasPrefix(made.Source.Path, pool.Path+"/") {
			t.Errorf("the volume is %+v, asked for %+v", made, volume)
		}
		if _, err := os.Stat(made.Source.Path); err != nil {
			t.Errorf("its source: %v", err)
		}
		again, err := store.CreateVolume(t.Context(), pool, volume)
		if err != nil || again.Source != made.Source || again.SizeBytes != made.SizeBytes {
			t.Errorf("CreateVolume again: %+v, %v", again, err)
		}
		listed, err := store.List(t.Context(), pool)
		if err != nil || len(listed) != 1 || listed[0].ID != volume.ID || listed[0].SizeBytes != volume.SizeBytes {
			t.Errorf("List: %+v, %v", listed, err)
		}
		for range 2 {
			if err := store.DeleteVolume(t.Context(), pool, volume.ID); err != nil {
				t.Errorf("DeleteVolume: %v", err)
			}
		}
	}
	if left := files(t, pool); len(left) > 0 {
		t.Errorf("files are left: %v", left)
	}
}

func (s *storageSuite) images(t *testing.T) {
	store, pool := s.open(t), newPool(t)
	for format, content := range map[string][]byte{
		api.FormatQCOW2: QCOW2(uint64(64*api.MiB), nil),
		api.FormatRaw:   []byte(strings.Repeat("kernel", 1000)),
	} {
		image := imageSpec(content, format)
		_, err := store.OpenImage(t.Context(), pool, image.ID)
		wantCode(t, err, api.CodeNotFound, "OpenImage before the import")
		stored, err := store.ImportImage(t.Context(), pool, image, bytes.NewReader(content))
		if err != nil {
			t.Fatalf("ImportImage %s: %v", format, err)
		}
		if stored.Kind != api.KindImage || stored.ID != image.ID || stored.Source.Format != format {
			t.Errorf("the image is %+v", stored)
		}
		if format == api.FormatQCOW2 && stored.SizeBytes != 64*api.MiB {
			t.Errorf("its virtual size is %d", stored.SizeBytes)
		}
		if _, err := store.ImportImage(t.Context(), pool, image, failingReader{}); err != nil {
			t.Errorf("ImportImage of a stored image reads: %v", err)
		}
		r, err := store.OpenImage(t.Context(), pool, image.ID)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil || !bytes.Equal(got, content) {
			t.Errorf("OpenImage yields %d of %d bytes: %v", len(got), len(content), err)
		}
		for range 2 {
			if err := store.DeleteImage(t.Context(), pool, image.ID); err != nil {
				t.Errorf("DeleteImage: %v", err)
			}
		}
	}
	if left := files(t, pool); len(left) > 0 {
		t.Errorf("files are left: %v", left)
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errors.New("nobody may read here") }

func (s *storageSuite) clones(t *testing.T) {
	store, pool := s.open(t), newPool(t)
	absent := plugins.VolumeSpec{ID: uuid.NewString(), Format: api.FormatQCOW2, Image: uuid.NewString()}
	_, err := store.CreateVolume(t.Context(), pool, absent)
	wantCode(t, err, api.CodeNotFound, "a clone of an image that is not there")

	content := QCOW2(uint64(64*api.MiB), nil)
	image := imageSpec(content, api.FormatQCOW2)
	if _, err := store.ImportImage(t.Context(), pool, image, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	clone, err := store.CreateVolume(t.Context(), pool, plugins.VolumeSpec{ID: uuid.NewString(), Format: api.FormatQCOW2, Image: image.ID})
	if err != nil || clone.SizeBytes != 64*api.MiB {
		t.Fatalf("a clone of the image's size: %+v, %v", clone, err)
	}
	larger, err := store.CreateVolume(t.Context(), pool,
		plugins.VolumeSpec{ID: uuid.NewString(), Format: api.FormatQCOW2, Image: image.ID, SizeBytes: 128 * api.MiB})
	if err != nil || larger.SizeBytes != 128*api.MiB {
		t.Fatalf("a larger clone: %+v, %v", larger, err)
	}
	_, err = store.CreateVolume(t.Context(), pool,
		plugins.VolumeSpec{ID: uuid.NewString(), Format: api.FormatQCOW2, Image: image.ID, SizeBytes: api.MiB})
	wantCode(t, err, api.CodeInvalid, "a clone smaller than its image")

	wantCode(t, store.DeleteImage(t.Context(), pool, image.ID), api.CodeConflict, "DeleteImage with clones")
	listed, err := store.List(t.Context(), pool)
	if err != nil || len(listed) != 3 || listed[0].Kind != api.KindImage ||
		!slices.IsSortedFunc(listed[1:], func(a, b plugins.Stored) int { return strings.Compare(a.ID, b.ID) }) {
		t.Errorf("List is not the image and then both volumes by ID: %+v, %v", listed, err)
	}
	for _, v := range []plugins.Stored{clone, larger} {
		if err := store.DeleteVolume(t.Context(), pool, v.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.DeleteImage(t.Context(), pool, image.ID); err != nil {
		t.Errorf("DeleteImage without clones: %v", err)
	}
}

func (s *storageSuite) badImages(t *testing.T) {
	store, pool := s.open(t), newPool(t)
	good := QCOW2(uint64(64*api.MiB), nil)
	edited := func(edit func([]byte)) []byte { return QCOW2(uint64(64*api.MiB), edit) }
	be64 := func(at int, v uint64) func([]byte) {
		return func(b []byte) { binary.BigEndian.PutUint64(b[at:], v) }
	}
	be32 := func(at int, v uint32) func([]byte) {
		return func(b []byte) { binary.BigEndian.PutUint32(b[at:], v) }
	}
	for name, test := range map[string]struct {
		content []byte
		format  string
		edit    func(*plugins.ImageSpec)
	}{
		"wrong checksum":        {good, api.FormatQCOW2, func(i *plugins.ImageSpec) { i.SHA256 = strings.Repeat("0", 64) }},
		"shorter than said":     {good, api.FormatQCOW2, func(i *plugins.ImageSpec) { i.SizeBytes++ }},
		"longer than said":      {good, api.FormatQCOW2, func(i *plugins.ImageSpec) { i.SizeBytes-- }},
		"raw that is qcow2":     {good, api.FormatRaw, nil},
		"raw that is vmdk":      {[]byte("KDMV" + strings.Repeat("x", 2000)), api.FormatRaw, nil},
		"qcow2 that is text":    {[]byte(strings.Repeat("no disk", 200)), api.FormatQCOW2, nil},
		"cut inside its header": {good[:50], api.FormatQCOW2, nil},
		"cut inside its tables": {good[:200<<10], api.FormatQCOW2, nil},
		"cut inside its data":   {good[:5<<16], api.FormatQCOW2, nil},
		"backing file":          {edited(func(b []byte) { be64(8, 512)(b); be32(16, 11)(b); copy(b[512:], "/etc/passwd") }), api.FormatQCOW2, nil},
		"backing without name":  {edited(be64(8, 512)), api.FormatQCOW2, nil},
		"data file":             {edited(be64(72, 1<<2)), api.FormatQCOW2, nil},
		"name of a data file":   {edited(func(b []byte) { be32(104, 0x44415441)(b); be32(108, 4)(b); copy(b[112:], "/x/y") }), api.FormatQCOW2, nil},
		"marked corrupt":        {edited(be64(72, 1<<1)), api.FormatQCOW2, nil},
		"unknown features":      {edited(be64(72, 1<<40)), api.FormatQCOW2, nil},
		"encrypted":             {edited(be32(32, 2)), api.FormatQCOW2, nil},
		"unknown version":       {edited(be32(4, 9)), api.FormatQCOW2, nil},
		"absurd virtual size":   {edited(be64(24, 1<<62)), api.FormatQCOW2, nil},
		"no virtual size":       {edited(be64(24, 0)), api.FormatQCOW2, nil},
		"absurd cluster size":   {edited(be32(20, 60)), api.FormatQCOW2, nil},
		"absurd L1 table":       {edited(be32(36, 1<<31)), api.FormatQCOW2, nil},
		"L1 table beyond end":   {edited(be64(40, 1<<40)), api.FormatQCOW2, nil},
		"absurd header length":  {edited(be32(100, 1<<30)), api.FormatQCOW2, nil},
		"format is a path":      {good, "../raw", nil},
		"ID is a path":          {good, api.FormatQCOW2, func(i *plugins.ImageSpec) { i.ID = "../../etc/cron.d/x" }},
	} {
		image := imageSpec(test.content, test.format)
		if test.edit != nil {
			test.edit(&image)
		}
		_, err := store.ImportImage(t.Context(), pool, image, bytes.NewReader(test.content))
		wantCode(t, err, api.CodeInvalid, name)
	}
	broken := imageSpec(good, api.FormatQCOW2)
	if _, err := store.ImportImage(t.Context(), pool, broken, io.MultiReader(bytes.NewReader(good[:1000]), failingReader{})); err == nil {
		t.Error("an upload that broke off is stored")
	}
	if left := files(t, pool); len(left) > 0 {
		t.Errorf("refused images left files: %v", left)
	}
}

func (s *storageSuite) badRequests(t *testing.T) {
	store, pool := s.open(t), newPool(t)
	for name, volume := range map[string]plugins.VolumeSpec{
		"no ID":           {SizeBytes: api.MiB, Format: api.FormatQCOW2},
		"ID is a path":    {ID: "../../../tmp/x", SizeBytes: api.MiB, Format: api.FormatQCOW2},
		"unknown format":  {ID: uuid.NewString(), SizeBytes: api.MiB, Format: "vmdk"},
		"no size":         {ID: uuid.NewString(), Format: api.FormatQCOW2},
		"negative size":   {ID: uuid.NewString(), SizeBytes: -1, Format: api.FormatRaw},
		"absurd size":     {ID: uuid.NewString(), SizeBytes: 1 << 62, Format: api.FormatQCOW2},
		"image is a path": {ID: uuid.NewString(), SizeBytes: api.MiB, Format: api.FormatQCOW2, Image: "../volumes/x"},
		"image is json:":  {ID: uuid.NewString(), SizeBytes: api.MiB, Format: api.FormatQCOW2, Image: `json:{"driver":"file"}`},
	} {
		_, err := store.CreateVolume(t.Context(), pool, volume)
		wantCode(t, err, api.CodeInvalid, name)
	}
	wantCode(t, store.DeleteVolume(t.Context(), pool, "../x"), api.CodeInvalid, "DeleteVolume of a path")
	wantCode(t, store.DeleteImage(t.Context(), pool, "../x"), api.CodeInvalid, "DeleteImage of a path")
	_, err := store.OpenImage(t.Context(), pool, "../x")
	wantCode(t, err, api.CodeInvalid, "OpenImage of a path")
	_, err = store.Status(t.Context(), plugins.PoolSpec{Name: "local", Path: "relative"})
	wantCode(t, err, api.CodeInvalid, "a relative pool")
	if left := files(t, pool); len(left) > 0 {
		t.Errorf("refused requests left files: %v", left)
	}
}

func (s *storageSuite) damaged(t *testing.T) {
	store, pool := s.open(t), newPool(t)
	var made []plugins.Stored
	for range 3 {
		v, err := store.CreateVolume(t.Context(), pool, plugins.VolumeSpec{ID: uuid.NewString(), SizeBytes: api.MiB, Format: api.FormatQCOW2})
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, v)
	}
	if err := os.WriteFile(made[1].Source.Path, []byte("what a disk full of zeros leaves"), 0o600); err != nil {
		t.Fatal(err)
	}
	listed, err := store.List(t.Context(), pool)
	if err != nil || len(listed) != len(made) {
		t.Fatalf("List of a pool with a damaged volume: %d of %d, %v", len(listed), len(made), err)
	}
	for _, found := range listed {
		if bad := found.ID == made[1].ID; bad != (found.Damage != "") || found.Kind != api.KindVolume || found.Source.Path == "" {
			t.Errorf("volume %s, damaged: %t, is listed as %+v", found.ID, bad, found)
		}
	}
	again := plugins.VolumeSpec{ID: made[1].ID, SizeBytes: api.MiB, Format: api.FormatQCOW2}
	if found, err := store.CreateVolume(t.Context(), pool, again); err == nil {
		t.Errorf("CreateVolume finds the damaged volume and calls it good: %+v", found)
	}
	if err := store.DeleteVolume(t.Context(), pool, made[1].ID); err != nil {
		t.Errorf("DeleteVolume of a damaged volume: %v", err)
	}
}

func (s *storageSuite) reserve(t *testing.T) {
	store, pool := s.open(t), newPool(t)
	status, err := store.Status(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	pool.ReserveBytes = status.TotalBytes
	_, err = store.CreateVolume(t.Context(), pool, plugins.VolumeSpec{ID: uuid.NewString(), SizeBytes: api.MiB, Format: api.FormatQCOW2})
	wantCode(t, err, api.CodeLimit, "CreateVolume into the reserve")
	content := QCOW2(uint64(api.MiB), nil)
	_, err = store.ImportImage(t.Context(), pool, imageSpec(content, api.FormatQCOW2), bytes.NewReader(content))
	wantCode(t, err, api.CodeLimit, "ImportImage into the reserve")
	pool.ReserveBytes = 0
	huge := plugins.ImageSpec{ID: uuid.NewString(), Format: api.FormatRaw, SHA256: strings.Repeat("0", 64), SizeBytes: api.ImageSizeMax}
	_, err = store.ImportImage(t.Context(), pool, huge, failingReader{})
	wantCode(t, err, api.CodeLimit, "an image larger than what is free")
	if left := files(t, pool); len(left) > 0 {
		t.Errorf("refused requests left files: %v", left)
	}
}

func (s *storageSuite) parallel(t *testing.T) {
	store, pool := s.open(t), newPool(t)
	content := QCOW2(uint64(64*api.MiB), nil)
	image := imageSpec(content, api.FormatQCOW2)
	volume := plugins.VolumeSpec{ID: uuid.NewString(), SizeBytes: api.GiB, Format: api.FormatQCOW2}
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			if _, err := store.ImportImage(t.Context(), pool, image, bytes.NewReader(content)); err != nil {
				t.Errorf("ImportImage: %v", err)
			}
			clone := plugins.VolumeSpec{ID: uuid.NewString(), Format: api.FormatQCOW2, Image: image.ID}
			if _, err := store.CreateVolume(t.Context(), pool, clone); err != nil {
				t.Errorf("clone: %v", err)
			}
		})
		wg.Go(func() {
			if _, err := store.CreateVolume(t.Context(), pool, volume); err != nil {
				t.Errorf("CreateVolume: %v", err)
			}
		})
	}
	wg.Wait()
	if left := files(t, pool); len(left) != 1+6+1 {
		t.Errorf("the pool has %d files, want an image, 6 clones and a volume: %v", len(left), left)
	}
}

func (s *storageSuite) contexts(t *testing.T) {
	store, pool := s.open(t), newPool(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := store.CreateVolume(ended, pool, plugins.VolumeSpec{ID: uuid.NewString(), SizeBytes: api.MiB, Format: api.FormatQCOW2})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("CreateVolume with an ended context: %v", err)
	}
	content := QCOW2(uint64(api.MiB), nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err = store.ImportImage(ctx, pool, imageSpec(content, api.FormatQCOW2), readerFunc(func(p []byte) (int, error) {
		cancel()
		return copy(p, content), nil
	}))
	if err == nil {
		t.Error("an import whose context ended is stored")
	}
	if left := files(t, pool); len(left) > 0 {
		t.Errorf("files are left: %v", left)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
