package api_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/api"
)

func goodVM() api.VM {
	return api.VM{
		Meta: api.Meta{Name: "web", Tenant: api.DefaultTenant}, CPUs: 2, CPUsMax: 8, MemoryBytes: api.GiB, MemoryMax: 2 * api.GiB,
		CPUTopology: api.CPUTopology{Sockets: 2, Cores: 2, Threads: 2}, CPUModel: "EPYC-Rome", TPM: true, RNG: api.Off,
		Disks:  []api.Disk{{Name: "root", SizeBytes: api.GiB, BootOrder: 2}, {Name: "data", SizeBytes: api.GiB, Serial: "a-1", Bus: "scsi"}},
		CDROMs: []api.CDROM{{Name: "cd", Image: "installer", BootOrder: 1}},
		NICs:   []api.NIC{{Network: "lan", MAC: "52:54:00:00:00:01"}},
	}
}

func TestHardwareOutOfBoundsIsRefused(t *testing.T) {
	t.Parallel()
	good := goodVM()
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for field, spoil := range map[string]func(*api.VM){
		"cpus_max":                           func(v *api.VM) { v.CPUsMax = 1 },
		"memory_max_bytes":                   func(v *api.VM) { v.MemoryMax = api.MiB },
		"cpu_model":                          func(v *api.VM) { v.CPUModel = `EPYC"/><x>` },
		"cpu_topology":                       func(v *api.VM) { v.CPUTopology.Threads = 1 },
		"cpu_topology.cores":                 func(v *api.VM) { v.CPUTopology.Cores = -2 },
		"machine":                            func(v *api.VM) { v.Machine = "pc-q35-7.2" },
		"tpm":                                func(v *api.VM) { v.Machine = api.MachineI440FX },
		"rng":                                func(v *api.VM) { v.RNG = "maybe" },
		"disks[0].bus":                       func(v *api.VM) { v.Disks[0].Bus = "ide" },
		"disks[0].discard":                   func(v *api.VM) { v.Disks[0].Discard = "always" },
		"disks[0].serial":                    func(v *api.VM) { v.Disks[0].Serial = "a\nb" },
		"disks[1].serial":                    func(v *api.VM) { v.Disks[1].Serial = strings.Repeat("x", api.SerialLengthMax+1) },
		"disks[0].write_iops_max":            func(v *api.VM) { v.Disks[0].WriteIOPSMax = -1 },
		"disks[0].read_bytes_per_second_max": func(v *api.VM) { v.Disks[0].ReadBytesPerSecondMax = api.BytesPerSecondMax + 1 },
		"disks[0].read_only":                 func(v *api.VM) { v.Disks[0].Bus, v.Disks[0].ReadOnly = "sata", true },
		"disks[1].boot_order":                func(v *api.VM) { v.Disks[1].BootOrder = api.BootOrderMax + 1 },
		"cdroms[0].boot_order":               func(v *api.VM) { v.CDROMs[0].BootOrder = 2 },
		"cdroms[0].bus":                      func(v *api.VM) { v.CDROMs[0].Bus = "virtio" },
		"cdroms[1].name":                     func(v *api.VM) { v.CDROMs = append(v.CDROMs, api.CDROM{Name: "cd"}) },
		"cdroms":                             func(v *api.VM) { v.CDROMs = make([]api.CDROM, api.CDROMsMax+1) },
		"nics[0].link":                       func(v *api.VM) { v.NICs[0].Link = "half" },
		"boot":                               func(v *api.VM) { v.Boot = &api.DirectBoot{Kernel: "k"} },
	} {
		v := goodVM()
		spoil(&v)
		err := api.AsError(v.Validate())
		if err == nil || !strings.Contains(err.Error()+err.Field, field) {
			t.Errorf("%s: got %v", field, err)
		}
	}
}

func TestBootDiskIsTheFirstInOrder(t *testing.T) {
	t.Parallel()
	v := goodVM()
	if d := v.BootDisk(); d == nil || d.Name != "root" {
		t.Errorf("got %+v, want root, the only disk in the order", d)
	}
	v.Disks[1].BootOrder = 1
	v.CDROMs = nil
	if d := v.BootDisk(); d == nil || d.Name != "data" {
		t.Errorf("got %+v, want data", d)
	}
	v.Disks[0].BootOrder, v.Disks[1].BootOrder, v.NICs[0].BootOrder = 0, 0, 1
	if d := v.BootDisk(); d != nil {
		t.Errorf("a VM that boots from the network has boot disk %+v", d)
	}
	v.NICs[0].BootOrder = 0
	if d := v.BootDisk(); d == nil || d.Name != "root" {
		t.Errorf("got %+v, want the first disk where nothing has an order", d)
	}
}

func TestEffectsSayWhatWaits(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		edit              func(*api.VM)
		online, nextStart []string
	}{
		"nothing":           {func(v *api.VM) { v.Description, v.Machine = "x", "q35" }, nil, nil},
		"CPUs up":           {func(v *api.VM) { v.CPUs = 8 }, []string{"cpus"}, nil},
		"CPUs down":         {func(v *api.VM) { v.CPUs = 1 }, nil, []string{"cpus"}},
		"memory":            {func(v *api.VM) { v.MemoryBytes *= 2 }, []string{"memory_bytes"}, nil},
		"too much memory":   {func(v *api.VM) { v.MemoryBytes *= 4; v.MemoryMax = 0 }, nil, []string{"memory_bytes", "memory_max_bytes"}},
		"firmware":          {func(v *api.VM) { v.Firmware = "uefi" }, nil, []string{"firmware"}},
		"a disk":            {func(v *api.VM) { v.Disks = append(v.Disks, api.Disk{Name: "more"}) }, []string{"disks.more"}, nil},
		"a SATA disk":       {func(v *api.VM) { v.Disks = append(v.Disks, api.Disk{Name: "more", Bus: "sata"}) }, nil, []string{"disks.more"}},
		"a disk less":       {func(v *api.VM) { v.Disks = v.Disks[:1] }, []string{"disks.data"}, nil},
		"a cache":           {func(v *api.VM) { v.Disks[1].Cache = "writeback" }, nil, []string{"disks.data"}},
		"limits":            {func(v *api.VM) { v.Disks[1].ReadIOPSMax = 5 }, []string{"disks.data.limits"}, nil},
		"another disc":      {func(v *api.VM) { v.CDROMs[0].Image = "other" }, []string{"cdroms.cd.image"}, nil},
		"a drive":           {func(v *api.VM) { v.CDROMs = append(v.CDROMs, api.CDROM{Name: "two"}) }, nil, []string{"cdroms.two"}},
		"another network":   {func(v *api.VM) { v.NICs[0].Network = "dmz" }, []string{"nics.52:54:00:00:00:01"}, nil},
		"boot from the NIC": {func(v *api.VM) { v.NICs[0].BootOrder = 3 }, nil, []string{"nics.52:54:00:00:00:01.boot_order"}},
	} {
		before, after := goodVM(), goodVM()
		test.edit(&after)
		online, nextStart := before.EffectOn(&after)
		if !slices.Equal(online, test.online) || !slices.Equal(nextStart, test.nextStart) {
			t.Errorf("%s: got %q online and %q at the next start, want %q and %q", name, online, nextStart, test.online, test.nextStart)
		}
	}
}
