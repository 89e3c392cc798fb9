package api_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/api"
)

func network(change func(*api.Network)) *api.Network {
	n := &api.Network{Meta: api.Meta{Name: "lan", Tenant: "default"}, Driver: api.NetworkBridge, Bridge: "br0"}
	change(n)
	return n
}

// problem is the error of a Validate with all its fields, or "".
func problem(err error) string {
	if err == nil {
		return ""
	}
	text := err.Error()
	if e := api.AsError(err); e != nil {
		for _, p := range e.Details {
			text += "; " + p.Error()
		}
	}
	return text
}

func TestBadNetworksAreRefused(t *testing.T) {
	t.Parallel()
	for field, changes := range map[string][]func(*api.Network){
		"vlan": {
			func(n *api.Network) { n.Driver = api.NetworkVLAN },
			func(n *api.Network) { n.Driver, n.VLAN = api.NetworkVLAN, 4095 },
			func(n *api.Network) { n.Driver, n.VLAN = api.NetworkVLAN, -1 },
			func(n *api.Network) { n.VLAN = 5 },
		},
		"driver": {func(n *api.Network) { n.Driver = "vxlan" }},
		"bridge": {
			func(n *api.Network) { n.Bridge = "eth0;reboot" },
			func(n *api.Network) { n.Bridge = "" },
			func(n *api.Network) { n.Bridge = "sixteen-bytes-xx" },
			func(n *api.Network) { n.Driver, n.Bridge, n.VLAN = api.NetworkVLAN, "../br0", 5 },
		},
		"subnets": {
			func(n *api.Network) { n.Driver = api.NetworkNAT },
			func(n *api.Network) { n.Subnets = []string{"10.0.0.0/24", "fd00::/64", "10.1.0.0/24"} },
			func(n *api.Network) { n.Subnets = []string{"10.0.0.0/24", "10.1.0.0/24"} },
			func(n *api.Network) { n.Subnets = []string{"10.0.0.1/24"} },
			func(n *api.Network) { n.Subnets = []string{"10.0.0.0/8"} },
			func(n *api.Network) { n.Subnets = []string{"10.0.0.0/31"} },
			func(n *api.Network) { n.Subnets = []string{"fd00::/56"} },
			func(n *api.Network) { n.Subnets = []string{"127.0.0.0/24"} },
			func(n *api.Network) { n.Subnets = []string{"224.1.0.0/24"} },
			func(n *api.Network) { n.Subnets = []string{"169.254.0.0/16"} },
			func(n *api.Network) { n.Subnets = []string{"::ffff:10.0.0.0/120"} },
			func(n *api.Network) { n.Subnets = []string{"10.0.0.0/24; reboot"} },
		},
		"ranges": {
			func(n *api.Network) {
				n.Subnets, n.Ranges = []string{"10.0.0.0/24"}, []string{"10.0.1.1-10.0.1.9"}
			},
			func(n *api.Network) { n.Subnets, n.Ranges = []string{"10.0.0.0/24"}, []string{"10.0.0.9-10.0.0.1"} },
			func(n *api.Network) { n.Subnets, n.Ranges = []string{"10.0.0.0/24"}, []string{"10.0.0.9"} },
		},
		"mtu":        {func(n *api.Network) { n.MTU = 100 }, func(n *api.Network) { n.MTU = 1 << 17 }},
		"anti_spoof": {func(n *api.Network) { n.AntiSpoof = "maybe" }},
		"uplink":     {func(n *api.Network) { n.Driver, n.Uplink = api.NetworkIsolated, true }},
	} {
		for i, change := range changes {
			if got := problem(network(change).Validate()); !strings.Contains(got, field) {
				t.Errorf("%s, case %d: got %q, want a problem of that field", field, i, got)
			}
		}
	}
	good := network(func(n *api.Network) {
		n.Driver, n.Bridge, n.Subnets, n.Ranges = api.NetworkNAT, "", []string{"10.80.0.0/24", "fd80::/64"}, []string{"10.80.0.5-10.80.0.9"}
	})
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	if d := good.Device(); len(d) > 15 || d == network(func(n *api.Network) { n.Driver, n.Bridge, n.Name = api.NetworkNAT, "", "wan" }).Device() {
		t.Errorf("the device of a NAT network is %q", d)
	}
}

