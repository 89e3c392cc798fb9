package httpd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humamux"
	"github.com/gorilla/mux"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
)

// route is one operation of the API as data.
type route struct {
	method  string
	path    string
	right   authz.Right
	change  bool // it changes something: takes plan and Idempotency-Key
	summary string
	about   string // more words for the document
	body    any    // zero value of the JSON body; nil: none
	bytes   int64  // limit of the body
	binary  bool   // the body is bytes
	answer  any    // zero value of the JSON answer; nil: none or not JSON
	media   string // type of an answer that is not JSON
	status  int    // of success; 0: 200
	console string // kind of console, where a ticket takes the place of a key

	deprecated Deprecation
}

// handle registers a route. It is the only way to do so: without a right that
// holds together the API is not built. The key is checked and the right asked
// for before serve runs.
func handle[I any](s *Server, r route, serve func(x *exchange, in *I) error) error {
	name := r.method + " " + r.path
	if err := r.right.Check(); err != nil {
		return fmt.Errorf("route %s: %w", name, err)
	}
	if r.right.Scope == authz.ScopePublic && r.right.Kind != authz.KindHealth {
		return fmt.Errorf("route %s: only health answers without a key", name)
	}
	r.deprecated = s.cfg.Deprecations[name]
	s.routes = append(s.routes, &r)
	op := s.operation(&r)
	op.Middlewares = huma.Middlewares{func(hc huma.Context, next func(huma.Context)) {
		x := exchangeOf(hc.Context())
		x.route = &r
		x.r, _ = humamux.Unwrap(hc) // the router's, with the names in the path
		r.deprecated.announce(x.w.Header())
		if err := x.admit(); err != nil {
			x.fail(err)
			return
		}
		next(parameterContext{hc})
	}}
	huma.Register(s.api, op, func(_ context.Context, in *I) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			x := exchangeOf(hc.Context())
			x.fail(serve(x, in))
		}}, nil
	})
	s.describe(&r, &op)
	return nil
}

// parameterContext reports bad parameters as 400: 422 means a request ID that
// was used for another change.
type parameterContext struct{ inner }

// inner names the embedded huma.Context, which has a method Context itself.
type inner huma.Context

// SetStatus implements huma.Context.
func (c parameterContext) SetStatus(status int) {
	if status == http.StatusUnprocessableEntity {
		status = http.StatusBadRequest
	}
	c.inner.SetStatus(status)
}

// Unwrap lets humamux find the request.
func (c parameterContext) Unwrap() huma.Context { return c.inner }

func (d Deprecation) announce(h http.Header) {
	if d.Since.IsZero() {
		return
	}
	h.Set("Deprecation", "@"+strconv.FormatInt(d.Since.Unix(), 10))
	if !d.Sunset.IsZero() {
		h.Set("Sunset", d.Sunset.UTC().Format(http.TimeFormat))
	}
	if d.Link != "" {
		h.Set("Link", "<"+d.Link+`>; rel="successor-version"`)
	}
}

func (s *Server) register() error {
	var all []error
	for _, part := range []func() error{
		s.registerResources,
		s.registerVMs, s.registerVolumes,
		s.registerMigration,
		s.registerSnapshots,
		s.registerGuests,
		s.registerConsoles,
		s.registerStats,
		s.registerNodes,
		s.registerRoles,
		s.registerUsage,
		s.registerSecrets,
		s.registerTasks,
		s.registerMoves,
		s.registerApply,
		s.registerHistory,
		s.registerEvents,
		s.registerTemplates, s.registerForeign, s.registerImages,
		s.registerCluster,
		s.registerHealth,
	} {
		all = append(all, part())
	}
	for name := range s.cfg.Deprecations {
		if !slices.ContainsFunc(s.routes, func(r *route) bool { return r.method+" "+r.path == name }) {
			all = append(all, fmt.Errorf("deprecation of %q: there is no such route", name))
		}
	}
	return errors.Join(all...)
}

