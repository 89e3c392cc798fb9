package api

import (
	"fmt"
	"regexp"
)

// Machine types of a VM.
const (
	MachineQ35    = "q35"
	MachineI440FX = "i440fx" // of guests that know no PCI Express
)

// CPU models that are no hardware's: CPUHost is whatever the node has, the
// levels are those of the x86-64 psABI.
const (
	CPUHost   = "host"
	CPULevel1 = "x86-64-v1"
	CPULevel2 = "x86-64-v2"
	CPULevel3 = "x86-64-v3"
	CPULevel4 = "x86-64-v4"
)

// On and Off switch a device of a VM that is there unless it is off.
const (
	On  = "on"
	Off = "off"
)

// cpuModelName is what hypervisors call a CPU: EPYC-Rome, Skylake-Server-IBRS.
var cpuModelName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// CPUTopology is how a guest sees its CPUs. Their product is the number of
// CPUs that it can have, cpus_max.
type CPUTopology struct {
	Sockets int `json:"sockets,omitzero"`
	Cores   int `json:"cores,omitzero"`   // in a socket
	Threads int `json:"threads,omitzero"` // in a core
}

// MostCPUs is how many CPUs the guest can have before it is started anew.
func (v *VM) MostCPUs() int { return max(v.CPUs, v.CPUsMax) }

// MostMemory is how many bytes the guest can have before it is started anew.
// Its node keeps room for them.
func (v *VM) MostMemory() int64 { return max(v.MemoryBytes, v.MemoryMax) }

func (v *VM) checkHardware(p *problems) {
	if v.CPUsMax != 0 && (v.CPUsMax < v.CPUs || v.CPUsMax > CPUsMax) {
		p.add("cpus_max", "is %d with cpus %d", v.CPUsMax, v.CPUs).Allow("cpus to %d, or nothing", CPUsMax)
	}
	if v.MemoryMax != 0 && (v.MemoryMax < v.MemoryBytes || v.MemoryMax > MemoryMax) {
		p.add("memory_max_bytes", "is %d with memory_bytes %d", v.MemoryMax, v.MemoryBytes).Allow("memory_bytes to %d (64 TiB), or nothing", MemoryMax)
	}
	if v.CPUModel != "" {
		p.addErr(CheckCPUModel("cpu_model", v.CPUModel))
	}
	v.checkTopology(p)
	checkOneOf(p, "machine", v.Machine, "", MachineQ35, MachineI440FX)
	checkOneOf(p, "firmware", v.Firmware, "", "bios", "uefi")
	checkOneOf(p, "rng", v.RNG, "", On, Off)
	if v.Machine == MachineI440FX && v.TPM {
		p.add("tpm", "does not go with machine i440fx").Allow("machine q35 with tpm")
	}
}

// CheckCPUModel refuses what cannot be the name of a CPU model.
func CheckCPUModel(field, name string) *Error {
	if !cpuModelName.MatchString(name) {
		return Invalid(field, "is %q", name).Allow("a model as debvisor node show lists them, as %s or EPYC-Rome", CPULevel2)
	}
	return nil
}

func (v *VM) checkTopology(p *problems) {
	t := v.CPUTopology
	if t == (CPUTopology{}) {
		return
	}
	for _, part := range []struct {
		field string
		value int
	}{{"sockets", t.Sockets}, {"cores", t.Cores}, {"threads", t.Threads}} {
		if part.value < 1 || part.value > CPUsMax {
			p.add("cpu_topology."+part.field, "is %d", part.value).Allow("1 to %d", CPUsMax)
			return
		}
	}
	if n := t.Sockets * t.Cores * t.Threads; n != v.MostCPUs() {
		p.add("cpu_topology", "makes %d CPUs of %d sockets, %d cores and %d threads", n, t.Sockets, t.Cores, t.Threads).
			Allow("%d, as many as %s", v.MostCPUs(), map[bool]string{true: "cpus_max", false: "cpus"}[v.CPUsMax != 0])
	}
}

// checkBootOrder refuses two devices at one place of the order.
func (v *VM) checkBootOrder(p *problems) {
	at := map[int]string{}
	check := func(field string, order int) {
		switch {
		case order == 0:
		case order < 0 || order > BootOrderMax:
			p.add(field, "is %d", order).Allow("1 to %d, or nothing", BootOrderMax)
		case at[order] != "":
			p.add(field, "%d is that of %s too", order, at[order])
		default:
			at[order] = field
		}
	}
	for i := range v.Disks {
		check(fmt.Sprintf("disks[%d].boot_order", i), v.Disks[i].BootOrder)
	}
	for i := range v.CDROMs {
		check(fmt.Sprintf("cdroms[%d].boot_order", i), v.CDROMs[i].BootOrder)
	}
	for i := range v.NICs {
		check(fmt.Sprintf("nics[%d].boot_order", i), v.NICs[i].BootOrder)
	}
	if v.Boot != nil && len(at) > 0 {
		p.add("boot", "starts a kernel directly, boot_order does not go with it").Do("leave out one of them")
	}
}

// BootDisk is the disk that the guest boots from: the first in boot order, or
// the first of all where none has an order. A guest with a kernel of its own
// has its root there by custom. Nil: it has none.
func (v *VM) BootDisk() *Disk {
	var first *Disk
	for i := range v.Disks {
		if d := &v.Disks[i]; d.BootOrder > 0 && (first == nil || d.BootOrder < first.BootOrder) {
			first = d
		}
	}
	if first == nil && len(v.Disks) > 0 && !v.ordered() {
		return &v.Disks[0]
	}
	return first
}

// ordered reports whether any device has a place in the boot order: then those
// without one are not booted from.
func (v *VM) ordered() bool {
	for i := range v.Disks {
		if v.Disks[i].BootOrder > 0 {
			return true
		}
	}
	for i := range v.CDROMs {
		if v.CDROMs[i].BootOrder > 0 {
			return true
		}
	}
	for i := range v.NICs {
		if v.NICs[i].BootOrder > 0 {
			return true
		}
	}
	return false
}
