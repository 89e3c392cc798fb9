package bridge

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// Limits of one set of rules. They are far above what a machine runs.
const (
	portsMax          = 4096
	groupAddressesMax = 1 << 16
)

// ruleset writes p for nft(8). Both tables are made anew in one transaction,
// so that no packet sees a part of it: the first two lines of each make
// sure that there is one to delete.
//
// What guests send and receive is filtered at their ports, in the bridge
// family: in prerouting by the port that a frame came through, in postrouting
// by the one that it leaves by. So it makes no difference whether the other
// side is on the same bridge, behind an uplink, or behind the machine as a
// router. Connections are followed there by nf_conntrack_bridge. The
// alternative, br_netfilter with rules in the inet family, is not used: it
// does not know ports, and it sends the frames of all bridges of the machine
// through rules that others made for routing.
func ruleset(table string, p plugins.Protection) string {
	var b strings.Builder
	for _, family := range []string{"bridge", "inet"} {
		fmt.Fprintf(&b, "table %s %s\ndelete table %s %s\n", family, table, family, table)
	}
	ports := slices.DeleteFunc(slices.Clone(p.Ports), func(port plugins.Port) bool { return !port.AntiSpoof && !port.Filtered })
	if len(ports) > 0 {
		w := &writer{b: &b}
		w.open("table bridge %s", table)
		w.groups(p)
		w.firewalls(p)
		for i := range ports {
			w.port(&ports[i], p.Firewalls)
		}
		w.hook("prerouting", "iifname", "from-", ports)
		w.hook("postrouting", "oifname", "to-", ports)
		w.shut()
	}
	if len(p.Networks) > 0 {
		w := &writer{b: &b}
		w.open("table inet %s", table)
		w.routing(p.Networks)
		w.shut()
	}
	return b.String()
}

// stateful reports whether connections have to be followed over bridges.
func stateful(p plugins.Protection) bool {
	return slices.ContainsFunc(p.Ports, func(port plugins.Port) bool { return port.Filtered })
}

// writer writes nested blocks.
type writer struct {
	b     *strings.Builder
	depth int
}

func (w *writer) line(format string, args ...any) {
	w.b.WriteString(strings.Repeat("\t", w.depth))
	fmt.Fprintf(w.b, format, args...)
	w.b.WriteByte('\n')
}

func (w *writer) open(format string, args ...any) {
	w.line(format+" {", args...)
	w.depth++
}

func (w *writer) shut() {
	w.depth--
	w.line("}")
}

// hook sends the frames of each port to its chain.
func (w *writer) hook(name, match, prefix string, ports []plugins.Port) {
	w.open("chain %s", name)
	w.line("type filter hook %s priority 0; policy accept;", name)
	var to []string
	for _, p := range ports {
		to = append(to, fmt.Sprintf("%q : jump %s%s", p.Device, prefix, p.Device))
	}
	w.line("%s vmap { %s }", match, strings.Join(to, ", "))
	w.shut()
}

func (w *writer) groups(p plugins.Protection) {
	for _, g := range p.Groups {
		for _, four := range []bool{true, false} {
			var elements []string
			for _, ip := range g.Addresses {
				if ip.Is4() == four {
					elements = append(elements, ip.String())
				}
			}
			w.open("set %s", groupSet(g.Key, four))
			w.line("type %s", map[bool]string{true: "ipv4_addr", false: "ipv6_addr"}[four])
			if len(elements) > 0 {
				w.line("elements = { %s }", strings.Join(elements, ", "))
			}
			w.shut()
		}
	}
}

func groupSet(key string, four bool) string {
	if four {
		return "group4-" + key
	}
	return "group6-" + key
}

