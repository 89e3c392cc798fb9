package main

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

func networks() *noun[api.Network] {
	n := nounOf[api.Network](api.KindNetwork, "networks")
	n.columns = slices.Concat([]column[api.Network]{nameColumn(n.head),
		{title: "DRIVER", value: func(_ *app, v *api.Network) string { return v.Driver }},
		{title: "BRIDGE", value: func(_ *app, v *api.Network) string { return v.Bridge }},
		{title: "DESCRIPTION", value: func(_ *app, v *api.Network) string { return dash(v.Description) }},
	}, metaColumns(n.head))
	return n
}

func networkCommand(a *app) *cobra.Command {
	n := networks()
	return n.command(a, createNetworkCommand(a), n.deleteCommand(a, ""))
}

func createNetworkCommand(a *app) *cobra.Command {
	v := api.Network{Driver: api.NetworkBridge}
	return createCommand(a, &creation[api.Network, *api.Network]{
		kind: api.KindNetwork, example: "  debvisor network create lan --bridge br0",
		flags: func(cmd *cobra.Command) {
			cmd.Flags().StringVar(&v.Driver, "driver", v.Driver, "bridge")
			cmd.Flags().StringVar(&v.Bridge, "bridge", "", "device on each node; made where it is missing")
			cmd.Flags().StringVar(&v.Description, "description", "", "for people")
			_ = cmd.MarkFlagRequired("bridge")
		},
		build: func(context.Context, *cobra.Command, *client.Client) (*api.Network, error) { return &v, nil },
	})
}
