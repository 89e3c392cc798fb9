package main

import (
	"cmp"
	"context"
	"slices"
	"strings"
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
		{title: "TENANTS", value: func(_ *app, k *api.APIKey) string { return cmp.Or(strings.Join(k.Tenants, ","), "all") }},
		{title: "FROM", wide: true, value: func(_ *app, k *api.APIKey) string { return cmp.Or(strings.Join(k.Addresses, ","), "everywhere") }},
		{title: "EXPIRES", value: func(a *app, k *api.APIKey) string { return until(a.now(), k.Expires) }},
		{title: "MADE BY", value: func(_ *app, k *api.APIKey) string { return dash(k.By) }},
	}, metaColumns(n.head))
	return n
}

func keyCommand(a *app) *cobra.Command {
	n := keys()
	return n.command(a, createKeyCommand(a), rotateKeyCommand(a), n.deleteCommand(a, ""))
}

// keyLife is the flags that say how long a key lives.
type keyLife struct {
	expires time.Duration
	forever bool
}

func (l *keyLife) flags(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&l.expires, "expires", api.KeyLife, "how long it is valid")
	cmd.Flags().BoolVar(&l.forever, "forever", false, "it does not expire")
	cmd.MarkFlagsMutuallyExclusive("expires", "forever")
}

func (l *keyLife) settle(a *app, in *client.NewKey) {
	if in.Forever = l.forever; !l.forever {
		in.Expires = a.now().Add(l.expires).UTC()
	}
}

func createKeyCommand(a *app) *cobra.Command {
	var in client.NewKey
	var life keyLife
	var ch change
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create an API key; it is shown once",
		Long: `Creates an API key with a role, one of
  ` + strings.Join(api.BuiltInRoles(), ", ") + `
or one of your own. With --tenant-only the role counts in those tenants alone.`,
		Example: "  debvisor key create ci --role developer --tenant-only shop --expires 720h\n  debvisor key create ci --role viewer -o json | jq -r .key > ci.key",
		Args:    exactly("NAME"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			in.Name = args[0]
			life.settle(a, &in)
			return a.newSecret(&ch, "created", func(o ...client.Option) (*api.Secret, error) { return c.CreateAPIKey(ctx, in, o...) })
		}),
	}
	ch.flags(cmd)
	life.flags(cmd)
	cmd.Flags().StringVar(&in.Role, "role", "", "what it may do (required)")
	_ = cmd.MarkFlagRequired("role")
	_ = cmd.RegisterFlagCompletionFunc("role", a.completeRoles())
	cmd.Flags().StringSliceVar(&in.Tenants, "tenant-only", nil, "the role counts in this tenant only; may be repeated")
	_ = cmd.RegisterFlagCompletionFunc("tenant-only", a.completeNames(tenants()))
	cmd.Flags().StringSliceVar(&in.Addresses, "from", nil, "network from which it may be used, as 10.0.0.0/8; may be repeated")
	return cmd
}

func rotateKeyCommand(a *app) *cobra.Command {
	var overlap time.Duration
	var life keyLife
	var ch change
	cmd := &cobra.Command{
		Use: "rotate NAME", Short: "Give an API key a new secret; the old one works on for some days",
		Example: "  debvisor key rotate ci\n  debvisor key rotate ci --overlap 0s",
		Args:    exactly("NAME"), ValidArgsFunction: a.completeNames(keys()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			seconds := int64(overlap / time.Second)
			in := client.NewKey{OverlapSeconds: &seconds}
			life.settle(a, &in)
			return a.newSecret(&ch, "has a new secret", func(o ...client.Option) (*api.Secret, error) { return c.RotateAPIKey(ctx, args[0], in, o...) })
		}),
	}
	ch.flags(cmd)
	life.flags(cmd)
	cmd.Flags().DurationVar(&overlap, "overlap", api.KeyOverlap, "how long the old secret works on")
	return cmd
}

// newSecret makes a key and shows it, once.
func (a *app) newSecret(ch *change, became string, do func(o ...client.Option) (*api.Secret, error)) error {
	var secret *api.Secret
	planned, err := ch.do(a, func(o ...client.Option) (err error) {
		secret, err = do(o...)
		return err
	})
	if err != nil || planned {
		return err
	}
	if a.structured() {
		return a.emit(secret)
	}
	a.notef("key %s %s; keep it safe, it is shown once:", clean(secret.Name), became)
	a.printf("%s\n", secret.Key)
	return nil
}
