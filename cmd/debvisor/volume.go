package main

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

// volumeRow is what a user wants of a volume, and its copy on a node.
type volumeRow struct {
	api.Volume
	Replica *api.Replica `json:"replica,omitzero"`
}

// size is what the volume has, and what it is to have.
func (r *volumeRow) size() string {
	made := r.Replica != nil && r.Replica.SizeBytes > 0
	switch {
	case made && r.SizeBytes > r.Replica.SizeBytes:
		return api.FormatSize(r.Replica.SizeBytes) + " of " + api.FormatSize(r.SizeBytes)
	case made:
		return api.FormatSize(r.Replica.SizeBytes)
	case r.SizeBytes == 0:
		return "as image"
	}
	return api.FormatSize(r.SizeBytes)
}

func (r *volumeRow) origin() string {
	switch {
	case r.Image != "":
		return "image " + r.Image
	case r.Source != "" && r.Clone == api.CloneLinked:
		return "linked to " + r.Source
	case r.Source != "":
		return "copy of " + r.Source
	}
	return "-"
}

func (r *volumeRow) state() string {
	if r.Replica == nil {
		return "not made"
	}
	return r.Replica.State
}

func (r *volumeRow) note() string {
	if r.Replica == nil {
		return "is made with its first VM"
	}
	return dash(r.Replica.Reason)
}

func volumes() *noun[volumeRow] {
	kind, _ := api.LookupKind(api.KindVolume)
	n := &noun[volumeRow]{kind: kind, word: kind.Name, many: "volumes", watches: []string{api.KindVolume, api.KindReplica}}
	n.head = func(row *volumeRow) *api.Meta { return &row.Meta }
	n.list, n.get = listVolumes, getVolume
	n.remove = func(ctx context.Context, c *client.Client, tenant, name string, o ...client.Option) error {
		return client.Resource[api.Volume](c, api.KindVolume).Delete(ctx, tenant, name, 0, o...)
	}
	n.columns = slices.Concat([]column[volumeRow]{nameColumn(n.head),
		{title: "STATE", keep: true, value: func(_ *app, r *volumeRow) string { return r.state() }},
		{title: "POOL", value: func(_ *app, r *volumeRow) string { return r.Pool }},
		{title: "SIZE", keep: true, value: func(_ *app, r *volumeRow) string { return r.size() }},
		{title: "USED", wide: true, value: func(_ *app, r *volumeRow) string {
			if r.Replica == nil {
				return "-"
			}
			return api.FormatSize(r.Replica.UsedBytes)
		}},
		{title: "FROM", value: func(_ *app, r *volumeRow) string { return r.origin() }},
		{title: "FORMAT", wide: true, value: func(_ *app, r *volumeRow) string { return dash(r.Format) }},
		{title: "NODE", value: func(_ *app, r *volumeRow) string {
			if r.Replica != nil {
				return r.Replica.Node
			}
			return dash(r.Node)
		}},
		{title: "OF VM", value: func(_ *app, r *volumeRow) string { return yesNo(r.OwnerVM != "") }},
		{title: "NOTE", value: func(_ *app, r *volumeRow) string { return r.note() }},
	}, metaColumns(n.head))
	return n
}

func listVolumes(ctx context.Context, c *client.Client, o client.ListOptions) (*client.List[volumeRow], error) {
	list, err := client.Resource[api.Volume](c, api.KindVolume).All(ctx, o)
	if err != nil {
		return nil, err
	}
	read := client.ReadOptions{At: o.At, Stale: o.Stale}
	if o.At == 0 {
		read.MinIndex = list.Index
	}
	byID, err := replicasByVolume(ctx, c, read)
	if err != nil {
		return nil, err
	}
	out := &client.List[volumeRow]{Index: list.Index}
	for _, v := range list.Items {
		out.Items = append(out.Items, volumeRow{Volume: v, Replica: byID[v.ID]})
	}
	return out, nil
}

// replicasByVolume is the copy of each volume. Who may not see where things lie
// sees volumes without.
func replicasByVolume(ctx context.Context, c *client.Client, o client.ReadOptions) (map[string]*api.Replica, error) {
	replicas, err := client.Resource[api.Replica](c, api.KindReplica).All(ctx, client.ListOptions{ReadOptions: o})
	if api.CodeOf(err) == api.CodeForbidden {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	byID := make(map[string]*api.Replica, len(replicas.Items))
	for i := range replicas.Items {
		if r := &replicas.Items[i]; r.Kind == api.KindVolume {
			byID[r.OfID] = r
		}
	}
	return byID, nil
}

func getVolume(ctx context.Context, c *client.Client, tenant, name string, o client.ReadOptions) (*volumeRow, error) {
	v, _, err := client.Resource[api.Volume](c, api.KindVolume).Get(ctx, tenant, name, o)
	if err != nil {
		return nil, err
	}
	o.Index, o.Wait = 0, 0
	byID, err := replicasByVolume(ctx, c, o)
	if err != nil {
		return nil, err
	}
	return &volumeRow{Volume: *v, Replica: byID[v.ID]}, nil
}

func volumeCommand(a *app) *cobra.Command {
	n := volumes()
	return n.command(a, createVolumeCommand(a), growVolumeCommand(a), cloneVolumeCommand(a), moveVolumeCommand(a), n.deleteCommand(a, " and what is on them"))
}

func createVolumeCommand(a *app) *cobra.Command {
	var v api.Volume
	var size string
	return createCommand(a, &creation[api.Volume, *api.Volume]{
		kind:    api.KindVolume,
		example: "  debvisor volume create data --size 20GiB\n  debvisor volume create root --image debian --node node1",
		flags: func(cmd *cobra.Command) {
			f := cmd.Flags()
			f.StringVar(&v.Pool, "pool", "local", "pool where it lies")
			f.StringVar(&size, "size", "", "size, as 20GiB; may be left out with --image")
			f.StringVar(&v.Image, "image", "", "image that it starts as")
			f.StringVar(&v.Format, "format", "", "qcow2 (default) or raw")
			f.StringVar(&v.Node, "node", "", "node where it lies (default: with its first VM)")
			_ = cmd.RegisterFlagCompletionFunc("pool", a.completeNames(pools()))
			_ = cmd.RegisterFlagCompletionFunc("image", a.completeNames(images()))
			_ = cmd.RegisterFlagCompletionFunc("node", a.completeNames(nodes()))
		},
		build: func(context.Context, *cobra.Command, *client.Client) (*api.Volume, error) {
			var err error
			v.SizeBytes, err = sizeFlag("size", size)
			return &v, err
		},
	})
}
