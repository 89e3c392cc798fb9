package libvirt

import (
	"cmp"
	"fmt"
	"path/filepath"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// seedDev names the drive of the cloud-init seed; no other disk gets it.
const seedDev = "sdzz"

// scsiUnits is how many drives sit on one virtio-scsi controller here.
const scsiUnits = 64

// sataPorts is how many drives sit on one AHCI controller.
const sataPorts = 6

type diskXML struct {
	Type     string         `xml:"type,attr"`
	Device   string         `xml:"device,attr"`
	Driver   *diskDriverXML `xml:"driver"`
	Source   *diskSourceXML `xml:"source"`
	Mirror   *mirrorXML     `xml:"mirror"` // libvirt's
	Target   diskTargetXML  `xml:"target"`
	Serial   string         `xml:"serial,omitempty"`
	ReadOnly *struct{}      `xml:"readonly"`
	IOTune   *ioTuneXML     `xml:"iotune"`
	Boot     *bootOrderXML  `xml:"boot"`
	Alias    *aliasXML      `xml:"alias"`
	Address  *addressXML    `xml:"address"`
}

type diskDriverXML struct {
	Name    string `xml:"name,attr,omitempty"`
	Type    string `xml:"type,attr,omitempty"`
	Cache   string `xml:"cache,attr,omitempty"`
	Discard string `xml:"discard,attr,omitempty"`
}

type diskSourceXML struct {
	File string `xml:"file,attr,omitempty"`
}

type diskTargetXML struct {
	Dev string `xml:"dev,attr"`
	Bus string `xml:"bus,attr,omitempty"`
}

type ioTuneXML struct {
	ReadBytes  int64 `xml:"read_bytes_sec,omitempty"`
	WriteBytes int64 `xml:"write_bytes_sec,omitempty"`
	ReadIOPS   int64 `xml:"read_iops_sec,omitempty"`
	WriteIOPS  int64 `xml:"write_iops_sec,omitempty"`
}

type aliasXML struct {
	Name string `xml:"name,attr"`
}

type bootOrderXML struct {
	Order int `xml:"order,attr"`
}

// addressXML is where a drive sits on its controller.
type addressXML struct {
	Type       string `xml:"type,attr"`
	Controller int    `xml:"controller,attr"`
	Bus        string `xml:"bus,attr,omitempty"`
	Target     string `xml:"target,attr,omitempty"`
	Unit       int    `xml:"unit,attr"`
}

type controllerXML struct {
	Type  string `xml:"type,attr"`
	Index int    `xml:"index,attr"`
	Model string `xml:"model,attr,omitempty"`
}

func checkDisks(spec plugins.DomainSpec) error {
	if len(spec.Disks) > api.DisksMax {
		return wrongSpec(spec, "disks", "has %d disks", len(spec.Disks)).Allow("at most %d", api.DisksMax)
	}
	if len(spec.CDROMs) > api.CDROMsMax {
		return wrongSpec(spec, "cdroms", "has %d drives", len(spec.CDROMs)).Allow("at most %d", api.CDROMsMax)
	}
	names := map[string]bool{}
	check := func(field, alias, name string, source plugins.Source) error {
		if api.CheckName("name", name) != nil || names[alias] {
			return wrongSpec(spec, field, "is named %q", name).Allow("a label of its own")
		}
		names[alias] = true
		if !filepath.IsAbs(source.Path) || source.Format != api.FormatQCOW2 && source.Format != api.FormatRaw {
			return wrongSpec(spec, field, "its source is not an absolute path with a format")
		}
		return nil
	}
	for i, d := range spec.Disks {
		if err := check(fmt.Sprintf("disks[%d]", i), diskAlias(d.Name), d.Name, d.Source); err != nil {
			return err
		}
	}
	for i, c := range spec.CDROMs {
		if c.Source == (plugins.Source{}) {
			c.Source = plugins.Source{Path: "/", Format: api.FormatRaw} // no disc
		}
		if err := check(fmt.Sprintf("cdroms[%d]", i), cdromAlias(c.Name), c.Name, c.Source); err != nil {
			return err
		}
	}
	return nil
}

// Disks and drives are known by their names, whatever else about them changes:
// libvirt keeps an alias that begins with ua-.
func diskAlias(name string) string  { return "ua-disk-" + name }
func cdromAlias(name string) string { return "ua-cdrom-" + name }

// drives deals out names and addresses of drives as Linux numbers them.
type drives struct{ virtio, sd, scsi, sata int }

func (n *drives) place(x *diskXML, bus string) {
	if bus == "" {
		bus = "virtio"
	}
	x.Target.Bus = bus
	switch bus {
	case "scsi":
		x.Address = &addressXML{Type: "drive", Bus: "0", Target: "0", Unit: n.scsi}
		n.scsi++
	case "sata":
		x.Address = &addressXML{Type: "drive", Controller: n.sata / sataPorts, Bus: "0", Target: "0", Unit: n.sata % sataPorts}
		n.sata++
	default:
		x.Target.Dev = devName("vd", n.virtio)
		n.virtio++
		return
	}
	x.Target.Dev = devName("sd", n.sd)
	n.sd++
}

// addDisks gives the guest its disks, in the order of the spec.
func (d *domainXML) addDisks(spec plugins.DomainSpec, _ machine) {
	inTurn := spec.Boot == nil && !spec.Ordered()
	for i, disk := range spec.Disks {
		x := buildDisk(disk)
		d.drives.place(&x, disk.Bus)
		if inTurn {
			x.Boot = &bootOrderXML{Order: i + 1}
		}
		d.Devices.Disks = append(d.Devices.Disks, x)
	}
	// There from the start, so that disks can be plugged into it later.
	d.Devices.Controllers = append(d.Devices.Controllers, controllerXML{Type: "scsi", Model: "virtio-scsi"})
}

// buildDisk is a disk without its place.
func buildDisk(disk plugins.DiskSpec) diskXML {
	x := diskXML{
		Type: "file", Device: "disk",
		Driver: &diskDriverXML{Name: "qemu", Type: disk.Source.Format, Cache: cmp.Or(disk.Cache, "none"), Discard: cmp.Or(disk.Discard, "unmap")},
		Source: &diskSourceXML{File: disk.Source.Path},
		Serial: disk.Serial, Alias: &aliasXML{Name: diskAlias(disk.Name)},
	}
	if disk.Limits != (api.IOLimits{}) {
		x.IOTune = ioTune(disk.Limits)
	}
	if disk.ReadOnly {
		x.ReadOnly = &struct{}{}
	}
	if disk.BootOrder > 0 {
		x.Boot = &bootOrderXML{Order: disk.BootOrder}
	}
	return x
}

func ioTune(l api.IOLimits) *ioTuneXML {
	return &ioTuneXML{ReadIOPS: l.ReadIOPSMax, WriteIOPS: l.WriteIOPSMax, ReadBytes: l.ReadBytesPerSecondMax, WriteBytes: l.WriteBytesPerSecondMax}
}

// addCDROMs gives the guest its drives for discs. On SATA, where every system
// that is installed from a disc looks for it.
func (d *domainXML) addCDROMs(spec plugins.DomainSpec, _ machine) {
	for _, c := range spec.CDROMs {
		x := diskXML{Type: "file", Device: "cdrom", Driver: &diskDriverXML{Name: "qemu", Type: api.FormatRaw},
			ReadOnly: &struct{}{}, Alias: &aliasXML{Name: cdromAlias(c.Name)}}
		if c.Source.Path != "" {
			x.Source = &diskSourceXML{File: c.Source.Path}
		}
		if c.BootOrder > 0 {
			x.Boot = &bootOrderXML{Order: c.BootOrder}
		}
		d.drives.place(&x, cmp.Or(c.Bus, "sata"))
		d.Devices.Disks = append(d.Devices.Disks, x)
	}
}

// addSeed puts the cloud-init seed in a drive. On SCSI: the kernels that
// clouds use have virtio-scsi and often no AHCI.
func (d *domainXML) addSeed(spec plugins.DomainSpec, m machine) {
	if spec.Seed == nil {
		return
	}
	d.Devices.Disks = append(d.Devices.Disks, diskXML{
		Type: "file", Device: "cdrom",
		Driver:   &diskDriverXML{Name: "qemu", Type: "raw"},
		Source:   &diskSourceXML{File: filepath.Join(m.dir, seedFile)},
		Target:   diskTargetXML{Dev: seedDev, Bus: "scsi"},
		ReadOnly: &struct{}{},
		Address:  &addressXML{Type: "drive", Bus: "0", Target: "0", Unit: scsiUnits - 1},
	})
}

// devName numbers drives as Linux does: vda … vdz, vdaa …
func devName(prefix string, n int) string {
	name := ""
	for n++; n > 0; n = (n - 1) / 26 {
		name = string(rune('a'+(n-1)%26)) + name
	}
	return prefix + name
}
