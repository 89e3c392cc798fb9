package libvirt_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/e2e/lab"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/bridge"
	"github.com/debvisor/debvisor/plugins/dir"
	"github.com/debvisor/debvisor/plugins/libvirt"
)

const bootTimeout = 2 * time.Minute

// readUntil reads the guest's console until a text appears.
func readUntil(t testing.TB, h plugins.Hypervisor, id, text string) string {
	t.Helper()
	c, err := h.Console(t.Context(), id, true)
	if err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(bootTimeout, func() { _ = c.Close() })
	defer timer.Stop()
	defer func() { _ = c.Close() }()
	var seen strings.Builder
	p := make([]byte, 4096)
	for {
		n, err := c.Read(p)
		seen.Write(p[:n])
		if strings.Contains(seen.String(), text) {
			return seen.String()
		}
		if err != nil {
			t.Fatalf("the console ended (%v) before %q: %q", err, text, seen.String())
		}
	}
}

// importImage stores a file as an image of the pool.
func importImage(t testing.TB, s plugins.Storage, pool plugins.PoolSpec, path, format string) plugins.Stored {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	image, err := s.ImportImage(t.Context(), pool, plugins.ImageSpec{
		ID: uuid.NewString(), Format: format, SHA256: hex.EncodeToString(sum[:]), SizeBytes: int64(len(content)),
	}, strings.NewReader(string(content)))
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// makeBridge makes a bridge where the node's guests look for it.
func makeBridge(t testing.TB, m *machine, name string) *bridge.Network {
	t.Helper()
	ns, err := libvirt.NetNS(m.node.Socket)
	if err != nil || ns == "" {
		t.Fatalf("the node's network namespace is %q: %v", ns, err)
	}
	network, err := bridge.Open(bridge.Config{ClusterID: m.config.ClusterID, Dir: filepath.Join(filepath.Dir(m.config.StateDir), "networks"), NetNS: ns})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(network.Close)
	if _, err := network.Ensure(t.Context(), plugins.NetworkSpec{Bridge: name}, true); err != nil {
		t.Fatal(err)
	}
	return network
}

func TestGuestBootsFromAPoolWithSeedAndNetwork(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	h := m.open(t)
	defer func() { _ = h.Close() }()
	store, err := dir.Open(dir.Config{})
	if err != nil {
		t.Fatal(err)
	}
	pool := plugins.PoolSpec{Name: "local", Path: filepath.Join(filepath.Dir(m.config.StateDir), "pool")}
	image := importImage(t, store, pool, m.guest.Disk, api.FormatQCOW2)
	root, err := store.CreateVolume(t.Context(), pool, plugins.VolumeSpec{ID: uuid.NewString(), Format: api.FormatQCOW2, Image: image.ID})
	if err != nil {
		t.Fatal(err)
	}
	extra, err := store.CreateVolume(t.Context(), pool, plugins.VolumeSpec{ID: uuid.NewString(), Format: api.FormatRaw, SizeBytes: 8 * api.MiB})
	if err != nil {
		t.Fatal(err)
	}
	network := makeBridge(t, m, "dvbr0")
	spec := m.spec(t)
	spec.Boot = nil
	spec.Disks = []plugins.DiskSpec{
		{Name: "root", Source: root.Source, Bus: "virtio", Cache: "writeback"}, {Name: "extra", Source: extra.Source, Bus: "scsi", Cache: "none"},
	}
	spec.NICs = []plugins.NICSpec{{Bridge: "dvbr0", MAC: "52:54:00:aa:bb:cc"}}
	spec.Seed, spec.SeedID = &api.CloudInit{Hostname: "spine"}, "seed-77"
	if err := h.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	text := readUntil(t, h, spec.ID, "GUEST-READY spine firmware=bios")
	for _, part := range []string{"instance-id: seed-77", "local-hostname: spine"} {
		if !strings.Contains(text, part) {
			t.Errorf("the guest did not find %q on its seed: %q", part, text)
		}
	}
	ready := text[strings.Index(text, "GUEST-READY"):]
	if more := readUntil(t, h, spec.ID, "tick 1"); !strings.Contains(more, "sda") || !strings.Contains(more, "vda") {
		t.Errorf("the guest lacks a disk: %q", ready)
	}
	if err := network.Remove(t.Context(), "dvbr0"); err != nil {
		t.Error(err)
	}
	if owned, err := network.Owned(t.Context()); err != nil || len(owned) != 1 {
		t.Errorf("a bridge with a guest on it was removed: %q, %v", owned, err)
	}
	all, err := h.Domains(t.Context())
	if err != nil || len(all) != 1 || len(all[0].Drift) > 0 {
		t.Errorf("the guest is %+v: %v", all, err)
	}
	if err := h.Stop(t.Context(), spec.ID, time.Minute); err != nil {
		t.Error(err)
	}
	if err := h.Remove(t.Context(), spec.ID); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(m.config.StateDir, spec.ID)); !os.IsNotExist(err) {
		t.Errorf("the guest's files are left: %v", err)
	}
	if _, err := os.Stat(root.Source.Path); err != nil {
		t.Errorf("Remove took a volume away: %v", err)
	}
}

