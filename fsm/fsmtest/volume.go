package fsmtest

import (
	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

func volumeMakers() map[string]func(*Generator) fsm.Entry {
	return map[string]func(*Generator) fsm.Entry{
		fsm.SizeReplica.Op(): (*Generator).sizeReplica,
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
