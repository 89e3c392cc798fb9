package main

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

func volumes() *noun[api.Volume] {
	n := nounOf[api.Volume](api.KindVolume, "volumes")
	n.columns = slices.Concat([]column[api.Volume]{nameColumn(n.head),
		{title: "POOL", value: func(_ *app, v *api.Volume) string { return v.Pool }},
		{title: "SIZE", keep: true, value: func(_ *app, v *api.Volume) string {
			if v.SizeBytes == 0 {
				return "as image"
			}
			return api.FormatSize(v.SizeBytes)
		}},
		{title: "IMAGE", value: func(_ *app, v *api.Volume) string { return dash(v.Image) }},
		{title: "FORMAT", wide: true, value: func(_ *app, v *api.Volume) string { return dash(v.Format) }},
		{title: "NODE", value: func(_ *app, v *api.Volume) string { return dash(v.Node) }},
		{title: "OF VM", value: func(_ *app, v *api.Volume) string { return yesNo(v.OwnerVM != "") }},
	}, metaColumns(n.head))
	return n
}

func volumeCommand(a *app) *cobra.Command {
	n := volumes()
	return n.command(a, createVolumeCommand(a), n.deleteCommand(a, " and what is on them"))
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
