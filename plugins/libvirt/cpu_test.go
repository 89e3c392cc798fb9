package libvirt_test

import (
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/libvirt"
)

// A guest is given exactly the level that it asks for, with several CPUs as it
// wants to see them, a TPM and no random source, on the old machine type too.
func TestGuestsSeeTheHardwareThatTheyAskFor(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	h := m.open(t)
	defer func() { _ = h.Close() }()
	p, err := h.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(p.CPUModels, api.CPULevel2) || !slices.IsSorted(p.CPUModels) {
		t.Errorf("this QEMU gives CPU models %q, want x86-64-v2 among them", p.CPUModels)
	}
	t.Logf("CPU models: %q", p.CPUModels)
	spec := m.spec(t)
	spec.CPUs, spec.CPU, spec.Topology = 4, plugins.CPUSpec{Model: api.CPULevel2}, api.CPUTopology{Sockets: 2, Cores: 2, Threads: 1}
	spec.NoRNG, spec.MemoryBytes = true, 160*api.MiB
	if spec.TPM = p.Info.TPM; !spec.TPM {
		if _, err := exec.LookPath("swtpm"); err == nil {
			t.Error("swtpm is installed, and the node says that it gives no TPM")
		}
	}
	if err := h.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	readUntil(t, h, spec.ID, "GUEST-READY")
	cpu := ask(t, h, spec.ID, "grep flags /proc/cpuinfo | head -1; grep 'physical id' /proc/cpuinfo | sort -u | wc -l; ls /sys/class/tpm /sys/class/misc/hw_random/rng_available; cat /sys/class/misc/hw_random/rng_available",
		regexp.MustCompile(`flags`))
	if !strings.Contains(cpu, "sse4_2") || strings.Contains(cpu, "avx2") || !regexp.MustCompile(`(?m)^2\r?$`).MatchString(cpu) {
		t.Errorf("the guest has another CPU: %q", cpu)
	}
	if spec.TPM != strings.Contains(cpu, "tpm0") || strings.Contains(cpu, "virtio_rng") {
		t.Errorf("TPM %v and no random source were asked for; the guest has: %q", spec.TPM, cpu)
	}
	if err := h.Stop(t.Context(), spec.ID, 0); err != nil {
		t.Fatal(err)
	}
	spec.Machine, spec.TPM, spec.CPU = api.MachineI440FX, false, plugins.CPUSpec{}
	spec.CDROMs = []plugins.CDROMSpec{{Name: "cd"}}
	if err := h.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	readUntil(t, h, spec.ID, "GUEST-READY")
	spec.Disks = []plugins.DiskSpec{{Name: "data", Source: m.source(t, "data.raw")}}
	spec.SpecRevision++
	if err := h.(*libvirt.Hypervisor).Update(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	ask(t, h, spec.ID, "ls /sys/block", regexp.MustCompile(`\bvda\b`))
	if err := h.Stop(t.Context(), spec.ID, 0); err != nil {
		t.Fatal(err)
	}
	spec.CPU = plugins.CPUSpec{Model: "Icelake-Server"} // AVX-512 is beyond emulation
	if err := h.Start(t.Context(), spec); err == nil {
		t.Error("a guest was given less of a CPU than it asked for")
	}
	if err := h.Remove(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
}
