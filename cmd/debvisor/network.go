package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

func networks() *noun[api.Network] {
	n := nounOf[api.Network](api.KindNetwork, "networks")
	n.columns = slices.Concat([]column[api.Network]{nameColumn(n.head),
		{title: "DRIVER", value: func(_ *app, v *api.Network) string { return v.Driver }},
		{title: "BRIDGE", value: func(_ *app, v *api.Network) string { return bridgeText(v) }},
		{title: "SUBNETS", value: func(_ *app, v *api.Network) string { return dash(strings.Join(v.Subnets, ",")) }},
		{title: "RANGES", wide: true, value: func(_ *app, v *api.Network) string { return dash(strings.Join(v.Ranges, ",")) }},
		{title: "ANTI_SPOOF", wide: true, value: func(_ *app, v *api.Network) string { return onOff(v.AntiSpoofing(&api.NIC{})) }},
		{title: "DEVICE", wide: true, value: func(_ *app, v *api.Network) string { return v.Device() }},
		{title: "DESCRIPTION", value: func(_ *app, v *api.Network) string { return dash(v.Description) }},
	}, metaColumns(n.head))
	return n
}

// bridgeText is the bridge as its network names it, and the VLAN on it.
func bridgeText(n *api.Network) string {
	if n.Driver == api.NetworkVLAN {
		return fmt.Sprintf("%s vlan %d", n.Bridge, n.VLAN)
	}
	return n.Device()
}

// bridgesText lists the bridges of a node that networks can name, with their
// ports to the outside.
func bridgesText(n *api.NodeNetwork) string {
	var out []string
	for _, b := range n.Bridges {
		text := b.Name
		if len(b.Uplinks) > 0 {
			text += "(" + strings.Join(b.Uplinks, ",") + ")"
		}
		out = append(out, text)
	}
	return dash(strings.Join(out, ","))
}

// networkText says what a node cannot do for networks.
func networkText(n *api.NodeNetwork) string {
	var out []string
	if !n.Stateful && n.Reason != "" {
		out = append(out, "no firewalls: "+n.Reason)
	}
	for _, p := range n.Problems {
		out = append(out, p.Network+": "+p.Reason)
	}
	if len(out) == 0 {
		return "ok"
	}
	return strings.Join(out, "; ")
}

func onOff(on bool) string {
	if on {
		return api.SwitchOn
	}
	return api.SwitchOff
}

func networkCommand(a *app) *cobra.Command {
	n := networks()
	return n.command(a, createNetworkCommand(a), n.deleteCommand(a, ""))
}

func createNetworkCommand(a *app) *cobra.Command {
	v := api.Network{Driver: api.NetworkBridge}
	return createCommand(a, &creation[api.Network, *api.Network]{
		kind: api.KindNetwork,
		example: "  debvisor network create lan --bridge br0\n" +
			"  debvisor network create office --driver vlan --bridge br0 --vlan 100\n" +
			"  debvisor network create inside --driver nat --subnet 10.80.0.0/24 --subnet fd80::/64",
		flags: func(cmd *cobra.Command) {
			f := cmd.Flags()
			f.StringVar(&v.Driver, "driver", v.Driver, "bridge, vlan, isolated or nat")
			f.StringVar(&v.Bridge, "bridge", "", "device on each node; of vlan the bridge that carries it; isolated and nat need none")
			f.IntVar(&v.VLAN, "vlan", 0, "of driver vlan: 1 to 4094")
			f.StringSliceVar(&v.Subnets, "subnet", nil, "whose addresses the cluster gives out, as 10.80.0.0/24; may be repeated, once for IPv6")
			f.StringSliceVar(&v.Ranges, "range", nil, "of addresses to give out, as 10.80.0.100-10.80.0.199 (default: the whole subnet)")
			f.StringVar(&v.AntiSpoof, "anti-spoof", "", "on or off: guests send only from their own addresses (default: on with a subnet)")
			f.BoolVar(&v.Uplink, "uplink", false, "only nodes whose bridge has a port to the outside take its VMs")
			f.IntVar(&v.MTU, "mtu", 0, "largest packet (default: the kernel's)")
			f.StringVar(&v.Description, "description", "", "for people")
			_ = cmd.RegisterFlagCompletionFunc("driver", cobra.FixedCompletions(
				[]string{api.NetworkBridge, api.NetworkVLAN, api.NetworkIsolated, api.NetworkNAT}, cobra.ShellCompDirectiveNoFileComp))
			_ = cmd.RegisterFlagCompletionFunc("anti-spoof", cobra.FixedCompletions([]string{api.SwitchOn, api.SwitchOff}, cobra.ShellCompDirectiveNoFileComp))
		},
		build: func(_ context.Context, cmd *cobra.Command, _ *client.Client) (*api.Network, error) {
			if v.Bridge == "" && !v.Local() {
				return nil, usage(cmd, "a network of driver %s needs --bridge", v.Driver)
			}
			return &v, nil
		},
	})
}
