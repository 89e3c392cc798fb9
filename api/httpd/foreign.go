package httpd

import (
	"net/http"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
	"github.com/debvisor/debvisor/fsm"
)

type nodeInput struct {
	Name string `path:"name" maxLength:"63" doc:"name of the node"`
}

func (s *Server) registerForeign() error {
	return handle(s, route{method: http.MethodGet, path: "/v1/nodes/{name}/domains", right: authz.Right{Verb: authz.Update, Kind: api.KindNode, Scope: authz.ScopeCluster},
		answer: api.ForeignDomains{}, summary: "List the guests of a node that debvisor does not manage",
		about: "Whoever may change the node sees them: their names and paths belong to others."}, (*exchange).foreign)
}

func (x *exchange) foreign(in *nodeInput) error {
	view, err := x.barrier(ReadOptions{})
	if err != nil {
		return err
	}
	if fsm.Nodes.Get(view, in.Name) == nil {
		return api.Errorf(api.CodeNotFound, "does not exist").On(api.KindNode, in.Name)
	}
	if x.s.cfg.Foreign == nil {
		return api.Errorf(api.CodeUnavailable, "this node cannot ask others").On(api.KindNode, in.Name)
	}
	out, err := x.s.cfg.Foreign(x.ctx(), in.Name)
	if err != nil {
		return err
	}
	return x.answer(http.StatusOK, out)
}
