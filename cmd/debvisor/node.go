package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

func nodes() *noun[api.Node] {
	n := nounOf[api.Node](api.KindNode, "nodes")
	n.columns = slices.Concat([]column[api.Node]{nameColumn(n.head),
		{title: "STATE", value: func(_ *app, v *api.Node) string { return nodeState(v) }},
		{title: "VOTER", keep: true, value: func(_ *app, v *api.Node) string { return yesNo(v.Voter) }},
		{title: "ADDRESS", value: func(_ *app, v *api.Node) string { return v.Address }},
		{title: "CPUS", keep: true, value: func(_ *app, v *api.Node) string { return strconv.Itoa(v.Capacity.CPUs) }},
		{title: "MEMORY", keep: true, value: func(_ *app, v *api.Node) string { return api.FormatSize(v.Capacity.MemoryBytes) }},
		{title: "HYPERVISOR", value: func(_ *app, v *api.Node) string { return hypervisorText(v) }},
		{title: "MAINTENANCE", wide: true, value: func(_ *app, v *api.Node) string { return dash(v.Maintenance) }},
		{title: "VERSION", wide: true, value: func(_ *app, v *api.Node) string { return dash(v.Version) }},
		{title: "ZONE", wide: true, value: func(_ *app, v *api.Node) string { return dash(v.Zone) }},
		{title: "EPOCH", wide: true, value: func(_ *app, v *api.Node) string { return strconv.FormatUint(v.Epoch, 10) }},
		{title: "BRIDGES", wide: true, value: func(_ *app, v *api.Node) string { return bridgesText(&v.Network) }},
		{title: "NETWORK", wide: true, value: func(_ *app, v *api.Node) string { return networkText(&v.Network) }},
		{title: "POOLS", wide: true, value: func(_ *app, v *api.Node) string { return poolText(v.Pools) }},
	}, metaColumns(n.head))
	return n
}

func nodeState(v *api.Node) string {
	parts := []string{v.Lease}
	if v.Witness {
		parts = append(parts, "witness")
	}
	switch {
	case v.Maintenance != "":
		parts = append(parts, "maintenance")
	case v.Unschedulable:
		parts = append(parts, "cordoned")
	}
	if v.Hypervisor.Driver != "" && !v.Hypervisor.Healthy {
		parts = append(parts, "hypervisor down")
	}
	return strings.Join(parts, ",")
}

func hypervisorText(v *api.Node) string {
	h := v.Hypervisor
	switch {
	case v.Witness:
		return "none (witness)"
	case h.Driver == "":
		return "-"
	case h.Simulated:
		return "simulated"
	}
	return strings.TrimSpace(h.Driver + " " + h.Acceleration)
}

func poolText(pools []api.PoolStatus) string {
	var parts []string
	for _, p := range pools {
		if p.Reason != "" {
			parts = append(parts, p.Pool+": "+p.Reason)
			continue
		}
		parts = append(parts, fmt.Sprintf("%s: %s free", p.Pool, api.FormatSize(p.FreeBytes)))
	}
	return dash(strings.Join(parts, "; "))
}

func nodeCommand(a *app) *cobra.Command {
	return nodes().command(a, tokenCommand(a), removeNodeCommand(a), nodeDomainsCommand(a),
		scheduleCommand(a, "cordon", nil, "Keep new VMs away from a node", true),
		scheduleCommand(a, "uncordon", []string{"undrain"}, "Let new VMs onto a node again, and end its maintenance", false), drainCommand(a),
		labelNodeCommand(a), confirmOffCommand(a), nodeStatsCommand(a))
}

func tokenCommand(a *app) *cobra.Command {
	var witness bool
	var ch change
	cmd := &cobra.Command{
		Use: "token", Short: "Make a token that admits one node",
		Long:    fmt.Sprintf("Makes a token that admits one node, once, within %v. It is shown once.", api.JoinTokenLife),
		Example: "  debvisor node token\n  debvisor join $(debvisor node token -o json | jq -r .token)@HOST:7443",
		Args:    exactly(),
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			var secret *api.Secret
			planned, err := ch.do(a, func(o ...client.Option) (err error) {
				secret, err = c.CreateJoinToken(ctx, witness, o...)
				return err
			})
			if err != nil || planned {
				return err
			}
			if a.structured() {
				return a.emit(secret)
			}
			flag := ""
			if witness {
				flag = " --witness"
			}
			a.notef("on the new host, within %v:", api.JoinTokenLife)
			a.printf("debvisor join%s %s@%s\n", flag, secret.Token, a.addresses()[0])
			return nil
		}),
	}
	ch.flags(cmd)
	cmd.Flags().BoolVar(&witness, "witness", false, "for a node that votes and runs no guests")
	return cmd
}

