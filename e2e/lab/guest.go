package lab

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// guestTimeout bounds the making of the tiny guest, downloads included.
const guestTimeout = 5 * time.Minute

//go:embed guest-init.sh
var guestInit string

// Guest is a tiny Linux: Debian's cloud kernel and busybox. On its serial line
// it prints what its seed says (between SEED-BEGIN and SEED-END), then a line
// that begins with GUEST-READY, then a tick a second, and it runs the lines
// that it reads as shell commands. It obeys the ACPI power button. It needs 96
// MiB of memory and boots in 3 to 9 s without KVM.
type Guest struct {
	Kernel string // for direct boot
	Initrd string
	Disk   string // qcow2, boots by itself with BIOS
}

// KernelArgs is the command line for a direct boot.
const KernelArgs = "console=ttyS0 quiet panic=-1"

// TinyGuest makes the guest in dir, or finds it there. Several processes may
// ask for the same dir at once. It needs root only to read its own result.
func TinyGuest(ctx context.Context, dir string) (Guest, error) {
	ctx, cancel := context.WithTimeout(ctx, guestTimeout)
	defer cancel()
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Guest{}, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Guest{}, fmt.Errorf("make guest directory: %w", err)
	}
	unlock, err := lockFile(filepath.Join(dir, "lock"))
	if err != nil {
		return Guest{}, err
	}
	defer unlock()
	g := Guest{Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initrd.gz"), Disk: filepath.Join(dir, "tiny.qcow2")}
	stamp := filepath.Join(dir, "stamp")
	if found, err := os.ReadFile(stamp); err == nil && string(found) == guestVersion() {
		return g, nil
	}
	work, err := os.MkdirTemp(dir, "work-")
	if err != nil {
		return Guest{}, fmt.Errorf("make guest directory: %w", err)
	}
	defer func() { _ = os.RemoveAll(work) }()
	if err := buildGuest(ctx, work, g); err != nil {
		return Guest{}, fmt.Errorf("make the tiny guest: %w", err)
	}
	return g, os.WriteFile(stamp, []byte(guestVersion()), 0o644)
}

// TinyGuestFor makes the guest in the user's cache directory for a test. Where
// its parts cannot be had the test fails: whoever can run guests needs one.
func TinyGuestFor(t testing.TB) Guest {
	t.Helper()
	base, err := os.UserCacheDir()
	if err != nil {
		base = os.TempDir()
	}
	g, err := TinyGuest(t.Context(), filepath.Join(base, "debvisor-lab", "guest"))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// guestVersion changes with what goes into the guest.
func guestVersion() string {
	sum := sha256.Sum256([]byte(guestInit + bootConfig + agentProgram + strings.Join(guestModules(), " ")))
	return hex.EncodeToString(sum[:])
}

func guestModules() []string {
	return []string{
		"virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "virtio_balloon", "virtio_scsi",
		"virtio_mem", "sd_mod", "sr_mod", "isofs", "nls_utf8", "button", "evdev",
	}
}

func buildGuest(ctx context.Context, work string, g Guest) error {
	root, err := unpackDebian(ctx, work)
	if err != nil {
		return err
	}
	kernels, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		return fmt.Errorf("the kernel package holds %d kernels", len(kernels))
	}
	kernel, err := os.ReadFile(kernels[0])
	if err != nil {
		return err
	}
	initrd, err := buildInitrd(root)
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(g.Kernel, kernel, 0o644), os.WriteFile(g.Initrd, initrd, 0o644)); err != nil {
		return err
	}
	raw := filepath.Join(work, "disk.raw")
	if err := buildDisk(ctx, raw, g); err != nil {
		return err
	}
	temp := filepath.Join(work, "tiny.qcow2")
	if err := run(ctx, work, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, temp); err != nil {
		return err
	}
	return os.Rename(temp, g.Disk)
}

// unpackDebian downloads the kernel and busybox and unpacks them, without
// installing anything. Where the lists of packages are missing or name files
// that are gone, it fetches them anew and tries once more.
func unpackDebian(ctx context.Context, work string) (string, error) {
	if err := download(ctx, work); err != nil {
		if e := run(ctx, work, "apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", "update"); e != nil {
			return "", errors.Join(err, e)
		}
		if err := download(ctx, work); err != nil {
			return "", err
		}
	}
	packages, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil {
		return "", err
	}
	root := filepath.Join(work, "root")
	for _, p := range packages {
		if err := run(ctx, work, "dpkg", "-x", p, root); err != nil {
			return "", err
		}
	}
	return root, nil
}

// download fetches the packages of the kernel and of busybox into work.
func download(ctx context.Context, work string) error {
	out, err := exec.CommandContext(ctx, "apt-cache", "depends", "--no-recommends", "--no-suggests", "linux-image-cloud-amd64").Output()
	if err != nil {
		return fmt.Errorf("look up the cloud kernel: %w", err)
	}
	kernel := ""
	for line := range strings.Lines(string(out)) {
		if _, name, ok := strings.Cut(line, "Depends: linux-image-"); ok {
			kernel = "linux-image-" + strings.TrimSpace(name)
			break
		}
	}
	if kernel == "" {
		return errors.New("the package linux-image-cloud-amd64 names no kernel")
	}
	return run(ctx, work, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", kernel, "busybox-static", "qemu-guest-agent")
}

func buildInitrd(root string) ([]byte, error) {
	tree, err := findModules(root)
	if err != nil {
		return nil, err
	}
	modules, err := tree.resolve(guestModules())
	if err != nil {
		return nil, err
	}
	busybox, err := os.ReadFile(filepath.Join(root, "bin", "busybox"))
	if errors.Is(err, os.ErrNotExist) { // where / and /usr are merged
		busybox, err = os.ReadFile(filepath.Join(root, "usr", "bin", "busybox"))
	}
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	c := &cpioWriter{w: zip}
	for _, dir := range []string{"bin", "dev", "proc", "sys", "mnt", "run", "tmp", "etc", "etc/acpi", "etc/acpi/PWRF", "lib", "lib/modules"} {
		c.dir(dir)
	}
	c.add("dev/console", cpioNode|0o600, nil, [2]uint32{5, 1})
	c.file("init", 0o755, []byte(guestInit))
	c.file("bin/busybox", 0o755, busybox)
	if err := addAgent(c, root); err != nil {
		return nil, err
	}
	c.file("etc/acpi/PWRF/00000080", 0o755, []byte("#!/bin/sh\necho POWER-BUTTON >/dev/ttyS0\nsync\nexec /bin/busybox poweroff -f\n"))
	names := ""
	for _, m := range modules {
		c.file("lib/modules/"+m.name+".ko", 0o644, m.content)
		names += m.name + "\n"
	}
	c.file("etc/modules", 0o644, []byte(names))
	if err := errors.Join(c.Close(), zip.Close()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// run executes a program in dir with a plain environment.
func run(ctx context.Context, dir, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "MTOOLS_SKIP_CHECK=1"}
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy"} {
		if value, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(out))
	}
	return nil
}

func lockFile(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { _ = f.Close() }, nil
}
