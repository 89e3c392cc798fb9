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

func firewalls() *noun[api.Firewall] {
	n := nounOf[api.Firewall](api.KindFirewall, "firewalls")
	n.columns = slices.Concat([]column[api.Firewall]{nameColumn(n.head),
		{title: "RULES", value: func(_ *app, v *api.Firewall) string { return fmt.Sprint(len(v.Rules)) }},
		{title: "INGRESS", value: func(_ *app, v *api.Firewall) string { return ruleTexts(v, api.Ingress, "nothing") }},
		{title: "EGRESS", value: func(_ *app, v *api.Firewall) string { return ruleTexts(v, api.Egress, "anything") }},
		{title: "DESCRIPTION", wide: true, value: func(_ *app, v *api.Firewall) string { return dash(v.Description) }},
	}, metaColumns(n.head))
	return n
}

// ruleTexts writes what the rules of one direction allow; otherwise is what
// goes without any.
func ruleTexts(f *api.Firewall, direction, otherwise string) string {
	var out []string
	for i := range f.Rules {
		if r := &f.Rules[i]; r.Direction == direction {
			out = append(out, formatRule(r))
		}
	}
	if len(out) == 0 {
		return otherwise
	}
	return strings.Join(out, " ")
}

// formatRule writes a rule as parseRule reads it.
func formatRule(r *api.FirewallRule) string {
	text := r.Protocol
	if text == "" {
		text = api.ProtocolAny
	}
	if which := slices.Concat(r.Ports, r.ICMPTypes); len(which) > 0 {
		text += "/" + strings.Join(which, ",")
	}
	others := slices.Clone(r.CIDRs)
	for _, g := range r.Groups {
		others = append(others, "group:"+g)
	}
	if len(others) > 0 {
		text += "@" + strings.Join(others, ",")
	}
	return text
}

// parseRule reads PROTOCOL[/PORT,...][@OTHER,...].
func parseRule(direction, text string) api.FirewallRule {
	what, others, _ := strings.Cut(text, "@")
	protocol, which, _ := strings.Cut(what, "/")
	r := api.FirewallRule{Direction: direction, Protocol: protocol}
	if which != "" {
		if list := strings.Split(which, ","); protocol == api.ProtocolICMP || protocol == api.ProtocolICMPv6 {
			r.ICMPTypes = list
		} else {
			r.Ports = list
		}
	}
	if others == "" {
		return r
	}
	for o := range strings.SplitSeq(others, ",") {
		if group, ok := strings.CutPrefix(o, "group:"); ok {
			r.Groups = append(r.Groups, group)
		} else {
			r.CIDRs = append(r.CIDRs, o)
		}
	}
	return r
}

func firewallCommand(a *app) *cobra.Command {
	n := firewalls()
	return n.command(a, createFirewallCommand(a), n.deleteCommand(a, ""))
}

func createFirewallCommand(a *app) *cobra.Command {
	v := api.Firewall{}
	var ingress, egress []string
	return createCommand(a, &creation[api.Firewall, *api.Firewall]{
		kind: api.KindFirewall,
		example: "  debvisor firewall create web --ingress tcp/80,443 --ingress icmp/echo-request\n" +
			"  debvisor firewall create db --ingress tcp/5432@group:web --egress udp/53@10.0.0.0/8",
		flags: func(cmd *cobra.Command) {
			f := cmd.Flags()
			f.StringArrayVar(&ingress, "ingress", nil, "let in, as tcp/80,443@10.0.0.0/8 or tcp/5432@group:web; may be repeated")
			f.StringArrayVar(&egress, "egress", nil, "let out, written likewise; without any, everything goes out")
			f.StringVar(&v.Description, "description", "", "for people")
		},
		build: func(context.Context, *cobra.Command, *client.Client) (*api.Firewall, error) {
			for _, text := range ingress {
				v.Rules = append(v.Rules, parseRule(api.Ingress, text))
			}
			for _, text := range egress {
				v.Rules = append(v.Rules, parseRule(api.Egress, text))
			}
			return &v, nil
		},
	})
}
