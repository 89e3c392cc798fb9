package main

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

func pools() *noun[api.Pool] {
	n := nounOf[api.Pool](api.KindPool, "pools")
	n.columns = slices.Concat([]column[api.Pool]{nameColumn(n.head),
		{title: "DRIVER", value: func(_ *app, p *api.Pool) string { return p.Driver }},
		{title: "SHARED", value: func(_ *app, p *api.Pool) string { return yesNo(p.Shared) }},
		{title: "PATH", value: func(_ *app, p *api.Pool) string {
			if p.Path == "" {
				return "(data directory)"
			}
			return p.Path
		}},
		{title: "NODES", value: func(_ *app, p *api.Pool) string {
			if len(p.Nodes) == 0 {
				return "all"
			}
			return strings.Join(p.Nodes, ",")
		}},
		{title: "RESERVE", wide: true, value: func(_ *app, p *api.Pool) string { return api.FormatSize(p.ReserveBytes) }},
	}, metaColumns(n.head))
	return n
}

func poolCommand(a *app) *cobra.Command {
	n := pools()
	return n.command(a, createPoolCommand(a), n.deleteCommand(a, ""), poolStatsCommand(a))
}

func createPoolCommand(a *app) *cobra.Command {
	p := api.Pool{Driver: api.PoolDir}
	var reserve string
	return createCommand(a, &creation[api.Pool, *api.Pool]{
		kind:    api.KindPool,
		example: "  debvisor pool create fast --path /srv/fast\n  debvisor pool create nfs --path /mnt/nfs --shared",
		flags: func(cmd *cobra.Command) {
			f := cmd.Flags()
			f.StringVar(&p.Driver, "driver", p.Driver, "dir")
			f.StringVar(&p.Path, "path", "", "absolute directory on every node (default: below the data directory)")
			f.BoolVar(&p.Shared, "shared", false, "every node sees the same files there: a mount point, or a directory with a file .debvisor-shared")
			f.StringSliceVar(&p.Nodes, "node", nil, "only this node has it; may be repeated")
			f.StringVar(&reserve, "reserve", "", "new volumes leave this much free, as 10GiB")
			_ = cmd.RegisterFlagCompletionFunc("node", a.completeNames(nodes()))
		},
		build: func(context.Context, *cobra.Command, *client.Client) (*api.Pool, error) {
			var err error
			p.ReserveBytes, err = sizeFlag("reserve", reserve)
			return &p, err
		},
	})
}

// sizeFlag reads a size that a flag gave; "" is 0.
func sizeFlag(name, s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := api.ParseSize(s)
	if err != nil {
		return 0, &usageError{err: api.AsError(err).At("--" + name)}
	}
	return n, nil
}
