package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/debvisor/debvisor/api"
)

// What a host should have.
const (
	memoryWanted   = 1 * api.GiB  // available
	diskWanted     = 10 * api.GiB // free where the data directory lies
	diskNeeded     = 1 * api.GiB
	syncWanted     = 100 * time.Millisecond // slowest of syncProbes
	syncProbes     = 16
	libvirtDefault = "/var/run/libvirt/libvirt-sock"
)

// checkHost looks at this machine. It changes nothing but a probe file in the
// data directory, which it removes.
func checkHost(ctx context.Context, e examination) []check {
	checks := []check{
		checkProgram("qemu-system-x86_64", "qemu-system-x86"),
		checkProgram("qemu-img", "qemu-utils"),
		checkLibvirt(ctx, cmp.Or(e.socket, libvirtDefault)),
		checkKVM(),
		checkMemory(),
		checkDisk(e.dataDir),
		checkSync(e.dataDir),
		checkClock(),
		checkPort(ctx, e.listen),
	}
	for _, m := range []struct{ name, module, use string }{
		{"bridge", "bridge", "networks"}, {"vlan", "8021q", "VLANs on bridges"}, {"tun", "tun", "network interfaces of guests"},
	} {
		checks = append(checks, checkModule(m.name, m.module, m.use))
	}
	return checks
}

func checkProgram(name, debianPackage string) check {
	path, err := exec.LookPath(name)
	if err != nil {
		return check{Name: name, State: checkFailed, Detail: "is not installed", Next: "apt install " + debianPackage}
	}
	return check{Name: name, State: checkOK, Detail: path}
}

func checkLibvirt(ctx context.Context, socket string) check {
	c := check{Name: "libvirtd", State: checkFailed}
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "unix", socket)
	switch {
	case err == nil:
		conn.Close()
		c.State, c.Detail = checkOK, "answers at "+socket
	case errors.Is(err, fs.ErrNotExist):
		c.Detail, c.Next = "no socket at "+socket, "apt install libvirt-daemon-system, then: systemctl start libvirtd"
	case errors.Is(err, fs.ErrPermission):
		c.Detail, c.Next = "this user may not open "+socket, "run as root, or join the group libvirt"
	default:
		c.Detail, c.Next = err.Error(), "systemctl restart libvirtd, then look at: journalctl -u libvirtd"
	}
	return c
}

// checkKVM wants the device and the flag of the CPU: inside some virtual
// machines the device opens and no guest ever boots.
func checkKVM() check {
	c := check{Name: "kvm", State: checkWarning, Next: "guests run in software, slowly: switch on VT-x or AMD-V in the firmware, or nested virtualization on the outer host"}
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !bytes.Contains(cpuinfo, []byte("vmx")) && !bytes.Contains(cpuinfo, []byte("svm")) {
		c.Detail = "the CPU offers no virtualization"
		return c
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		c.Detail, c.Next = err.Error(), "modprobe kvm_intel or kvm_amd; run as root, or join the group kvm"
		return c
	}
	f.Close()
	return check{Name: "kvm", State: checkOK, Detail: "/dev/kvm opens and the CPU has the flag"}
}

func checkMemory() check {
	c := check{Name: "memory", State: checkWarning}
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		c.Detail = err.Error()
		return c
	}
	var total, available int64
	for line := range strings.Lines(string(raw)) {
		_, _ = fmt.Sscanf(line, "MemTotal: %d kB", &total)
		_, _ = fmt.Sscanf(line, "MemAvailable: %d kB", &available)
	}
	c.Detail = fmt.Sprintf("%s available of %s", api.FormatSize(available*api.KiB), api.FormatSize(total*api.KiB))
	if available*api.KiB < memoryWanted {
		c.Next = fmt.Sprintf("end something, or add memory: less than %s is left for guests", api.FormatSize(memoryWanted))
		return c
	}
	c.State = checkOK
	return c
}

// existing is the nearest directory at or above dir that exists.
func existing(dir string) string {
	for dir != "/" && dir != "." && !fileExists(dir) {
		dir = filepath.Dir(dir)
	}
	return dir
}

