package httpd

import (
	"encoding/json"
	"net/http"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
	"github.com/debvisor/debvisor/fsm"
)

func (s *Server) registerMigration() error {
	return handle(s, route{method: http.MethodPost, path: "/v1/vms/{name}/migrate", right: authz.Right{Verb: authz.Migrate, Kind: api.KindVM, Scope: authz.ScopeTenant},
		change: true, body: api.MigrateArgs{}, bytes: VerbBytesMax, answer: api.Action{}, summary: "Migrate a running VM to another node",
		about: "The guest goes on executing while it is copied. Everything that keeps it from moving is answered at once, before anything moves."},
		(*exchange).migrate)
}

// migrate asks for a migration, or refuses it with every reason that is known.
func (x *exchange) migrate(in *vmInput) error {
	var args api.MigrateArgs
	if err := x.decodeOptional(&args); err != nil {
		return err
	}
	if err := args.Validate(); err != nil {
		return err
	}
	view, err := x.barrier(ReadOptions{})
	if err != nil {
		return err
	}
	key := api.Key(x.tenant, in.Name)
	vm := fsm.VMs.Get(view, key)
	if vm == nil {
		return api.Errorf(api.CodeNotFound, "does not exist").On(api.KindVM, key)
	}
	decision, refusal := x.movable(view, vm, args)
	if refusal != nil {
		return refusal
	}
	if !in.Plan {
		return x.vmTask(in, api.TaskMigrate, args)
	}
	raw, err := json.Marshal(args)
	if err != nil {
		return err
	}
	var moves []api.PlannedPlacement
	if decision != nil {
		moves = append(moves, api.PlannedPlacement{VM: key, Decision: *decision})
	}
	return x.planMoves(moves, fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: x.derivedName("task"), Verb: api.TaskMigrate, Kind: api.KindVM, Object: key, Args: raw}))
}

// movable decides where the guest would go. The leader decides again when it
// gives the task out.
func (x *exchange) movable(view *fsm.View, vm *api.VM, args api.MigrateArgs) (*api.Decision, error) {
	reasons := fsm.MigrationObstacles(view, vm)
	var decision *api.Decision
	if i := fsm.Instances.Get(view, vm.ID); x.s.cfg.Moves != nil && i != nil && i.Owner != "" {
		d := x.s.cfg.Moves(view, vm, args)
		decision = &d
		if d.Node == "" {
			refusal := fsm.MoveRefusal(api.Key(vm.Tenant, vm.Name), d)
			if len(reasons) == 0 {
				return nil, refusal
			}
			reasons = append(reasons, refusal)
		}
	}
	if refusal := fsm.OneError(reasons, "cannot be migrated, for %d reasons", len(reasons)); refusal != nil {
		return nil, refusal.OnMissing(api.KindVM, api.Key(vm.Tenant, vm.Name))
	}
	return decision, nil
}
