package httpd_test

import (
	"encoding/json"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
	"github.com/debvisor/debvisor/api/httpd"
	"github.com/debvisor/debvisor/fsm"
)

// document is what the tests read of the OpenAPI document.
type document struct {
	OpenAPI string                                `json:"openapi"`
	Paths   map[string]map[string]json.RawMessage `json:"paths"`
}

type operation struct {
	Security  []map[string][]string `json:"security"`
	Verb      string                `json:"x-debvisor-verb"`
	Kind      string                `json:"x-debvisor-kind"`
	Scope     string                `json:"x-debvisor-scope"`
	Responses map[string]any        `json:"responses"`
}

// open are the only routes that answer without a key.
func open(method, path string) bool {
	return method == "GET" && (path == "/health/live" || path == "/health/ready")
}

func concrete(path string) string {
	return strings.NewReplacer("{name}", "web", "{kind}", "vm", "{snapshot}", "one").Replace(path)
}

func TestEveryRouteDemandsAKeyAndARight(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	routes := 0
	err := s.api.Walk(func(method, path string) {
		routes++
		right, ok := s.api.Right(method, path)
		if !ok || right.Check() != nil || (right.Scope == authz.ScopePublic) != open(method, path) {
			t.Errorf("%s %s: registered with %+v", method, path, right)
		}
		a := s.call(method, concrete(path), "", "Authorization", "")
		if open(method, path) {
			if a.status != 200 {
				t.Errorf("%s %s without a key: got %d", method, path, a.status)
			}
			return
		}
		if p := a.problem(t); a.status != 401 || p.Code != api.CodeUnauthenticated || a.header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s %s without a key: got %d %s", method, path, a.status, a.body)
		}
	})
	if err != nil || routes < 50 {
		t.Fatalf("walked %d routes, %v", routes, err)
	}
	for _, path := range []string{"/v1/none", "/v1", "/metrics/x", "/v1/vms/a/b/c", "/healthz"} {
		s.want(401, "GET", path, "", "Authorization", "")
		s.want(404, "GET", path, "")
	}
	s.want(401, "PATCH", "/v1/vms/web", "", "Authorization", "")
	s.want(405, "PATCH", "/v1/vms/web", "")
}

func TestTheDocumentHasEveryRouteWithItsRight(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	var doc document
	s.want(200, "GET", "/v1/openapi.json", "").into(t, &doc)
	if doc.OpenAPI != "3.1.0" {
		t.Fatalf("got version %q", doc.OpenAPI)
	}
	described := 0
	for path, item := range doc.Paths {
		for method, raw := range item {
			described++
			var op operation
			if err := json.Unmarshal(raw, &op); err != nil {
				t.Fatal(err)
			}
			if op.Verb == "" || op.Kind == "" || op.Scope == "" || len(op.Responses) == 0 {
				t.Errorf("%s %s is described without its right: %+v", method, path, op)
			}
			if (len(op.Security) == 0) != open(strings.ToUpper(method), path) {
				t.Errorf("%s %s: security is %v", method, path, op.Security)
			}
		}
	}
	err := s.api.Walk(func(method, path string) {
		described--
		if doc.Paths[path][strings.ToLower(method)] == nil {
			t.Errorf("%s %s is not described", method, path)
		}
	})
	if err != nil || described != 0 {
		t.Fatalf("the document and the router differ by %d, %v", described, err)
	}
}

func TestKeysThatAreNotGoodAreRefusedAlike(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	past := strings.Repeat("b", 52)
	s.do(fsm.CreateKey.Entry(fsm.KeyCreate{Name: "old", Hash: httpd.HashSecret(past), Role: api.RoleAdmin, Expires: time.Now().Add(-time.Hour)}))
	want := ""
	for _, header := range []string{
		"Bearer", "Bearer ", "Basic cm9vdDpyb290", "Bearer x", "Bearer dvk_root_", "Bearer dvk_root_" + strings.Repeat("z", 52),
		"Bearer dvk_other_" + secret, "Bearer dvk__" + secret, "Bearer " + secret, "Bearer dvk_root_" + strings.ToUpper(secret),
		"Bearer " + httpd.FormatKey("old", past), "bearer dvk_root_" + secret + "=", "Bearer dvk_root_" + httpd.HashSecret(secret)[:52],
	} {
		p := s.want(401, "GET", "/v1/vms", "", "Authorization", header).problem(t)
		if want == "" {
			want = p.Detail
		}
		if p.Detail != want {
			t.Errorf("%q: got %q, want %q", header, p.Detail, want)
		}
	}
	req := s.request("GET", "/v1/vms", "")
	req.Header.Add("Authorization", "Bearer x")
	if a := s.send(req); a.status != 401 {
		t.Errorf("two keys: got %d", a.status)
	}
}