func (s *Server) humaConfig() huma.Config {
	return huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{Title: "debvisor", Version: apiVersion,
				Description: "One cloud of Debian machines. Every change can be planned with plan=true, is idempotent under Idempotency-Key, and is journaled."},
			Components: &huma.Components{
				Schemas:         huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
				SecuritySchemes: map[string]*huma.SecurityScheme{"key": {Type: "http", Scheme: "bearer", Description: "an API key"}},
			},
		},
		Formats:                      map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
		Transformers:                 []huma.Transformer{s.transform},
	}
}

func (s *Server) operation(r *route) huma.Operation {
	op := huma.Operation{
		OperationID: strings.ToLower(r.method) + strings.NewReplacer("/v1", "", "/", "-", "{", "", "}", "", ".", "-").Replace(r.path),
		Method:      r.method,
		Path:        r.path,
		Summary:     r.summary,
		Description: r.about,
		Tags:        []string{r.right.Kind},
		Deprecated:  !r.deprecated.Since.IsZero(),
		Security:    []map[string][]string{{"key": {}}},
		Extensions: map[string]any{
			"x-debvisor-verb": string(r.right.Verb), "x-debvisor-kind": r.right.Kind, "x-debvisor-scope": string(r.right.Scope),
		},
	}
	if r.right.Scope == authz.ScopePublic {
		op.Security = []map[string][]string{}
	}
	if op.DefaultStatus = r.status; op.DefaultStatus == 0 {
		op.DefaultStatus = http.StatusOK
	}
	return op
}

// describe adds bodies and answers to the document. The handler reads bodies
// itself, more strictly than huma would.
func (s *Server) describe(r *route, op *huma.Operation) {
	item := s.api.OpenAPI().Paths[r.path]
	doc := map[string]*huma.Operation{
		http.MethodGet: item.Get, http.MethodPut: item.Put, http.MethodPost: item.Post, http.MethodDelete: item.Delete,
	}[r.method]
	schemas := s.api.OpenAPI().Components.Schemas
	schema := func(v any) *huma.Schema { return schemas.Schema(reflect.TypeOf(v), true, op.OperationID) }
	if r.body != nil {
		doc.RequestBody = &huma.RequestBody{Content: map[string]*huma.MediaType{"application/json": {Schema: schema(r.body)}},
			Description: fmt.Sprintf("at most %d bytes", r.bytes)}
	}
	if r.binary {
		doc.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
			"application/octet-stream": {Schema: &huma.Schema{Type: "string", Format: "binary"}}}}
	}
	good := doc.Responses[strconv.Itoa(op.DefaultStatus)]
	switch {
	case r.media != "":
		good.Content = map[string]*huma.MediaType{r.media: {}}
	case r.answer != nil:
		good.Content = map[string]*huma.MediaType{"application/json": {Schema: schema(r.answer)}}
	}
	doc.Responses["default"] = &huma.Response{Description: "an error", Content: map[string]*huma.MediaType{
		"application/problem+json": {Schema: schema(Problem{})}}}
}

// WriteOptions are the parameters of every change.
type WriteOptions struct {
	Plan           bool   `query:"plan" doc:"change nothing; answer with what would change"`
	IdempotencyKey string `header:"Idempotency-Key" maxLength:"112" doc:"request ID: a repetition with the same one gets the first answer"`
}

// admit checks the key and asks for the right of the route.
func (x *exchange) admit() error {
	if x.route.right.Scope == authz.ScopePublic {
		return nil
	}
	if ticket := givenTicket(x.r); x.route.console != "" && ticket != "" {
		if err := x.admitTicket(ticket); err != nil {
			return err
		}
	} else if err := x.authenticate(); err != nil {
		return err
	}
	if x.route.right.Scope == authz.ScopeSelf {
		return nil
	}
	if err := x.locate(); err != nil {
		return err
	}
	name, err := x.name()
	if err != nil {
		return err
	}
	verb := x.route.right.Verb
	if x.route.change && x.r.URL.Query().Get("plan") == "true" {
		verb = authz.Plan
	}
	return x.allowed(verb, x.kind.Name, x.tenant, name)
}

