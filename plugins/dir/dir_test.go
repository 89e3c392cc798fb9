package dir_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/e2e/lab"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/dir"
	"github.com/debvisor/debvisor/plugins/plugintest"
)

// open skips on a machine without qemu-img, which needs no root but a package.
func open(t testing.TB) plugins.Storage {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		if os.Getenv(lab.RequireEnv) == "1" {
			t.Fatal("requires qemu-img: install qemu-utils")
		}
		t.Skip("requires qemu-img: install qemu-utils")
	}
	s, err := dir.Open(dir.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStorageKeepsItsContract(t *testing.T) {
	t.Parallel()
	plugintest.Storage(t, open)
}

func TestStagesKeepTheirContract(t *testing.T) {
	t.Parallel()
	plugintest.Stager(t, func(t testing.TB) plugintest.Stages { return open(t).(plugintest.Stages) })
}

func TestTemplatesKeepTheirContract(t *testing.T) {
	t.Parallel()
	plugintest.Templates(t, func(t testing.TB) plugintest.TemplateStore { return open(t).(plugintest.TemplateStore) })
}

func TestMissingQemuImgNamesThePackage(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := dir.Open(dir.Config{})
	if api.CodeOf(err) != api.CodeUnavailable || !strings.Contains(err.Error(), "qemu-utils") {
		t.Fatalf("got %v, want CodeUnavailable that names qemu-utils", err)
	}
}

func store(t testing.TB, s plugins.Storage, pool plugins.PoolSpec, content []byte) plugins.Stored {
	t.Helper()
	sum := sha256.Sum256(content)
	image, err := s.ImportImage(t.Context(), pool, plugins.ImageSpec{
		ID: uuid.NewString(), Format: api.FormatQCOW2, SHA256: hex.EncodeToString(sum[:]), SizeBytes: int64(len(content)),
	}, bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func TestCloneStillReadsItsImageAfterThePoolMoved(t *testing.T) {
	t.Parallel()
	s, base := open(t), t.TempDir()
	pool := plugins.PoolSpec{Name: "local", Path: filepath.Join(base, "old")}
	image := store(t, s, pool, plugintest.QCOW2(uint64(64*api.MiB), nil))
	clone, err := s.CreateVolume(t.Context(), pool, plugins.VolumeSpec{ID: uuid.NewString(), Format: api.FormatQCOW2, Image: image.ID})
	if err != nil {
		t.Fatal(err)
	}
	moved := filepath.Join(base, "new")
	if err := os.Rename(pool.Path, moved); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(moved, "volumes", filepath.Base(clone.Source.Path))
	out, err := exec.Command("qemu-img", "info", "--output=json", "-f", "qcow2", path).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var info struct {
		Backing string `json:"backing-filename"`
		Format  string `json:"backing-filename-format"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		t.Fatal(err)
	}
	if want := "../images/" + image.ID + ".qcow2"; info.Backing != want || info.Format != "qcow2" {
		t.Errorf("the backing file is %q of format %q, want %q of qcow2", info.Backing, info.Format, want)
	}
	raw := filepath.Join(base, "disk.raw")
	if out, err := exec.Command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	content, err := os.ReadFile(raw)
	if err != nil || !bytes.HasPrefix(content, []byte("first sector of the disk")) {
		t.Errorf("the clone begins with %q: %v", content[:min(len(content), 24)], err)
	}
}

func TestRawVolumeOfAnImageIsACopy(t *testing.T) {
	t.Parallel()
	s := open(t)
	pool := plugins.PoolSpec{Name: "local", Path: filepath.Join(t.TempDir(), "pool")}
	image := store(t, s, pool, plugintest.QCOW2(uint64(64*api.MiB), nil))
	v, err := s.CreateVolume(t.Context(), pool, plugins.VolumeSpec{ID: uuid.NewString(), Format: api.FormatRaw, Image: image.ID, SizeBytes: 80 * api.MiB})
	if err != nil || v.SizeBytes != 80*api.MiB {
		t.Fatalf("%+v, %v", v, err)
	}
	f, err := os.Open(v.Source.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	head := make([]byte, 24)
	if _, err := f.Read(head); err != nil || string(head) != "first sector of the disk" {
		t.Errorf("the volume begins with %q: %v", head, err)
	}
	if err := s.DeleteImage(t.Context(), pool, image.ID); err != nil {
		t.Errorf("a copy keeps its image: %v", err)
	}
}

func TestOldLeftoversAreRemovedAndForeignFilesStay(t *testing.T) {
	t.Parallel()
	s := open(t)
	pool := plugins.PoolSpec{Name: "local", Path: filepath.Join(t.TempDir(), "pool")}
	if _, err := s.Status(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	old, young, foreign := filepath.Join(pool.Path, "images", ".new-a"), filepath.Join(pool.Path, "images", ".new-b"), filepath.Join(pool.Path, "volumes", "notes.txt")
	for _, path := range []string{old, young, foreign} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	past := time.Now().Add(-48 * time.Hour)
	for _, path := range []string{old, foreign} {
		if err := os.Chtimes(path, past, past); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Status(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !os.IsNotExist(err) {
		t.Errorf("an old leftover stays: %v", err)
	}
	for _, path := range []string{young, foreign} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("%s is gone: %v", path, err)
		}
	}
	if listed, err := s.List(t.Context(), pool); err != nil || len(listed) != 0 {
		t.Errorf("foreign files are listed: %+v, %v", listed, err)
	}
}

func TestTheImagesOfQemuImgAreTaken(t *testing.T) {
	t.Parallel()
	s := open(t)
	pool := plugins.PoolSpec{Name: "local", Path: filepath.Join(t.TempDir(), "pool")}
	raw := filepath.Join(t.TempDir(), "raw")
	if err := os.WriteFile(raw, bytes.Repeat([]byte("content "), 1<<17), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"plain":          {},
		"compressed":     {"-c"},
		"zstd":           {"-c", "-o", "compression_type=zstd"},
		"version 2":      {"-o", "compat=0.10"},
		"small clusters": {"-o", "cluster_size=512"},
		"extended L2":    {"-o", "extended_l2=on"},
		"preallocated":   {"-o", "preallocation=metadata"},
		"lazy refcounts": {"-o", "lazy_refcounts=on"},
		"large clusters": {"-o", "cluster_size=2M"},
	} {
		file := filepath.Join(t.TempDir(), "image.qcow2")
		all := append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, args...), raw, file)
		if out, err := exec.Command("qemu-img", all...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := store(t, s, pool, content); got.SizeBytes != 1<<20 {
			t.Errorf("%s: the virtual size is %d", name, got.SizeBytes)
		}
	}
}

// What is written below a mount point whose file system is away is on this
// machine alone, and out of sight once it is back.
func TestSharedPoolIsNeverMadeWhereItsMountIsMissing(t *testing.T) {
	t.Parallel()
	s := open(t)
	absent := plugins.PoolSpec{Name: "nfs", Path: filepath.Join(t.TempDir(), "absent"), Shared: true}
	empty := plugins.PoolSpec{Name: "nfs", Path: t.TempDir(), Shared: true}
	volume := plugins.VolumeSpec{ID: uuid.NewString(), SizeBytes: api.MiB, Format: api.FormatQCOW2}
	for _, pool := range []plugins.PoolSpec{absent, empty} {
		_, status := s.Status(t.Context(), pool)
		_, listed := s.List(t.Context(), pool)
		_, made := s.CreateVolume(t.Context(), pool, volume)
		for _, err := range []error{status, listed, made} {
			if e := api.AsError(err); api.CodeOf(err) != api.CodeUnavailable || !strings.Contains(e.Next, "mount") {
				t.Errorf("%s: got %v, want CodeUnavailable that says to mount it", pool.Path, err)
			}
		}
	}
	if _, err := os.Stat(absent.Path); !os.IsNotExist(err) {
		t.Errorf("the directory was made: %v", err)
	}
	if left, err := os.ReadDir(empty.Path); err != nil || len(left) > 0 {
		t.Errorf("something was written: %v %v", left, err)
	}
	if err := os.WriteFile(filepath.Join(empty.Path, dir.SharedMark), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateVolume(t.Context(), empty, volume); err != nil {
		t.Errorf("a marked directory is refused: %v", err)
	}
}

func TestSharedPoolOnAMountPointNeedsNoMark(t *testing.T) {
	s := open(t)
	if os.Geteuid() != 0 {
		t.Skip("requires root to mount a file system")
	}
	path := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=8m", "debvisor-test", path).CombinedOutput(); err != nil {
		t.Skipf("requires the right to mount a file system: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", path).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	pool := plugins.PoolSpec{Name: "nfs", Path: path, Shared: true}
	if _, err := s.Status(t.Context(), pool); err != nil {
		t.Errorf("a mounted pool is refused: %v", err)
	}
}
