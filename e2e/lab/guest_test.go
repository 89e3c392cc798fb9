package lab_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/e2e/lab"
)

// The format that cpio itself reads is the one that the kernel reads.
func TestGuestIsCompleteAndFoundAgain(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	g := lab.TinyGuestFor(t)
	for _, path := range []string{g.Kernel, g.Initrd, g.Disk} {
		if stat, err := os.Stat(path); err != nil || stat.Size() == 0 {
			t.Errorf("%s: %v", path, err)
		}
	}
	before, err := os.Stat(g.Disk)
	if err != nil {
		t.Fatal(err)
	}
	again, err := lab.TinyGuest(t.Context(), filepath.Dir(g.Disk))
	if err != nil || again != g {
		t.Fatalf("%+v, %v, want %+v", again, err, g)
	}
	after, err := os.Stat(g.Disk)
	if err != nil || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("the guest was made anew: %v", err)
	}
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("requires cpio: the listing of the initial RAM disk is not compared")
	}
	out, err := exec.Command("sh", "-c", `gzip -dc "$0" | cpio -t --quiet`, g.Initrd).Output()
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Fields(string(out))
	for _, want := range []string{"init", "bin/busybox", "dev/console", "etc/modules", "lib/modules/virtio_blk.ko"} {
		if !slices.Contains(names, want) {
			t.Errorf("the initial RAM disk lacks %s: %v", want, names)
		}
	}
	needed, user := slices.Index(names, "lib/modules/virtio.ko"), slices.Index(names, "lib/modules/virtio_blk.ko")
	if needed > user {
		t.Error("a module comes before the one that it needs")
	}
}

func TestLabsOfNoSizeAreRefused(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	for _, n := range []int{0, -1, 1000} {
		if l, err := lab.Start(t.Context(), n, lab.Config{}); err == nil {
			t.Errorf("a lab of %d nodes started", n)
			if err := l.Close(); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		}
	}
}
