package httpd

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
	"github.com/debvisor/debvisor/fsm"
)

// Guests asks the agents inside guests, on whichever node they run.
type Guests interface {
	Ask(ctx context.Context, vm *api.VM, instance *api.Instance, in api.GuestRequest) (api.GuestAnswer, error)
}

// freezeBody asks for a freeze.
type freezeBody struct {
	Limit time.Duration `json:"limit_ns,omitempty" doc:"nanoseconds until the file systems thaw by themselves; 30 s when left out"`
}

func (s *Server) registerGuests() error {
	right := authz.Right{Verb: authz.Guest, Kind: api.KindVM, Scope: authz.ScopeTenant}
	verb := func(name, summary string, body any) route {
		return route{method: http.MethodPost, path: "/v1/vms/{name}/guest/" + name, right: right, change: true, body: body, bytes: VerbBytesMax,
			answer: api.GuestAnswer{}, summary: summary}
	}
	return errors.Join(
		handle(s, route{method: http.MethodGet, path: "/v1/vms/{name}/guest", right: right, answer: api.GuestInfo{}, summary: "Ask the agent in a VM's guest about it"}, (*exchange).guestInfo),
		handle(s, verb("password", "Set a password in a VM's guest", api.GuestPasswordSet{}), func(x *exchange, in *vmInput) error {
			var body api.GuestPasswordSet
			if err := x.decode(&body); err != nil {
				return err
			}
			if err := body.Validate(); err != nil {
				return err
			}
			return x.askGuest(in, api.GuestRequest{Call: api.GuestPassword, Password: &body}, body.Account)
		}),
		handle(s, verb("freeze", "Freeze the file systems of a VM's guest for a while", freezeBody{}), func(x *exchange, in *vmInput) error {
			body := freezeBody{Limit: api.GuestFreezeDefault}
			if err := x.decodeOptional(&body); err != nil {
				return err
			}
			if body.Limit < time.Second || body.Limit > api.GuestFreezeMax {
				return api.Invalid("limit_ns", "is %v", body.Limit).Allow("1s to %v", api.GuestFreezeMax)
			}
			return x.askGuest(in, api.GuestRequest{Call: api.GuestFreeze, Limit: body.Limit}, "")
		}),
		handle(s, verb("thaw", "Thaw the file systems of a VM's guest", nil), func(x *exchange, in *vmInput) error {
			return x.plainCall(in, api.GuestThaw)
		}),
		handle(s, verb("time", "Set the clock of a VM's guest to its host's", nil), func(x *exchange, in *vmInput) error {
			return x.plainCall(in, api.GuestTime)
		}))
}

func (x *exchange) plainCall(in *vmInput, call string) error {
	if err := x.decodeOptional(&struct{}{}); err != nil {
		return err
	}
	return x.askGuest(in, api.GuestRequest{Call: call}, "")
}

func (x *exchange) guestInfo(in *snapshotsInput) error {
	view, err := x.barrier(ReadOptions{Stale: in.Stale})
	if err != nil {
		return err
	}
	answer, err := x.guest(view, in.Name, api.GuestRequest{})
	if err != nil {
		return err
	}
	return x.answer(http.StatusOK, answer.Info)
}

// askGuest writes down that the call is made, and makes it. What is set is
// neither in the entry nor in any log.
func (x *exchange) askGuest(in *vmInput, request api.GuestRequest, account string) error {
	entry := fsm.NoteGuestCall.Entry(fsm.GuestCallNote{VM: api.Key(x.tenant, in.Name), Call: request.Call, Account: account})
	return x.change(in.Plan, entry, func(fsm.Outcome) error {
		answer, err := x.guest(x.s.cfg.Cluster.State().Read(), in.Name, request)
		if err != nil {
			return err
		}
		return x.answer(http.StatusOK, answer)
	})
}

func (x *exchange) guest(view *fsm.View, name string, request api.GuestRequest) (api.GuestAnswer, error) {
	key := api.Key(x.tenant, name)
	vm := fsm.VMs.Get(view, key)
	if vm == nil {
		return api.GuestAnswer{}, api.Errorf(api.CodeNotFound, "does not exist").On(api.KindVM, key)
	}
	instance := fsm.Instances.Get(view, vm.ID)
	if instance == nil || instance.Owner == "" {
		return api.GuestAnswer{}, api.Errorf(api.CodeConflict, "is on no node").On(api.KindVM, key).Do("see why with: debvisor why vm/%s", name)
	}
	if x.s.cfg.Guests == nil {
		return api.GuestAnswer{}, api.Errorf(api.CodeUnavailable, "this node does not reach guests' agents")
	}
	return x.s.cfg.Guests.Ask(x.ctx(), vm, instance, request)
}