func removeNodeCommand(a *app) *cobra.Command {
	var reason string
	var force, yes bool
	var ch change
	cmd := &cobra.Command{
		Use: "remove NAME", Aliases: []string{"delete"}, Short: "End the membership of a node for good",
		Long: `Ends the membership of a node for good: its process stops, and its identity
may not come back. To use the machine again, empty its data directory and join.`,
		Example: "  debvisor node remove node3 --reason 'goes back to the vendor'",
		Args:    exactly("NAME"), ValidArgsFunction: a.completeNames(nodes()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			if !yes && !ch.plan {
				if ok, err := a.confirm("remove node "+clean(args[0])+" for good?", true); err != nil || !ok {
					return err
				}
			}
			planned, err := ch.do(a, func(o ...client.Option) error { return c.RemoveNode(ctx, args[0], reason, force, o...) })
			if err == nil && !planned {
				a.notef("node %s removed", clean(args[0]))
			}
			return err
		}),
	}
	ch.flags(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the journal and for the node itself")
	cmd.Flags().BoolVar(&force, "force", false, "although VMs or volumes are there; the machine must be off for good")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func scheduleCommand(a *app, verb string, aliases []string, short string, unschedulable bool) *cobra.Command {
	var ch change
	var reason string
	cmd := &cobra.Command{
		Use: verb + " NAME", Aliases: aliases, Short: short, Example: "  debvisor node " + verb + " node2",
		Args: exactly("NAME"), ValidArgsFunction: a.completeNames(nodes()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			return a.scheduleNode(ctx, c, &ch, args[0], unschedulable, reason, nil)
		}),
	}
	ch.flags(cmd)
	if unschedulable {
		cmd.Flags().StringVar(&reason, "maintenance", "", "put the node into maintenance, for this reason")
	}
	return cmd
}

func (a *app) scheduleNode(ctx context.Context, c *client.Client, ch *change, name string, unschedulable bool, maintenance string, labels map[string]string) error {
	var node *api.Node
	planned, err := ch.do(a, func(o ...client.Option) (err error) {
		node, err = c.ScheduleNode(ctx, name, unschedulable, maintenance, labels, o...)
		return err
	})
	if err != nil || planned {
		return err
	}
	return a.result(node, "node %s is %s; labels %s", node.Name, nodeState(node), clean(labelText(node.Labels)))
}

func labelNodeCommand(a *app) *cobra.Command {
	var ch change
	cmd := &cobra.Command{
		Use: "label NAME KEY=VALUE...", Short: "Set labels of a node; KEY= without a value takes one away",
		Example: "  debvisor node label node1 disk=ssd\n  debvisor node label node1 disk=",
		Args:    atLeastOne("NAME"), ValidArgsFunction: a.completeNames(nodes()),
		RunE: func(cmd *cobra.Command, args []string) error {
			pairs, err := parseLabels(cmd, args[1:])
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			node, _, err := client.Resource[api.Node](c, api.KindNode).Get(cmd.Context(), "", args[0], client.ReadOptions{})
			if err != nil {
				return err
			}
			labels := map[string]string{}
			for k, v := range node.Labels {
				labels[k] = v
			}
			for k, v := range pairs {
				if labels[k] = v; v == "" {
					delete(labels, k)
				}
			}
			return a.scheduleNode(cmd.Context(), c, &ch, args[0], node.Unschedulable, node.Maintenance, labels)
		},
	}
	ch.flags(cmd)
	return cmd
}

func confirmOffCommand(a *app) *cobra.Command {
	var reason string
	var yes bool
	var ch change
	cmd := &cobra.Command{
		Use: "confirm-off NAME", Short: "Say that a machine has no power, so that its VMs start elsewhere",
		Long: `Says that a machine has no power, so that its VMs start elsewhere. Look before
you say so: if the machine runs after all, two hosts run the same VM.`,
		Example: "  debvisor node confirm-off node2 --reason 'unplugged by hand'",
		Args:    exactly("NAME"), ValidArgsFunction: a.completeNames(nodes()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			node, _, err := client.Resource[api.Node](c, api.KindNode).Get(ctx, "", args[0], client.ReadOptions{})
			if err != nil {
				return err
			}
			if !yes && !ch.plan {
				ok, err := a.confirm("is the machine of "+clean(args[0])+" really without power?", false)
				if err != nil {
					return err
				}
				if !ok {
					return &usageError{err: fmt.Errorf("not confirmed: look at the machine, then repeat with --yes")}
				}
			}
			planned, err := ch.do(a, func(o ...client.Option) (err error) {
				node, err = c.ConfirmOffNode(ctx, args[0], node.Epoch, reason, o...)
				return err
			})
			if err != nil || planned {
				return err
			}
			return a.result(node, "node %s is off; what it ran starts elsewhere", clean(args[0]))
		}),
	}
	ch.flags(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "how you know, for the journal")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask: I have looked")
	return cmd
}