func TestRulesDecide(t *testing.T) {
	t.Parallel()
	rules := append([]authz.Rule{}, authz.Rule{Name: "hide", Effect: authz.Deny, Roles: []string{authz.Any}, Verbs: []authz.Verb{authz.Any},
		Kinds: []string{authz.Any}, Tenants: []string{"other"}}, authz.Rule{Name: "no-deletes", Effect: authz.Deny, Roles: []string{authz.Any},
		Verbs: []authz.Verb{authz.Delete}, Kinds: []string{api.KindNetwork}, Tenants: []string{authz.Any}})
	s := newServer(t, func(c *httpd.Config) { c.Rules = rules })
	s.want(201, "PUT", "/v1/tenants/other", `{}`)
	n := api.Network{Meta: api.Meta{Name: "x", Tenant: "other"}, Driver: "bridge", Bridge: "br0"}
	entry, err := fsm.Networks.Put(&n)
	if err != nil {
		t.Fatal(err)
	}
	s.do(entry)
	s.want(201, "PUT", "/v1/networks/a", `{"driver":"bridge","bridge":"br0"}`)
	there := s.want(404, "GET", "/v1/networks/x?tenant=other", "").problem(t)
	absent := s.want(404, "GET", "/v1/networks/y?tenant=other", "").problem(t)
	if there.Message != absent.Message {
		t.Errorf("a hidden object answers %q, a missing one %q", there.Message, absent.Message)
	}
	s.want(404, "PUT", "/v1/networks/x?tenant=other", `{"driver":"bridge","bridge":"br0"}`)
	s.want(404, "GET", "/v1/history/network/x?tenant=other", "")
	if p := s.want(403, "DELETE", "/v1/networks/a", "", "If-Match", "*").problem(t); !strings.Contains(p.Detail, "no-deletes") {
		t.Errorf("got %q, want the rule's name", p.Detail)
	}
	if body := s.want(200, "GET", "/v1/networks?tenant=*", "").body; strings.Contains(string(body), `"other"`) {
		t.Errorf("the list shows a hidden object: %s", body)
	}
	p := s.want(404, "POST", "/v1/apply", `{"operations":[{"op":"network.delete","body":{"tenant":"other","name":"x","modified":3}}]}`).problem(t)
	if p.Code != api.CodeNotFound {
		t.Errorf("got %+v", p)
	}
}

func TestDeprecationIsAnnounced(t *testing.T) {
	t.Parallel()
	since, sunset := time.Unix(1700000000, 0), time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	s := newServer(t, func(c *httpd.Config) {
		c.Deprecations = map[string]httpd.Deprecation{"GET /v1/regions": {Since: since, Sunset: sunset, Link: "/v1/cluster"}}
	})
	h := s.want(200, "GET", "/v1/regions", "").header
	if h.Get("Deprecation") != "@1700000000" || h.Get("Sunset") != sunset.Format(http.TimeFormat) || !strings.Contains(h.Get("Link"), "successor-version") {
		t.Fatalf("got %v", h)
	}
	if h := s.want(200, "GET", "/v1/nodes", "").header; h.Get("Deprecation") != "" {
		t.Fatalf("got %v", h)
	}
	cfg := newFake(t).config()
	cfg.Deprecations = map[string]httpd.Deprecation{"GET /v1/none": {Since: since}}
	if _, err := httpd.New(cfg); err == nil {
		t.Fatal("a deprecation of no route was accepted")
	}
	if _, err := httpd.New(httpd.Config{}); err == nil {
		t.Fatal("an empty configuration was accepted")
	}
}

func TestMetricsNeedARight(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.want(200, "GET", "/v1/vms", "")
	body := string(s.want(200, "GET", "/metrics", "").body)
	if !strings.Contains(body, `debvisor_http_requests_total{method="GET",route="/v1/vms",status="200"} 1`) {
		t.Fatalf("got %s", body)
	}
}

func TestWithoutThePanelThereIsAPage(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	a := s.want(200, "GET", "/", "", "Authorization", "")
	if !strings.Contains(string(a.body), "make build") || a.header.Get("Content-Security-Policy") == "" {
		t.Fatalf("got %s", a.body)
	}
	s.want(404, "GET", "/index.html", "", "Authorization", "")
}

func TestEveryErrorCodeHasItsStatus(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	var refusal error
	s.mu.Lock()
	s.fail = func(fsm.Entry) error { return refusal }
	s.mu.Unlock()
	for code, want := range map[api.Code]int{
		api.CodeInvalid: 400, api.CodeNotFound: 404, api.CodeConflict: 409, api.CodeForbidden: 403, api.CodeUnauthenticated: 401, api.CodeLimit: 409,
		api.CodeNoLeader: 503, api.CodeUnknown: 504, api.CodeUnavailable: 503, api.CodeGone: 410,
	} {
		s.mu.Lock()
		refusal = api.Errorf(code, "because")
		s.mu.Unlock()
		if p := s.want(want, "PUT", "/v1/vms/web", vmBody("web")).problem(t); p.Code != code || p.Message != "because" {
			t.Errorf("%s: got %+v", code, p)
		}
	}
	s.mu.Lock()
	refusal = os.ErrPermission
	s.mu.Unlock()
	p := s.want(500, "PUT", "/v1/vms/web", vmBody("web"))
	if strings.Contains(string(p.body), "permission") || p.problem(t).Code != api.CodeInternal {
		t.Errorf("an internal error shows its cause: %s", p.body)
	}
}

func TestTheWalkKnowsEveryKind(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	var paths []string
	if err := s.api.Walk(func(method, path string) { paths = append(paths, method+" "+path) }); err != nil {
		t.Fatal(err)
	}
	for _, k := range api.Kinds() {
		if !slices.Contains(paths, "GET /v1/"+k.Plural) || slices.Contains(paths, "PUT /v1/"+k.Plural+"/{name}") != k.UserEdits {
			t.Errorf("kind %s has the wrong routes", k.Name)
		}
	}
}
