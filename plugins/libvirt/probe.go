package libvirt

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// acceleration is how guests are executed here and by which program.
type acceleration struct {
	name     string // kvm or tcg
	virtType string // libvirt's word: kvm or qemu
	emulator string
	arch     string
	reason   string   // why it is not kvm
	tpm      bool     // libvirt can emulate one
	models   []string // of CPUs that guests can be given
}

// Probe implements plugins.Hypervisor.
func (h *Hypervisor) Probe(ctx context.Context) (plugins.Probe, error) {
	c, err := h.connect(ctx)
	if err != nil {
		return plugins.Probe{}, err
	}
	accel, err := h.acceleration(ctx, c)
	if err != nil {
		return plugins.Probe{}, err
	}
	var library, qemu, memoryKiB uint64
	var cpus int32
	err = c.call(ctx, func(l *libvirt.Libvirt) (err error) {
		if library, err = l.ConnectGetLibVersion(); err != nil {
			return err
		}
		if qemu, err = l.ConnectGetVersion(); err != nil {
			return err
		}
		_, memoryKiB, cpus, _, _, _, _, _, err = l.NodeGetInfo()
		return err
	})
	if err != nil {
		return plugins.Probe{}, err
	}
	return plugins.Probe{
		Info: api.HypervisorInfo{
			Driver: "libvirt", Version: fmt.Sprintf("libvirt %s, QEMU %s", version(library), version(qemu)),
			Acceleration: accel.name, Healthy: true, Reason: accel.reason, TPM: accel.tpm, Architecture: accel.arch,
		},
		Capacity:  api.Capacity{CPUs: int(cpus), MemoryBytes: int64(memoryKiB) * api.KiB},
		CPUModels: accel.models,
	}, nil
}

// version writes libvirt's number, 1000000*major + 1000*minor + release.
func version(n uint64) string {
	return fmt.Sprintf("%d.%d.%d", n/1_000_000, n/1000%1000, n%1000)
}

