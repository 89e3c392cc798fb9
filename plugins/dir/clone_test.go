package dir_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/dir"
	"github.com/debvisor/debvisor/plugins/plugintest"
)

// write puts a text at the beginning of a disk, with QEMU's own code.
func write(t testing.TB, at plugins.Source, text string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("qemu-io", "-f", at.Format, "-c", "write -s "+file+" 0 512", at.Path).CombinedOutput()
	if err != nil {
		t.Fatalf("write to %s: %v: %s", at.Path, err, out)
	}
}

func read(t testing.TB, at plugins.Source) string {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "disk.raw")
	if out, err := exec.Command("qemu-img", "dd", "-f", at.Format, "-O", "raw", "bs=512", "count=1", "if="+at.Path, "of="+raw).CombinedOutput(); err != nil {
		t.Fatalf("read %s: %v: %s", at.Path, err, out)
	}
	content, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestVolumesKeepTheirContract(t *testing.T) {
	t.Parallel()
	plugintest.Volumes(t, func(t testing.TB) plugintest.VolumeStore { return open(t).(*dir.Storage) }, write, read)
}

func volume(t testing.TB, s *dir.Storage, pool plugins.PoolSpec) plugins.Stored {
	t.Helper()
	made, err := s.CreateVolume(t.Context(), pool, plugins.VolumeSpec{ID: uuid.NewString(), Format: api.FormatQCOW2, SizeBytes: 16 * api.MiB})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func TestVolumeWithSnapshotsIsNotFrozen(t *testing.T) {
	t.Parallel()
	s := open(t).(*dir.Storage)
	pool := plugins.PoolSpec{Name: "local", Path: filepath.Join(t.TempDir(), "pool")}
	source := volume(t, s, pool)
	if out, err := exec.Command("qemu-img", "snapshot", "-c", "before", source.Source.Path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	_, err := s.CloneVolume(t.Context(), pool, source.ID, plugins.VolumeSpec{ID: uuid.NewString(), Format: api.FormatQCOW2})
	if api.CodeOf(err) != api.CodeConflict {
		t.Errorf("got %v, want CodeConflict", err)
	}
}

// TestDeathWhileFreezingLosesNothing puts the pool into the state that a
// process leaves which dies after it linked the base: the source is as it was,
// the next clone works, and the stray base goes.
func TestDeathWhileFreezingLosesNothing(t *testing.T) {
	t.Parallel()
	s := open(t).(*dir.Storage)
	pool := plugins.PoolSpec{Name: "local", Path: filepath.Join(t.TempDir(), "pool")}
	source := volume(t, s, pool)
	write(t, source.Source, "before")
	stray := filepath.Join(pool.Path, "bases", uuid.NewString()+".qcow2")
	if err := os.Link(source.Source.Path, stray); err != nil {
		t.Fatal(err)
	}
	write(t, source.Source, "after")
	clone, err := s.CloneVolume(t.Context(), pool, source.ID, plugins.VolumeSpec{ID: uuid.NewString(), Format: api.FormatQCOW2})
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, clone.Source); got[:5] != "after" {
		t.Errorf("the clone begins with %.10q", got)
	}
	for _, v := range []plugins.Stored{clone, source} {
		if err := s.DeleteVolume(t.Context(), pool, v.ID); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(pool.Path, "*", "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestImageBelowABaseIsKept(t *testing.T) {
	t.Parallel()
	s := open(t).(*dir.Storage)
	pool := plugins.PoolSpec{Name: "local", Path: filepath.Join(t.TempDir(), "pool")}
	image := store(t, s, pool, plugintest.QCOW2(uint64(16*api.MiB), nil))
	source, err := s.CreateVolume(t.Context(), pool, plugins.VolumeSpec{ID: uuid.NewString(), Format: api.FormatQCOW2, Image: image.ID})
	if err != nil {
		t.Fatal(err)
	}
	clone, err := s.CloneVolume(t.Context(), pool, source.ID, plugins.VolumeSpec{ID: uuid.NewString(), Format: api.FormatQCOW2})
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, clone.Source); got[:12] != "first sector" {
		t.Errorf("the clone begins with %.20q", got)
	}
	if err := s.DeleteVolume(t.Context(), pool, source.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteImage(t.Context(), pool, image.ID); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("the image below a base was deleted: %v", err)
	}
}
