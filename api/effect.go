package api

import (
	"bytes"
	"cmp"
	"encoding/json"
	"slices"
)

// EffectOn tells which fields of an edit from v to after reach a guest that
// was started from v while it runs, and which at its next start. Nodes may
// know better: a guest that does not cooperate gets less. Fields that concern
// no guest are in neither.
func (v *VM) EffectOn(after *VM) (online, nextStart []string) {
	add := func(field string, changed, now bool) {
		switch {
		case !changed:
		case now:
			online = append(online, field)
		default:
			nextStart = append(nextStart, field)
		}
	}
	add("cpus", v.CPUs != after.CPUs, after.CPUs > v.CPUs && after.CPUs <= v.MostCPUs())
	add("cpus_max", v.MostCPUs() != after.MostCPUs(), false)
	add("cpu_model", v.CPUModel != after.CPUModel, false)
	add("cpu_topology", v.CPUTopology != after.CPUTopology, false)
	add("memory_bytes", v.MemoryBytes != after.MemoryBytes, after.MemoryBytes <= v.MostMemory())
	add("memory_max_bytes", v.MostMemory() != after.MostMemory(), false)
	add("machine", cmp.Or(v.Machine, MachineQ35) != cmp.Or(after.Machine, MachineQ35), false)
	add("firmware", cmp.Or(v.Firmware, "bios") != cmp.Or(after.Firmware, "bios"), false)
	add("tpm", v.TPM != after.TPM, false)
	add("rng", cmp.Or(v.RNG, On) != cmp.Or(after.RNG, On), false)
	graphics, video := v.Screen()
	graphicsAfter, videoAfter := after.Screen()
	add("graphics", graphics != graphicsAfter, false)
	add("video", video != videoAfter, false)
	add("boot", !equalPointers(v.Boot, after.Boot), false)
	add("cloud_init", !sameJSON(v.CloudInit, after.CloudInit), false)
	v.effectOnDisks(after, add)
	v.effectOnDrives(after, add)
	v.effectOnNICs(after, add)
	return online, nextStart
}

// sameJSON compares values that hold slices as a reader of the API would.
func sameJSON(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

func equalPointers[T comparable](a, b *T) bool { return a == b || a != nil && b != nil && *a == *b }

func (v *VM) effectOnDisks(after *VM, add func(field string, changed, now bool)) {
	online := func(d *Disk) bool { return d.Bus != "sata" }
	for i := range after.Disks {
		d := &after.Disks[i]
		field := "disks." + d.Name
		j := slices.IndexFunc(v.Disks, func(was Disk) bool { return was.Name == d.Name })
		if j < 0 {
			add(field, true, online(d))
			continue
		}
		was := v.Disks[j]
		add(field+".volume", was.Volume != d.Volume, online(d) && online(&was))
		add(field+".limits", was.IOLimits != d.IOLimits, true)
		lasting := func(d Disk) Disk {
			return Disk{Bus: cmp.Or(d.Bus, "virtio"), Cache: cmp.Or(d.Cache, "none"), Discard: cmp.Or(d.Discard, "unmap"), Serial: d.Serial,
				BootOrder: d.BootOrder, ReadOnly: d.ReadOnly}
		}
		add(field, was.Volume == d.Volume && lasting(was) != lasting(*d), false)
	}
	for i := range v.Disks {
		d := &v.Disks[i]
		add("disks."+d.Name, !slices.ContainsFunc(after.Disks, func(now Disk) bool { return now.Name == d.Name }), online(d))
	}
}

func (v *VM) effectOnDrives(after *VM, add func(field string, changed, now bool)) {
	find := func(all []CDROM, name string) *CDROM {
		for i := range all {
			if all[i].Name == name {
				return &all[i]
			}
		}
		return nil
	}
	for _, c := range after.CDROMs {
		was := find(v.CDROMs, c.Name)
		add("cdroms."+c.Name, was == nil || cmp.Or(was.Bus, "sata") != cmp.Or(c.Bus, "sata") || was.BootOrder != c.BootOrder, false)
		add("cdroms."+c.Name+".image", was != nil && was.Image != c.Image, true)
	}
	for _, c := range v.CDROMs {
		add("cdroms."+c.Name, find(after.CDROMs, c.Name) == nil, false)
	}
}

func (v *VM) effectOnNICs(after *VM, add func(field string, changed, now bool)) {
	find := func(all []NIC, mac string) *NIC {
		for i := range all {
			if all[i].MAC == mac {
				return &all[i]
			}
		}
		return nil
	}
	for _, n := range after.NICs {
		was := find(v.NICs, n.MAC)
		if was == nil {
			add("nics."+n.MAC, true, true)
			continue
		}
		add("nics."+n.MAC+".boot_order", was.BootOrder != n.BootOrder, false)
		now := n
		now.BootOrder = was.BootOrder
		add("nics."+n.MAC, !sameJSON(was, now), true)
	}
	for _, n := range v.NICs {
		add("nics."+n.MAC, find(after.NICs, n.MAC) == nil, true)
	}
}
