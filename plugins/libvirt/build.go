package libvirt

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// seedDev names the drive of the cloud-init seed; no other disk gets it.
const seedDev = "sdzz"

// The files of one guest below StateDir/ID.
const (
	seedFile    = "seed.iso"
	nvramFile   = "nvram.fd"
	consoleFile = "console.log"
)

// scsiUnits is how many drives sit on one virtio-scsi controller here.
const scsiUnits = 64

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
	wrong := func(field, format string, args ...any) *api.Error {
		return api.Invalid(field, format, args...).On(api.KindVM, spec.Name)
	}
	switch {
	case spec.ClusterID != clusterID:
		return wrong("cluster_id", "is %q", spec.ClusterID).Allow("%s", clusterID)
	case spec.Name == "" || strings.ContainsAny(spec.Name, "/\n"):
		return wrong("name", "is %q", spec.Name).Allow("a name without slash that is unique on the machine")
	case spec.CPUs < 1 || spec.CPUs > api.CPUsMax:
		return wrong("cpus", "is %d", spec.CPUs).Allow("1 to %d", api.CPUsMax)
	case spec.MemoryBytes < api.MemoryMin || spec.MemoryBytes > api.MemoryMax:
		return wrong("memory_bytes", "is %d", spec.MemoryBytes).Allow("%d to %d", api.MemoryMin, api.MemoryMax)
	case spec.Firmware != "" && spec.Firmware != "bios" && spec.Firmware != "uefi":
		return wrong("firmware", "is %q", spec.Firmware).Allow("bios, uefi")
	case len(spec.Disks) > api.DisksMax:
		return wrong("disks", "has %d disks", len(spec.Disks)).Allow("at most %d", api.DisksMax)
	case len(spec.NICs) > api.NICsMax:
		return wrong("nics", "has %d interfaces", len(spec.NICs)).Allow("at most %d", api.NICsMax)
	}
	if b := spec.Boot; b != nil {
		if !filepath.IsAbs(b.Kernel) || b.Initrd != "" && !filepath.IsAbs(b.Initrd) {
			return wrong("boot", "its files are not absolute paths")
		}
		if len(b.Args) > api.KernelArgsMax {
			return wrong("boot.args", "has %d bytes", len(b.Args)).Allow("at most %d", api.KernelArgsMax)
		}
	}
	for i, d := range spec.Disks {
		if !filepath.IsAbs(d.Source.Path) || d.Source.Format != api.FormatQCOW2 && d.Source.Format != api.FormatRaw {
			return wrong(fmt.Sprintf("disks[%d]", i), "its source is not an absolute path with a format")
		}
	}
	for i, n := range spec.NICs {
		if hw, err := net.ParseMAC(n.MAC); err != nil || hw.String() != n.MAC || n.Bridge == "" {
			return wrong(fmt.Sprintf("nics[%d]", i), "has MAC %q and bridge %q", n.MAC, n.Bridge).Allow("a lower-case MAC and the name of a bridge")
		}
	}
	return nil
}

func checkID(id string) error {
	if parsed, err := uuid.Parse(id); err != nil || parsed.String() != id {
		return api.Invalid("id", "is %q", id).Allow("a UUID in lower case")
	}
	return nil
}

// buildDomain translates a checked spec.
func buildDomain(spec plugins.DomainSpec, m machine) *domainXML {
	memoryKiB := (spec.MemoryBytes + api.KiB - 1) / api.KiB
	d := &domainXML{
		Type: m.virtType, Name: spec.Name, UUID: spec.ID,
		Memory:        memoryXML{Unit: "KiB", Value: memoryKiB},
		CurrentMemory: &memoryXML{Unit: "KiB", Value: memoryKiB},
		VCPU:          vcpuXML{Placement: "static", Value: spec.CPUs},
		OS:            osXML{Type: osTypeXML{Arch: m.arch, Machine: "q35", Value: "hvm"}},
		Features:      &featuresXML{ACPI: &struct{}{}, APIC: &struct{}{}},
		CPU:           &cpuXML{Mode: "maximum"},
		Clock:         &clockXML{Offset: "utc"},
		OnPoweroff:    "destroy", OnReboot: "restart", OnCrash: "destroy",
		Devices: devicesXML{Emulator: m.emulator},
	}
	if m.virtType == "kvm" {
		d.CPU.Mode = "host-model"
	}
	if f := m.firmware; f != nil {
		d.OS.Loader = &loaderXML{ReadOnly: "yes", Type: "pflash", Path: f.code}
		d.OS.NVRAM = &nvramXML{Template: f.vars, Path: filepath.Join(m.dir, nvramFile)}
	}
	if b := spec.Boot; b != nil {
		d.OS.Kernel, d.OS.Initrd, d.OS.Cmdline = b.Kernel, b.Initrd, b.Args
	}
	d.addDisks(spec, m.dir)
	d.addDevices(spec, m.dir)
	w := d.essentials()
	d.Metadata = &metadataXML{Mark: &mark{
		XMLName: markName(), Cluster: spec.ClusterID, ID: spec.ID, Gen: spec.Gen, Revision: spec.SpecRevision,
		Started: m.started.UTC().Format(time.RFC3339Nano), Hash: w.hash(), Wanted: w,
	}}
	return d
}

