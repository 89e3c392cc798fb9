package main

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

func tenants() *noun[api.Tenant] {
	n := nounOf[api.Tenant](api.KindTenant, "tenants")
	n.columns = slices.Concat([]column[api.Tenant]{nameColumn(n.head),
		{title: "DESCRIPTION", value: func(_ *app, t *api.Tenant) string { return dash(t.Description) }}}, metaColumns(n.head))
	return n
}

func tenantCommand(a *app) *cobra.Command {
	n := tenants()
	return n.command(a, createTenantCommand(a), n.deleteCommand(a, ""))
}

func createTenantCommand(a *app) *cobra.Command {
	var t api.Tenant
	return createCommand(a, &creation[api.Tenant, *api.Tenant]{
		kind: api.KindTenant, example: "  debvisor tenant create shop --description 'the web shop'",
		flags: func(cmd *cobra.Command) {
			cmd.Flags().StringVar(&t.Description, "description", "", "for people")
		},
		build: func(context.Context, *cobra.Command, *client.Client) (*api.Tenant, error) { return &t, nil },
	})
}
