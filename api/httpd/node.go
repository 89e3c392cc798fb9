package httpd

import (
	"errors"
	"net/http"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
	"github.com/debvisor/debvisor/fsm"
)

type scheduleBody struct {
	Unschedulable bool              `json:"unschedulable" doc:"take no new VMs"`
	Maintenance   string            `json:"maintenance,omitempty" maxLength:"1024" doc:"why the node is in maintenance; left out: it is not"`
	Labels        map[string]string `json:"labels,omitempty" doc:"the node's labels from now on; left out: as they are"`
}

type confirmOffBody struct {
	Epoch  uint64 `json:"epoch" doc:"the node's epoch as it was seen when its machine was found off"`
	Reason string `json:"reason,omitempty"`
}

type removeNodeInput struct {
	WriteOptions
	Name   string `path:"name" maxLength:"63" doc:"name of the node"`
	Reason string `query:"reason" maxLength:"1024" doc:"for the journal, and for the removed node's own log"`
	Force  bool   `query:"force" doc:"although it owns VMs or volumes: its machine is off for good"`
}

func (s *Server) registerNodes() error {
	right := func(v authz.Verb) authz.Right {
		return authz.Right{Verb: v, Kind: api.KindNode, Scope: authz.ScopeCluster}
	}
	return errors.Join(
		handle(s, route{method: http.MethodPost, path: "/v1/nodes/{name}/schedule", right: right(authz.Update), change: true,
			body: scheduleBody{}, bytes: VerbBytesMax, answer: api.Node{}, summary: "Set whether a node takes new VMs, and its labels"},
			func(x *exchange, in *namedInput) error {
				var body scheduleBody
				if err := x.decode(&body); err != nil {
					return err
				}
				entry := fsm.ScheduleNode.Entry(fsm.NodeSchedule{Node: in.Name, Unschedulable: body.Unschedulable, Maintenance: body.Maintenance, Labels: body.Labels})
				return x.change(in.Plan, entry, func(out fsm.Outcome) error { return x.stored(http.StatusOK, s.resources[api.KindNode], in.Name, out) })
			}),
		handle(s, route{method: http.MethodPost, path: "/v1/nodes/{name}/confirm-off", right: right(authz.Stop), change: true,
			body: confirmOffBody{}, bytes: VerbBytesMax, answer: api.Node{}, summary: "Say that a node's machine has no power",
			about: "Its VMs then start elsewhere. If the machine runs after all, VMs may run twice."},
			func(x *exchange, in *namedInput) error {
				var body confirmOffBody
				if err := x.decode(&body); err != nil {
					return err
				}
				entry := fsm.ConfirmOffNode.Entry(fsm.NodeConfirmOff{Node: in.Name, Epoch: body.Epoch, Reason: body.Reason})
				return x.change(in.Plan, entry, func(out fsm.Outcome) error { return x.stored(http.StatusOK, s.resources[api.KindNode], in.Name, out) })
			}),
		handle(s, route{method: http.MethodDelete, path: "/v1/nodes/{name}", right: right(authz.Delete), change: true,
			status: http.StatusNoContent, summary: "Remove a node for good"},
			func(x *exchange, in *removeNodeInput) error {
				entry := fsm.RemoveNode.Entry(fsm.NodeRemove{Node: in.Name, Reason: in.Reason, Force: in.Force})
				return x.change(in.Plan, entry, x.nothing)
			}))
}
