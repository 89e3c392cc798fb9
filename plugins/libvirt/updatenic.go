package libvirt

import (
	"context"
	"encoding/xml"
	"fmt"

	"github.com/digitalocean/go-libvirt"
)

func (x *interfaceXML) mac() string {
	if x.MAC == nil {
		return ""
	}
	return x.MAC.Address
}

func (d *domainXML) byMAC(mac string) *interfaceXML {
	for i := range d.Devices.Interfaces {
		if x := &d.Devices.Interfaces[i]; x.mac() == mac {
			return x
		}
	}
	return nil
}

// hasNIC reports whether the interface is one that the mark asked for: those
// of others are left alone and show as drift.
func (m *mark) hasNIC(mac string) bool {
	if m == nil {
		return false
	}
	for _, n := range m.Wanted.NICs {
		if n.MAC == mac {
			return true
		}
	}
	return false
}

// changeNICs unplugs, plugs in and replugs the guest's interfaces, which are
// told apart by their addresses.
func (u *update) changeNICs(ctx context.Context) error {
	for i := range u.f.xml.Devices.Interfaces {
		x := &u.f.xml.Devices.Interfaces[i]
		if u.want.byMAC(x.mac()) != nil || !u.f.mark.hasNIC(x.mac()) {
			continue
		}
		if err := u.nic(ctx, x, "taking it away", func(l *libvirt.Libvirt, text string) error {
			return l.DomainDetachDeviceFlags(u.f.handle, text, uint32(libvirt.DomainDeviceModifyLive))
		}); err != nil {
			return err
		}
	}
	for i := range u.want.Devices.Interfaces {
		want := u.want.Devices.Interfaces[i]
		have := u.f.xml.byMAC(want.mac())
		change, what := (*libvirt.Libvirt).DomainAttachDeviceFlags, "plugging it in"
		want.Boot = nil // an order is for the start
		if have != nil {
			if sameNIC(have, &want) {
				continue
			}
			want.Boot, what = have.Boot, "changing it"
			want.Target, want.Model, want.MTU = have.Target, have.Model, have.MTU // fixed while it is plugged in
			change = func(l *libvirt.Libvirt, d libvirt.Domain, text string, flags uint32) error {
				return l.DomainUpdateDeviceFlags(d, text, libvirt.DomainDeviceModifyFlags(flags))
			}
		}
		if err := u.nic(ctx, &want, what, func(l *libvirt.Libvirt, text string) error {
			return change(l, u.f.handle, text, uint32(libvirt.DomainDeviceModifyLive))
		}); err != nil {
			return err
		}
	}
	return u.awaitNICs(ctx)
}

// sameNIC compares what can be changed of an interface while its guest runs.
func sameNIC(have, want *interfaceXML) bool {
	down := func(x *interfaceXML) bool { return x.Link != nil && x.Link.State == "down" }
	bridge := func(x *interfaceXML) string {
		if x.Source == nil {
			return ""
		}
		return x.Source.Bridge
	}
	return down(have) == down(want) && bridge(have) == bridge(want)
}

func (u *update) nic(ctx context.Context, x *interfaceXML, what string, change func(*libvirt.Libvirt, string) error) error {
	text, err := xml.Marshal(struct {
		XMLName xml.Name `xml:"interface"`
		interfaceXML
	}{interfaceXML: *x})
	if err != nil {
		return fmt.Errorf("encode interface: %w", err)
	}
	_, err = u.attempt(ctx, "nics."+x.mac(), what, func(l *libvirt.Libvirt) error { return change(l, string(text)) })
	return err
}

// awaitNICs notes the interfaces that the guest has not let go of.
func (u *update) awaitNICs(ctx context.Context) error {
	if err := u.h.read(ctx, u.c, u.f); err != nil {
		return err
	}
	for i := range u.f.xml.Devices.Interfaces {
		mac := u.f.xml.Devices.Interfaces[i].mac()
		if u.want.byMAC(mac) == nil && u.f.mark.hasNIC(mac) && !u.holds(mac) {
			u.wait(pendingEdit{Text: "nics." + mac + ": the guest was asked for it and has not let go of it yet", Alias: mac, Retry: true})
		}
	}
	return nil
}