// firewalls writes one chain for each firewall and direction. What it does not
// accept comes back to whoever jumped there.
func (w *writer) firewalls(p plugins.Protection) {
	for i := range p.Firewalls {
		f := &p.Firewalls[i]
		for _, direction := range []string{api.Ingress, api.Egress} {
			w.open("chain %s-%s", direction, f.Key)
			for j := range f.Rules {
				if r := &f.Rules[j]; r.Direction == direction {
					for _, match := range matches(r, p.Groups, strings.SplitN(f.Key, "/", 2)[0]) {
						w.line("%s accept", match)
					}
				}
			}
			w.shut()
		}
	}
}

// matches writes a rule as the conditions of which one must hold.
func matches(r *api.FirewallRule, groups []plugins.Group, tenant string) []string {
	side := map[string]string{api.Ingress: "saddr", api.Egress: "daddr"}[r.Direction]
	what := protocolMatch(r)
	var out []string
	add := func(family, set string) {
		if r.Protocol == api.ProtocolICMP && family == "ip6" || r.Protocol == api.ProtocolICMPv6 && family == "ip" {
			return
		}
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", family, side, set, what)))
	}
	four, six := prefixes(r.CIDRs)
	if len(four) > 0 {
		add("ip", "{ "+strings.Join(four, ", ")+" }")
	}
	if len(six) > 0 {
		add("ip6", "{ "+strings.Join(six, ", ")+" }")
	}
	for _, name := range r.Groups {
		key := api.Key(tenant, name)
		if slices.ContainsFunc(groups, func(g plugins.Group) bool { return g.Key == key }) {
			add("ip", "@"+groupSet(key, true))
			add("ip6", "@"+groupSet(key, false))
		}
	}
	if len(r.CIDRs) == 0 && len(r.Groups) == 0 {
		if what == "" {
			what = "ether type { ip, ip6 }"
		}
		out = append(out, what)
	}
	return out
}

func protocolMatch(r *api.FirewallRule) string {
	switch r.Protocol {
	case api.ProtocolTCP, api.ProtocolUDP:
		if len(r.Ports) == 0 {
			return "meta l4proto " + r.Protocol
		}
		return fmt.Sprintf("%s dport { %s }", r.Protocol, strings.Join(portRanges(r.Ports), ", "))
	case api.ProtocolICMP, api.ProtocolICMPv6:
		if len(r.ICMPTypes) == 0 {
			return "meta l4proto " + r.Protocol
		}
		var types []string
		for _, text := range r.ICMPTypes {
			if number, ok := api.ICMPType(r.Protocol, text); ok {
				types = append(types, fmt.Sprint(number))
			}
		}
		slices.Sort(types)
		return fmt.Sprintf("%s type { %s }", r.Protocol, strings.Join(slices.Compact(types), ", "))
	}
	return ""
}

// portRanges joins ports and ranges that touch or overlap: a set takes none
// twice.
func portRanges(list []string) []string {
	var spans [][2]int
	for _, text := range list {
		if first, last, ok := api.ParsePorts(text); ok {
			spans = append(spans, [2]int{first, last})
		}
	}
	slices.SortFunc(spans, func(a, b [2]int) int { return a[0] - b[0] })
	var joined [][2]int
	for _, s := range spans {
		if n := len(joined); n > 0 && s[0] <= joined[n-1][1]+1 {
			joined[n-1][1] = max(joined[n-1][1], s[1])
			continue
		}
		joined = append(joined, s)
	}
	var out []string
	for _, s := range joined {
		if s[0] == s[1] {
			out = append(out, fmt.Sprint(s[0]))
		} else {
			out = append(out, fmt.Sprintf("%d-%d", s[0], s[1]))
		}
	}
	return out
}

// prefixes splits CIDRs by kind and drops those that lie in others.
func prefixes(cidrs []string) (four, six []string) {
	var all []netip.Prefix
	for _, text := range cidrs {
		if p, err := netip.ParsePrefix(text); err == nil {
			all = append(all, p.Masked())
		}
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() })
	var kept []netip.Prefix
	for _, p := range all {
		if slices.ContainsFunc(kept, func(k netip.Prefix) bool { return k.Overlaps(p) }) {
			continue
		}
		kept = append(kept, p)
		if p.Addr().Is4() {
			four = append(four, p.String())
		} else {
			six = append(six, p.String())
		}
	}
	return four, six
}