// locate finds the kind and the tenant that the request is about. Where the
// path names a kind, the right is asked for on that kind.
func (x *exchange) locate() error {
	x.kind = api.Kind{Name: x.route.right.Kind}
	scope, given := x.route.right.Scope, x.r.URL.Query().Get("tenant")
	if named, ok := mux.Vars(x.r)["kind"]; ok {
		kind, known := api.LookupKind(named)
		if !known {
			return api.Errorf(api.CodeNotFound, "there is no kind %q", bounded(named)).Do("see /v1/openapi.json")
		}
		if x.kind = kind; !kind.TenantScope {
			if given != "" {
				return api.Invalid("tenant", "kind %s belongs to no tenant", kind.Name).Allow("leave it out")
			}
			return nil
		}
	}
	if scope != authz.ScopeTenant {
		return nil
	}
	x.tenant = cmp.Or(given, api.DefaultTenant)
	if x.tenant == allTenants && x.route.right.Verb == authz.List {
		return nil
	}
	if err := api.CheckName("tenant", x.tenant); err != nil {
		return err
	}
	return nil
}

// allTenants in a list's or stream's tenant parameter stands for all of them.
const allTenants = "*"

// name checks the name in the path, if the route has one.
func (x *exchange) name() (string, error) {
	vars := mux.Vars(x.r)
	name, ok := vars["name"]
	if !ok {
		return "", nil
	}
	parts := []string{name}
	if x.kind.Name == api.KindReplica || x.kind.Name == api.KindSnapshot {
		parts = strings.SplitN(name, ".", 2) // ID.node, VM.snapshot
	}
	for _, p := range parts {
		if err := api.CheckName("name", p); err != nil {
			return "", err
		}
	}
	return name, nil
}

// allowed asks the rules. What the caller may not even read does not exist.
func (x *exchange) allowed(verb authz.Verb, kind, tenant, name string) error {
	if err := x.onlyAdmins(verb, kind); err != nil {
		return err
	}
	decision, err := x.decide(verb, kind, tenant, name)
	if err != nil || decision.Allowed {
		return err
	}
	if tenant != "" && name != "" {
		if read, err := x.decide(authz.Read, kind, tenant, name); err != nil || !read.Allowed {
			return api.Errorf(api.CodeNotFound, "does not exist").On(kind, api.Key(tenant, name))
		}
	}
	q := x.question(verb, kind, tenant, name)
	return decision.Err(&q)
}

// decide asks the rules about an object as it is stored.
func (x *exchange) decide(verb authz.Verb, kind, tenant, name string) (authz.Decision, error) {
	r, err := x.rules()
	if err != nil {
		return authz.Decision{}, err
	}
	q := x.question(verb, kind, tenant, name)
	if res, ok := x.s.resources[kind]; ok && name != "" {
		if head := res.head(x.s.cfg.Cluster.State().Read(), res.kind().Key(tenant, name)); head != nil {
			q.Labels = head.Labels
		}
	}
	return r.Allow(&q), nil
}

func (s *Server) notFound(_ http.ResponseWriter, r *http.Request) {
	x := exchangeOf(r.Context())
	if err := x.authenticate(); err != nil {
		x.fail(err)
		return
	}
	x.fail(api.Errorf(api.CodeNotFound, "there is no such route").Do("see /v1/openapi.json"))
}

func (s *Server) methodNotAllowed(_ http.ResponseWriter, r *http.Request) {
	x := exchangeOf(r.Context())
	if err := x.authenticate(); err != nil {
		x.fail(err)
		return
	}
	x.fail(withStatus(http.StatusMethodNotAllowed, api.Errorf(api.CodeInvalid, "this route has no %s", r.Method).Do("see /v1/openapi.json")))
}
