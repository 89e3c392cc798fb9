package api

import (
	"fmt"
	"maps"
	"slices"
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
	Bus       string `json:"bus,omitzero"`        // virtio (default) or scsi (virtio-scsi)
	Cache     string `json:"cache,omitzero"`      // none (default), writeback, writethrough
	ReadOnly  bool   `json:"read_only,omitzero"`
}

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
		checkOneOf(p, at("bus"), d.Bus, "", "virtio", "scsi")
		checkOneOf(p, at("cache"), d.Cache, "", "none", "writeback", "writethrough")
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
