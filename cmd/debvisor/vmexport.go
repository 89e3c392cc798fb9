package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
	"github.com/debvisor/debvisor/api/spec"
)

// The files of an exported VM, beside its disks.
const (
	exportManifest = "manifest.json" // written last: with it the export is complete
	exportHCL      = "vm.hcl"        // the definition for people
	exportVersion  = 1
)

// exported is the manifest of an exported VM.
type exported struct {
	Version int            `json:"version"`
	VM      api.VM         `json:"vm"`     // its disks name images
	Images  []exportedFile `json:"images"` // that it needs
}

// exportedFile is one image of an exported VM.
type exportedFile struct {
	Name      string `json:"name"` // of the image
	File      string `json:"file"` // in the directory
	Format    string `json:"format"`
	SHA256    string `json:"sha256"`
	SizeBytes int64  `json:"size_bytes"` // of the file
}

func exportVMCommand(a *app) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "export NAME", Short: "Write a VM that is off to a directory: its definition and its disks",
		Long: `Writes a VM that is off to a directory: its definition, and its disks and the
images that it boots from as files with checksums. debvisor vm import brings it
into any cluster. An export that was interrupted goes on when it is repeated.`,
		Example: "  debvisor vm export web --to web.export",
		Args:    exactly("NAME"), ValidArgsFunction: a.completeNames(vms()),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.clientWith(uploadTimeout)
			if err != nil {
				return err
			}
			vm, _, err := client.Resource[api.VM](c, api.KindVM).Get(cmd.Context(), a.tenantName(), args[0], client.ReadOptions{})
			if err != nil {
				return err
			}
			e := &exporting{a: a, c: c, vm: vm, dir: dir}
			if err := e.run(cmd.Context()); err != nil {
				return err
			}
			return a.result(e.out, "vm %s is in %s", clean(vm.Name), dir)
		},
	}
	cmd.Flags().StringVar(&dir, "to", "", "directory to write; made when missing")
	_ = cmd.MarkFlagRequired("to")
	_ = cmd.MarkFlagDirname("to")
	return cmd
}

// exporting is one VM on its way into a directory.
type exporting struct {
	a   *app
	c   *client.Client
	vm  *api.VM
	dir string
	out exported
}

