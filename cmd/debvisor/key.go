package main

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

func keys() *noun[api.APIKey] {
	n := nounOf[api.APIKey](api.KindAPIKey, "API keys")
	n.word, n.aliases = "key", []string{"api-key", "api_key"}
	n.columns = slices.Concat([]column[api.APIKey]{nameColumn(n.head),
		{title: "ROLE", value: func(_ *app, k *api.APIKey) string { return k.Role }},
		{title: "EXPIRES", value: func(a *app, k *api.APIKey) string { return until(a.now(), k.Expires) }},
		{title: "MADE BY", value: func(_ *app, k *api.APIKey) string { return dash(k.By) }},
	}, metaColumns(n.head))
	return n
}

func keyCommand(a *app) *cobra.Command {
	n := keys()
	return n.command(a, createKeyCommand(a), n.deleteCommand(a, ""))
}

func createKeyCommand(a *app) *cobra.Command {
	var role string
	var life time.Duration
	var ch change
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create an API key; it is shown once",
		Example: "  debvisor key create ci --expires 720h\n  debvisor key create ci -o json | jq -r .key > ci.key",
		Args:    exactly("NAME"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			var expires time.Time
			if life > 0 {
				expires = a.now().Add(life)
			}
			var secret *api.Secret
			planned, err := ch.do(a, func(o ...client.Option) (err error) {
				secret, err = c.CreateAPIKey(ctx, args[0], role, expires, o...)
				return err
			})
			if err != nil || planned {
				return err
			}
			if a.structured() {
				return a.emit(secret)
			}
			a.notef("key %s created; keep it safe, it is shown once:", clean(args[0]))
			a.printf("%s\n", secret.Key)
			return nil
		}),
	}
	ch.flags(cmd)
	cmd.Flags().StringVar(&role, "role", api.RoleAdmin, "what it may do")
	cmd.Flags().DurationVar(&life, "expires", 0, "how long it is valid, as 720h (default: for ever)")
	return cmd
}
