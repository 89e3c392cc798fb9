package httpd

import (
	"errors"
	"net/http"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
	"github.com/debvisor/debvisor/fsm"
)

// vmInput are the parameters of a verb on a VM.
type vmInput struct {
	WriteOptions
	Name   string `path:"name" maxLength:"63" doc:"name of the VM"`
	Tenant string `query:"tenant" maxLength:"63" doc:"of the VM; default when left out"`
}

// forceBody is the body of stop and restart.
type forceBody struct {
	Force bool `json:"force,omitempty" doc:"end the guest at once instead of asking it to shut down"`
}

func (s *Server) registerVMs() error {
	verb := func(name string, v authz.Verb, summary string) route {
		return route{method: http.MethodPost, path: "/v1/vms/{name}/" + name, right: authz.Right{Verb: v, Kind: api.KindVM, Scope: authz.ScopeTenant},
			change: true, body: forceBody{}, bytes: VerbBytesMax, answer: api.Action{}, summary: summary}
	}
	return errors.Join(
		handle(s, verb("start", authz.Start, "Start a VM"), func(x *exchange, in *vmInput) error { return x.power(in, api.PowerOn) }),
		handle(s, verb("stop", authz.Stop, "Stop a VM"), func(x *exchange, in *vmInput) error { return x.power(in, api.PowerOff) }),
		handle(s, verb("restart", authz.Restart, "Restart a VM"), (*exchange).restart))
}

// power sets what the user wants of the VM's power. A forced stop is a task,
// whose entry sets the power as well.
func (x *exchange) power(in *vmInput, power string) error {
	var body forceBody
	if err := x.decodeOptional(&body); err != nil {
		return err
	}
	if body.Force && power == api.PowerOff {
		return x.vmTask(in, api.TaskStop, body)
	}
	if body.Force {
		return api.Invalid("force", "does not go with start").Allow("leave it out")
	}
	return x.change(in.Plan, fsm.PowerVM.Entry(fsm.VMPower{Tenant: x.tenant, Name: in.Name, Power: power}), func(fsm.Outcome) error {
		return x.answer(http.StatusOK, api.Action{VM: fsm.VMs.Get(x.s.cfg.Cluster.State().Read(), api.Key(x.tenant, in.Name))})
	})
}

func (x *exchange) restart(in *vmInput) error {
	var body forceBody
	if err := x.decodeOptional(&body); err != nil {
		return err
	}
	return x.vmTask(in, api.TaskRestart, body)
}

func (x *exchange) vmTask(in *vmInput, verb string, args any) error {
	return x.submitTask(in.Plan, verb, api.KindVM, api.Key(x.tenant, in.Name), args)
}
