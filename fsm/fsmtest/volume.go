package fsmtest

import (
	"fmt"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

func volumeMakers() map[string]func(*Generator) fsm.Entry {
	return map[string]func(*Generator) fsm.Entry{
		fsm.SizeReplica.Op(): (*Generator).sizeReplica,
		fsm.MoveVolume.Op():  (*Generator).moveVolume,
	}
}

func (g *Generator) sizeReplica() fsm.Entry {
	name, epoch := g.liveNode()
	in := fsm.ReplicaSize{Replica: g.uuid(1), Node: name, Epoch: epoch, SizeBytes: pick[int64](g, api.GiB, 2*api.GiB, 0), Reason: g.text()}
	if r := row(g, list(fsm.Replicas, g.view)); r != nil {
		in.Replica = r.Name
		if n := fsm.Nodes.Get(g.view, r.Node); n != nil && !g.chance(4) {
			in.Node, in.Epoch = r.Node, g.revision(n.Epoch)
		}
	}
	return fsm.SizeReplica.Entry(in)
}

// moveVolume mostly moves a volume that a VM of the node uses.
func (g *Generator) moveVolume() fsm.Entry {
	in := fsm.VolumeMoved{Volume: "default/vol0", ID: g.uuid(1), To: pick(g, fsm.DefaultPool, g.name("p", 2)), SizeBytes: api.GiB}
	for v := range fsm.Volumes.All(g.view) {
		for vm := range fsm.VMs.By(g.view, "volume", api.Key(v.Tenant, v.Name)) {
			i := fsm.Instances.Get(g.view, vm.ID)
			if i == nil || i.Owner == "" || fsm.Nodes.Get(g.view, i.Owner) == nil {
				continue
			}
			in.Volume, in.ID, in.From, in.VM, in.Gen = api.Key(v.Tenant, v.Name), v.ID, v.Pool, vm.ID, g.revision(i.Gen)
			in.Node, in.Epoch = i.Owner, g.revision(fsm.Nodes.Get(g.view, i.Owner).Epoch)
			if g.chance(3) {
				break
			}
		}
	}
	if p := row(g, list(fsm.Pools, g.view)); p != nil && !g.chance(8) {
		in.To = p.Name
	}
	return fsm.MoveVolume.Entry(in)
}

func (g *Generator) submitMove() fsm.Entry {
	in := fsm.TaskSubmit{Name: fmt.Sprintf("task-%d", g.serial), Verb: api.TaskMoveVolume, Kind: api.KindVolume, Object: "default/vol0",
		Args: raw(api.VolumeMove{Pool: pick(g, fsm.DefaultPool, g.name("p", 2))})}
	if v := row(g, list(fsm.Volumes, g.view)); v != nil {
		in.Object = api.Key(v.Tenant, v.Name)
	}
	return fsm.SubmitTask.Entry(in)
}
