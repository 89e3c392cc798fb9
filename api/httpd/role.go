package httpd

import (
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
	"github.com/debvisor/debvisor/fsm"
)

// ruleBook is the rules of all roles, compiled anew when a role has changed.
type ruleBook struct {
	extra []authz.Rule // beside those of the roles; for tests and embedders

	mu      sync.Mutex // guards below
	changed <-chan struct{}
	now     *rules
}

// rules is one edition of the book; it never changes.
type rules struct {
	*authz.Policies
	denies bool // some rule denies: every object of a list is asked about
}

// at is the rules in force in the state of the view. Roles that cannot be
// compiled, which Apply lets nobody store, leave the built-in ones.
func (b *ruleBook) at(view *fsm.View) (*rules, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now != nil {
		select {
		case <-b.changed:
		default:
			return b.now, nil
		}
	}
	changed := fsm.Roles.Watch(view)
	made, err := compile(slices.Collect(fsm.Roles.All(view)), b.extra)
	if err != nil {
		return nil, err
	}
	b.now, b.changed = made, changed
	return made, nil
}

func compile(roles []*api.Role, extra []authz.Rule) (*rules, error) {
	all, err := authz.RulesOf(roles)
	if err != nil {
		return nil, err
	}
	all = append(all, extra...)
	policies, err := authz.Compile(all)
	if err != nil {
		return nil, err
	}
	denies := slices.ContainsFunc(all, func(r authz.Rule) bool { return r.Effect == authz.Deny })
	return &rules{policies, denies}, nil
}

// rules is what decides about this request; the same from its beginning to its
// end, but for streams, which ask anew.
func (x *exchange) rules() (*rules, error) {
	r, err := x.s.book.at(x.s.cfg.Cluster.State().Read())
	if err != nil {
		x.s.log.Error("the roles cannot be compiled: nothing is allowed", "error", err)
		return nil, api.Errorf(api.CodeUnavailable, "the roles of this cluster cannot be read")
	}
	return r, nil
}

// question is what the rules are asked about something of a tenant. The role
// of a key counts in the key's tenants only.
func (x *exchange) question(verb authz.Verb, kind, tenant, name string) authz.Request {
	q := authz.Request{Principal: x.who.key, Tenant: tenant, Verb: verb, Kind: kind, Name: name, IP: x.peer(), Time: time.Now()}
	// Of a list of all tenants each object is asked about by itself.
	if len(x.who.tenants) == 0 || tenant == allTenants && verb == authz.List || slices.Contains(x.who.tenants, tenant) {
		q.Roles = x.who.roles
	}
	return q
}

// maySee reports whether the rules let the caller read all objects of a kind in
// a tenant, without a look at each of them.
func (x *exchange) maySee(kind, tenant string) bool {
	r, err := x.rules()
	if err != nil || r.denies {
		return false
	}
	q := x.question(authz.Read, kind, tenant, "")
	return r.Allow(&q).Allowed
}

// onlyAdmins refuses a change of who may do what by anybody but an admin,
// whatever the rules say: a role that could change roles would be admin.
func (x *exchange) onlyAdmins(verb authz.Verb, kind string) error {
	if kind != api.KindRole || verb != authz.Create && verb != authz.Update && verb != authz.Delete || x.who.admin() {
		return nil
	}
	return api.Errorf(api.CodeForbidden, "%s may not %s a role: only an admin may", x.who.key, verb).On(kind, "").
		Do("ask an administrator")
}

// grants refuses a key that could do what its maker cannot.
func (x *exchange) grants(role string, tenants []string) error {
	if x.who.admin() {
		return nil
	}
	within := len(x.who.tenants) == 0
	if !within {
		within = len(tenants) > 0 && !slices.ContainsFunc(tenants, func(t string) bool { return !slices.Contains(x.who.tenants, t) })
	}
	if slices.Contains(x.who.roles, role) && within {
		return nil
	}
	return api.Errorf(api.CodeForbidden, "%s cannot give a role that it does not have, or in tenants where it does not have it", x.who.key).
		At("role").Do("ask an administrator")
}

// grantsAs is grants for a key that exists; Apply tells whether it does.
func (x *exchange) grantsAs(name string) error {
	key := fsm.APIKeys.Get(x.s.cfg.Cluster.State().Read(), name)
	if key == nil || key.Name == x.who.key {
		return nil
	}
	return x.grants(key.Role, key.Tenants)
}

type canInput struct {
	Verb   string `query:"verb" required:"true" maxLength:"63" doc:"what is to be done"`
	Kind   string `query:"kind" required:"true" maxLength:"63" doc:"of the object"`
	Name   string `query:"name" maxLength:"63" doc:"of the object; left out: any, or a new one"`
	Tenant string `query:"tenant" maxLength:"63" doc:"of the object; default when left out"`
}

func (s *Server) registerRoles() error {
	return errors.Join(
		handle(s, route{method: http.MethodGet, path: "/v1/can-i", right: authz.Right{Verb: authz.Read, Kind: api.KindRole, Scope: authz.ScopeSelf},
			answer: api.Permission{}, summary: "Whether the caller may do something, and which rule says so"}, (*exchange).canI))
}

func (x *exchange) canI(in *canInput) error {
	verb := authz.Verb(in.Verb)
	if !verb.Known() {
		return api.Invalid("verb", "is %q", bounded(in.Verb)).Allow("%v", authz.Verbs())
	}
	right := authz.Right{Verb: verb, Kind: in.Kind, Scope: authz.ScopeTenant}
	if kind, known := api.LookupKind(in.Kind); known {
		right.Kind = kind.Name
	}
	if err := right.Check(); err != nil {
		return api.Invalid("kind", "is %q", bounded(in.Kind)).Allow("a kind of object, or one of the API's description")
	}
	tenant := ""
	if kind, _ := api.LookupKind(right.Kind); kind.TenantScope {
		if tenant = in.Tenant; tenant == "" {
			tenant = api.DefaultTenant
		}
		if err := api.CheckName("tenant", tenant); err != nil {
			return err
		}
	}
	if in.Name != "" {
		if err := api.CheckName("name", in.Name); err != nil {
			return err
		}
	}
	decision, err := x.decide(verb, right.Kind, tenant, in.Name)
	if err != nil {
		return err
	}
	p := api.Permission{Allowed: decision.Allowed, Rule: decision.Rule, Reason: decision.Reason}
	if err := x.onlyAdmins(verb, right.Kind); err != nil && p.Allowed {
		p = api.Permission{Reason: api.AsError(err).Message}
	}
	return x.answer(http.StatusOK, p)
}
