package httpd

import (
	"net/http"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
	"github.com/debvisor/debvisor/fsm"
)

type usageInput struct {
	ReadOptions
	Tenant string `query:"tenant" maxLength:"63" doc:"default when left out"`
}

func (s *Server) registerUsage() error {
	return handle(s, route{method: http.MethodGet, path: "/v1/usage", right: authz.Right{Verb: authz.Read, Kind: api.KindTenant, Scope: authz.ScopeTenant},
		answer: api.TenantUsage{}, summary: "Show what a tenant has, and what it may have"}, (*exchange).usage)
}

func (x *exchange) usage(in *usageInput) error {
	view, err := x.barrier(in.ReadOptions)
	if err != nil {
		return err
	}
	t := fsm.Tenants.Get(view, x.tenant)
	if t == nil {
		return api.Errorf(api.CodeNotFound, "does not exist").On(api.KindTenant, x.tenant)
	}
	x.index(view.Index())
	return x.answer(http.StatusOK, api.TenantUsage{Tenant: t.Name, Own: fsm.OwnUsage(view, t.Name), Total: fsm.TotalUsage(view, t.Name), Quota: t.Quota})
}
