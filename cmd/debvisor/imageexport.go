package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

// partSuffix names a file that is not complete.
const partSuffix = ".part"

func exportImageCommand(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "export NAME", Short: "Download the bytes of an image",
		Long: `Downloads the bytes of an image, from whichever node has them, and verifies
the checksum. The file appears when it is complete; what an interrupted export
left in FILE` + partSuffix + ` is gone on from.`,
		Example: "  debvisor image export golden --file golden.qcow2",
		Args:    exactly("NAME"), ValidArgsFunction: a.completeNames(images()),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.clientWith(uploadTimeout)
			if err != nil {
				return err
			}
			image, _, err := client.Resource[api.Image](c, api.KindImage).Get(cmd.Context(), a.tenantName(), args[0], client.ReadOptions{})
			if err != nil {
				return err
			}
			if err := a.receiveImage(cmd.Context(), c, image, file); err != nil {
				return err
			}
			return a.result(image, "image %s is in %s", clean(image.Name), file)
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "file to write; it must not exist")
	_ = cmd.MarkFlagRequired("file")
	return cmd
}

// receiveImage downloads an image into a file that does not exist yet.
func (a *app) receiveImage(ctx context.Context, c *client.Client, image *api.Image, file string) (err error) {
	if _, err := os.Lstat(file); !errors.Is(err, os.ErrNotExist) {
		return api.Invalid("file", "%s exists already", file).Do("name another file, or remove it")
	}
	part, err := os.OpenFile(file+partSuffix, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	p := a.progress()
	defer p.end()
	err = c.DownloadImage(ctx, image, part, func(done, total int64) { p.bytes("download "+image.Name, done, total) })
	if code := api.CodeOf(err); code == api.CodeInvalid || code == api.CodeConflict {
		err = errors.Join(err, part.Close(), os.Remove(file+partSuffix)) // it is the beginning of something else
		return err
	}
	if err = errors.Join(err, part.Sync(), part.Close()); err != nil {
		return fmt.Errorf("%w; repeat the command to go on", err)
	}
	return os.Rename(file+partSuffix, file)
}
