package libvirt

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"slices"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// mark is debvisor's metadata element. A domain without it, or with that of
// another cluster or domain, is not ours and is never touched.
type mark struct {
	XMLName xml.Name `xml:"https://debvisor.org/xmlns/libvirt/domain/1 mark"`
	markBody
}

// markBody is a mark without its name space, which libvirt adds itself where
// the mark of a running guest is replaced.
type markBody struct {
	Cluster  string `xml:"cluster,attr"`
	ID       string `xml:"id,attr"` // of the domain it was made for: a copy of the domain is another one
	Gen      uint64 `xml:"gen,attr"`
	Revision uint64 `xml:"revision,attr"`
	Started  string `xml:"started,attr"` // RFC 3339
	Hash     string `xml:"hash,attr"`    // of Wanted
	Wanted   wanted `xml:"wanted"`

	Fixed   []fixed       `xml:"fixed"`   // what the guest was started with and cannot change
	Pending []pendingEdit `xml:"pending"` // what of the revision waits
}

// element is the mark as it replaces that of an executing guest: all of it.
func (b markBody) element() (string, error) {
	raw, err := xml.Marshal(struct {
		XMLName xml.Name `xml:"mark"`
		markBody
	}{markBody: b})
	if err != nil {
		return "", fmt.Errorf("encode mark: %w", err)
	}
	return string(raw), nil
}

// wanted is what drift is measured against: the essentials of the guest as it
// was asked for.
type wanted struct {
	CPUs      int          `xml:"cpus,attr"`
	MemoryKiB int64        `xml:"memory_kib,attr"`
	Disks     []wantedDisk `xml:"disk"`
	NICs      []wantedNIC  `xml:"nic"`
}

type wantedDisk struct {
	Dev    string `xml:"dev,attr"`
	Path   string `xml:"path,attr"`
	Format string `xml:"format,attr"`
}

type wantedNIC struct {
	MAC    string `xml:"mac,attr"`
	Bridge string `xml:"bridge,attr"`
}

// fixed is a plugins.Lasting as it is kept in the mark.
type fixed struct {
	Field string `xml:"field,attr"`
	Value string `xml:"value,attr"`
	Sum   string `xml:"sum,attr,omitempty"`
}

func fixedOf(spec plugins.DomainSpec) []fixed {
	var out []fixed
	for _, l := range plugins.LastingOf(spec) {
		out = append(out, fixed(l))
	}
	return out
}

// pendingEdit is one edit that waits.
type pendingEdit struct {
	Text  string `xml:",chardata"`
	Alias string `xml:"alias,attr,omitempty"` // of a device that the guest has yet to let go of: the edit is done when it is gone
	Retry bool   `xml:"retry,attr,omitempty"` // it may work when it is tried again
}

