package api

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
)

// Drivers of networks.
const (
	NetworkBridge   = "bridge"   // a Linux bridge, possibly one that an operator made, with an uplink
	NetworkVLAN     = "vlan"     // one VLAN of such a bridge
	NetworkIsolated = "isolated" // guests of one node among themselves
	NetworkNAT      = "nat"      // guests reach out through their node's address; nothing reaches them unasked
)

// Limits of a network.
const (
	VLANMax           = 4094
	MTUMin            = 1280 // what IPv6 needs at least (RFC 8200, section 5)
	MTUMax            = 65535
	SubnetsMax        = 2  // one of IPv4 and one of IPv6
	RangesMax         = 8  // of addresses that may be given out
	SubnetBitsMin     = 16 // of an IPv4 subnet: at most 65,534 addresses
	SubnetBitsMax     = 30
	SubnetBitsIPv6    = 64 // what router advertisements need (RFC 4862, section 5.5.3)
	deviceLengthMax   = 15 // bytes; IFNAMSIZ less the end mark
	deviceDigestBytes = 5
)

// Switches of a field that has a default of its own.
const (
	SwitchOn  = "on"
	SwitchOff = "off"
)

// Network is what a VM's NIC plugs into. With subnets, the cluster gives every
// interface its addresses and keeps them for good, on whatever node its VM
// runs.
type Network struct {
	Meta
	Driver      string   `json:"driver"`              // bridge, vlan, isolated or nat
	Bridge      string   `json:"bridge,omitzero"`     // device on each node. Of bridge: made where it is missing; of vlan: the one that carries the VLAN; else optional
	VLAN        int      `json:"vlan,omitzero"`       // of vlan: 1 to 4094
	Subnets     []string `json:"subnets,omitzero"`    // at most one of IPv4 and one of IPv6, as 10.80.0.0/24 and fd80::/64; nat needs one
	Ranges      []string `json:"ranges,omitzero"`     // of addresses that are given out, as 10.80.0.100-10.80.0.199; empty: the whole subnets
	AntiSpoof   string   `json:"anti_spoof,omitzero"` // on or off; empty: on with subnets, else off
	Uplink      bool     `json:"uplink,omitzero"`     // of bridge and vlan: only nodes on which the bridge is there and has a port to the outside take VMs of the network
	MTU         int      `json:"mtu,omitzero"`        // 0: the kernel's default
	Description string   `json:"description,omitzero"`
}

// Device is the name of the bridge that interfaces plug into, on each node.
func (n *Network) Device() string {
	switch {
	case n.Driver == NetworkVLAN:
		return deriveDevice("dv", fmt.Sprintf("vlan/%s/%d", n.Bridge, n.VLAN))
	case n.Bridge != "":
		return n.Bridge
	}
	return deriveDevice("dv", "network/"+Key(n.Tenant, n.Name))
}

// Trunk is the VLAN's own device above the bridge that carries it; empty for
// other drivers.
func (n *Network) Trunk() string {
	if n.Driver != NetworkVLAN {
		return ""
	}
	return deriveDevice("dt", fmt.Sprintf("vlan/%s/%d", n.Bridge, n.VLAN))
}

func deriveDevice(prefix, from string) string {
	sum := sha256.Sum256([]byte(from))
	return prefix + hex.EncodeToString(sum[:deviceDigestBytes])
}

// Local reports whether the nodes themselves have an address in the network,
// serve its addresses, and do not let it reach beyond one node.
func (n *Network) Local() bool { return n.Driver == NetworkIsolated || n.Driver == NetworkNAT }

