package main

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

func roles() *noun[api.Role] {
	n := nounOf[api.Role](api.KindRole, "roles")
	n.columns = slices.Concat([]column[api.Role]{nameColumn(n.head),
		{title: "INHERITS", value: func(_ *app, r *api.Role) string { return dash(strings.Join(r.Inherits, ",")) }},
		{title: "RULES", keep: true, value: func(_ *app, r *api.Role) string { return strconv.Itoa(len(r.Rules)) }},
		{title: "DESCRIPTION", value: func(_ *app, r *api.Role) string { return dash(r.Description) }},
	}, metaColumns(n.head))
	return n
}

func roleCommand(a *app) *cobra.Command {
	n := roles()
	cmd := n.command(a, n.deleteCommand(a, ""))
	cmd.Long = `Works with roles of your own, which are declared in files (debvisor apply). The
built-in ones are not listed: ` + strings.Join(api.BuiltInRoles(), ", ") + "."
	return cmd
}

// completeRoles completes the names of roles, built in or not.
func (a *app) completeRoles() cobra.CompletionFunc {
	return func(cmd *cobra.Command, given []string, typed string) ([]string, cobra.ShellCompDirective) {
		names, directive := a.completeNames(roles())(cmd, nil, typed)
		for _, r := range api.BuiltInRoles() {
			if strings.HasPrefix(r, typed) {
				names = append(names, r)
			}
		}
		return names, directive
	}
}

func canCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "can-i VERB KIND[/NAME]", Short: "Tell whether your key may do something, and which rule says so",
		Long: `Tells whether your key may do something, and which rule says so. Ends with exit
status 5 when it may not.`,
		Example: "  debvisor can-i delete vm/web\n  debvisor can-i create network --tenant shop",
		Args:    exactly("VERB", "KIND"),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			kind, name, _ := strings.Cut(args[1], "/")
			tenant := ""
			if k, known := api.LookupKind(kind); known {
				tenant = a.scope(k)
			}
			p, err := c.CanI(ctx, args[0], kind, tenant, name)
			if err != nil {
				return err
			}
			answer := "yes"
			if !p.Allowed {
				answer = "no"
			}
			if err := a.result(p, "%s: %s", answer, clean(p.Reason)); err != nil || p.Allowed {
				return err
			}
			return &exitError{status: statusForbidden}
		}),
	}
	return cmd
}
