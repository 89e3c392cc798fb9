package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

// poolRow is a pool, and what its nodes last measured of it.
type poolRow struct {
	api.Pool
	Measured []measuredPool `json:"measured,omitzero"`
}

// measuredPool is a pool as one node sees it.
type measuredPool struct {
	Node string `json:"node"`
	api.PoolStatus
}

// fullest is what the node says that has least left; nil: none has measured it.
func (r *poolRow) fullest() *measuredPool {
	var worst *measuredPool
	for i := range r.Measured {
		if m := &r.Measured[i]; m.TotalBytes > 0 && (worst == nil || m.UsedPercent() > worst.UsedPercent()) {
			worst = m
		}
	}
	return worst
}

func (r *poolRow) used() string {
	m := r.fullest()
	if m == nil {
		return "-"
	}
	return fmt.Sprintf("%d %% of %s on %s", m.UsedPercent(), api.FormatSize(m.TotalBytes), m.Node)
}

func (r *poolRow) note() string {
	var out []string
	for _, m := range r.Measured {
		if text := cmp.Or(m.Reason, m.Warning); text != "" {
			out = append(out, m.Node+": "+text)
		}
	}
	return dash(strings.Join(out, "; "))
}

func pools() *noun[poolRow] {
	kind, _ := api.LookupKind(api.KindPool)
	n := &noun[poolRow]{kind: kind, word: kind.Name, many: "pools", watches: []string{api.KindPool, api.KindNode}}
	n.head = func(row *poolRow) *api.Meta { return &row.Meta }
	n.list, n.get = listPools, getPool
	n.remove = func(ctx context.Context, c *client.Client, tenant, name string, o ...client.Option) error {
		return client.Resource[api.Pool](c, api.KindPool).Delete(ctx, tenant, name, 0, o...)
	}
	n.columns = slices.Concat([]column[poolRow]{nameColumn(n.head),
		{title: "DRIVER", value: func(_ *app, p *poolRow) string { return p.Driver }},
		{title: "SHARED", value: func(_ *app, p *poolRow) string { return yesNo(p.Shared) }},
		{title: "PATH", value: func(_ *app, p *poolRow) string {
			if p.Path == "" {
				return "(data directory)"
			}
			return p.Path
		}},
		{title: "NODES", value: func(_ *app, p *poolRow) string {
			if len(p.Nodes) == 0 {
				return "all"
			}
			return strings.Join(p.Nodes, ",")
		}},
		{title: "USED", keep: true, value: func(_ *app, p *poolRow) string { return p.used() }},
		{title: "RESERVE", wide: true, value: func(_ *app, p *poolRow) string { return api.FormatSize(p.ReserveBytes) }},
		{title: "COPIES", wide: true, value: func(_ *app, p *poolRow) string { return fmt.Sprint(p.CopiesAtOnce()) }},
		{title: "OVERCOMMIT", wide: true, value: func(_ *app, p *poolRow) string {
			if p.Overcommit == 0 {
				return "-"
			}
			return fmt.Sprint(p.Overcommit)
		}},
		{title: "NOTE", value: func(_ *app, p *poolRow) string { return p.note() }},
	}, metaColumns(n.head))
	return n
}

func listPools(ctx context.Context, c *client.Client, o client.ListOptions) (*client.List[poolRow], error) {
	list, err := client.Resource[api.Pool](c, api.KindPool).All(ctx, o)
	if err != nil {
		return nil, err
	}
	read := client.ReadOptions{At: o.At, Stale: o.Stale}
	if o.At == 0 {
		read.MinIndex = list.Index
	}
	measured, err := measuredPools(ctx, c, read)
	if err != nil {
		return nil, err
	}
	out := &client.List[poolRow]{Index: list.Index}
	for _, p := range list.Items {
		out.Items = append(out.Items, poolRow{Pool: p, Measured: measured[p.Name]})
	}
	return out, nil
}

func getPool(ctx context.Context, c *client.Client, tenant, name string, o client.ReadOptions) (*poolRow, error) {
	p, _, err := client.Resource[api.Pool](c, api.KindPool).Get(ctx, tenant, name, o)
	if err != nil {
		return nil, err
	}
	o.Index, o.Wait = 0, 0
	measured, err := measuredPools(ctx, c, o)
	if err != nil {
		return nil, err
	}
	return &poolRow{Pool: *p, Measured: measured[name]}, nil
}

// measuredPools is what the nodes say of each pool. Who may not see nodes sees
// pools without.
func measuredPools(ctx context.Context, c *client.Client, o client.ReadOptions) (map[string][]measuredPool, error) {
	nodes, err := client.Resource[api.Node](c, api.KindNode).All(ctx, client.ListOptions{ReadOptions: o})
	if api.CodeOf(err) == api.CodeForbidden {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := map[string][]measuredPool{}
	for _, n := range nodes.Items {
		for _, p := range n.Pools {
			out[p.Pool] = append(out[p.Pool], measuredPool{Node: n.Name, PoolStatus: p})
		}
	}
	return out, nil
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
			f.IntVar(&p.Copies, "copies", 0, "volumes that a node copies into it at a time (default 4)")
			f.Float64Var(&p.Overcommit, "overcommit", 0, "sizes of its volumes may add up to so many times its size (default: no limit but free space)")
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
