package main

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

func tenants() *noun[api.Tenant] {
	n := nounOf[api.Tenant](api.KindTenant, "tenants")
	n.columns = slices.Concat([]column[api.Tenant]{nameColumn(n.head),
		{title: "PARENT", value: func(_ *app, t *api.Tenant) string { return dash(t.Parent) }},
		{title: "QUOTA", value: func(_ *app, t *api.Tenant) string { return quotaText(t.Quota) }},
		{title: "DESCRIPTION", value: func(_ *app, t *api.Tenant) string { return dash(t.Description) }}}, metaColumns(n.head))
	return n
}

func tenantCommand(a *app) *cobra.Command {
	n := tenants()
	return n.command(a, createTenantCommand(a), usageCommand(a), n.deleteCommand(a, ""))
}

func createTenantCommand(a *app) *cobra.Command {
	var t api.Tenant
	return createCommand(a, &creation[api.Tenant, *api.Tenant]{
		kind: api.KindTenant, example: "  debvisor tenant create shop --description 'the web shop'",
		flags: func(cmd *cobra.Command) {
			cmd.Flags().StringVar(&t.Description, "description", "", "for people")
			cmd.Flags().StringVar(&t.Parent, "parent", "", "tenant whose quota counts for this one as well")
		},
		build: func(context.Context, *cobra.Command, *client.Client) (*api.Tenant, error) { return &t, nil },
	})
}

// quotaText is a quota in one line.
func quotaText(q *api.Quota) string {
	var parts []string
	for _, a := range (&api.Usage{}).Amounts(q) {
		if a.Bound != nil {
			parts = append(parts, strings.TrimSuffix(a.Name, "_bytes")+"="+a.Text(*a.Bound))
		}
	}
	return dash(strings.Join(parts, ","))
}

func usageCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "usage NAME", Short: "Show what a tenant has, and what it may have",
		Long:    "Shows what a tenant and the tenants below it have together, next to its quota.\nThe quotas of the tenants above it count as well.",
		Example: "  debvisor tenant usage shop\n  debvisor tenant usage shop -o json",
		Args:    exactly("NAME"), ValidArgsFunction: a.completeNames(tenants()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			u, err := c.Usage(ctx, args[0])
			if err != nil {
				return err
			}
			if a.structured() {
				return a.emit(u)
			}
			t := table{titles: []string{"WHAT", "OWN", "IN ALL", "QUOTA", "LEFT"}}
			own := u.Own.Amounts(nil)
			for i, amount := range u.Total.Amounts(u.Quota) {
				bound, left := "-", "-"
				if amount.Bound != nil {
					bound, left = amount.Text(*amount.Bound), amount.Text(max(0, *amount.Bound-amount.Used))
				}
				t.rows = append(t.rows, []string{strings.TrimSuffix(amount.Name, "_bytes"), own[i].Text(own[i].Used), amount.Text(amount.Used), bound, left})
			}
			a.printf("%s", t.render(a.limit()))
			return nil
		}),
	}
}
