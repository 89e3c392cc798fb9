package control

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// drain carries out a task of verb TaskDrain: every running VM of the node is
// migrated away with its local disks, the most important first. It ends when none is left; when all
// that are left have failed to leave it fails and names them. VMs that are off
// stay where their disks are.
func (c *Control) drain(ctx context.Context, task *api.Task, report func(percent int, step string)) error {
	var args api.DrainArgs
	if len(task.Args) > 0 {
		if err := json.Unmarshal(task.Args, &args); err != nil {
			return api.Invalid("args", "are not understood")
		}
	}
	d := &drain{c: c, node: task.Object}
	d.moves = &moves{c: c, task: task, copies: true}
	defer func() {
		if ctx.Err() != nil {
			d.stop(ctx)
		}
	}()
	for {
		state := c.cluster.State()
		advanced := state.Advanced()
		view := state.Read()
		d.parallel = movesParallel(view, args.Parallel)
		done, err := d.step(ctx, view, report)
		if done || err != nil {
			return err
		}
		if !wait(ctx, movesPause, advanced) {
			return ctx.Err()
		}
	}
}

// drain is one node being emptied.
type drain struct {
	*moves
	c     *Control
	node  string
	most  int    // VMs that were there in all, as far as was seen
	shown string // what was reported last
}

// step asks for as many migrations as may run, and reports. done: nothing is
// left to do.
func (d *drain) step(ctx context.Context, view *fsm.View, report func(int, string)) (done bool, err error) {
	node := fsm.Nodes.Get(view, d.node)
	switch {
	case node == nil:
		return true, nil
	case !node.Unschedulable:
		return false, api.Errorf(api.CodeConflict, "was opened for new VMs meanwhile").On(api.KindNode, d.node).Do("drain it again")
	}
	running, off := guestsOf(view, d.node)
	d.most = max(d.most, len(running))
	flying, busy := 0, busyMoves(view)[d.node]
	var stuck []string
	for _, vm := range running {
		s := d.state(view, vm)
		switch {
		case s.flying:
			flying++
		case s.given:
			stuck = append(stuck, fmt.Sprintf("vm %s: %s", api.Key(vm.Tenant, vm.Name), s.reason.Message))
		case busy < d.parallel:
			if err := d.begin(ctx, vm, "", s.try+1); err != nil {
				if ctx.Err() != nil {
					return false, ctx.Err()
				}
				d.c.log.Warn("migration not asked for", "vm", api.Key(vm.Tenant, vm.Name), "error", err)
				stuck = append(stuck, fmt.Sprintf("vm %s: %s", api.Key(vm.Tenant, vm.Name), api.AsError(err).Message))
				continue
			}
			flying++
			busy++
		}
	}
	d.tell(report, len(running), flying, len(stuck), off)
	switch {
	case len(running) == 0:
		return true, nil
	case flying == 0 && len(stuck) == len(running):
		return false, api.Errorf(api.CodeConflict, "%d of its VMs cannot leave: %s", len(stuck), reasonsText(stuck)).On(api.KindNode, d.node).
			Do("mend what is named, or stop these VMs, and drain it again")
	}
	return false, nil
}

func (d *drain) tell(report func(int, string), left, flying, stuck, off int) {
	text := fmt.Sprintf("%d VMs left, %d moving", left, flying)
	if stuck > 0 {
		text += fmt.Sprintf(", %d cannot leave", stuck)
	}
	if off > 0 {
		text += fmt.Sprintf("; %d are off and stay", off)
	}
	if text == d.shown {
		return
	}
	d.shown = text
	percent := 100
	if d.most > 0 {
		percent = 100 * (d.most - left) / d.most
	}
	report(percent, text)
}

// guestsOf lists the VMs of a node that are to run, the most important first,
// and counts those that are off.
func guestsOf(view *fsm.View, node string) (running []*api.VM, off int) {
	for i := range fsm.Instances.By(view, "owner", node) {
		for vm := range fsm.VMs.By(view, "id_of", i.Name) {
			if vm.On() && i.State != api.InstanceStopped {
				running = append(running, vm)
			} else {
				off++
			}
		}
	}
	slices.SortFunc(running, func(a, b *api.VM) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(a.Created, b.Created), cmp.Compare(a.ID, b.ID))
	})
	return running, off
}
