package plugins

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/debvisor/debvisor/api"
)

// Lasting is one property of a guest that lasts until its next start.
// Adapters write it down as it was asked for: what a hypervisor shows of a
// guest is filled in and named anew in many ways.
type Lasting struct {
	Field string // as a user knows it
	Value string // for people
	Sum   string // of a value that Value does not show whole
}

// LastingOf is what of a spec only a start can change. Disks and drives are in
// it by name, so that one that comes or goes changes nothing else.
func LastingOf(spec DomainSpec) []Lasting {
	out := []Lasting{
		{Field: "cpus_max", Value: fmt.Sprint(spec.MostCPUs())},
		{Field: "cpu_model", Value: cpuText(spec.CPU), Sum: sumOf(spec.CPU)},
		{Field: "cpu_topology", Value: topologyText(spec.Topology)},
		{Field: "memory_max_bytes", Value: api.FormatSize(spec.MostMemory())},
		{Field: "machine", Value: cmp.Or(spec.Machine, api.MachineQ35)},
		{Field: "firmware", Value: cmp.Or(spec.Firmware, "bios")},
		{Field: "tpm", Value: fmt.Sprint(spec.TPM)},
		{Field: "rng", Value: map[bool]string{false: api.On, true: api.Off}[spec.NoRNG]},
		{Field: "graphics", Value: cmp.Or(spec.Graphics, "none")},
		{Field: "video", Value: cmp.Or(spec.Video, "none")},
		{Field: "boot", Value: "changed", Sum: sumOf(spec.Boot)},
		{Field: "boot_order", Value: orderText(spec)},
		{Field: "cloud_init", Value: "changed", Sum: sumOf(spec.Seed)},
	}
	for _, d := range spec.Disks {
		out = append(out, lastingDisk(d))
	}
	for _, c := range spec.CDROMs {
		out = append(out, Lasting{Field: "cdroms." + c.Name, Value: "bus " + cmp.Or(c.Bus, "sata")})
	}
	return out
}

func lastingDisk(d DiskSpec) Lasting {
	text := fmt.Sprintf("bus %s, cache %s, discard %s", cmp.Or(d.Bus, "virtio"), cmp.Or(d.Cache, "none"), cmp.Or(d.Discard, "unmap"))
	if d.Serial != "" {
		text += ", serial " + d.Serial
	}
	if d.ReadOnly {
		text += ", read only"
	}
	return Lasting{Field: "disks." + d.Name, Value: text}
}

// Waits says that l, which the spec asks for, waits because the guest was
// started with was.
func (l Lasting) Waits(was Lasting) string {
	if was.Value == l.Value {
		return l.Field + ": changed; at the next start"
	}
	return fmt.Sprintf("%s: %s, the guest has %s; at the next start", l.Field, l.Value, was.Value)
}

func cpuText(c CPUSpec) string { return cmp.Or(c.Model, api.CPUHost) }

func topologyText(t api.CPUTopology) string {
	if t == (api.CPUTopology{}) {
		return "a socket for each CPU"
	}
	return fmt.Sprintf("%d sockets, %d cores, %d threads", t.Sockets, t.Cores, t.Threads)
}

// orderText names the devices that the guest boots from in turn. Without an
// order it is the disks', and one more at its end changes nothing.
func orderText(spec DomainSpec) string {
	if !spec.Ordered() {
		return "the disks in turn"
	}
	at := map[int]string{}
	for _, d := range spec.Disks {
		at[d.BootOrder] = "disk " + d.Name
	}
	for _, c := range spec.CDROMs {
		at[c.BootOrder] = "cdrom " + c.Name
	}
	for _, n := range spec.NICs {
		at[n.BootOrder] = "nic " + n.MAC
	}
	var out []string
	for order := 1; order <= api.BootOrderMax; order++ {
		if at[order] != "" {
			out = append(out, at[order])
		}
	}
	return strings.Join(out, ", ")
}

func sumOf(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:8])
}