func TestGuestBootsWithUEFI(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	if _, err := os.Stat("/usr/share/OVMF"); err != nil {
		if os.Getenv(lab.RequireEnv) == "1" {
			t.Fatal("UEFI firmware is missing: install ovmf")
		}
		t.Skip("UEFI firmware is missing: install ovmf")
	}
	h := m.open(t)
	defer func() { _ = h.Close() }()
	spec := m.spec(t)
	spec.Firmware = "uefi"
	spec.MemoryBytes = 256 * api.MiB // the firmware itself takes some 60 MiB
	for range 2 {                    // the second start finds the variables of the first
		if err := h.Start(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
		readUntil(t, h, spec.ID, "firmware=uefi")
		if err := h.Stop(t.Context(), spec.ID, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Remove(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
}

func TestMissingFirmwareNamesThePackage(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.config.FirmwareDir = t.TempDir()
	h := m.open(t)
	defer func() { _ = h.Close() }()
	spec := m.spec(t)
	spec.Firmware = "uefi"
	err := h.Start(t.Context(), spec)
	if api.CodeOf(err) != api.CodeUnavailable || !strings.Contains(err.Error(), "ovmf") {
		t.Errorf("got %v, want CodeUnavailable that names ovmf", err)
	}
}

func TestDomainsOfOthersAreNeverTouched(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	h := m.open(t)
	defer func() { _ = h.Close() }()
	c := m.client(t)
	foreign := uuid.NewString()
	_, err := c.DomainDefineXML(`<domain type="qemu"><name>foreign</name><uuid>` + foreign + `</uuid><memory unit="MiB">64</memory>` +
		`<os><type arch="x86_64" machine="q35">hvm</type></os></domain>`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.DomainCreateWithFlags(m.domain(t, c, foreign), 0); err != nil {
		t.Fatal(err)
	}
	cousin := *m // of another cluster on the same daemon
	cousin.config.ClusterID = uuid.NewString()
	other := cousin.open(t)
	defer func() { _ = other.Close() }()
	theirs := cousin.spec(t)
	if err := other.Start(t.Context(), theirs); err != nil {
		t.Fatal(err)
	}
	if all, err := h.Domains(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("domains of others are listed: %+v, %v", all, err)
	}
	for _, id := range []string{foreign, theirs.ID} {
		spec := m.spec(t)
		spec.ID = id
		if err := h.Start(t.Context(), spec); api.CodeOf(err) != api.CodeConflict {
			t.Errorf("Start over a domain of others: %v, want CodeConflict", err)
		}
		if err := h.Stop(t.Context(), id, 0); err != nil {
			t.Errorf("Stop: %v", err)
		}
		if err := h.Remove(t.Context(), id); err != nil {
			t.Errorf("Remove: %v", err)
		}
		if _, err := h.Console(t.Context(), id, true); err == nil {
			t.Error("the console of a domain of others opens")
		}
		state, _, err := c.DomainGetState(m.domain(t, c, id), 0)
		if err != nil || golibvirt.DomainState(state) != golibvirt.DomainRunning {
			t.Errorf("domain %s of others is in state %d: %v", id, state, err)
		}
	}
	named := m.spec(t)
	named.Name = "foreign"
	if err := h.Start(t.Context(), named); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("Start under the name of a domain of others: %v, want CodeConflict", err)
	}
}

func TestHungDaemonHoldsNobody(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	h := m.open(t)
	defer func() { _ = h.Close() }()
	fresh := m.open(t)
	defer func() { _ = fresh.Close() }()
	spec := m.spec(t)
	if err := h.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	if err := m.node.Pause(); err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]func(context.Context) error{
		"Domains":         func(ctx context.Context) error { _, err := h.Domains(ctx); return err },
		"Stop":            func(ctx context.Context) error { return h.Stop(ctx, spec.ID, 0) },
		"Console":         func(ctx context.Context) error { _, err := h.Console(ctx, spec.ID, true); return err },
		"a first connect": func(ctx context.Context) error { _, err := fresh.Probe(ctx); return err },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		began := time.Now()
		err := call(ctx)
		cancel()
		if took := time.Since(began); err == nil || took > 5*time.Second {
			t.Errorf("%s returned %v after %v", name, err, took)
		}
	}
	if err := m.node.Resume(); err != nil {
		t.Fatal(err)
	}
	if all, err := h.Domains(t.Context()); err != nil || len(all) != 1 || all[0].State != api.InstanceRunning {
		t.Errorf("after the daemon came back: %+v, %v", all, err)
	}
}

func TestAbsentDaemonNamesTheNextStep(t *testing.T) {
	t.Parallel()
	h, err := libvirt.Open(libvirt.Config{Socket: filepath.Join(t.TempDir(), "absent"), ClusterID: uuid.NewString(), StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = h.Close() }()
	_, err = h.Probe(t.Context())
	e := api.AsError(err)
	if e == nil || e.Code != api.CodeUnavailable || !strings.Contains(e.Next, "libvirt-daemon-system") {
		t.Errorf("got %v, want CodeUnavailable that says what to install", err)
	}
}

func TestBadConfigurationsAreRefused(t *testing.T) {
	t.Parallel()
	good := libvirt.Config{ClusterID: "c", StateDir: t.TempDir()}
	for name, spoil := range map[string]func(*libvirt.Config){
		"accel": func(c *libvirt.Config) { c.Accel = "warp" }, "cluster": func(c *libvirt.Config) { c.ClusterID = "" },
		"socket": func(c *libvirt.Config) { c.Socket = "relative" }, "state": func(c *libvirt.Config) { c.StateDir = "" },
	} {
		config := good
		spoil(&config)
		if _, err := libvirt.Open(config); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s: got %v, want CodeInvalid", name, err)
		}
	}
}

func TestKVMIsRefusedWhereItDoesNotWork(t *testing.T) {
	t.Parallel()
	if cpuinfo, err := os.ReadFile("/proc/cpuinfo"); err != nil || libvirt.HasVirtualization(cpuinfo) {
		t.Skip("this machine may have KVM")
	}
	m := newMachine(t)
	m.config.Accel = libvirt.AccelKVM
	h := m.open(t)
	defer func() { _ = h.Close() }()
	if _, err := h.Probe(t.Context()); api.CodeOf(err) != api.CodeUnavailable || !strings.Contains(err.Error(), "vmx") {
		t.Errorf("got %v, want CodeUnavailable with the reason", err)
	}
}

func TestLiveChangesShowAsDrift(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	h := m.open(t)
	defer func() { _ = h.Close() }()
	events, err := h.Events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	spec := m.spec(t)
	if err := h.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	readUntil(t, h, spec.ID, "GUEST-READY")
	disk := filepath.Join(filepath.Dir(m.config.StateDir), "sneaked.raw")
	if err := os.WriteFile(disk, make([]byte, api.MiB), 0o600); err != nil {
		t.Fatal(err)
	}
	c := m.client(t)
	err = c.DomainAttachDeviceFlags(m.domain(t, c, spec.ID),
		`<disk type="file" device="disk"><driver name="qemu" type="raw"/><source file="`+disk+`"/><target dev="vdx" bus="virtio"/></disk>`,
		uint32(golibvirt.DomainDeviceModifyLive))
	if err != nil && !strings.Contains(err.Error(), "PCI") {
		t.Fatal(err)
	}
	if err != nil {
		// Without a free port on the bus nothing can be plugged in: shrink it instead.
		if err := c.DomainSetMemoryFlags(m.domain(t, c, spec.ID), 100<<10, uint32(golibvirt.DomainMemLive)); err != nil {
			t.Fatal(err)
		}
	}
	timeout := time.After(20 * time.Second)
	for {
		select {
		case <-events:
		case <-timeout:
			all, err := h.Domains(t.Context())
			t.Fatalf("no drift shows: %+v, %v", all, err)
		}
		all, err := h.Domains(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == 1 && len(all[0].Drift) > 0 {
			t.Logf("drift: %q", all[0].Drift)
			return
		}
	}
}
