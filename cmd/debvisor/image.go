package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

const uploadTimeout = 12 * time.Hour

// imageRow is an image and the nodes that have its bytes.
type imageRow struct {
	api.Image
	Nodes     []string `json:"nodes"`
	FileBytes int64    `json:"file_bytes,omitzero"` // as the nodes found it
}

func dashSize(n int64) string {
	if n == 0 {
		return dash("")
	}
	return api.FormatSize(n)
}

func images() *noun[imageRow] {
	kind, _ := api.LookupKind(api.KindImage)
	n := &noun[imageRow]{kind: kind, word: kind.Name, many: "images", watches: []string{api.KindImage, api.KindReplica}}
	n.head = func(row *imageRow) *api.Meta { return &row.Meta }
	n.list = listImages
	n.get = getImage
	n.remove = func(ctx context.Context, c *client.Client, tenant, name string, o ...client.Option) error {
		return client.Resource[api.Image](c, api.KindImage).Delete(ctx, tenant, name, 0, o...)
	}
	n.columns = slices.Concat([]column[imageRow]{nameColumn(n.head),
		{title: "FORMAT", value: func(_ *app, i *imageRow) string { return i.Format }},
		{title: "SIZE", keep: true, value: func(_ *app, i *imageRow) string { return dashSize(cmp.Or(i.SizeBytes, i.FileBytes)) }},
		{title: "NODES", value: func(_ *app, i *imageRow) string {
			switch {
			case len(i.Nodes) == 0 && i.URL != "":
				return "none yet: see its task"
			case len(i.Nodes) == 0:
				return "none: upload it"
			}
			return joinNames(i.Nodes)
		}},
		{title: "SHA256", value: func(_ *app, i *imageRow) string { return i.SHA256 }},
		{title: "DESCRIPTION", wide: true, value: func(_ *app, i *imageRow) string { return dash(i.Description) }},
	}, metaColumns(n.head))
	return n
}

func joinNames(names []string) string {
	out := ""
	for i, n := range names {
		if i > 0 {
			out += ","
		}
		out += n
	}
	return out
}

func listImages(ctx context.Context, c *client.Client, o client.ListOptions) (*client.List[imageRow], error) {
	list, err := client.Resource[api.Image](c, api.KindImage).All(ctx, o)
	if err != nil {
		return nil, err
	}
	where, err := imageNodes(ctx, c, client.ReadOptions{At: o.At, Stale: o.Stale})
	if err != nil {
		return nil, err
	}
	out := &client.List[imageRow]{Index: list.Index}
	for _, i := range list.Items {
		out.Items = append(out.Items, imageRow{Image: i, Nodes: items(where[i.ID].nodes), FileBytes: where[i.ID].fileBytes})
	}
	return out, nil
}

func getImage(ctx context.Context, c *client.Client, tenant, name string, o client.ReadOptions) (*imageRow, error) {
	image, _, err := client.Resource[api.Image](c, api.KindImage).Get(ctx, tenant, name, o)
	if err != nil {
		return nil, err
	}
	where, err := imageNodes(ctx, c, o)
	if err != nil {
		return nil, err
	}
	return &imageRow{Image: *image, Nodes: items(where[image.ID].nodes), FileBytes: where[image.ID].fileBytes}, nil
}

// stored is which nodes hold an image, and how long its file is.
type stored struct {
	nodes     []string
	fileBytes int64
}

// imageNodes tells which nodes hold which image, by its ID.
func imageNodes(ctx context.Context, c *client.Client, o client.ReadOptions) (map[string]stored, error) {
	replicas, err := client.Resource[api.Replica](c, api.KindReplica).All(ctx, client.ListOptions{ReadOptions: o})
	if err != nil {
		return nil, err
	}
	where := map[string]stored{}
	for _, r := range replicas.Items {
		if r.Kind == api.KindImage && r.State == api.ReplicaReady && !slices.Contains(where[r.OfID].nodes, r.Node) {
			where[r.OfID] = stored{append(where[r.OfID].nodes, r.Node), max(where[r.OfID].fileBytes, r.FileBytes)}
		}
	}
	return where, nil
}

func imageCommand(a *app) *cobra.Command {
	n := images()
	return n.command(a, createImageCommand(a), uploadImageCommand(a), fetchImageCommand(a), exportImageCommand(a), n.deleteCommand(a, ""))
}

func uploadImageCommand(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "upload NAME", Short: "Send the bytes of an image that is in the catalogue",
		Long:    "Sends the bytes of an image that is in the catalogue: after apply of a file\nthat declares it, or when no node has them any more.",
		Example: "  debvisor image upload debian --file debian-12-genericcloud-amd64.qcow2",
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
			if err := a.sendImage(cmd.Context(), c, image, func() (io.ReadSeekCloser, error) { return os.Open(file) }); err != nil {
				return err
			}
			return a.result(image, "image %s uploaded", clean(image.Name))
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "file to upload")
	_ = cmd.MarkFlagRequired("file")
	return cmd
}

// measureImage fills in size, checksum and, unless given, format of a file.
func (a *app) measureImage(file string, image *api.Image) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	if !stat.Mode().IsRegular() {
		return api.Invalid("file", "%s is no regular file", file)
	}
	image.SizeBytes = stat.Size()
	head := make([]byte, 4)
	if _, err := io.ReadFull(f, head); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && err != io.EOF {
		return fmt.Errorf("read image: %w", err)
	}
	if image.Format == "" {
		image.Format = api.FormatRaw
		if bytes.Equal(head, []byte("QFI\xfb")) {
			image.Format = api.FormatQCOW2
		}
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read image: %w", err)
	}
	p, sum := a.progress(), sha256.New()
	defer p.end()
	if _, err := io.Copy(sum, &meter{r: f, report: func(n int64) { p.bytes("checksum", n, image.SizeBytes) }}); err != nil {
		return fmt.Errorf("read image: %w", err)
	}
	image.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return nil
}

// meter reports how much was read.
type meter struct {
	r      io.Reader
	done   int64
	report func(int64)
}

// Read implements io.Reader.
func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.done += int64(n)
	m.report(m.done)
	return n, err
}

// uploadImage sends the bytes of an image that is in the catalogue. If the file
// is wrong, the entry without bytes is taken back; an upload that broke off
// goes on with: debvisor image upload.
func (a *app) uploadImage(ctx context.Context, image *api.Image, open func() (io.ReadSeekCloser, error)) error {
	c, err := a.clientWith(uploadTimeout)
	if err != nil {
		return err
	}
	err = a.sendImage(ctx, c, image, open)
	switch api.CodeOf(err) {
	case "":
		return nil
	case api.CodeUnavailable, api.CodeUnknown, api.CodeNoLeader:
		return fmt.Errorf("upload: %w; go on with: debvisor image upload %s --file FILE", err, image.Name)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	defer cancel()
	if undo := client.Resource[api.Image](c, api.KindImage).Delete(ctx, image.Tenant, image.Name, image.Modified); undo != nil {
		return fmt.Errorf("upload: %w (the entry without bytes could not be taken back: %w)", err, undo)
	}
	return fmt.Errorf("upload: %w", err)
}

func (a *app) sendImage(ctx context.Context, c *client.Client, image *api.Image, open func() (io.ReadSeekCloser, error)) error {
	file, err := open()
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	defer func() { _ = file.Close() }() // it was only read
	p := a.progress()
	defer p.end()
	_, err = c.UploadImage(ctx, image.Tenant, image.Name, image.SizeBytes, file, func(sent int64) { p.bytes("upload", sent, image.SizeBytes) })
	return err
}
