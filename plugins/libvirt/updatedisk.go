package libvirt

import (
	"context"
	"encoding/xml"
	"fmt"
	"slices"

	"github.com/digitalocean/go-libvirt"

	"github.com/debvisor/debvisor/api"
)

func (x *diskXML) alias() string {
	if x.Alias == nil {
		return ""
	}
	return x.Alias.Name
}

func (x *diskXML) path() string {
	if x.Source == nil {
		return ""
	}
	return x.Source.File
}

// byAlias is the drive of an alias, or nil.
func (d *domainXML) byAlias(alias string) *diskXML {
	for i := range d.Devices.Disks {
		if x := &d.Devices.Disks[i]; alias != "" && x.alias() == alias {
			return x
		}
	}
	return nil
}

// bootAlias is that of the disk that the guest has booted from.
func (d *domainXML) bootAlias() string {
	var first *diskXML
	for i := range d.Devices.Disks {
		if x := &d.Devices.Disks[i]; x.Device == "disk" && x.Boot != nil && (first == nil || x.Boot.Order < first.Boot.Order) {
			first = x
		}
	}
	if first == nil && d.OS.Kernel != "" {
		for i := range d.Devices.Disks {
			if x := &d.Devices.Disks[i]; x.Device == "disk" && x.alias() != "" {
				return x.alias()
			}
		}
	}
	if first == nil {
		return ""
	}
	return first.alias()
}

// mine are the aliases that this package gives to disks.
func isDisk(x *diskXML) bool {
	return x.Device == "disk" && len(x.alias()) > len(diskAlias("")) && x.alias()[:len(diskAlias(""))] == diskAlias("")
}

func fieldOf(x *diskXML) string { return "disks." + x.alias()[len(diskAlias("")):] }

// removeDisks takes the disks from the guest that the spec no longer has, or
// has with another source. Those that others plugged in are left: they show as
// drift.
func (u *update) removeDisks(ctx context.Context) error {
	boot := u.f.xml.bootAlias()
	for i := range u.f.xml.Devices.Disks {
		x := &u.f.xml.Devices.Disks[i]
		if !isDisk(x) {
			continue
		}
		if want := u.want.byAlias(x.alias()); want != nil && want.path() == x.path() {
			continue
		}
		field := fieldOf(x)
		switch {
		case x.alias() == boot:
			u.wait(pendingEdit{Text: field + ": the guest has booted from it and keeps it; at the next start", Alias: x.alias()})
			continue
		case x.Target.Bus == "sata":
			u.wait(pendingEdit{Text: field + ": bus sata lets go of nothing while the guest runs; at the next start", Alias: x.alias()})
			continue
		}
		text, err := xml.Marshal(struct {
			XMLName xml.Name `xml:"disk"`
			diskXML
		}{diskXML: *x})
		if err != nil {
			return fmt.Errorf("encode disk: %w", err)
		}
		done, err := u.attempt(ctx, field, "taking it away", func(l *libvirt.Libvirt) error {
			return l.DomainDetachDeviceFlags(u.f.handle, string(text), uint32(libvirt.DomainDeviceModifyLive))
		})
		if err != nil {
			return err
		}
		if !done {
			u.pending[len(u.pending)-1].Alias = x.alias()
		}
	}
	before := u.f.xml
	if err := u.h.read(ctx, u.c, u.f); err != nil {
		return err
	}
	// libvirt waits some seconds for the guest; one that boots is deaf longer.
	for i := range before.Devices.Disks {
		x := &before.Devices.Disks[i]
		if !isDisk(x) || u.f.xml.byAlias(x.alias()) == nil || u.holds(x.alias()) {
			continue
		}
		if want := u.want.byAlias(x.alias()); want == nil || want.path() != x.path() {
			u.wait(pendingEdit{Text: fieldOf(x) + ": the guest was asked for it and has not let go of it yet", Alias: x.alias(), Retry: true})
		}
	}
	return nil
}

func (u *update) holds(alias string) bool {
	return slices.ContainsFunc(u.pending, func(p pendingEdit) bool { return p.Alias == alias })
}

// addDisks plugs in the disks that the guest lacks.
func (u *update) addDisks(ctx context.Context) error {
	for i := range u.want.Devices.Disks {
		x := u.want.Devices.Disks[i]
		if !isDisk(&x) || u.f.xml.byAlias(x.alias()) != nil {
			continue
		}
		field := fieldOf(&x)
		if x.Target.Bus == "sata" {
			u.waitStart(field, "bus sata takes nothing while the guest runs")
			continue
		}
		x.Boot = nil // an order is for the start
		if !u.f.xml.findPlace(&x) {
			u.waitStart(field, "every place on bus %s is taken", x.Target.Bus)
			continue
		}
		text, err := xml.Marshal(struct {
			XMLName xml.Name `xml:"disk"`
			diskXML
		}{diskXML: x})
		if err != nil {
			return fmt.Errorf("encode disk: %w", err)
		}
		done, err := u.attempt(ctx, field, "plugging it in", func(l *libvirt.Libvirt) error {
			return l.DomainAttachDeviceFlags(u.f.handle, string(text), uint32(libvirt.DomainDeviceModifyLive))
		})
		if err != nil {
			return err
		}
		if done {
			u.changed[field] = true
			u.f.xml.Devices.Disks = append(u.f.xml.Devices.Disks, x)
		}
	}
	return nil
}

