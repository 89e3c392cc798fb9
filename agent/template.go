package agent

import (
	"context"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// templateSpace is the namespace of the IDs of images that tasks make (RFC
// 9562, version 5): the same task makes the same image, however often it is
// begun.
func templateSpace() uuid.UUID { return uuid.MustParse("6d4c9fa2-5a0f-4f0e-9c5e-6f8f4a6d3b11") }

// makeTemplate carries out vm.template. It runs in the VM's job, so the guest
// is not started meanwhile.
func (a *Agent) makeTemplate(ctx context.Context, o *operation) error {
	var args api.TemplateArgs
	if err := o.args(&args); err != nil {
		return err
	}
	if o.vm.On() {
		return api.Errorf(api.CodeConflict, "was started meanwhile").On(api.KindVM, o.row.VM).Do("stop it and try again")
	}
	if o.executing() {
		return api.Errorf(api.CodeUnavailable, "is still shutting down").On(api.KindVM, o.row.VM)
	}
	disk, ok := o.vm.Disk(args.Disk)
	volume := fsm.Volumes.Get(o.view, api.Key(o.vm.Tenant, disk.Volume))
	if !ok || volume == nil {
		return api.Invalid("disk", "%q is no disk of the VM any more", args.Disk).On(api.KindVM, o.row.VM)
	}
	_, pool, err := a.pool(o.view, volume.Pool)
	if err != nil {
		return err
	}
	maker := a.config.Templates[fsm.Pools.Get(o.view, volume.Pool).Driver]
	if maker == nil {
		return api.Errorf(api.CodeConflict, "makes no images of its volumes").On(api.KindPool, volume.Pool)
	}
	o.step(ctx, 1, "copying disk "+disk.Name)
	id := uuid.NewSHA1(templateSpace(), []byte(o.task.Name)).String()
	var made plugins.MadeImage
	a.apart(func() {
		made, err = maker.MakeImage(ctx, pool, volume.ID, id, func(percent int) { o.tell(ctx, percent, "copying disk "+disk.Name) })
		if err == nil {
			err = a.enterImage(ctx, o, volume.Pool, made)
		}
	})
	return err
}

// enterImage puts the image into the catalogue, which ends the task. The file
// of one that was refused goes; where the outcome is not known it stays, since
// the entry may yet be carried out.
func (a *Agent) enterImage(ctx context.Context, o *operation, pool string, made plugins.MadeImage) error {
	_, err := a.propose(ctx, fsm.MakeImage.Entry(fsm.ImageMake{
		Task: o.task.Name, Node: o.task.Node, Epoch: o.task.Epoch, Attempt: o.task.Attempt, ID: made.ID, Pool: pool, Format: made.Source.Format,
		SHA256: made.SHA256, FileBytes: made.FileBytes, SizeBytes: made.SizeBytes, UsedBytes: made.UsedBytes,
	}))
	if err != nil && !undecided(err) && ctx.Err() == nil {
		a.dropTemplate(ctx, o, pool, made.ID)
	}
	return err
}

// dropTemplate removes the file of an image that will not be.
func (a *Agent) dropTemplate(ctx context.Context, o *operation, pool, id string) {
	storage, spec, err := a.pool(a.view(), pool)
	for range fsm.Images.By(a.view(), "id_of", id) {
		return
	}
	if err == nil {
		within, cancel := context.WithTimeout(ctx, actTimeout)
		defer cancel()
		err = storage.DeleteImage(within, spec, id)
	}
	if err != nil {
		a.log.Warn("the file of a template that was given up stays", "task", o.task.Name, "image", id, "error", err)
	}
}
