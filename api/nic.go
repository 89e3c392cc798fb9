package api

import (
	"fmt"
	"net"
)

// States of a NIC's link.
const (
	LinkUp   = "up"
	LinkDown = "down"
)

// NIC is one network interface of a VM.
type NIC struct {
	Network   string `json:"network"`
	MAC       string `json:"mac,omitzero"`        // empty: derived from the VM's ID by the kernel
	Link      string `json:"link,omitzero"`       // up (default) or down, as if its cable were out
	BootOrder int    `json:"boot_order,omitzero"` // 1 first: boot from the network
}

func (v *VM) checkNICs(p *problems) {
	if len(v.NICs) > NICsMax {
		p.add("nics", "has %d interfaces", len(v.NICs)).Allow("at most %d", NICsMax)
		return
	}
	macs := map[string]bool{}
	for i, n := range v.NICs {
		p.addErr(CheckName(fmt.Sprintf("nics[%d].network", i), n.Network))
		checkOneOf(p, fmt.Sprintf("nics[%d].link", i), n.Link, "", LinkUp, LinkDown)
		if n.MAC == "" {
			continue
		}
		field := fmt.Sprintf("nics[%d].mac", i)
		hw, err := net.ParseMAC(n.MAC)
		if err != nil || len(hw) != 6 || hw.String() != n.MAC || hw[0]&1 != 0 {
			p.add(field, "is %q", n.MAC).Allow("a unicast address in lower case, as 52:54:00:12:34:56")
		}
		if macs[n.MAC] {
			p.add(field, "%q is used twice", n.MAC)
		}
		macs[n.MAC] = true
	}
}
