package fsm

import (
	"fmt"

	"github.com/debvisor/debvisor/api"
)

// taskArgs reads and checks the arguments of a task.
func taskArgs[T any, P interface {
	*T
	Validate() error
}](t *api.Task) (T, *api.Error) {
	var args T
	if len(t.Args) > 0 {
		if err := decodeStrict(t.Args, &args); err != nil {
			return args, api.Invalid("args", "are not understood").On(api.KindTask, t.Name)
		}
	}
	if err := P(&args).Validate(); err != nil {
		return args, api.AsError(err)
	}
	return args, nil
}

// drainNode keeps new VMs away from the node that is drained, from the entry
// of the task on.
func drainNode(tx *Tx, t *api.Task) *api.Error {
	args, err := taskArgs[api.DrainArgs](t)
	if err != nil {
		return err
	}
	n := *Nodes.Get(tx, t.Object)
	if n.Witness {
		return api.Errorf(api.CodeConflict, "is a witness and runs no VMs").On(api.KindNode, n.Name)
	}
	for other := range Tasks.By(tx, "object", api.KindNode+"/"+n.Name) {
		if other.Verb == api.TaskDrain && !other.Ended() {
			return api.Errorf(api.CodeConflict, "is being drained by task %s", other.Name).On(api.KindNode, n.Name).
				Do("wait for it, or cancel it")
		}
	}
	n.Unschedulable, n.Maintenance = true, args.Reason
	if n.Maintenance == "" {
		n.Maintenance = "drained by " + tx.By
	}
	Nodes.put(tx, n)
	return nil
}

// checkBalance refuses moves that name what does not exist. What changed since
// the proposal is found when the move begins.
func checkBalance(tx *Tx, t *api.Task) *api.Error {
	args, err := taskArgs[api.BalanceArgs](t)
	if err != nil {
		return err
	}
	for i, m := range args.Moves {
		if VMs.Get(tx, m.VM) == nil {
			return missing(fmt.Sprintf("moves[%d].vm", i), api.KindVM, m.VM)
		}
		if Nodes.Get(tx, m.To) == nil {
			return missing(fmt.Sprintf("moves[%d].to", i), api.KindNode, m.To)
		}
	}
	return nil
}
