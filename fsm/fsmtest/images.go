package fsmtest

import (
	"fmt"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// imageTask makes a submitted task one that could be done, if it is about
// images.
func (g *Generator) imageTask(in *fsm.TaskSubmit) {
	switch in.Verb {
	case api.TaskFetch:
		if image := row(g, list(fsm.Images, g.view)); image != nil {
			in.Kind, in.Object, in.Args = api.KindImage, api.Key(image.Tenant, image.Name), pick(g, nil, raw(map[string]string{"node": g.node()}))
		}
	case api.TaskTemplate:
		in.Args = raw(api.TemplateArgs{Image: g.name("img", 9), Disk: pick(g, "", "", "d0"), Labels: g.labels()})
	}
}

// makeImage is what a node made for a task. Where no task asks for an image it
// is the next step towards one that does: each alone comes up too seldom.
func (g *Generator) makeImage() fsm.Entry {
	in := fsm.ImageMake{Task: g.task(api.TaskRunning), ID: g.uuid(5000 + g.serial), Pool: fsm.DefaultPool,
		Format: api.FormatQCOW2, SHA256: hash(g.source.IntN(9)), FileBytes: api.MiB, SizeBytes: api.GiB}
	if g.chance(6) {
		in.Pool, in.FileBytes = pick(g, fsm.DefaultPool, g.name("p", 2)), 0
		return fsm.MakeImage.Entry(in)
	}
	for t := range fsm.Tasks.All(g.view) {
		node := fsm.Nodes.Get(g.view, t.Node)
		switch {
		case t.Verb != api.TaskTemplate || t.Ended():
		case t.State == api.TaskPending:
			name, epoch := g.liveNode()
			return fsm.DispatchTask.Entry(fsm.TaskDispatch{Name: t.Name, Node: name, Epoch: epoch, Attempt: t.Attempt})
		case node != nil && node.Lease == api.NodeLive && node.Epoch == t.Epoch:
			in.Task, in.Node, in.Epoch, in.Attempt = t.Name, t.Node, t.Epoch, t.Attempt
			return fsm.MakeImage.Entry(in)
		}
	}
	return g.wantImage()
}

// wantImage asks for an image of a VM that is off, or is a step towards one:
// switches it off, or gives it to a node.
func (g *Generator) wantImage() fsm.Entry {
	var homeless *api.VM
	for vm := range fsm.VMs.All(g.view) {
		if i := fsm.Instances.Get(g.view, vm.ID); len(vm.Disks) == 0 || i == nil || i.Owner == "" {
			if len(vm.Disks) > 0 && (homeless == nil || g.chance(3)) {
				homeless = vm
			}
			continue
		}
		if i := fsm.Instances.Get(g.view, vm.ID); vm.On() && i.State == api.InstanceRunning {
			continue // others have plans with it
		}
		if vm.On() {
			return fsm.PowerVM.Entry(fsm.VMPower{Tenant: vm.Tenant, Name: vm.Name, Power: api.PowerOff})
		}
		in := fsm.TaskSubmit{Name: fmt.Sprintf("task-%d", g.serial), Verb: api.TaskTemplate, Kind: api.KindVM, Object: api.Key(vm.Tenant, vm.Name)}
		g.imageTask(&in)
		return fsm.SubmitTask.Entry(in)
	}
	if homeless == nil {
		return g.makers[fsm.VMs.Kind()+".put"](g)
	}
	node, epoch := g.liveNode()
	in := fsm.Assignment{VM: homeless.ID, Node: node, Epoch: epoch, Decision: api.Decision{Node: node, Summary: "for its image"}}
	if i := fsm.Instances.Get(g.view, homeless.ID); i != nil {
		in.Gen = i.Gen
	}
	return fsm.AssignInstance.Entry(in)
}
