package control

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// balance carries out a task of verb TaskBalance: the moves that somebody chose,
// in their order, as many at a time as their nodes take. A move whose VM is no
// longer where it was is left out.
func (c *Control) balance(ctx context.Context, task *api.Task, report func(percent int, step string)) error {
	var args api.BalanceArgs
	if err := json.Unmarshal(task.Args, &args); err != nil {
		return api.Invalid("args", "are not understood")
	}
	m := &moves{c: c, task: task}
	defer func() {
		if ctx.Err() != nil {
			m.stop(ctx)
		}
	}()
	shown := ""
	for {
		state := c.cluster.State()
		advanced := state.Advanced()
		view := state.Read()
		m.parallel = movesParallel(view, args.Parallel)
		t := m.balanceStep(ctx, view, args.Moves)
		if text := t.text(); text != shown {
			shown = text
			report(100*(len(args.Moves)-t.open)/len(args.Moves), text)
		}
		if t.open == 0 {
			return t.err()
		}
		if !wait(ctx, movesPause, advanced) {
			return ctx.Err()
		}
	}
}

// balanceTally counts what became of the moves.
type balanceTally struct {
	open, arrived, left int
	failed              []string
}

func (t *balanceTally) text() string {
	text := fmt.Sprintf("%d to go, %d moved", t.open, t.arrived)
	if t.left > 0 {
		text += fmt.Sprintf(", %d left out: the VM is not where it was", t.left)
	}
	if len(t.failed) > 0 {
		text += fmt.Sprintf(", %d failed", len(t.failed))
	}
	return text
}

func (t *balanceTally) err() error {
	if len(t.failed) == 0 {
		return nil
	}
	return api.Errorf(api.CodeConflict, "%d moves failed: %s", len(t.failed), reasonsText(t.failed)).Do("ask for a new proposal")
}

// balanceStep asks for as many of the moves as may run.
func (m *moves) balanceStep(ctx context.Context, view *fsm.View, all []api.Move) *balanceTally {
	t, busy := &balanceTally{}, busyMoves(view)
	for _, move := range all {
		vm := fsm.VMs.Get(view, move.VM)
		if vm == nil || move.ID != "" && vm.ID != move.ID {
			t.left++
			continue
		}
		s, i := m.state(view, vm), fsm.Instances.Get(view, vm.ID)
		switch {
		case s.flying:
			t.open++
		case s.arrived:
			t.arrived++
		case s.given:
			t.failed = append(t.failed, fmt.Sprintf("vm %s: %s", move.VM, s.reason.Message))
		case i == nil || i.Owner != move.From:
			t.left++
		case busy[move.From] >= m.parallel || busy[move.To] >= m.parallel:
			t.open++
		default:
			if err := m.begin(ctx, vm, move.To, s.try+1); err != nil && ctx.Err() == nil {
				t.failed = append(t.failed, fmt.Sprintf("vm %s: %s", move.VM, api.AsError(err).Message))
				continue
			}
			busy[move.From]++
			busy[move.To]++
			t.open++
		}
	}
	return t
}
