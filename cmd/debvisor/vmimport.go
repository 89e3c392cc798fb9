package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

// Limits of an exported VM that is read.
const (
	manifestBytesMax = 1 << 20
	importFilesMax   = api.DisksMax + api.CDROMsMax + 2
)

func importVMCommand(a *app) *cobra.Command {
	im := &importing{a: a}
	cmd := &cobra.Command{
		Use: "import DIR", Short: "Bring in a VM that debvisor vm export wrote",
		Long: `Brings in a VM that debvisor vm export wrote: verifies every file against the
manifest, uploads what the cluster does not have, and makes the VM, which is
off. What fails is taken back; what was interrupted goes on when it is repeated.`,
		Example: "  debvisor vm import web.export --name web2 --new-macs",
		Args:    exactly("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if im.c, err = a.clientWith(uploadTimeout); err != nil {
				return err
			}
			im.tenant = a.tenantName()
			return im.run(cmd.Context(), args[0])
		},
	}
	f := cmd.Flags()
	f.StringVar(&im.name, "name", "", "of the VM (default: as it was)")
	f.StringVar(&im.pool, "pool", "", "of its disks (default local)")
	f.BoolVar(&im.newMACs, "new-macs", false, "give its interfaces other addresses: the VM that was exported still exists")
	f.BoolVar(&im.plan, "plan", false, "verify, show what would be made, and change nothing")
	return cmd
}

// importing is one VM on its way out of a directory.
type importing struct {
	a       *app
	c       *client.Client
	tenant  string
	name    string
	pool    string
	newMACs bool
	plan    bool

	root *os.Root
	in   exported
	made []*api.Image // by this command, to be taken back when it fails
}

func (im *importing) run(ctx context.Context, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open export: %w", err)
	}
	defer func() { _ = root.Close() }() // it was only read
	im.root = root
	if im.in, err = readExport(root); err != nil {
		return err
	}
	im.settle()
	missing, err := im.missing(ctx)
	if err != nil {
		return err
	}
	if err := im.verify(); err != nil {
		return err
	}
	if im.plan {
		for _, f := range missing {
			im.a.printf("+ image %s (%s)\n", f.Name, api.FormatSize(f.SizeBytes))
		}
		im.a.printf("+ vm %s, off, with %d disks\n", clean(im.in.VM.Name), len(im.in.VM.Disks))
		return nil
	}
	vm, err := im.make(ctx, missing)
	if err != nil {
		return im.takeBack(ctx, err)
	}
	return im.a.result(vm, "vm %s imported; start it: debvisor vm start %s", clean(vm.Name), clean(vm.Name))
}

// readExport reads and judges the manifest. Nothing in it is believed: names
// are names, files lie in the directory itself, and the VM must be one that a
// user could have written.
func readExport(root *os.Root) (exported, error) {
	var in exported
	f, err := openRegular(root, exportManifest)
	if err != nil {
		return in, err
	}
	defer func() { _ = f.Close() }() // it was only read
	raw, err := io.ReadAll(io.LimitReader(f, manifestBytesMax+1))
	if err != nil {
		return in, fmt.Errorf("read manifest: %w", err)
	}
	if len(raw) > manifestBytesMax {
		return in, api.Invalid(exportManifest, "has more than %d bytes", manifestBytesMax)
	}
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil || d.More() {
		return in, api.Invalid(exportManifest, "is not understood: %v", err).Do("export the VM again, or use a newer debvisor")
	}
	if in.Version != exportVersion {
		return in, api.Invalid("version", "is %d", in.Version).Allow("%d", exportVersion)
	}
	return in, in.check()
}

