package control

import (
	"encoding/json"
	"hash/fnv"
	"slices"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// fetchTriesOnNode is how often a fetch is tried on one node before the next
// has its turn: the first has what arrived already.
const fetchTriesOnNode = 4

// routeToAny sends a task to the node that its arguments name, or spreads those
// that name none: each object begins on a node of its own, and stays there.
func routeToAny(view *fsm.View, task *api.Task) route {
	var args struct {
		Node string `json:"node"`
	}
	if len(task.Args) > 0 {
		if err := json.Unmarshal(task.Args, &args); err != nil {
			return route{end: api.TaskFailed, err: api.Invalid("args", "are not understood").On(api.KindTask, task.Name)}
		}
	}
	if args.Node != "" {
		return routeToNode(view, task)
	}
	local := fsm.Pools.Get(view, fsm.DefaultPool)
	var nodes []*api.Node
	for n := range fsm.Nodes.All(view) {
		if n.Lease == api.NodeLive && !n.Witness && n.Hypervisor.Healthy && (local == nil || local.On(n.Name)) {
			nodes = append(nodes, n)
		}
	}
	if len(nodes) == 0 {
		return route{wait: true}
	}
	if schedulable := slices.DeleteFunc(slices.Clone(nodes), func(n *api.Node) bool { return n.Unschedulable }); len(schedulable) > 0 {
		nodes = schedulable
	}
	sum := fnv.New32a()
	_, _ = sum.Write([]byte(task.Object)) // a hash takes everything
	n := nodes[(int(sum.Sum32()%uint32(len(nodes)))+task.Attempt/fetchTriesOnNode)%len(nodes)]
	return route{node: n.Name, epoch: n.Epoch}
}
