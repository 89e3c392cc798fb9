package httpd

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
	"github.com/debvisor/debvisor/fsm"
)

// namedInput are the parameters of a verb on an object without a tenant.
type namedInput struct {
	WriteOptions
	Name string `path:"name" maxLength:"63" doc:"name of the object"`
}

func (s *Server) registerTasks() error {
	return handle(s, route{method: http.MethodPost, path: "/v1/tasks/{name}/cancel", right: authz.Right{Verb: authz.Cancel, Kind: api.KindTask, Scope: authz.ScopeCluster},
		change: true, bytes: VerbBytesMax, answer: api.Task{}, summary: "Cancel a task"}, (*exchange).cancelTask)
}

func (x *exchange) cancelTask(in *namedInput) error {
	if err := x.decodeOptional(&struct{}{}); err != nil {
		return err
	}
	if err := x.mayRead(x.s.resources[api.KindTask], x.s.cfg.Cluster.State().Read(), in.Name, in.Name); err != nil {
		return err
	}
	return x.change(in.Plan, fsm.CancelTask.Entry(fsm.TaskName{Name: in.Name}), func(out fsm.Outcome) error {
		return x.stored(http.StatusOK, x.s.resources[api.KindTask], in.Name, out)
	})
}

// submitTask asks for a task about an object, or about none, and answers with
// it, and with the VM that it is about.
func (x *exchange) submitTask(plan bool, verb, kind, key string, args any) error {
	raw, err := json.Marshal(args)
	if err != nil {
		return err
	}
	entry := fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: x.derivedName("task"), Verb: verb, Kind: kind, Object: key, Args: raw})
	return x.change(plan, entry, func(out fsm.Outcome) error {
		view := x.s.cfg.Cluster.State().Read()
		action := api.Action{Task: fsm.Tasks.Get(view, out.Key)}
		if kind == api.KindVM {
			action.VM = fsm.VMs.Get(view, key)
		}
		return x.answer(http.StatusOK, action)
	})
}

// derivedName makes a name from the request ID, so that a repeated request
// asks for the same object. It does not tell the request ID.
func (x *exchange) derivedName(prefix string) string {
	sum := sha256.Sum256([]byte(prefix + "\x00" + x.who.key + "\x00" + x.requestID))
	return prefix + "-" + hex.EncodeToString(sum[:8])
}