func (in *exported) check() error {
	if len(in.Images) > importFilesMax {
		return api.Invalid("images", "has %d files", len(in.Images)).Allow("at most %d", importFilesMax)
	}
	files, names := map[string]bool{}, map[string]bool{}
	for i, f := range in.Images {
		at := func(field string) string { return fmt.Sprintf("images[%d].%s", i, field) }
		image := api.Image{Meta: api.Meta{Name: f.Name, Tenant: api.DefaultTenant}, Format: f.Format, SHA256: f.SHA256, SizeBytes: f.SizeBytes}
		if err := image.Validate(); err != nil {
			return api.AsError(err).OnMissing(api.KindImage, f.Name)
		}
		if f.File != f.Name+"."+f.Format || !filepath.IsLocal(f.File) || strings.ContainsAny(f.File, `/\`) {
			return api.Invalid(at("file"), "is %q", f.File).Allow("%s.%s", f.Name, f.Format)
		}
		if files[f.File] || names[f.Name] {
			return api.Invalid(at("name"), "%q is there twice", f.Name)
		}
		files[f.File], names[f.Name] = true, true
	}
	vm := in.VM
	for _, d := range vm.Disks {
		if d.Volume != "" || d.Source != "" || d.Image != "" && !names[d.Image] {
			return api.Invalid("vm.disks", "disk %q is none of the files", d.Name).Do("export the VM again")
		}
	}
	if vm.ID != "" || vm.Modified != 0 || vm.On() {
		return api.Invalid("vm", "is not as an export writes it").Do("export the VM again")
	}
	vm.Tenant = api.DefaultTenant
	if err := vm.Validate(); err != nil {
		return api.AsError(err).OnMissing(api.KindVM, vm.Name)
	}
	return nil
}

// openRegular opens a file of the directory: no link, no device.
func openRegular(root *os.Root, name string) (*os.File, error) {
	info, err := root.Lstat(name)
	if err != nil {
		return nil, fmt.Errorf("open export: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, api.Invalid("file", "%s is no regular file", name)
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open export: %w", err)
	}
	return f, nil
}

// settle applies the flags to the VM.
func (im *importing) settle() {
	vm := &im.in.VM
	vm.Tenant = im.tenant
	if im.name != "" {
		vm.Name = im.name
	}
	for i := range vm.Disks {
		vm.Disks[i].Pool = im.pool
	}
	for i := range vm.NICs {
		if im.newMACs {
			vm.NICs[i].MAC = ""
		}
	}
}

// missing is the images that the cluster does not have. One that has the name
// with another content is in the way.
func (im *importing) missing(ctx context.Context) ([]exportedFile, error) {
	if _, _, err := client.Resource[api.VM](im.c, api.KindVM).Get(ctx, im.tenant, im.in.VM.Name, client.ReadOptions{}); api.CodeOf(err) != api.CodeNotFound {
		if err != nil {
			return nil, err
		}
		return nil, api.Errorf(api.CodeConflict, "exists already").On(api.KindVM, api.Key(im.tenant, im.in.VM.Name)).Do("import it under another name: --name NAME")
	}
	var out []exportedFile
	for _, f := range im.in.Images {
		have, err := getImage(ctx, im.c, im.tenant, f.Name, client.ReadOptions{})
		switch {
		case api.CodeOf(err) == api.CodeNotFound:
			out = append(out, f)
		case err != nil:
			return nil, err
		case have.SHA256 != f.SHA256 || have.Format != f.Format:
			return nil, api.Errorf(api.CodeConflict, "exists with another content").On(api.KindImage, api.Key(im.tenant, f.Name)).Do("delete it, or import into another tenant")
		case len(have.Nodes) == 0:
			out = append(out, f) // an import that was interrupted
		}
	}
	return out, nil
}

// verify reads every file before anything is made.
func (im *importing) verify() error {
	for _, f := range im.in.Images {
		file, err := openRegular(im.root, f.File)
		if err != nil {
			return err
		}
		p, sum := im.a.progress(), sha256.New()
		n, err := io.Copy(sum, &meter{r: io.LimitReader(file, f.SizeBytes+1), report: func(n int64) { p.bytes("verify "+f.File, n, f.SizeBytes) }})
		p.end()
		if err = errors.Join(err, file.Close()); err != nil {
			return fmt.Errorf("read %s: %w", f.File, err)
		}
		if got := hex.EncodeToString(sum.Sum(nil)); n != f.SizeBytes || got != f.SHA256 {
			return api.Invalid("sha256", "%s is not the file of the manifest", f.File).Do("copy the export again")
		}
	}
	return nil
}

func (im *importing) make(ctx context.Context, missing []exportedFile) (*api.VM, error) {
	images := client.Resource[api.Image](im.c, api.KindImage)
	for _, f := range missing {
		image, _, err := images.Get(ctx, im.tenant, f.Name, client.ReadOptions{})
		if api.CodeOf(err) == api.CodeNotFound {
			image, err = images.Put(ctx, &api.Image{Meta: api.Meta{Name: f.Name, Tenant: im.tenant}, Format: f.Format, SHA256: f.SHA256, SizeBytes: f.SizeBytes,
				Description: "of the imported vm " + im.in.VM.Name})
		}
		if err != nil {
			return nil, err
		}
		im.made = append(im.made, image)
		if err := im.a.sendImage(ctx, im.c, image, func() (io.ReadSeekCloser, error) { return openRegular(im.root, f.File) }); err != nil {
			return nil, err
		}
	}
	return client.Resource[api.VM](im.c, api.KindVM).Put(ctx, &im.in.VM)
}

// takeBack deletes the images of an import that failed for good. After a
// failure that may pass they stay, for the next try to go on from.
func (im *importing) takeBack(ctx context.Context, failed error) error {
	switch api.CodeOf(failed) {
	case api.CodeUnavailable, api.CodeUnknown, api.CodeNoLeader:
		return fmt.Errorf("%w; repeat the command to go on", failed)
	}
	if ctx.Err() != nil {
		return failed
	}
	for _, image := range im.made {
		if err := client.Resource[api.Image](im.c, api.KindImage).Delete(ctx, image.Tenant, image.Name, image.Modified); err != nil {
			failed = errors.Join(failed, fmt.Errorf("image %s stays: %w", image.Name, err))
		}
	}
	return failed
}
