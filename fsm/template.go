package fsm

import (
	"encoding/json"

	"github.com/debvisor/debvisor/api"
)

// templateArgs reads the arguments of a vm.template task.
func templateArgs(t *api.Task) (api.TemplateArgs, *api.Error) {
	var args api.TemplateArgs
	if err := json.Unmarshal(t.Args, &args); err != nil {
		return args, api.Invalid("args", "are not understood").Allow(`{"image": NAME, "disk": NAME}`)
	}
	return args, nil
}

// checkTemplate is the rule of vm.template: the VM is off and has the disk, and
// the image's name is free.
func checkTemplate(tx *Tx, t *api.Task) *api.Error {
	args, err := templateArgs(t)
	if err != nil {
		return err
	}
	vm := VMs.Get(tx, t.Object)
	probe := api.Image{Meta: api.Meta{Name: args.Image, Tenant: vm.Tenant, Labels: args.Labels}, Format: api.FormatQCOW2, SHA256: noChecksum, SizeBytes: 1, Description: args.Description}
	if err := probe.Validate(); err != nil {
		return api.AsError(err).OnMissing(api.KindImage, api.Key(vm.Tenant, args.Image))
	}
	if Images.Get(tx, api.Key(vm.Tenant, args.Image)) != nil {
		return api.Errorf(api.CodeConflict, "exists already").On(api.KindImage, api.Key(vm.Tenant, args.Image)).Do("choose another name")
	}
	if _, ok := vm.Disk(args.Disk); !ok {
		return api.Invalid("disk", "%q is no disk of the VM", args.Disk).Do("see its disks: debvisor vm show %s", vm.Name)
	}
	if vm.On() {
		return api.Errorf(api.CodeConflict, "is on: a copy of a disk in use would not be sound").Do("stop it first: debvisor vm stop %s", vm.Name)
	}
	if i := Instances.Get(tx, vm.ID); i == nil || i.Owner == "" {
		return api.Errorf(api.CodeConflict, "has never run: there is nothing to copy").Do("start it once")
	}
	return nil
}

// noChecksum stands for one that is not known yet.
const noChecksum = "0000000000000000000000000000000000000000000000000000000000000000"

// ImageMake is the body of image.make: what a node made for a vm.template task.
type ImageMake struct {
	Task      string `json:"task"`
	Node      string `json:"node"`
	Epoch     uint64 `json:"epoch"`
	Attempt   int    `json:"attempt"`
	ID        string `json:"id"` // of the image; names the file
	Pool      string `json:"pool"`
	Format    string `json:"format"`
	SHA256    string `json:"sha256"`
	FileBytes int64  `json:"file_bytes"`
	SizeBytes int64  `json:"size_bytes"` // virtual
	UsedBytes int64  `json:"used_bytes,omitzero"`
}

// MakeImage enters an image that a node has made into the catalogue, with its
// copy, and ends the task: all in one entry, so that there is never a template
// without bytes, nor bytes that nobody knows.
var MakeImage = transition("image.make", Images, func(tx *Tx, in ImageMake) (*api.Image, *api.Error) {
	t, err := taskOf(tx, TaskReport{Name: in.Task, Node: in.Node, Epoch: in.Epoch, Attempt: in.Attempt})
	if err != nil {
		return nil, err
	}
	if _, err := liveNode(tx, in.Node, in.Epoch); err != nil {
		return nil, err
	}
	if t.Verb != api.TaskTemplate {
		return nil, api.Errorf(api.CodeConflict, "makes no image").On(api.KindTask, in.Task)
	}
	if t.Cancel {
		return nil, api.Errorf(api.CodeConflict, "was cancelled").On(api.KindTask, in.Task)
	}
	args, err := templateArgs(t)
	if err != nil {
		return nil, err.On(api.KindTask, in.Task)
	}
	image := api.Image{Meta: api.Meta{ID: in.ID, Name: args.Image, Tenant: t.Tenant, Labels: args.Labels}, Format: in.Format, SHA256: in.SHA256,
		SizeBytes: in.FileBytes, Description: args.Description}
	if Pools.Get(tx, in.Pool) == nil {
		return nil, missing("pool", api.KindPool, in.Pool).On(api.KindTask, in.Task)
	}
	if _, err := Images.applyPut(tx, image); err != nil {
		return nil, err
	}
	made := Images.Get(tx, api.Key(t.Tenant, args.Image))
	name := api.ReplicaName(made.ID, in.Node)
	Replicas.put(tx, api.Replica{Meta: api.Meta{Name: name}, Kind: api.KindImage, Of: api.Key(t.Tenant, args.Image), OfID: made.ID, Node: in.Node, Pool: in.Pool,
		State: api.ReplicaReady, SizeBytes: max(0, in.SizeBytes), UsedBytes: max(0, in.UsedBytes), FileBytes: max(0, in.FileBytes)})
	endTask(tx, t, api.TaskDone)
	Tasks.put(tx, *t)
	return made, nil
}).forAgents()
