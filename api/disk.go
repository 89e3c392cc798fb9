package api

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Disk is one disk of a VM. With Volume it attaches that volume; otherwise the
// kernel makes a volume named VM-DISK in the same log entry, which goes away
// with the VM, and fills Volume in.
type Disk struct {
	Name      string `json:"name"`
	Volume    string `json:"volume,omitzero"`
	Pool      string `json:"pool,omitzero"`       // of a volume to be made; empty: local
	Image     string `json:"image,omitzero"`      // of a volume to be made: linked clone of it
	Source    string `json:"source,omitzero"`     // of a volume to be made: clone of this volume, in its pool unless one is named
	Clone     string `json:"clone,omitzero"`      // with a source: full (default) or linked
	SizeBytes int64  `json:"size_bytes,omitzero"` // of a volume to be made; a larger one grows it later
	Bus       string `json:"bus,omitzero"`        // virtio (default), scsi (virtio-scsi) or sata
	Cache     string `json:"cache,omitzero"`      // none (default), writeback, writethrough
	Discard   string `json:"discard,omitzero"`    // what becomes of blocks that the guest discards: unmap (default) or ignore
	Serial    string `json:"serial,omitzero"`     // that the guest sees, as in /dev/disk/by-id; empty: none
	BootOrder int    `json:"boot_order,omitzero"` // 1 first; where no device has one: the disks in turn
	ReadOnly  bool   `json:"read_only,omitzero"`
	IOLimits
}

// IOLimits bounds how fast a guest may use one disk; 0: no limit. They can be
// changed while it runs.
type IOLimits struct {
	ReadIOPSMax            int64 `json:"read_iops_max,omitzero"` // operations a second
	WriteIOPSMax           int64 `json:"write_iops_max,omitzero"`
	ReadBytesPerSecondMax  int64 `json:"read_bytes_per_second_max,omitzero"`
	WriteBytesPerSecondMax int64 `json:"write_bytes_per_second_max,omitzero"`
}

// CDROM is a drive of a VM for a disc, which can be put in and taken out while
// the guest runs.
type CDROM struct {
	Name      string `json:"name"`
	Image     string `json:"image,omitzero"`      // in format raw; empty: no disc
	Bus       string `json:"bus,omitzero"`        // sata (default) or scsi (virtio-scsi)
	BootOrder int    `json:"boot_order,omitzero"` // 1 first
}

// Limits of drives.
const (
	CDROMsMax         = 4
	BootOrderMax      = 64
	IOPSMax           = 10_000_000
	BytesPerSecondMax = 1 << 40
	SerialLengthMax   = 20 // of a virtio disk
)

const serialChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"

func (v *VM) checkDisks(p *problems) {
	if len(v.Disks) > DisksMax {
		p.add("disks", "has %d disks", len(v.Disks)).Allow("at most %d", DisksMax)
		return
	}
	names, volumes := map[string]bool{}, map[string]bool{}
	for i, d := range v.Disks {
		at := func(field string) string { return fmt.Sprintf("disks[%d].%s", i, field) }
		p.addErr(CheckName(at("name"), d.Name))
		if names[d.Name] {
			p.add(at("name"), "%q is used twice", d.Name)
		}
		names[d.Name] = true
		checkOneOf(p, at("bus"), d.Bus, "", "virtio", "scsi", "sata")
		checkOneOf(p, at("cache"), d.Cache, "", "none", "writeback", "writethrough")
		checkOneOf(p, at("discard"), d.Discard, "", "unmap", "ignore")
		if len(d.Serial) > SerialLengthMax || strings.Trim(d.Serial, serialChars) != "" {
			p.add(at("serial"), "is %q", d.Serial).Allow("letters, digits, dots, dashes and underscores, at most %d", SerialLengthMax)
		}
		if d.ReadOnly && d.Bus == "sata" {
			p.add(at("read_only"), "does not go with bus sata").Allow("virtio, scsi")
		}
		d.IOLimits.check(p, at)
		if d.Volume != "" {
			p.addErr(CheckName(at("volume"), d.Volume))
			if volumes[d.Volume] {
				p.add(at("volume"), "%q is attached twice", d.Volume)
			}
			volumes[d.Volume] = true
			continue
		}
		if d.Pool != "" {
			p.addErr(CheckName(at("pool"), d.Pool))
		}
		if d.Image != "" {
			p.addErr(CheckName(at("image"), d.Image))
		}
		checkVolumeSize(p, at("size_bytes"), d.SizeBytes, d.Image != "" || d.Source != "")
		checkSource(p, at(""), d.Source, d.Clone, d.Image)
	}
}

// CloneAs is another VM like this one: a new identity with new addresses of its
// interfaces, whose disks are clones of this one's. It is off.
func (v *VM) CloneAs(name, clone string) VM {
	out := *v
	out.Meta = Meta{Name: name, Tenant: v.Tenant, Labels: maps.Clone(v.Labels)}
	out.Power = PowerOff
	out.Disks, out.NICs = slices.Clone(v.Disks), slices.Clone(v.NICs)
	for i := range out.Disks {
		d := &out.Disks[i]
		d.Source, d.Clone = d.Volume, clone
		d.Volume, d.Pool, d.Image, d.SizeBytes = "", "", "", 0
	}
	for i := range out.NICs {
		out.NICs[i].MAC = ""
	}
	if v.CloudInit != nil && v.CloudInit.Hostname == v.Name {
		seed := *v.CloudInit
		seed.Hostname = ""
		out.CloudInit = &seed
	}
	return out
}

func (l *IOLimits) check(p *problems, at func(string) string) {
	for _, limit := range []struct {
		field       string
		value, most int64
	}{
		{"read_iops_max", l.ReadIOPSMax, IOPSMax}, {"write_iops_max", l.WriteIOPSMax, IOPSMax},
		{"read_bytes_per_second_max", l.ReadBytesPerSecondMax, BytesPerSecondMax},
		{"write_bytes_per_second_max", l.WriteBytesPerSecondMax, BytesPerSecondMax},
	} {
		if limit.value < 0 || limit.value > limit.most {
			p.add(at(limit.field), "is %d", limit.value).Allow("1 to %d, or 0 for no limit", limit.most)
		}
	}
}

func (v *VM) checkCDROMs(p *problems) {
	if len(v.CDROMs) > CDROMsMax {
		p.add("cdroms", "has %d drives", len(v.CDROMs)).Allow("at most %d", CDROMsMax)
		return
	}
	names := map[string]bool{}
	for i, c := range v.CDROMs {
		at := func(field string) string { return fmt.Sprintf("cdroms[%d].%s", i, field) }
		p.addErr(CheckName(at("name"), c.Name))
		if names[c.Name] {
			p.add(at("name"), "%q is used twice", c.Name)
		}
		names[c.Name] = true
		if c.Image != "" {
			p.addErr(CheckName(at("image"), c.Image))
		}
		checkOneOf(p, at("bus"), c.Bus, "", "sata", "scsi")
	}
}
