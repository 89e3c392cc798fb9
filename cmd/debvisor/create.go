package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

// creation is how one kind is made on the command line.
type creation[T any, P object[T]] struct {
	kind    string
	example string
	flags   func(cmd *cobra.Command)
	build   func(ctx context.Context, cmd *cobra.Command, c *client.Client) (*T, error) // from the flags; name, tenant and labels are set after
	then    func(ctx context.Context, c *client.Client, made *T) (shown any, err error) // nil: nothing follows
}

// createCommand makes "create NAME" of a kind.
func createCommand[T any, P object[T]](a *app, cr *creation[T, P]) *cobra.Command {
	kind, _ := api.LookupKind(cr.kind)
	var ch change
	var labels []string
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a " + kind.Name, Example: cr.example,
		Args: exactly("NAME"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			v, err := cr.build(cmd.Context(), cmd, c)
			if err != nil {
				return err
			}
			head := P(v).Head()
			head.Name, head.Tenant = args[0], a.scope(kind)
			if head.Labels, err = parseLabels(cmd, labels); err != nil {
				return err
			}
			if err := P(v).Validate(); err != nil {
				return api.AsError(err).OnMissing(kind.Name, kind.Key(head.Tenant, head.Name))
			}
			return cr.make(cmd.Context(), a, c, &ch, v)
		},
	}
	ch.flags(cmd)
	cmd.Flags().StringSliceVarP(&labels, "label", "l", nil, "a label, as key=value; may be repeated")
	cr.flags(cmd)
	return cmd
}

// make puts the object, says so, and does what follows.
func (cr *creation[T, P]) make(ctx context.Context, a *app, c *client.Client, ch *change, v *T) error {
	var made *T
	planned, err := ch.do(a, func(o ...client.Option) (err error) {
		made, err = client.Resource[T, P](c, cr.kind).Put(ctx, v, o...)
		return err
	})
	if err != nil || planned {
		return err
	}
	if !a.structured() {
		a.notef("%s %s created", cr.kind, clean(P(made).Head().Name))
	}
	var shown any = made
	if cr.then != nil {
		if shown, err = cr.then(ctx, c, made); err != nil {
			return err
		}
	}
	if a.structured() {
		return a.emit(shown)
	}
	return nil
}