// hash is the fingerprint of the essentials, stored beside them so that an
// edit of the mark itself shows.
func (w wanted) hash() string {
	sum := sha256.New()
	fmt.Fprintf(sum, "%d %d", w.CPUs, w.MemoryKiB)
	for _, d := range w.Disks {
		fmt.Fprintf(sum, "\ndisk %q %q %q", d.Dev, d.Path, d.Format)
	}
	for _, n := range w.NICs {
		fmt.Fprintf(sum, "\nnic %q %q", n.MAC, n.Bridge)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// startedAt is when the guest was started, or zero.
func (m *mark) startedAt() time.Time {
	t, err := time.Parse(time.RFC3339Nano, m.Started)
	if err != nil {
		return time.Time{}
	}
	return t
}

// markOf returns the mark if the domain is ours.
func (d *domainXML) markOf(clusterID string) *mark {
	if d.Metadata == nil || d.Metadata.Mark == nil {
		return nil
	}
	if m := d.Metadata.Mark; m.Cluster == clusterID && m.ID == d.UUID {
		return m
	}
	return nil
}

// essentials reads from a domain what wanted describes.
func (d *domainXML) essentials() wanted {
	w := wanted{CPUs: d.VCPU.Value, MemoryKiB: d.Memory.kib()}
	if d.VCPU.Current > 0 {
		w.CPUs = d.VCPU.Current
	}
	if d.CurrentMemory != nil {
		w.MemoryKiB = d.CurrentMemory.kib()
	}
	for _, disk := range d.Devices.Disks {
		if disk.Device == "cdrom" { // a guest may open its drives
			continue
		}
		item := wantedDisk{Dev: disk.Target.Dev}
		if disk.Source != nil {
			item.Path = disk.Source.File
		}
		if disk.Driver != nil {
			item.Format = disk.Driver.Type
		}
		w.Disks = append(w.Disks, item)
	}
	for _, nic := range d.Devices.Interfaces {
		var item wantedNIC
		if nic.MAC != nil {
			item.MAC = nic.MAC.Address
		}
		if nic.Source != nil {
			item.Bridge = nic.Source.Bridge
		}
		w.NICs = append(w.NICs, item)
	}
	return w
}

// kib converts libvirt's memory to KiB; the unit defaults to KiB.
func (m memoryXML) kib() int64 {
	switch m.Unit {
	case "b", "bytes":
		return m.Value / api.KiB
	case "MiB", "M":
		return m.Value * api.KiB
	case "GiB", "G":
		return m.Value * api.MiB
	}
	return m.Value
}

// drift tells how the domain differs from what its mark wants, one sentence a
// difference, at most api.AddressesMax of them. prefix begins each.
func (d *domainXML) drift(m *mark, prefix string) []string {
	var out []string
	add := func(format string, args ...any) {
		if len(out) < api.AddressesMax {
			out = append(out, prefix+fmt.Sprintf(format, args...))
		}
	}
	if m.Wanted.hash() != m.Hash {
		add("mark: was edited")
	}
	found := d.essentials()
	if found.MemoryKiB != m.Wanted.MemoryKiB && !d.deflated(m) {
		add("memory_bytes: %s, wanted %s", api.FormatSize(found.MemoryKiB*api.KiB), api.FormatSize(m.Wanted.MemoryKiB*api.KiB))
	}
	if found.CPUs != m.Wanted.CPUs {
		add("cpus: %d, wanted %d", found.CPUs, m.Wanted.CPUs)
	}
	for _, disk := range m.Wanted.Disks {
		i := slices.IndexFunc(found.Disks, func(f wantedDisk) bool { return f.Dev == disk.Dev })
		switch {
		case i < 0:
			add("disks: %s is detached", disk.Dev)
		case found.Disks[i] != disk:
			add("disks: %s is another one", disk.Dev)
		}
	}
	for _, disk := range found.Disks {
		if !slices.ContainsFunc(m.Wanted.Disks, func(w wantedDisk) bool { return w.Dev == disk.Dev }) && !m.awaits(d.aliasOf(disk.Dev)) {
			add("disks: %s is attached, not wanted", disk.Dev)
		}
	}
	for _, nic := range m.Wanted.NICs {
		if !slices.Contains(found.NICs, nic) {
			add("nics: %s on %s is missing", nic.MAC, nic.Bridge)
		}
	}
	for _, nic := range found.NICs {
		if !slices.Contains(m.Wanted.NICs, nic) && !m.awaits(nic.MAC) {
			add("nics: %s on %q is not wanted", nic.MAC, nic.Bridge)
		}
	}
	return out
}

// deflated reports whether a guest that may have more memory has more of it
// than was asked for: it gives the rest back when its driver runs.
func (d *domainXML) deflated(m *mark) bool {
	have, most := d.essentials().MemoryKiB, d.Memory.kib()
	return m.Wanted.MemoryKiB < have && have <= most && m.Wanted.MemoryKiB < most && d.ballooned(m)
}

// ballooned reports whether the guest was started with room for more memory.
func (d *domainXML) ballooned(m *mark) bool {
	return slices.ContainsFunc(m.Fixed, func(f fixed) bool {
		return f.Field == "memory_max_bytes" && f.Value == api.FormatSize(d.Memory.kib()*api.KiB)
	})
}

// awaits reports whether the guest has yet to let go of a device.
func (m *mark) awaits(alias string) bool {
	return slices.ContainsFunc(m.Pending, func(p pendingEdit) bool { return alias != "" && p.Alias == alias })
}

func (d *domainXML) aliasOf(dev string) string {
	for i := range d.Devices.Disks {
		if d.Devices.Disks[i].Target.Dev == dev {
			return d.Devices.Disks[i].alias()
		}
	}
	return ""
}

// pending is what of the mark's edits still waits, whether trying again may
// help, and whether the guest has a disk that it should not.
func (d *domainXML) pending(m *mark) (texts []string, retry, holding bool) {
	for _, p := range m.Pending {
		disk := d.byAlias(p.Alias)
		if p.Alias != "" && disk == nil && d.byMAC(p.Alias) == nil {
			continue // it let go
		}
		texts = append(texts, p.Text)
		retry, holding = retry || p.Retry, holding || disk != nil
	}
	if d.deflated(m) && len(texts) < api.PendingMax {
		texts = append(texts, fmt.Sprintf("memory_bytes: %s, the guest holds %s and gives the rest back when its balloon driver runs",
			api.FormatSize(m.Wanted.MemoryKiB*api.KiB), api.FormatSize(d.essentials().MemoryKiB*api.KiB)))
	}
	return texts, retry, holding
}

func markName() xml.Name {
	return xml.Name{Space: "https://debvisor.org/xmlns/libvirt/domain/1", Local: "mark"}
}