func (d *domainXML) addDisks(spec plugins.DomainSpec, dir string) {
	virtio, scsi := 0, 0
	for i, disk := range spec.Disks {
		x := diskXML{
			Type: "file", Device: "disk",
			Driver: &diskDriverXML{Name: "qemu", Type: disk.Source.Format, Cache: disk.Cache, Discard: "unmap"},
			Source: &diskSourceXML{File: disk.Source.Path},
		}
		if x.Driver.Cache == "" {
			x.Driver.Cache = "none"
		}
		if disk.Bus == "scsi" {
			x.Target = diskTargetXML{Dev: devName("sd", scsi), Bus: "scsi"}
			x.Address = &addressXML{Type: "drive", Bus: "0", Target: "0", Unit: scsi}
			scsi++
		} else {
			x.Target = diskTargetXML{Dev: devName("vd", virtio), Bus: "virtio"}
			virtio++
		}
		if disk.ReadOnly {
			x.ReadOnly = &struct{}{}
		}
		if spec.Boot == nil {
			x.Boot = &bootOrderXML{Order: i + 1}
		}
		d.Devices.Disks = append(d.Devices.Disks, x)
	}
	if spec.Seed != nil {
		// On SCSI: the kernels that clouds use have virtio-scsi and often no AHCI.
		d.Devices.Disks = append(d.Devices.Disks, diskXML{
			Type: "file", Device: "cdrom",
			Driver:   &diskDriverXML{Name: "qemu", Type: "raw"},
			Source:   &diskSourceXML{File: filepath.Join(dir, seedFile)},
			Target:   diskTargetXML{Dev: seedDev, Bus: "scsi"},
			ReadOnly: &struct{}{},
			Address:  &addressXML{Type: "drive", Bus: "0", Target: "0", Unit: scsiUnits - 1},
		})
		scsi++
	}
	if scsi > 0 {
		d.Devices.Controllers = append(d.Devices.Controllers, controllerXML{Type: "scsi", Model: "virtio-scsi"})
	}
}

func (d *domainXML) addDevices(spec plugins.DomainSpec, dir string) {
	for _, n := range spec.NICs {
		d.Devices.Interfaces = append(d.Devices.Interfaces, interfaceXML{
			Type: "bridge", MAC: &macXML{Address: n.MAC},
			Source: &interfaceSourceXML{Bridge: n.Bridge}, Model: &modelTypeXML{Type: "virtio"},
		})
	}
	d.Devices.Serials = []serialXML{{
		Type:   "pty",
		Log:    &logXML{File: filepath.Join(dir, consoleFile), Append: "on"},
		Target: &serialTargetXML{Type: "isa-serial"},
	}}
	d.Devices.Channels = []channelXML{{Type: "unix", Target: &channelTargetXML{Type: "virtio", Name: agentChannel}}}
	d.Devices.MemBalloon = &modelXML{Model: "virtio"}
	d.Devices.RNG = &rngXML{Model: "virtio", Backend: rngBackendXML{Model: "random", Path: "/dev/urandom"}}
}

const agentChannel = "org.qemu.guest_agent.0"

// devName numbers drives as Linux does: vda … vdz, vdaa …
func devName(prefix string, n int) string {
	name := ""
	for n++; n > 0; n = (n - 1) / 26 {
		name = string(rune('a'+(n-1)%26)) + name
	}
	return prefix + name
}
