package control

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// Limits of moves.
const (
	moveTriesMax = 3               // migrations of one VM for one drain or balancing
	movesPause   = time.Minute     // between looks when nothing changes
	movesCancel  = 5 * time.Second // to ask the migrations of a cancelled task to end
)

// moves is the migrations that one task of the leader asks for. They are tasks
// of their own, named after the task, the VM and the try: so the leader, or the
// next one, finds in the tables how far it has come, and asks for none twice.
type moves struct {
	c        *Control
	task     *api.Task
	parallel int  // that one node takes part in
	copies   bool // volumes that only the source sees are copied along
}

// moveState is how far the move of one VM is.
type moveState struct {
	try     int        // of the last migration; 0: none yet
	last    *api.Task  // the last migration
	reason  *api.Error // why the last try failed
	flying  bool
	arrived bool // a migration was done
	given   bool // up: all tries failed
}

func (m *moves) child(vm *api.VM, try int) string {
	return fmt.Sprintf("%s-%s-%d", m.task.Name, strings.SplitN(vm.ID, "-", 2)[0], try)
}

// state reads how far the move of a VM is.
func (m *moves) state(view *fsm.View, vm *api.VM) moveState {
	var s moveState
	for try := 1; try <= moveTriesMax; try++ {
		t := fsm.Tasks.Get(view, m.child(vm, try))
		if t == nil {
			return s
		}
		s.try, s.last = try, t
		switch {
		case !t.Ended():
			s.flying = true
			return s
		case t.State == api.TaskDone:
			s.arrived = true
			return s
		}
		if s.reason = t.Error; s.reason == nil {
			s.reason = api.Errorf(api.CodeConflict, "was %s", t.State)
		}
	}
	s.given = true
	return s
}

// begin asks for the migration of a VM; to may be empty: placement chooses.
func (m *moves) begin(ctx context.Context, vm *api.VM, to string, try int) error {
	args, err := json.Marshal(api.MigrateArgs{Node: to, CopyStorage: m.copies})
	if err != nil {
		return err
	}
	submit := fsm.TaskSubmit{Name: m.child(vm, try), Verb: api.TaskMigrate, Kind: api.KindVM, Object: api.Key(vm.Tenant, vm.Name), Args: args}
	_, err = m.c.propose(ctx, fsm.SubmitTask.Entry(submit))
	return err
}

// stop asks the migrations that are under way to end, when the task itself was
// cancelled. A change of the leader leaves them: the next leader takes them up.
func (m *moves) stop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), movesCancel)
	defer cancel()
	view := m.c.cluster.State().Read()
	if now := fsm.Tasks.Get(view, m.task.Name); now != nil && !now.Cancel && !now.Ended() {
		return
	}
	for _, state := range []string{api.TaskPending, api.TaskRunning} {
		for t := range fsm.Tasks.By(view, "state", state) {
			if !strings.HasPrefix(t.Name, m.task.Name+"-") || t.Cancel {
				continue
			}
			if _, err := m.c.propose(ctx, fsm.CancelTask.Entry(fsm.TaskName{Name: t.Name})); err != nil {
				m.c.log.Warn("migration not cancelled", "task", t.Name, "error", err)
			}
		}
	}
}

// busy counts the migrations that each node takes part in, whoever asked for
// them, as far as their destinations are known.
func busyMoves(view *fsm.View) map[string]int {
	busy := map[string]int{}
	for _, state := range []string{api.TaskPending, api.TaskRunning} {
		for t := range fsm.Tasks.By(view, "state", state) {
			if t.Verb != api.TaskMigrate {
				continue
			}
			if i := instanceOf(view, t.Object); i != nil && i.Owner != "" {
				busy[i.Owner]++
			}
			var args api.MigrateArgs
			if json.Unmarshal(t.Args, &args) == nil && args.Node != "" {
				busy[args.Node]++
			}
		}
	}
	return busy
}

// movesParallel is how many moves one node takes part in at a time.
func movesParallel(view *fsm.View, asked int) int {
	if asked > 0 {
		return asked
	}
	return fsm.Settings(view).MovesPerNode
}

// reasonsText lists at most five reasons.
func reasonsText(reasons []string) string {
	const most = 5
	slices.Sort(reasons)
	if len(reasons) > most {
		reasons = append(reasons[:most:most], fmt.Sprintf("and %d more", len(reasons)-most))
	}
	return strings.Join(reasons, "; ")
}
