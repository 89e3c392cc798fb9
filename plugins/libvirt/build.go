package libvirt

import (
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// The files of one guest below StateDir/ID.
const (
	seedFile    = "seed.iso"
	nvramFile   = "nvram.fd"
	consoleFile = "console.log"
)

// machine is what the machine adds to a DomainSpec.
type machine struct {
	virtType string // kvm or qemu
	emulator string
	arch     string
	dir      string // of this guest's files
	firmware *firmware
	started  time.Time
}

// checkSpec refuses what could not become a domain.
func checkSpec(spec plugins.DomainSpec, clusterID string) error {
	if err := checkID(spec.ID); err != nil {
		return err
	}
	wrong := func(field, format string, args ...any) *api.Error { return wrongSpec(spec, field, format, args...) }
	switch {
	case spec.ClusterID != clusterID:
		return wrong("cluster_id", "is %q", spec.ClusterID).Allow("%s", clusterID)
	case spec.Name == "" || strings.ContainsAny(spec.Name, "/\n"):
		return wrong("name", "is %q", spec.Name).Allow("a name without slash that is unique on the machine")
	case spec.CPUs < 1 || spec.CPUs > api.CPUsMax:
		return wrong("cpus", "is %d", spec.CPUs).Allow("1 to %d", api.CPUsMax)
	case spec.MemoryBytes < api.MemoryMin || spec.MemoryBytes > api.MemoryMax:
		return wrong("memory_bytes", "is %d", spec.MemoryBytes).Allow("%d to %d", api.MemoryMin, api.MemoryMax)
	case spec.CPUsMax != 0 && (spec.CPUsMax < spec.CPUs || spec.CPUsMax > api.CPUsMax):
		return wrong("cpus_max", "is %d", spec.CPUsMax).Allow("%d to %d", spec.CPUs, api.CPUsMax)
	case spec.MemoryMaxBytes != 0 && (spec.MemoryMaxBytes < spec.MemoryBytes || spec.MemoryMaxBytes > api.MemoryMax):
		return wrong("memory_max_bytes", "is %d", spec.MemoryMaxBytes).Allow("%d to %d", spec.MemoryBytes, api.MemoryMax)
	case spec.Machine != "" && spec.Machine != api.MachineQ35 && spec.Machine != api.MachineI440FX:
		return wrong("machine", "is %q", spec.Machine).Allow("q35, i440fx")
	case spec.Firmware != "" && spec.Firmware != "bios" && spec.Firmware != "uefi":
		return wrong("firmware", "is %q", spec.Firmware).Allow("bios, uefi")
	}
	if b := spec.Boot; b != nil {
		if !filepath.IsAbs(b.Kernel) || b.Initrd != "" && !filepath.IsAbs(b.Initrd) {
			return wrong("boot", "its files are not absolute paths")
		}
		if len(b.Args) > api.KernelArgsMax {
			return wrong("boot.args", "has %d bytes", len(b.Args)).Allow("at most %d", api.KernelArgsMax)
		}
	}
	if err := checkCPU(spec); err != nil {
		return err
	}
	if err := checkDisks(spec); err != nil {
		return err
	}
	if err := checkScreen(spec); err != nil {
		return err
	}
	return checkNICs(spec)
}

func wrongSpec(spec plugins.DomainSpec, field, format string, args ...any) *api.Error {
	return api.Invalid(field, format, args...).On(api.KindVM, spec.Name)
}

func checkID(id string) error {
	if parsed, err := uuid.Parse(id); err != nil || parsed.String() != id {
		return api.Invalid("id", "is %q", id).Allow("a UUID in lower case")
	}
	return nil
}

// buildDomain translates a checked spec.
func buildDomain(spec plugins.DomainSpec, m machine) *domainXML {
	d := &domainXML{
		Type: m.virtType, Name: spec.Name, UUID: spec.ID,
		Memory:        memoryXML{Unit: "KiB", Value: inKiB(spec.MostMemory())},
		CurrentMemory: &memoryXML{Unit: "KiB", Value: inKiB(spec.MemoryBytes)},
		VCPU:          vcpuXML{Placement: "static", Value: spec.MostCPUs()},
		OS:            osXML{Type: osTypeXML{Arch: m.arch, Machine: machineType(spec), Value: "hvm"}},
		Features:      &featuresXML{ACPI: &struct{}{}, APIC: &struct{}{}},
		CPU:           buildCPU(spec, m.virtType),
		Clock:         &clockXML{Offset: "utc"},
		OnPoweroff:    "destroy", OnReboot: "restart", OnCrash: "destroy",
		Devices: devicesXML{Emulator: m.emulator},
	}
	if spec.CPUs < spec.MostCPUs() {
		d.VCPU.Current = spec.CPUs
	}
	if f := m.firmware; f != nil {
		d.OS.Loader = &loaderXML{ReadOnly: "yes", Type: "pflash", Path: f.code}
		d.OS.NVRAM = &nvramXML{Template: f.vars, Path: filepath.Join(m.dir, nvramFile)}
	}
	if b := spec.Boot; b != nil {
		d.OS.Kernel, d.OS.Initrd, d.OS.Cmdline = b.Kernel, b.Initrd, b.Args
	}
	for _, add := range []func(plugins.DomainSpec, machine){
		d.addBus, d.addDisks, d.addCDROMs, d.addSeed, d.addNICs, d.addSerial, d.addAgent, d.addBalloon, d.addTPM, d.addRNG, d.addScreen,
	} {
		add(spec, m)
	}
	w := d.essentials()
	d.Metadata = &metadataXML{Mark: &mark{XMLName: markName(), markBody: markBody{
		Cluster: spec.ClusterID, ID: spec.ID, Gen: spec.Gen, Revision: spec.SpecRevision,
		Started: m.started.UTC().Format(time.RFC3339Nano), Hash: w.hash(), Wanted: w, Fixed: fixedOf(spec),
	}}}
	return d
}

func inKiB(bytes int64) int64 { return (bytes + api.KiB - 1) / api.KiB }

func machineType(spec plugins.DomainSpec) string {
	if spec.Machine == api.MachineI440FX {
		return "pc" // as libvirt and QEMU call it
	}
	return api.MachineQ35
}