// findPlace gives the drive a name and an address that are free in d.
func (d *domainXML) findPlace(x *diskXML) bool {
	taken := func(dev string) bool {
		return slices.ContainsFunc(d.Devices.Disks, func(o diskXML) bool { return o.Target.Dev == dev })
	}
	prefix := "vd"
	if x.Address != nil {
		prefix = "sd"
		unit := 0
		for slices.ContainsFunc(d.Devices.Disks, func(o diskXML) bool {
			return o.Target.Bus == "scsi" && o.Address != nil && o.Address.Controller == 0 && o.Address.Unit == unit
		}) {
			unit++
		}
		if unit >= scsiUnits {
			return false
		}
		x.Address = &addressXML{Type: "drive", Bus: "0", Target: "0", Unit: unit}
	}
	n := 0
	for taken(devName(prefix, n)) {
		n++
	}
	x.Target.Dev = devName(prefix, n)
	return true
}

// limitDisks sets the limits of the disks that the guest has.
func (u *update) limitDisks(ctx context.Context) error {
	for i := range u.want.Devices.Disks {
		want := &u.want.Devices.Disks[i]
		have := u.f.xml.byAlias(want.alias())
		if !isDisk(want) || have == nil || have.path() != want.path() {
			continue
		}
		limits := ioTuneXML{}
		if want.IOTune != nil {
			limits = *want.IOTune
		}
		if have.IOTune != nil && *have.IOTune == limits || have.IOTune == nil && limits == (ioTuneXML{}) {
			continue
		}
		var params []libvirt.TypedParam
		for _, p := range []struct {
			name  string
			value int64
		}{
			{"read_bytes_sec", limits.ReadBytes}, {"write_bytes_sec", limits.WriteBytes},
			{"read_iops_sec", limits.ReadIOPS}, {"write_iops_sec", limits.WriteIOPS},
		} {
			params = append(params, libvirt.TypedParam{Field: p.name, Value: *libvirt.NewTypedParamValueUllong(uint64(p.value))})
		}
		_, err := u.attempt(ctx, fieldOf(want), "changing its limits", func(l *libvirt.Libvirt) error {
			return l.DomainSetBlockIOTune(u.f.handle, have.Target.Dev, params, uint32(libvirt.DomainAffectLive))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// changeDiscs puts discs into drives and takes them out. A drive itself comes
// and goes at a start.
func (u *update) changeDiscs(ctx context.Context) error {
	for i := range u.f.xml.Devices.Disks {
		x := &u.f.xml.Devices.Disks[i]
		if name, ours := cdromName(x); ours && u.want.byAlias(x.alias()) == nil {
			u.waitStart("cdroms."+name, "the drive goes")
			if x.path() == "" {
				continue
			}
			if err := u.putDisc(ctx, *x, nil, name); err != nil { // its image may be deleted from now on
				return err
			}
		}
	}
	for i := range u.want.Devices.Disks {
		want := &u.want.Devices.Disks[i]
		name, ours := cdromName(want)
		if !ours {
			continue
		}
		have := u.f.xml.byAlias(want.alias())
		switch {
		case have == nil:
			u.waitStart("cdroms."+name, "the drive comes")
		case have.path() != want.path():
			if err := u.putDisc(ctx, *have, want.Source, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// cdromName is the name of a drive of the VM; the seed's has none.
func cdromName(x *diskXML) (string, bool) {
	prefix := cdromAlias("")
	if a := x.alias(); x.Device == "cdrom" && len(a) > len(prefix) && a[:len(prefix)] == prefix {
		return a[len(prefix):], true
	}
	return "", false
}

func (u *update) putDisc(ctx context.Context, drive diskXML, disc *diskSourceXML, name string) error {
	drive.Source = disc
	drive.Driver = &diskDriverXML{Name: "qemu", Type: api.FormatRaw}
	text, err := xml.Marshal(struct {
		XMLName xml.Name `xml:"disk"`
		diskXML
	}{diskXML: drive})
	if err != nil {
		return fmt.Errorf("encode drive: %w", err)
	}
	_, err = u.attempt(ctx, "cdroms."+name, "changing the disc", func(l *libvirt.Libvirt) error {
		// By force: a guest that locked its drive cannot keep a disc.
		return l.DomainUpdateDeviceFlags(u.f.handle, string(text), libvirt.DomainDeviceModifyLive|libvirt.DomainDeviceModifyForce)
	})
	return err
}
