package libvirt

import (
	"fmt"
	"path/filepath"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// seedDev names the drive of the cloud-init seed; no other disk gets it.
const seedDev = "sdzz"

// scsiUnits is how many drives sit on one virtio-scsi controller here.
const scsiUnits = 64

type diskXML struct {
	Type     string         `xml:"type,attr"`
	Device   string         `xml:"device,attr"`
	Driver   *diskDriverXML `xml:"driver"`
	Source   *diskSourceXML `xml:"source"`
	Mirror   *mirrorXML     `xml:"mirror"` // libvirt's
	Target   diskTargetXML  `xml:"target"`
	Serial   string         `xml:"serial,omitempty"`
	ReadOnly *struct{}      `xml:"readonly"`
	Boot     *bootOrderXML  `xml:"boot"`
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
	for i, d := range spec.Disks {
		if !filepath.IsAbs(d.Source.Path) || d.Source.Format != api.FormatQCOW2 && d.Source.Format != api.FormatRaw {
			return wrongSpec(spec, fmt.Sprintf("disks[%d]", i), "its source is not an absolute path with a format")
		}
	}
	return nil
}

// addDisks gives the guest its disks, in the order of the spec.
func (d *domainXML) addDisks(spec plugins.DomainSpec, _ machine) {
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
	if scsi > 0 || spec.Seed != nil {
		d.Devices.Controllers = append(d.Devices.Controllers, controllerXML{Type: "scsi", Model: "virtio-scsi"})
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