// acceleration finds out once per adapter how to execute guests.
func (h *Hypervisor) acceleration(ctx context.Context, c *conn) (*acceleration, error) {
	h.mu.Lock()
	known := h.accel
	h.mu.Unlock()
	if known != nil {
		return known, nil
	}
	release, err := h.locks.take(ctx, "acceleration")
	if err != nil {
		return nil, err
	}
	defer release()
	h.mu.Lock()
	known = h.accel
	h.mu.Unlock()
	if known != nil {
		return known, nil
	}
	accel, err := h.chooseAcceleration(ctx, c)
	if err != nil {
		return nil, err
	}
	if accel.name == "tcg" {
		h.config.Logger.Warn("guests run in software emulation, some ten times slower than with KVM", "reason", accel.reason)
	} else {
		h.config.Logger.Info("guests run with KVM", "emulator", accel.emulator)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.accel = accel
	return accel, nil
}

func (h *Hypervisor) chooseAcceleration(ctx context.Context, c *conn) (*acceleration, error) {
	if h.config.Accel == AccelTCG {
		a, err := domainCapabilities(ctx, c, "qemu")
		if err != nil {
			return nil, err
		}
		a.name, a.reason = "tcg", "software emulation, as configured"
		return a, nil
	}
	a, kvmErr := h.tryKVM(ctx, c)
	if kvmErr == nil {
		return a, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if h.config.Accel == AccelKVM {
		return nil, api.Errorf(api.CodeUnavailable, "KVM is configured and does not work here: %v", kvmErr).
			Do("enable virtualization in the firmware and load the module kvm_intel or kvm_amd, or set accel = \"auto\"")
	}
	a, err := domainCapabilities(ctx, c, "qemu")
	if err != nil {
		return nil, err
	}
	a.name, a.reason = "tcg", fmt.Sprintf("software emulation, slow: %v", kvmErr)
	return a, nil
}

// tryKVM believes in KVM only if the CPU has it, libvirt offers it and a guest
// starts: /dev/kvm can be there and of no use.
func (h *Hypervisor) tryKVM(ctx context.Context, c *conn) (*acceleration, error) {
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil, fmt.Errorf("read the CPU's flags: %w", err)
	}
	if !hasVirtualization(cpuinfo) {
		return nil, fmt.Errorf("the CPU shows neither vmx nor svm")
	}
	a, err := domainCapabilities(ctx, c, "kvm")
	if err != nil {
		return nil, fmt.Errorf("libvirt offers no KVM: %w", err)
	}
	a.name = "kvm"
	if err := probeGuest(ctx, c, a); err != nil {
		return nil, fmt.Errorf("a KVM guest does not start: %w", err)
	}
	return a, nil
}

// hasVirtualization looks for vmx (Intel) or svm (AMD) among the CPU's flags.
func hasVirtualization(cpuinfo []byte) bool {
	for line := range bytes.Lines(cpuinfo) {
		if !bytes.HasPrefix(line, []byte("flags")) {
			continue
		}
		for _, flag := range bytes.Fields(line) {
			if string(flag) == "vmx" || string(flag) == "svm" {
				return true
			}
		}
	}
	return false
}

func domainCapabilities(ctx context.Context, c *conn, virtType string) (*acceleration, error) {
	var text string
	err := c.call(ctx, func(l *libvirt.Libvirt) (err error) {
		text, err = l.ConnectGetDomainCapabilities(nil, libvirt.OptString{"x86_64"}, libvirt.OptString{"q35"}, libvirt.OptString{virtType}, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	var caps struct {
		Path   string `xml:"path"`
		Domain string `xml:"domain"`
		Arch   string `xml:"arch"`
		TPM    struct {
			Supported string `xml:"supported,attr"`
			Enums     []struct {
				Name   string   `xml:"name,attr"`
				Values []string `xml:"value"`
			} `xml:"enum"`
		} `xml:"devices>tpm"`
		Models []struct {
			Usable string `xml:"usable,attr"`
			Name   string `xml:",chardata"`
		} `xml:"cpu>mode>model"`
	}
	if err := xml.Unmarshal([]byte(text), &caps); err != nil {
		return nil, fmt.Errorf("read libvirt's capabilities: %w", err)
	}
	if caps.Domain != virtType || caps.Path == "" {
		return nil, fmt.Errorf("libvirt answers %q for domain type %s", caps.Domain, virtType)
	}
	a := &acceleration{virtType: virtType, emulator: caps.Path, arch: caps.Arch}
	for _, e := range caps.TPM.Enums {
		a.tpm = a.tpm || caps.TPM.Supported == "yes" && e.Name == "backendModel" && slices.Contains(e.Values, "emulator")
	}
	for _, m := range caps.Models {
		if m.Usable == "yes" && api.CheckCPUModel("model", m.Name) == nil {
			a.models = append(a.models, m.Name)
		}
	}
	a.addLevels(ctx, c)
	return a, nil
}

// addLevels asks libvirt which levels of x86-64 guests can be given here. One
// that it cannot tell about is not offered.
func (a *acceleration) addLevels(ctx context.Context, c *conn) {
	for _, level := range api.CPULevels() {
		text, err := xml.Marshal(struct {
			XMLName xml.Name `xml:"cpu"`
			cpuXML
		}{cpuXML: *levelCPU(level)})
		if err != nil {
			break
		}
		var compared int32
		err = c.call(ctx, func(l *libvirt.Libvirt) (err error) {
			compared, err = l.ConnectCompareHypervisorCPU(libvirt.OptString{a.emulator}, libvirt.OptString{a.arch}, libvirt.OptString{"q35"},
				libvirt.OptString{a.virtType}, string(text), 0)
			return err
		})
		if err != nil || libvirt.CPUCompareResult(compared) <= libvirt.CPUCompareIncompatible {
			break
		}
		a.models = append(a.models, level)
	}
	slices.Sort(a.models)
	a.models = slices.Compact(a.models[:min(len(a.models), api.CPUModelsMax)])
}

// probeGuest starts a guest without disks that libvirt forgets at its end, and
// waits until its CPU has done something.
func probeGuest(ctx context.Context, c *conn, a *acceleration) error {
	const (
		memoryKiB = 32 << 10
		timeout   = 10 * time.Second
		every     = 50 * time.Millisecond
		cpuNeeded = uint64(20 * time.Millisecond)
	)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	id := uuid.NewString()
	d := &domainXML{
		Type: a.virtType, Name: "debvisor-probe-" + id, UUID: id,
		Memory: memoryXML{Unit: "KiB", Value: memoryKiB}, VCPU: vcpuXML{Value: 1},
		OS: osXML{Type: osTypeXML{Arch: a.arch, Machine: "q35", Value: "hvm"}}, OnCrash: "destroy",
		Devices: devicesXML{Emulator: a.emulator},
	}
	text, err := d.encode()
	if err != nil {
		return err
	}
	var domain libvirt.Domain
	err = c.call(ctx, func(l *libvirt.Libvirt) (err error) {
		domain, err = l.DomainCreateXML(text, libvirt.DomainStartAutodestroy)
		return err
	})
	if err != nil {
		return err
	}
	defer func() {
		_ = c.call(context.WithoutCancel(ctx), func(l *libvirt.Libvirt) error { return l.DomainDestroyFlags(domain, 0) })
	}()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		var vcpus []libvirt.VcpuInfo
		var state int32
		err := c.call(ctx, func(l *libvirt.Libvirt) (err error) {
			if state, _, err = l.DomainGetState(domain, 0); err != nil {
				return err
			}
			vcpus, _, err = l.DomainGetVcpus(domain, 1, 0)
			return err
		})
		if err != nil {
			return err
		}
		if libvirt.DomainState(state) != libvirt.DomainRunning {
			return fmt.Errorf("it stopped with state %d", state)
		}
		if len(vcpus) > 0 && vcpus[0].CPUTime >= cpuNeeded {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("its CPU did nothing: %w", ctx.Err())
		case <-tick.C:
		}
	}
}