// port writes the chains of one port: spoof-, from- and to-.
func (w *writer) port(p *plugins.Port, firewalls []plugins.Firewall) {
	if p.AntiSpoof {
		w.spoofing(p)
	}
	w.open("chain from-%s", p.Device)
	if p.AntiSpoof {
		w.line("jump spoof-%s", p.Device)
	}
	if p.Filtered {
		w.line("ct state established,related accept")
		w.line("ether type arp accept")
		w.line("icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-report, mld-listener-done, mld2-listener-report } accept")
		w.line("udp sport 68 udp dport 67 accept")
		w.line("udp sport 546 udp dport 547 accept")
		if limitsEgress(p, firewalls) {
			for _, key := range p.Firewalls {
				w.line("jump %s-%s", api.Egress, key)
			}
			w.line("drop")
		}
	}
	w.shut()
	w.open("chain to-%s", p.Device)
	if p.Filtered {
		w.line("ct state established,related accept")
		w.line("ether type arp accept")
		w.line("icmpv6 type { nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-query } accept")
		w.line("udp sport 67 udp dport 68 accept")
		w.line("udp sport 547 udp dport 546 accept")
		for _, key := range p.Firewalls {
			w.line("jump %s-%s", api.Ingress, key)
		}
		w.line("drop")
	}
	w.shut()
}

func limitsEgress(p *plugins.Port, firewalls []plugins.Firewall) bool {
	return slices.ContainsFunc(firewalls, func(f plugins.Firewall) bool {
		return slices.Contains(p.Firewalls, f.Key) && slices.ContainsFunc(f.Rules, func(r api.FirewallRule) bool { return r.Direction == api.Egress })
	})
}

// spoofing writes what a guest may claim to be. What is its own returns; the
// rest is dropped, and with it what only a router or an address server says.
func (w *writer) spoofing(p *plugins.Port) {
	w.open("chain spoof-%s", p.Device)
	defer w.shut()
	w.line("ether saddr != %s drop", p.MAC)
	w.line("icmpv6 type { nd-router-advert, nd-redirect } drop")
	w.line("udp sport { 67, 547 } udp dport { 68, 546 } drop")
	if len(p.Addresses) == 0 {
		w.line("arp saddr ether != %s drop", p.MAC)
		return
	}
	var four, six []string
	for _, ip := range p.Addresses {
		if ip.Is4() {
			four = append(four, ip.String())
		} else {
			six = append(six, ip.String())
		}
	}
	probe := append(slices.Clone(four), "0.0.0.0") // RFC 5227: a probe names no sender
	w.line("arp saddr ether %s arp saddr ip { %s } return", p.MAC, strings.Join(probe, ", "))
	if len(four) > 0 {
		w.line("ip saddr { %s } return", strings.Join(four, ", "))
		w.line("ip saddr 0.0.0.0 udp sport 68 udp dport 67 return")
	}
	// Who answers for an address is told by advertisements as by ARP: the target
	// stands 8 bytes into them (RFC 4861, section 4.4).
	for _, ip := range six {
		w.line("icmpv6 type nd-neighbor-advert @th,64,128 0x%x return", netip.MustParseAddr(ip).As16())
	}
	w.line("icmpv6 type nd-neighbor-advert @th,64,10 0x3fa return")
	w.line("icmpv6 type nd-neighbor-advert drop")
	w.line("ip6 saddr { %s } return", strings.Join(append(six, "fe80::/10"), ", "))
	w.line("ip6 saddr :: icmpv6 type { nd-neighbor-solicit, nd-router-solicit, mld-listener-report, mld2-listener-report } return")
	w.line("drop")
}

