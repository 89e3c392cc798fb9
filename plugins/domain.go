package plugins

import "github.com/debvisor/debvisor/api"

// DomainSpec is a guest to be started, with everything resolved: no names of
// other objects are left in it.
type DomainSpec struct {
	ID             string // UUID
	Name           string // unique on the machine: TENANT.NAME
	ClusterID      string // part of the mark
	Gen            uint64
	SpecRevision   uint64
	CPUs           int
	CPUsMax        int // up to which Update can add CPUs; 0: CPUs
	CPU            CPUSpec
	Topology       api.CPUTopology // zero: a socket for each CPU
	MemoryBytes    int64
	MemoryMaxBytes int64  // up to which Update can give memory; 0: MemoryBytes
	Machine        string // q35 (or empty) or i440fx
	Firmware       string // bios or uefi
	TPM            bool
	NoRNG          bool
	Boot           *BootSpec
	Disks          []DiskSpec
	CDROMs         []CDROMSpec
	NICs           []NICSpec
	Graphics       string         // api.GraphicsVNC, or none when empty
	Video          string         // api.VideoVirtio, VideoVGA, or none when empty
	Seed           *api.CloudInit // nil: no seed
	SeedID         string         // instance-id of the seed
}

// CPUSpec is the CPU that the guest sees. Zero: the best that the machine has.
type CPUSpec struct {
	Model   string   // as the machine's own api.HostCPU names it, or a level of x86-64
	Require []string // features beside those of the model
	Disable []string // features of the model that the guest does not get
}

// BootSpec is a direct kernel boot from files of this machine.
type BootSpec struct {
	Kernel, Initrd string // absolute paths that came from Storage
	Args           string
}

// DiskSpec is one disk of a guest.
type DiskSpec struct {
	Name      string // unique among the disks; a disk keeps its name while its guest runs
	Source    Source
	Bus       string // virtio (or empty), scsi or sata
	Cache     string // none (or empty), writeback or writethrough
	Discard   string // unmap (or empty) or ignore
	Serial    string
	BootOrder int // 1 first; 0: as api.Disk says
	ReadOnly  bool
	Limits    api.IOLimits
}

// CDROMSpec is one drive of a guest for a disc.
type CDROMSpec struct {
	Name      string // unique among the drives
	Source    Source // zero: no disc
	Bus       string // sata (or empty) or scsi
	BootOrder int
}

// NICSpec is one interface of a guest.
type NICSpec struct {
	Bridge    string
	MAC       string
	Device    string // name of the tap device; empty: as the hypervisor names it
	Model     string // empty: virtio
	MTU       int    // that the guest is told; 0: as the bridge has it
	BootOrder int
	LinkDown  bool
}

// Ordered reports whether a device of the guest has a place in the boot order:
// then those without one are not booted from.
func (s *DomainSpec) Ordered() bool {
	for _, d := range s.Disks {
		if d.BootOrder > 0 {
			return true
		}
	}
	for _, c := range s.CDROMs {
		if c.BootOrder > 0 {
			return true
		}
	}
	for _, n := range s.NICs {
		if n.BootOrder > 0 {
			return true
		}
	}
	return false
}

// BootDisk is the name of the disk that the guest boots from, by the rules of
// api.VM, or empty.
func (s *DomainSpec) BootDisk() string {
	first := -1
	for i, d := range s.Disks {
		if d.BootOrder > 0 && (first < 0 || d.BootOrder < s.Disks[first].BootOrder) {
			first = i
		}
	}
	switch {
	case first >= 0:
		return s.Disks[first].Name
	case len(s.Disks) > 0 && !s.Ordered():
		return s.Disks[0].Name
	}
	return ""
}

// MostCPUs is how many CPUs the guest can have until its next start.
func (s *DomainSpec) MostCPUs() int { return max(s.CPUs, s.CPUsMax) }

// MostMemory is how many bytes the guest can have until its next start.
func (s *DomainSpec) MostMemory() int64 { return max(s.MemoryBytes, s.MemoryMaxBytes) }