func (e *exporting) run(ctx context.Context) error {
	key := api.Key(e.vm.Tenant, e.vm.Name)
	if e.vm.On() {
		return api.Errorf(api.CodeConflict, "is on: a copy of disks in use would not be sound").On(api.KindVM, key).Do("stop it first: debvisor vm stop %s", e.vm.Name)
	}
	if _, err := os.Lstat(filepath.Join(e.dir, exportManifest)); !errors.Is(err, os.ErrNotExist) {
		return api.Invalid("to", "%s holds an export already", e.dir).Do("name another directory")
	}
	if err := os.MkdirAll(e.dir, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	e.out = exported{Version: exportVersion, VM: portable(e.vm)}
	for i := range e.out.VM.Disks {
		if err := e.disk(ctx, &e.out.VM.Disks[i]); err != nil {
			return fmt.Errorf("disk %s: %w", e.out.VM.Disks[i].Name, err)
		}
	}
	for _, name := range bootImages(&e.out.VM) {
		image, _, err := client.Resource[api.Image](e.c, api.KindImage).Get(ctx, e.vm.Tenant, name, client.ReadOptions{})
		if err == nil {
			err = e.file(ctx, image, image.Name)
		}
		if err != nil {
			return fmt.Errorf("image %s: %w", name, err)
		}
	}
	text, err := spec.Format(api.KindVM, &e.out.VM)
	if err != nil {
		return err
	}
	raw, err := json.MarshalIndent(e.out, "", "  ")
	if err != nil {
		return fmt.Errorf("encode manifest: %w", err)
	}
	if err := os.WriteFile(filepath.Join(e.dir, exportHCL), text, 0o600); err != nil {
		return fmt.Errorf("write definition: %w", err)
	}
	path := filepath.Join(e.dir, exportManifest)
	if err := os.WriteFile(path+partSuffix, append(raw, '\n'), 0o600); err != nil { // cloud-init may hold what others should not read
		return fmt.Errorf("write manifest: %w", err)
	}
	return os.Rename(path+partSuffix, path)
}

// portable is the VM without what belongs to this cluster: it is off, and no
// node, ID or revision is named.
func portable(vm *api.VM) api.VM {
	out := *vm
	out.Tenant, out.ID, out.Created, out.Modified, out.CreatedAt, out.ModifiedAt = "", "", 0, 0, time.Time{}, time.Time{}
	out.Power, out.Placement.Node = api.PowerOff, ""
	out.Disks = append([]api.Disk(nil), vm.Disks...)
	return out
}

// bootImages are the names of the images that the VM reads besides its disks,
// each once.
func bootImages(vm *api.VM) []string {
	var names []string
	add := func(name string) {
		for _, have := range names {
			if have == name {
				return
			}
		}
		if name != "" {
			names = append(names, name)
		}
	}
	if vm.Boot != nil {
		add(vm.Boot.Kernel)
		add(vm.Boot.Initrd)
	}
	for _, drive := range vm.CDROMs {
		add(drive.Image)
	}
	return names
}

// disk makes an image of the disk, downloads it and deletes it again. The image
// goes by the disk and the VM's revision, so that a repeated export finds it.
func (e *exporting) disk(ctx context.Context, disk *api.Disk) error {
	images := client.Resource[api.Image](e.c, api.KindImage)
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d %s", e.vm.ID, e.vm.Modified, disk.Name))
	name := "export-" + hex.EncodeToString(sum[:10])
	image, _, err := images.Get(ctx, e.vm.Tenant, name, client.ReadOptions{})
	if api.CodeOf(err) == api.CodeNotFound {
		var task *api.Task
		task, err = e.c.TemplateVM(ctx, e.vm.Tenant, e.vm.Name, api.TemplateArgs{Image: name, Disk: disk.Name,
			Description: fmt.Sprintf("disk %s of vm %s, being exported; goes by itself", disk.Name, e.vm.Name)})
		if err == nil {
			_, err = e.a.waitTask(ctx, e.c, task.Name)
		}
		if err == nil {
			image, _, err = images.Get(ctx, e.vm.Tenant, name, client.ReadOptions{})
		}
	}
	if err != nil {
		return err
	}
	base := importedName(e.vm.Name, disk.Name)
	if err := e.file(ctx, image, base); err != nil {
		return err
	}
	*disk = api.Disk{Name: disk.Name, Image: base, Bus: disk.Bus, Cache: disk.Cache, Discard: disk.Discard, Serial: disk.Serial,
		BootOrder: disk.BootOrder, ReadOnly: disk.ReadOnly, IOLimits: disk.IOLimits}
	return images.Delete(ctx, image.Tenant, image.Name, image.Modified)
}

// importedName is the image that an imported disk starts from.
func importedName(vm, disk string) string {
	name := vm + "-" + disk
	if len(name) > api.NameLengthMax {
		sum := sha256.Sum256([]byte(name))
		name = name[:api.NameLengthMax-9] + "-" + hex.EncodeToString(sum[:4])
	}
	return name
}

// file downloads an image under its new name, unless that was done before.
func (e *exporting) file(ctx context.Context, image *api.Image, name string) error {
	entry := exportedFile{Name: name, File: name + "." + image.Format, Format: image.Format, SHA256: image.SHA256, SizeBytes: image.SizeBytes}
	path := filepath.Join(e.dir, entry.File)
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
		if err := os.Rename(path, path+partSuffix); err != nil { // is verified again
			return err
		}
	}
	if err := e.a.receiveImage(ctx, e.c, image, path); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("read what was downloaded: %w", err)
	}
	entry.SizeBytes = info.Size()
	e.out.Images = append(e.out.Images, entry)
	return nil
}