func checkDisk(dataDir string) check {
	c := check{Name: "disk", State: checkFailed}
	var stat unix.Statfs_t
	at := existing(dataDir)
	if err := unix.Statfs(at, &stat); err != nil {
		c.Detail, c.Next = fmt.Sprintf("%s: %v", at, err), "name another place with --data-dir"
		return c
	}
	free := int64(stat.Bavail) * stat.Bsize
	c.Detail = fmt.Sprintf("%s free at %s", api.FormatSize(free), at)
	switch {
	case stat.Flags&unix.ST_RDONLY != 0:
		c.Detail, c.Next = at+" is mounted read-only", "look at dmesg for errors of the disk, then remount it"
	case free < diskNeeded:
		c.Next = fmt.Sprintf("make room: the cluster's log needs at least %s", api.FormatSize(diskNeeded))
	case free < diskWanted:
		c.State, c.Next = checkWarning, fmt.Sprintf("make room: images and volumes need more than %s", api.FormatSize(diskWanted))
	default:
		c.State = checkOK
	}
	return c
}

// checkSync measures how long the disk takes to keep a small write: every
// change of the cluster waits for that.
func checkSync(dataDir string) check {
	c := check{Name: "fsync", State: checkWarning}
	f, err := os.CreateTemp(existing(dataDir), ".debvisor-doctor-*")
	if err != nil {
		c.State, c.Detail = checkSkipped, "cannot write to "+existing(dataDir)
		return c
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var took []time.Duration
	for range syncProbes {
		start := time.Now()
		if _, err := f.Write(make([]byte, 512)); err != nil {
			c.Detail = err.Error()
			return c
		}
		if err := f.Sync(); err != nil {
			c.State, c.Detail, c.Next = checkFailed, err.Error(), "look at dmesg for errors of the disk"
			return c
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	c.Detail = fmt.Sprintf("median %.1f ms, worst %.1f ms", ms(took[len(took)/2]), ms(took[len(took)-1]))
	if took[len(took)-1] > syncWanted {
		c.Next = "put the data directory on an SSD, or free the disk from other work"
		return c
	}
	c.State = checkOK
	return c
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// checkClock asks the kernel whether something keeps its clock right.
func checkClock() check {
	c := check{Name: "clock", State: checkWarning, Detail: "is not synchronised", Next: "apt install systemd-timesyncd, or chrony"}
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	switch {
	case err != nil:
		c.Detail, c.Next = err.Error(), ""
	case state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0:
		c.State, c.Detail, c.Next = checkOK, "is synchronised", ""
	}
	return c
}

// checkPort tries to listen where the agent would.
func checkPort(ctx context.Context, address string) check {
	c := check{Name: "port", State: checkFailed}
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", address)
	switch {
	case err == nil:
		l.Close()
		c.State, c.Detail = checkOK, address+" is free"
	case errors.Is(err, syscall.EADDRINUSE):
		c.State, c.Detail = checkWarning, address+" is in use"
		c.Next = "right if debvisor agent runs here; else find the program with: ss -tlnp"
	default:
		c.Detail, c.Next = err.Error(), "name an address of this host with --listen"
	}
	return c
}

// checkModule looks for a part of the kernel: loaded, built in, or loadable.
func checkModule(name, module, use string) check {
	c := check{Name: name, State: checkOK}
	if fileExists("/sys/module/" + module) {
		c.Detail = "is in the kernel"
		return c
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return check{Name: name, State: checkSkipped, Detail: err.Error()}
	}
	dir := "/lib/modules/" + unix.ByteSliceToString(uts.Release[:])
	for _, list := range []string{"modules.builtin", "modules.dep"} {
		raw, err := os.ReadFile(filepath.Join(dir, list))
		if err == nil && (bytes.Contains(raw, []byte("/"+module+".ko")) || bytes.Contains(raw, []byte("/"+module+".ko."))) {
			c.Detail = "the kernel can load it"
			return c
		}
	}
	if name == "tun" && fileExists("/dev/net/tun") || name == "bridge" && fileExists("/proc/sys/net/bridge") {
		c.Detail = "is in the kernel"
		return c
	}
	c.State, c.Detail = checkWarning, "the kernel shows no module "+module
	c.Next = "needed for " + use + ": apt install linux-image-amd64, or a kernel that has it"
	return c
}