// routing writes what passes between private networks and the world.
func (w *writer) routing(networks []plugins.NetworkSpec) {
	w.open("chain forward")
	w.line("type filter hook forward priority 0; policy accept;")
	for _, n := range networks {
		w.line("iifname %q oifname %q accept", n.Bridge, n.Bridge) // where bridged frames come by here
	}
	for _, n := range networks {
		if !n.NAT {
			w.line("iifname %q drop", n.Bridge)
			w.line("oifname %q drop", n.Bridge)
			continue
		}
		w.line("oifname %q ct state established,related accept", n.Bridge)
		w.line("oifname %q drop", n.Bridge)
	}
	w.shut()
	w.open("chain input")
	w.line("type filter hook input priority 0; policy accept;")
	for _, n := range networks {
		if !n.NAT {
			w.line("iifname %q udp dport { 67, 547 } accept", n.Bridge)
			w.line("iifname %q meta l4proto { icmp, icmpv6 } accept", n.Bridge)
			w.line("iifname %q ct state established,related accept", n.Bridge)
			w.line("iifname %q drop", n.Bridge)
		}
	}
	w.shut()
	w.open("chain outward")
	w.line("type nat hook postrouting priority 100; policy accept;")
	for _, n := range networks {
		if !n.NAT {
			continue
		}
		for _, gateway := range n.Gateways {
			family := "ip6"
			if gateway.Addr().Is4() {
				family = "ip"
			}
			subnet := gateway.Masked()
			w.line("%s saddr %s %s daddr != %s oifname != %q masquerade", family, subnet, family, subnet, n.Bridge)
		}
	}
	w.shut()
}

// checkProtection refuses what could mean something else to nft than it does
// to us. It is a net below what the API checks already.
func checkProtection(p plugins.Protection) error {
	if len(p.Ports) > portsMax {
		return api.Errorf(api.CodeLimit, "%d ports are filtered", len(p.Ports)).Allow("at most %d", portsMax)
	}
	seen := map[string]bool{}
	for i := range p.Ports {
		port := &p.Ports[i]
		hw, err := net.ParseMAC(port.MAC)
		if err != nil || len(hw) != 6 || hw.String() != port.MAC {
			return api.Invalid("ports", "MAC %q", port.MAC).Allow("a lower-case MAC")
		}
		if err := checkPlainName(port.Device); err != nil {
			return err
		}
		if seen[port.Device] {
			return api.Invalid("ports", "device %s is named twice", port.Device)
		}
		seen[port.Device] = true
		for _, key := range port.Firewalls {
			if !slices.ContainsFunc(p.Firewalls, func(f plugins.Firewall) bool { return f.Key == key }) {
				return api.Invalid("ports", "%s has the unknown firewall %q", port.Device, key)
			}
		}
	}
	for _, f := range p.Firewalls {
		if err := checkKey(f.Key); err != nil {
			return err
		}
		if len(f.Rules) > api.FirewallRulesMax {
			return api.Errorf(api.CodeLimit, "firewall %s has %d rules", f.Key, len(f.Rules)).Allow("at most %d", api.FirewallRulesMax)
		}
	}
	total := 0
	for _, g := range p.Groups {
		if err := checkKey(g.Key); err != nil {
			return err
		}
		if total += len(g.Addresses); total > groupAddressesMax {
			return api.Errorf(api.CodeLimit, "groups have more than %d addresses", groupAddressesMax).Do("use CIDRs instead of groups")
		}
	}
	for _, n := range p.Networks {
		if err := checkPlainName(n.Bridge); err != nil {
			return err
		}
	}
	return nil
}

func checkKey(key string) error {
	tenant, name := api.SplitKey(key)
	if err := api.CheckName("firewalls", tenant); err != nil {
		return err
	}
	if err := api.CheckName("firewalls", name); err != nil {
		return err
	}
	return nil
}

// checkPlainName is checkName for names that are written between quotes.
func checkPlainName(name string) error {
	if strings.ContainsAny(name, `"*`) {
		return api.Invalid("bridge", "is %q", name).Allow("a device name without quotes and stars")
	}
	return checkName(name)
}
