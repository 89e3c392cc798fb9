package main

import (
	"context"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

// imageSource is where a new image comes from: one of these.
type imageSource struct {
	file   string
	url    string
	fromVM string
	disk   string
	size   string
	wait   waiting
	image  api.Image
}

func createImageCommand(a *app) *cobra.Command {
	var s imageSource
	cmd := createCommand(a, &creation[api.Image, *api.Image]{
		kind: api.KindImage,
		example: `  debvisor image create debian --file debian-12-genericcloud-amd64.qcow2
  debvisor image create debian --url https://cloud.debian.org/images/x.qcow2 --sha256 CHECKSUM
  debvisor image create golden --from-vm web --disk root
  debvisor image create kernel --file vmlinuz --format raw`,
		flags: s.flags,
		build: func(_ context.Context, cmd *cobra.Command, _ *client.Client) (*api.Image, error) {
			return s.build(a, cmd)
		},
		then: func(ctx context.Context, c *client.Client, made *api.Image) (any, error) {
			if s.url != "" {
				return made, s.fetched(ctx, a, c, made)
			}
			return made, a.uploadImage(ctx, made, func() (io.ReadSeekCloser, error) { return os.Open(s.file) })
		},
	})
	create := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if s.fromVM != "" {
			return s.template(cmd, a, args[0])
		}
		return create(cmd, args)
	}
	return cmd
}

func (s *imageSource) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.file, "file", "", "file to upload")
	f.StringVar(&s.url, "url", "", "https URL that a node fetches")
	f.StringVar(&s.fromVM, "from-vm", "", "VM, which is off, to make the image of")
	f.StringVar(&s.disk, "disk", "", "of that VM (default: its first)")
	f.StringVar(&s.image.SHA256, "sha256", "", "checksum of the file; needed with --url")
	f.StringVar(&s.size, "size", "", "of the file, where the server does not tell it")
	f.StringVar(&s.image.Format, "format", "", "qcow2 or raw (default: what the file looks like; of a URL qcow2)")
	f.StringVar(&s.image.Description, "description", "", "for people")
	s.wait.flags(cmd)
	s.wait.timeout = uploadTimeout
	cmd.MarkFlagsOneRequired("file", "url", "from-vm")
	cmd.MarkFlagsMutuallyExclusive("file", "url", "from-vm")
	_ = cmd.MarkFlagFilename("file")
}

// build is the catalogue entry of a file or a URL.
func (s *imageSource) build(a *app, cmd *cobra.Command) (*api.Image, error) {
	if s.disk != "" {
		return nil, usage(cmd, "--disk goes with --from-vm")
	}
	if s.url == "" {
		given := s.image.SHA256
		if err := a.measureImage(s.file, &s.image); err != nil {
			return nil, err
		}
		if given != "" && given != s.image.SHA256 {
			return nil, api.Invalid("sha256", "%s has %s and was to have %s", s.file, s.image.SHA256, given).Do("get the file again")
		}
		return &s.image, nil
	}
	if s.image.SHA256 == "" {
		return nil, usage(cmd, "--url needs --sha256: the checksum that the publisher of the file names")
	}
	s.image.URL = s.url
	if s.image.Format == "" {
		s.image.Format = api.FormatQCOW2
	}
	if s.size != "" {
		n, err := api.ParseSize(s.size)
		if err != nil {
			return nil, api.AsError(err).At("size")
		}
		s.image.SizeBytes = n
	}
	return &s.image, nil
}

// fetched waits until a node has fetched the image.
func (s *imageSource) fetched(ctx context.Context, a *app, c *client.Client, image *api.Image) error {
	tasks, err := client.Resource[api.Task](c, api.KindTask).All(ctx, client.ListOptions{})
	if err != nil {
		return err
	}
	var last *api.Task
	for i := range tasks.Items {
		t := &tasks.Items[i]
		if t.Verb == api.TaskFetch && t.Object == api.Key(image.Tenant, image.Name) && (last == nil || t.Created > last.Created) {
			last = t
		}
	}
	if last == nil {
		return api.Errorf(api.CodeInternal, "nobody was asked to fetch it").On(api.KindImage, image.Name).Do("ask: debvisor image fetch %s", image.Name)
	}
	return s.finish(ctx, a, c, last, "fetched")
}

// finish waits for the task, unless it should not.
func (s *imageSource) finish(ctx context.Context, a *app, c *client.Client, task *api.Task, done string) error {
	if !s.wait.wait {
		a.notef("see its progress: debvisor task wait %s", task.Name)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.wait.timeout)
	defer cancel()
	if _, err := a.waitTask(ctx, c, task.Name); err != nil {
		return err
	}
	if !a.structured() {
		a.notef("image %s", done)
	}
	return nil
}

// template makes the image of a disk of a VM.
func (s *imageSource) template(cmd *cobra.Command, a *app, name string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	labels, _ := cmd.Flags().GetStringSlice("label") // both flags are there
	args := api.TemplateArgs{Image: name, Disk: s.disk, Description: s.image.Description}
	if args.Labels, err = parseLabels(cmd, labels); err != nil {
		return err
	}
	var ch change
	ch.plan, _ = cmd.Flags().GetBool("plan")
	ch.requestID, _ = cmd.Flags().GetString("request-id")
	var task *api.Task
	planned, err := ch.do(a, func(o ...client.Option) (err error) {
		task, err = c.TemplateVM(cmd.Context(), a.tenantName(), s.fromVM, args, o...)
		return err
	})
	if err != nil || planned {
		return err
	}
	if err := s.finish(cmd.Context(), a, c, task, "made of vm "+s.fromVM); err != nil || !s.wait.wait || !a.structured() {
		return err
	}
	image, err := getImage(cmd.Context(), c, a.tenantName(), name, client.ReadOptions{})
	if err != nil {
		return err
	}
	return a.emit(image)
}

func fetchImageCommand(a *app) *cobra.Command {
	var ch change
	var s imageSource
	var node string
	cmd := &cobra.Command{
		Use: "fetch NAME", Short: "Fetch an image from its URL again, after that failed",
		Example: "  debvisor image fetch debian --node node2",
		Args:    exactly("NAME"), ValidArgsFunction: a.completeNames(images()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			var task *api.Task
			planned, err := ch.do(a, func(o ...client.Option) (err error) {
				task, err = c.FetchImage(ctx, a.tenantName(), args[0], node, o...)
				return err
			})
			if err != nil || planned {
				return err
			}
			return s.finish(ctx, a, c, task, clean(args[0])+" fetched")
		}),
	}
	ch.flags(cmd)
	s.wait.flags(cmd)
	s.wait.timeout = uploadTimeout
	cmd.Flags().StringVar(&node, "node", "", "that fetches (default: the cluster chooses)")
	return cmd
}
