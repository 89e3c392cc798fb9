package api

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Directions of a rule, as the guest sees them.
const (
	Ingress = "ingress"
	Egress  = "egress"
)

// Protocols of a rule.
const (
	ProtocolAny    = "any"
	ProtocolTCP    = "tcp"
	ProtocolUDP    = "udp"
	ProtocolICMP   = "icmp"
	ProtocolICMPv6 = "icmpv6"
)

// Limits of a firewall.
const (
	FirewallRulesMax = 128
	RulePortsMax     = 32
	RuleCIDRsMax     = 64
	RuleGroupsMax    = 16
	RuleTypesMax     = 16
)

// Firewall is a group of interfaces and what they may receive and send. An
// interface with any firewall receives only what a rule of one of them allows,
// and the answers to what it sent; it sends anything, unless one of them has a
// rule for egress: then it sends what such a rule allows. It is stateful, and
// the same for IPv4 and IPv6.
type Firewall struct {
	Meta
	Description string         `json:"description,omitzero"`
	Rules       []FirewallRule `json:"rules,omitzero"`
}

// FirewallRule allows something.
type FirewallRule struct {
	Direction   string   `json:"direction"`           // ingress or egress
	Protocol    string   `json:"protocol,omitzero"`   // any (default), tcp, udp, icmp or icmpv6
	Ports       []string `json:"ports,omitzero"`      // of tcp and udp: destination ports, as 443 or 8000-8099; empty: all
	ICMPTypes   []string `json:"icmp_types,omitzero"` // of icmp and icmpv6: numbers or names, as echo-request; empty: all
	CIDRs       []string `json:"cidrs,omitzero"`      // of the other side; empty, and no groups: anybody
	Groups      []string `json:"groups,omitzero"`     // names of firewalls: the other side is an interface with one of them
	Description string   `json:"description,omitzero"`
}

// Validate implements Object.
func (f *Firewall) Validate() error {
	var p problems
	f.check(&p, true)
	checkText(&p, "description", f.Description, TextLengthMax)
	if len(f.Rules) > FirewallRulesMax {
		p.add("rules", "has %d", len(f.Rules)).Allow("at most %d", FirewallRulesMax).Do("use wider ranges, or several firewalls")
		return p.err()
	}
	for i := range f.Rules {
		f.Rules[i].check(&p, fmt.Sprintf("rules[%d].", i))
	}
	return p.err()
}

func (r *FirewallRule) check(p *problems, field string) {
	checkOneOf(p, field+"direction", r.Direction, Ingress, Egress)
	checkOneOf(p, field+"protocol", r.Protocol, "", ProtocolAny, ProtocolTCP, ProtocolUDP, ProtocolICMP, ProtocolICMPv6)
	checkText(p, field+"description", r.Description, TextLengthMax)
	for _, list := range []struct {
		name      string
		have, max int
	}{{"ports", len(r.Ports), RulePortsMax}, {"icmp_types", len(r.ICMPTypes), RuleTypesMax},
		{"cidrs", len(r.CIDRs), RuleCIDRsMax}, {"groups", len(r.Groups), RuleGroupsMax}} {
		if list.have > list.max {
			p.add(field+list.name, "has %d", list.have).Allow("at most %d", list.max)
			return
		}
	}
	if len(r.Ports) > 0 && r.Protocol != ProtocolTCP && r.Protocol != ProtocolUDP {
		p.add(field+"ports", "%s has no ports", orAny(r.Protocol)).Allow("protocol %s or %s", ProtocolTCP, ProtocolUDP)
	}
	for i, text := range r.Ports {
		if _, _, ok := ParsePorts(text); !ok {
			p.add(fmt.Sprintf("%sports[%d]", field, i), "is %q", text).Allow("1 to 65535, as 443 or 8000-8099")
		}
	}
	if len(r.ICMPTypes) > 0 && r.Protocol != ProtocolICMP && r.Protocol != ProtocolICMPv6 {
		p.add(field+"icmp_types", "%s has no types", orAny(r.Protocol)).Allow("protocol %s or %s", ProtocolICMP, ProtocolICMPv6)
	}
	for i, text := range r.ICMPTypes {
		if _, ok := ICMPType(r.Protocol, text); !ok {
			p.add(fmt.Sprintf("%sicmp_types[%d]", field, i), "is %q", text).
				Allow("0 to 255, or echo-request, echo-reply, destination-unreachable, time-exceeded, parameter-problem, packet-too-big (icmpv6)")
		}
	}
	r.checkOthers(p, field)
}

func (r *FirewallRule) checkOthers(p *problems, field string) {
	for i, text := range r.CIDRs {
		at := fmt.Sprintf("%scidrs[%d]", field, i)
		prefix, err := netip.ParsePrefix(text)
		switch {
		case err != nil || prefix.Addr().Is4In6():
			p.add(at, "is %q", text).Allow("as 10.0.0.0/8, 192.0.2.7/32 or 2001:db8::/32")
		case prefix.Masked() != prefix || prefix.String() != text:
			p.add(at, "%s is not written as a prefix", text).Allow("%s", prefix.Masked())
		case r.Protocol == ProtocolICMP && !prefix.Addr().Is4() || r.Protocol == ProtocolICMPv6 && prefix.Addr().Is4():
			p.add(at, "%s never carries %s", text, r.Protocol).Allow("icmp with IPv4, icmpv6 with IPv6")
		}
	}
	for i, name := range r.Groups {
		p.addErr(CheckName(fmt.Sprintf("%sgroups[%d]", field, i), name))
	}
}

func orAny(protocol string) string {
	if protocol == "" {
		return ProtocolAny
	}
	return protocol
}

// ParsePorts reads a port or FIRST-LAST.
func ParsePorts(text string) (first, last int, ok bool) {
	a, b, isRange := strings.Cut(text, "-")
	first, okFirst := parsePort(a)
	if !isRange {
		return first, first, okFirst
	}
	last, okLast := parsePort(b)
	return first, last, okFirst && okLast && first <= last
}

func parsePort(text string) (int, bool) {
	n, err := strconv.Atoi(text)
	return n, err == nil && n >= 1 && n <= 65535 && strconv.Itoa(n) == text
}

// ICMPType is the number of a type, which may be written as its name (RFC 792
// and RFC 4443).
func ICMPType(protocol, text string) (uint8, bool) {
	if n, err := strconv.ParseUint(text, 10, 8); err == nil && strconv.FormatUint(n, 10) == text {
		return uint8(n), true
	}
	v6 := protocol == ProtocolICMPv6
	pick := func(four, six uint8) (uint8, bool) {
		if v6 {
			return six, true
		}
		return four, true
	}
	switch text {
	case "echo-request":
		return pick(8, 128)
	case "echo-reply":
		return pick(0, 129)
	case "destination-unreachable":
		return pick(3, 1)
	case "time-exceeded":
		return pick(11, 3)
	case "parameter-problem":
		return pick(12, 4)
	case "packet-too-big":
		return 2, v6
	}
	return 0, false
}