func TestBadInterfacesAreRefused(t *testing.T) {
	t.Parallel()
	for want, nic := range map[string]api.NIC{
		"nics[0].addresses":    {Addresses: []string{"10.0.0.1", "10.0.0.2"}},
		"nics[0].addresses[0]": {Addresses: []string{"10.0.0.1/24"}},
		"fe80":                 {Addresses: []string{"fe80::1"}},
		"nics[0].firewalls[1]": {Firewalls: []string{"web", "web"}},
		"nics[0].firewalls":    {Firewalls: strings.Split(strings.Repeat("web ", 9), " ")[:9]},
		"nics[0].model":        {Model: "ne2k"},
		"nics[0].link":         {Link: "sideways"},
		"nics[0].mtu":          {MTU: 9},
		"nics[0].anti_spoof":   {AntiSpoof: "no"},
	} {
		nic.Network = "lan"
		vm := api.VM{Meta: api.Meta{Name: "web", Tenant: "default"}, CPUs: 1, MemoryBytes: api.GiB, NICs: []api.NIC{nic}}
		if got := problem(vm.Validate()); !strings.Contains(got, want) {
			t.Errorf("%+v: got %q, want %s", nic, got, want)
		}
	}
	nic := api.NIC{MAC: "52:54:00:12:34:56"}
	if d := nic.Device(); len(d) > 15 || d != "dv525400123456" {
		t.Errorf("the device is %q", d)
	}
}

func TestBadRulesAreRefused(t *testing.T) {
	t.Parallel()
	for want, rule := range map[string]api.FirewallRule{
		"rules[0].direction":     {Direction: "up"},
		"rules[0].protocol":      {Direction: api.Ingress, Protocol: "sctp"},
		"icmp has no ports":      {Direction: api.Ingress, Protocol: api.ProtocolICMP, Ports: []string{"80"}},
		"any has no ports":       {Direction: api.Ingress, Ports: []string{"80"}},
		"rules[0].ports[0]":      {Direction: api.Ingress, Protocol: api.ProtocolTCP, Ports: []string{"70000"}},
		"rules[0].ports[1]":      {Direction: api.Ingress, Protocol: api.ProtocolTCP, Ports: []string{"1", "9-2"}},
		"tcp has no types":       {Direction: api.Ingress, Protocol: api.ProtocolTCP, ICMPTypes: []string{"8"}},
		"rules[0].icmp_types[0]": {Direction: api.Ingress, Protocol: api.ProtocolICMP, ICMPTypes: []string{"packet-too-big"}},
		"rules[0].cidrs[0]":      {Direction: api.Ingress, CIDRs: []string{"10.0.0.1/8"}},
		"never carries":          {Direction: api.Ingress, Protocol: api.ProtocolICMPv6, CIDRs: []string{"10.0.0.0/8"}},
		"rules[0].groups[0]":     {Direction: api.Ingress, Groups: []string{"Web; drop"}},
		"rules[0].ports":         {Direction: api.Ingress, Protocol: api.ProtocolTCP, Ports: make([]string, api.RulePortsMax+1)},
	} {
		f := api.Firewall{Meta: api.Meta{Name: "web", Tenant: "default"}, Rules: []api.FirewallRule{rule}}
		if got := problem(f.Validate()); !strings.Contains(got, want) {
			t.Errorf("%+v: got %q, want %s", rule, got, want)
		}
	}
	many := api.Firewall{Meta: api.Meta{Name: "web", Tenant: "default"}}
	for i := range 10000 {
		many.Rules = append(many.Rules, api.FirewallRule{Direction: api.Ingress, Protocol: api.ProtocolTCP, Ports: []string{fmt.Sprint(i + 1)}})
	}
	if got := problem(many.Validate()); !strings.Contains(got, "has 10000") || !strings.Contains(got, fmt.Sprint(api.FirewallRulesMax)) {
		t.Errorf("10,000 rules: %q", got)
	}
}
