package api

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Models of a network interface.
const (
	NICVirtio = "virtio"
	NICE1000  = "e1000e"
	NICRTL    = "rtl8139"
)

// Limits of a network interface.
const (
	NICAddressesMax = 2 // one of IPv4 and one of IPv6
	NICFirewallsMax = 8
)

// States of a NIC's link.
const (
	LinkUp   = "up"
	LinkDown = "down"
)

// NIC is one network interface of a VM.
type NIC struct {
	Network   string   `json:"network"`
	MAC       string   `json:"mac,omitzero"`        // empty: derived from the VM's ID by the kernel
	Addresses []string `json:"addresses,omitzero"`  // at most one of IPv4 and one of IPv6; those that the network has subnets for and that are missing are chosen by the kernel
	Firewalls []string `json:"firewalls,omitzero"`  // names; with any, what none of them allows is not let in
	AntiSpoof string   `json:"anti_spoof,omitzero"` // on or off; empty: the network's
	Model     string   `json:"model,omitzero"`      // virtio (default), e1000e or rtl8139
	MTU       int      `json:"mtu,omitzero"`        // that the guest is told; 0: the network's
	Link      string   `json:"link,omitzero"`       // up (default) or down, as if its cable were out
	BootOrder int      `json:"boot_order,omitzero"` // 1 first: boot from the network
}

// Device is the name of the interface's tap device on its node. It is that of
// the MAC, so that rules can be there before the guest is.
func (n *NIC) Device() string { return "dv" + strings.ReplaceAll(n.MAC, ":", "") }

func (v *VM) checkNICs(p *problems) {
	if len(v.NICs) > NICsMax {
		p.add("nics", "has %d interfaces", len(v.NICs)).Allow("at most %d", NICsMax)
		return
	}
	macs := map[string]bool{}
	for i := range v.NICs {
		n, field := &v.NICs[i], fmt.Sprintf("nics[%d].", i)
		p.addErr(CheckName(field+"network", n.Network))
		n.checkOptions(p, field)
		if n.MAC == "" {
			continue
		}
		hw, err := net.ParseMAC(n.MAC)
		if err != nil || len(hw) != 6 || hw.String() != n.MAC || hw[0]&1 != 0 {
			p.add(field+"mac", "is %q", n.MAC).Allow("a unicast address in lower case, as 52:54:00:12:34:56")
		}
		if macs[n.MAC] {
			p.add(field+"mac", "%q is used twice", n.MAC)
		}
		macs[n.MAC] = true
	}
}

func (n *NIC) checkOptions(p *problems, field string) {
	checkOneOf(p, field+"anti_spoof", n.AntiSpoof, "", SwitchOn, SwitchOff)
	checkOneOf(p, field+"model", n.Model, "", NICVirtio, NICE1000, NICRTL)
	checkOneOf(p, field+"link", n.Link, "", LinkUp, LinkDown)
	if n.MTU != 0 && (n.MTU < MTUMin || n.MTU > MTUMax) {
		p.add(field+"mtu", "is %d", n.MTU).Allow("%d to %d", MTUMin, MTUMax)
	}
	if len(n.Firewalls) > NICFirewallsMax {
		p.add(field+"firewalls", "has %d", len(n.Firewalls)).Allow("at most %d", NICFirewallsMax)
		return
	}
	seen := map[string]bool{}
	for j, name := range n.Firewalls {
		p.addErr(CheckName(fmt.Sprintf("%sfirewalls[%d]", field, j), name))
		if seen[name] {
			p.add(fmt.Sprintf("%sfirewalls[%d]", field, j), "%q is named twice", name)
		}
		seen[name] = true
	}
	n.checkAddresses(p, field)
}

func (n *NIC) checkAddresses(p *problems, field string) {
	if len(n.Addresses) > NICAddressesMax {
		p.add(field+"addresses", "has %d", len(n.Addresses)).Allow("at most one of IPv4 and one of IPv6")
		return
	}
	families := map[bool]bool{}
	for j, text := range n.Addresses {
		at := fmt.Sprintf("%saddresses[%d]", field, j)
		ip, err := netip.ParseAddr(text)
		switch {
		case err != nil || ip.Zone() != "" || ip.Is4In6() || ip.String() != text:
			p.add(at, "is %q", text).Allow("an address without a prefix, as 10.80.0.5 or fd80::5")
		case ip.IsUnspecified() || ip.IsLoopback() || ip.IsMulticast() || ip.IsLinkLocalUnicast():
			p.add(at, "%s is no address that a host may have", text).Allow("a unicast address")
		case families[ip.Is4()]:
			p.add(at, "%s is the second one of its kind", text).Allow("one of IPv4 and one of IPv6")
		}
		families[ip.Is4()] = true
	}
}