// Prefixes are the subnets. Those that are none are left out.
func (n *Network) Prefixes() []netip.Prefix {
	var out []netip.Prefix
	for _, s := range n.Subnets {
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// Gateway is the address of the node in a subnet of a network that is Local:
// the first one.
func Gateway(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

// Spans are the addresses that may be given out in a subnet: the ranges of its
// kind of address, or all but the first where there is none.
func (n *Network) Spans(subnet netip.Prefix) []Span {
	var out []Span
	for _, text := range n.Ranges {
		if s, err := ParseSpan(text); err == nil && subnet.Contains(s.First) && subnet.Contains(s.Last) {
			out = append(out, s)
		}
	}
	if len(out) == 0 {
		return []Span{{First: Gateway(subnet).Next(), Last: lastUsable(subnet)}}
	}
	return out
}

// lastUsable is the last address of a subnet but for the broadcast address.
func lastUsable(subnet netip.Prefix) netip.Addr {
	raw := subnet.Masked().Addr().AsSlice()
	for bit := subnet.Bits(); bit < len(raw)*8; bit++ {
		raw[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(raw)
	if last.Is4() {
		return last.Prev()
	}
	return last
}

// Span is a range of addresses with both ends.
type Span struct{ First, Last netip.Addr }

// ParseSpan reads FIRST-LAST.
func ParseSpan(text string) (Span, error) {
	first, last, ok := strings.Cut(text, "-")
	a, errA := netip.ParseAddr(first)
	b, errB := netip.ParseAddr(last)
	if !ok || errA != nil || errB != nil || a.Zone() != "" || b.Zone() != "" || a.Is4() != b.Is4() || b.Less(a) {
		return Span{}, Invalid("ranges", "%q is no range", text).Allow("FIRST-LAST, as 10.80.0.100-10.80.0.199")
	}
	return Span{a, b}, nil
}

// AntiSpoofing reports whether an interface on the network may send only from
// its own addresses.
func (n *Network) AntiSpoofing(nic *NIC) bool {
	switch {
	case nic.AntiSpoof != "":
		return nic.AntiSpoof == SwitchOn
	case n.AntiSpoof != "":
		return n.AntiSpoof == SwitchOn
	}
	return len(n.Subnets) > 0
}

// Validate implements Object.
func (n *Network) Validate() error {
	var p problems
	n.check(&p, true)
	checkOneOf(&p, "driver", n.Driver, NetworkBridge, NetworkVLAN, NetworkIsolated, NetworkNAT)
	if n.Bridge != "" || n.Driver == NetworkBridge || n.Driver == NetworkVLAN {
		checkDevice(&p, "bridge", n.Bridge)
	}
	switch {
	case n.Driver == NetworkVLAN && (n.VLAN < 1 || n.VLAN > VLANMax):
		p.add("vlan", "is %d", n.VLAN).Allow("1 to %d", VLANMax)
	case n.Driver != NetworkVLAN && n.VLAN != 0:
		p.add("vlan", "is %d on a network of driver %s", n.VLAN, n.Driver).Allow("driver %s only", NetworkVLAN)
	}
	if n.MTU != 0 && (n.MTU < MTUMin || n.MTU > MTUMax) {
		p.add("mtu", "is %d", n.MTU).Allow("%d to %d", MTUMin, MTUMax)
	}
	if n.Uplink && n.Local() {
		p.add("uplink", "is set on a network of driver %s", n.Driver).Allow("drivers %s, %s", NetworkBridge, NetworkVLAN)
	}
	checkOneOf(&p, "anti_spoof", n.AntiSpoof, "", SwitchOn, SwitchOff)
	n.checkSubnets(&p)
	checkText(&p, "description", n.Description, TextLengthMax)
	return p.err()
}

func checkDevice(p *problems, field, name string) {
	const chars = "abcdefghijklmnopqrstuvwxyz0123456789-_."
	if name == "" || len(name) > deviceLengthMax || strings.Trim(name, chars) != "" || name[0] == '-' || name[0] == '.' {
		p.add(field, "is %q", name).Allow("a device name: 1 to 15 of a-z, 0-9, '-', '_', '.'")
	}
}

func (n *Network) checkSubnets(p *problems) {
	if n.Driver == NetworkNAT && len(n.Subnets) == 0 {
		p.add("subnets", "is missing").Allow("at least one, as 10.80.0.0/24")
	}
	if len(n.Subnets) > SubnetsMax || len(n.Ranges) > RangesMax {
		p.add("subnets", "has %d, with %d ranges", len(n.Subnets), len(n.Ranges)).Allow("at most %d, with %d ranges", SubnetsMax, RangesMax)
		return
	}
	families := map[bool]bool{}
	for i, text := range n.Subnets {
		field := fmt.Sprintf("subnets[%d]", i)
		subnet, err := checkSubnet(text)
		if err != nil {
			err.Field = field
			p.addErr(err)
			continue
		}
		if families[subnet.Addr().Is4()] {
			p.add(field, "%s is the second one of its kind", text).Allow("one of IPv4 and one of IPv6")
		}
		families[subnet.Addr().Is4()] = true
	}
	for i, text := range n.Ranges {
		span, err := ParseSpan(text)
		if err != nil {
			p.add(fmt.Sprintf("ranges[%d]", i), "%q is no range", text).Allow("FIRST-LAST, as 10.80.0.100-10.80.0.199")
			continue
		}
		inside := false
		for _, subnet := range n.Prefixes() {
			inside = inside || subnet.Contains(span.First) && subnet.Contains(span.Last)
		}
		if !inside {
			p.add(fmt.Sprintf("ranges[%d]", i), "%s is outside the subnets", text).Allow("addresses of %s", joinWords(n.Subnets))
		}
	}
}

func checkSubnet(text string) (netip.Prefix, *Error) {
	subnet, err := netip.ParsePrefix(text)
	addr := subnet.Addr()
	switch {
	case err != nil || addr.Is4In6():
		return subnet, Invalid("", "%q is no subnet", text).Allow("as 10.80.0.0/24 or fd80::/64")
	case subnet.Masked() != subnet || subnet.String() != text:
		return subnet, Invalid("", "%s is not written as a subnet", text).Allow("%s", subnet.Masked())
	case addr.Is4() && (subnet.Bits() < SubnetBitsMin || subnet.Bits() > SubnetBitsMax):
		return subnet, Invalid("", "%s has %d bits", text, subnet.Bits()).Allow("%d to %d", SubnetBitsMin, SubnetBitsMax)
	case !addr.Is4() && subnet.Bits() != SubnetBitsIPv6:
		return subnet, Invalid("", "%s has %d bits", text, subnet.Bits()).Allow("%d", SubnetBitsIPv6)
	case addr.IsLoopback() || addr.IsMulticast() || addr.IsLinkLocalUnicast() || addr.IsUnspecified() || addr.Is4() && addr.As4()[0] >= 240 || addr.Is4() && addr.As4()[0] == 0:
		return subnet, Invalid("", "%s is no subnet that hosts may have", text).Allow("private or global unicast addresses")
	}
	return subnet, nil
}
