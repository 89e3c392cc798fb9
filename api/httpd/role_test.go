package httpd_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
	"github.com/debvisor/debvisor/fsm"
)

// as makes a key and returns what sends its requests.
func (s *server) as(name, more string) func(status int, method, path, body string, headers ...string) answer {
	s.tb.Helper()
	var made api.Secret
	s.want(201, "POST", "/v1/api_keys", fmt.Sprintf(`{"name":%q,%s}`, name, more)).into(s.tb, &made)
	return func(status int, method, path, body string, headers ...string) answer {
		s.tb.Helper()
		return s.want(status, method, path, body, append([]string{"Authorization", "Bearer " + made.Key}, headers...)...)
	}
}

const bridgeBody = `{"driver":"bridge","bridge":"br0"}`

func TestBuiltInRolesMayWhatTheirNamesSay(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.want(201, "PUT", "/v1/tenants/shop", `{}`)
	s.want(201, "POST", "/v1/vms", vmBody("web"))
	for role, want := range map[string]map[string]int{
		api.RoleOperator:  {"GET /v1/vms": 200, "PUT /v1/networks/op": 201, "PUT /v1/tenants/op": 403, "POST /v1/api_keys": 403, "GET /v1/api_keys": 403, "POST /v1/nodes/node1/schedule": 200, "PUT /v1/roles/op": 403, "GET /v1/roles": 200, "PUT /v1/config/cluster": 403},
		api.RoleDeveloper: {"GET /v1/vms": 200, "PUT /v1/networks/dev": 201, "PUT /v1/tenants/dev": 403, "POST /v1/api_keys": 403, "GET /v1/nodes": 200, "POST /v1/nodes/node1/schedule": 403, "GET /v1/roles": 403, "GET /metrics": 403},
		api.RoleViewer:    {"GET /v1/vms": 200, "GET /v1/vms/web": 200, "PUT /v1/networks/view": 403, "POST /v1/vms/web/stop": 403, "GET /v1/api_keys": 403, "GET /v1/nodes": 200, "PUT /v1/networks/view?plan=true": 200},
		api.RoleAuditor:   {"GET /v1/vms": 200, "GET /v1/api_keys": 200, "PUT /v1/networks/aud": 403, "GET /v1/roles": 200},
	} {
		send := s.as("key-"+role, fmt.Sprintf(`"role":%q`, role))
		for request, status := range want {
			method, path, _ := strings.Cut(request, " ")
			body := map[string]string{"PUT": `{}`, "POST": `{}`}[method]
			switch {
			case strings.HasPrefix(path, "/v1/networks/"):
				body = bridgeBody
			case path == "/v1/api_keys":
				if method == "POST" {
					body = `{"name":"mine","role":"viewer"}`
				}
			}
			send(status, method, path, body)
		}
	}
}

func TestAKeyOfATenantSeesThatTenantOnly(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.want(201, "PUT", "/v1/tenants/shop", `{}`)
	s.want(201, "PUT", "/v1/networks/mine?tenant=shop", bridgeBody)
	s.want(201, "PUT", "/v1/networks/theirs", bridgeBody)
	send := s.as("ci", `"role":"developer","tenants":["shop"]`)
	send(200, "GET", "/v1/networks/mine?tenant=shop", "")
	hidden := send(404, "GET", "/v1/networks/theirs", "").problem(t)
	absent := send(404, "GET", "/v1/networks/nowhere", "").problem(t)
	if hidden.Message != absent.Message || hidden.Code != absent.Code {
		t.Errorf("a hidden object answers %q, a missing one %q", hidden.Message, absent.Message)
	}
	send(404, "PUT", "/v1/networks/theirs", bridgeBody, "If-Match", "*")
	send(404, "DELETE", "/v1/networks/theirs", "", "If-Match", "*")
	for _, path := range []string{"/v1/networks?tenant=*", "/v1/networks?tenant=*&stale=true"} {
		if body := string(send(200, "GET", path, "").body); strings.Contains(body, "theirs") || !strings.Contains(body, "mine") {
			t.Errorf("%s: %s", path, body)
		}
	}
	send(403, "GET", "/v1/nodes", "")
	send(403, "PUT", "/v1/tenants/mine", `{}`)
	send(200, "POST", "/v1/apply", `{"operations":[{"op":"network.put","body":{"tenant":"shop","name":"more","driver":"bridge","bridge":"br1"}}]}`)
	send(404, "POST", "/v1/apply", `{"operations":[{"op":"network.put","body":{"tenant":"default","name":"more","driver":"bridge","bridge":"br1"}}]}`)
	s.want(409, "DELETE", "/v1/tenants/shop", "", "If-Match", "*")
}

func TestRolesOfOnesOwnCountAtOnceAndDenyWins(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.want(201, "POST", "/v1/vms", vmBody("web"))
	s.want(201, "PUT", "/v1/roles/base", `{"inherits":["viewer"],"rules":[{"verbs":["update","create"],"kinds":["network"]}]}`)
	s.want(201, "PUT", "/v1/roles/shift", `{"inherits":["base"]}`)
	send := s.as("ci", `"role":"shift"`)
	send(200, "GET", "/v1/vms/web", "")
	send(201, "PUT", "/v1/networks/a", bridgeBody)
	send(403, "POST", "/v1/vms/web/stop", "")
	p := send(200, "GET", "/v1/can-i?verb=create&kind=network", "")
	var may api.Permission
	if p.into(t, &may); !may.Allowed || may.Rule != "base-0" {
		t.Errorf("got %+v", may)
	}
	tag := s.want(200, "GET", "/v1/roles/base", "").header.Get("ETag")
	s.want(200, "PUT", "/v1/roles/base", `{"inherits":["viewer"],"rules":[{"verbs":["update","create"],"kinds":["network"]},{"effect":"deny","verbs":["*"],"kinds":["*"],"names":["b*"]}]}`, "If-Match", tag)
	send(404, "PUT", "/v1/networks/b", bridgeBody) // what one may not even read does not exist
	send(201, "PUT", "/v1/networks/c", bridgeBody)
	s.want(409, "DELETE", "/v1/roles/base", "", "If-Match", "*")
	s.want(409, "DELETE", "/v1/roles/shift", "", "If-Match", "*")
	s.want(204, "DELETE", "/v1/api_keys/ci", "")
	s.want(204, "DELETE", "/v1/roles/shift", "", "If-Match", "*")
}

func TestBadRolesAreRefused(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.want(201, "PUT", "/v1/roles/a", `{}`)
	s.want(201, "PUT", "/v1/roles/b", `{"inherits":["a"]}`)
	for path, body := range map[string]string{
		"/v1/roles/admin":  `{}`,
		"/v1/roles/self":   `{"inherits":["self"]}`,
		"/v1/roles/gone":   `{"inherits":["nobody"]}`,
		"/v1/roles/verbs":  `{"rules":[{"kinds":["vm"]}]}`,
		"/v1/roles/kinds":  `{"rules":[{"verbs":["read"],"kinds":["VM"]}]}`,
		"/v1/roles/effect": `{"rules":[{"effect":"maybe","verbs":["read"],"kinds":["vm"]}]}`,
		"/v1/roles/names":  `{"rules":[{"verbs":["read"],"kinds":["vm"],"names":["a*b"]}]}`,
		"/v1/roles/net":    `{"rules":[{"verbs":["read"],"kinds":["vm"],"addresses":["10.0.0.1/8"]}]}`,
		"/v1/roles/factor": `{"rules":[{"verbs":["read"],"kinds":["vm"],"second_factor":"perhaps"}]}`,
	} {
		s.want(400, "PUT", path, body)
	}
	tag := s.want(200, "GET", "/v1/roles/a", "").header.Get("ETag")
	if p := s.want(400, "PUT", "/v1/roles/a", `{"inherits":["b"]}`, "If-Match", tag).problem(t); !strings.Contains(p.Message, "[a b a]") {
		t.Errorf("a circle: got %q", p.Message)
	}
	rules := strings.Repeat(`{"verbs":["read"],"kinds":["vm"]},`, api.RoleRulesMax) + `{"verbs":["read"],"kinds":["vm"]}`
	s.want(400, "PUT", "/v1/roles/many", `{"rules":[`+rules+`]}`)
}

func TestNobodyRaisesTheirOwnRole(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.want(201, "PUT", "/v1/tenants/shop", `{}`)
	s.want(201, "PUT", "/v1/roles/keeper", `{"rules":[{"verbs":["*"],"kinds":["*"]}]}`)
	send := s.as("keeper", `"role":"keeper"`)
	send(403, "PUT", "/v1/roles/keeper", `{"inherits":["admin"]}`, "If-Match", "*")
	send(403, "POST", "/v1/apply", `{"operations":[{"op":"role.put","body":{"name":"mine","inherits":["admin"]}}]}`)
	send(403, "POST", "/v1/api_keys", `{"name":"mine","role":"admin"}`)
	send(201, "POST", "/v1/api_keys", `{"name":"mine","role":"keeper"}`)
	send(403, "DELETE", "/v1/api_keys/root", "")
	send(403, "POST", "/v1/api_keys/root/rotate", "")
	var may api.Permission
	if send(200, "GET", "/v1/can-i?verb=update&kind=role", "").into(t, &may); may.Allowed {
		t.Errorf("got %+v", may)
	}
	local := s.as("local", `"role":"keeper","tenants":["shop"]`)
	local(403, "POST", "/v1/api_keys", `{"name":"wide","role":"keeper"}`)
	s.want(409, "DELETE", "/v1/api_keys/root", "")
}

func TestAKeyWorksWhereAndWhenItShould(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	far := s.as("far", `"role":"viewer","addresses":["203.0.113.0/24"]`)
	far(403, "GET", "/v1/vms", "")
	near := s.as("near", `"role":"viewer","addresses":["203.0.113.0/24","127.0.0.0/8"]`)
	if near(200, "GET", "/v1/vms", "").header.Get("X-Debvisor-Key-Expires") != "" {
		t.Error("a key with 90 days to live warns")
	}
	soon := s.as("soon", fmt.Sprintf(`"role":"viewer","expires":%q`, time.Now().Add(24*time.Hour).UTC().Format(time.RFC3339)))
	if soon(200, "GET", "/v1/vms", "").header.Get("X-Debvisor-Key-Expires") == "" {
		t.Error("a key with a day to live does not warn")
	}
	s.want(400, "POST", "/v1/api_keys", `{"name":"x","role":"viewer","expires":"2001-01-01T00:00:00Z"}`)
	s.want(400, "POST", "/v1/api_keys", `{"name":"x","role":"viewer","tenants":["nowhere"]}`)
	s.want(400, "POST", "/v1/api_keys", `{"name":"x","role":"nobody"}`)
	left := time.Until(fsm.APIKeys.Get(s.f.Read(), "near").Expires)
	if left < api.KeyLife-time.Minute || left > api.KeyLife {
		t.Errorf("a new key lives for %v", left)
	}
}

func TestBothSecretsOfARotatedKeyWorkForAWhile(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	old := s.as("ci", `"role":"viewer"`)
	secretOf := func(body string) string {
		var made api.Secret
		s.want(200, "POST", "/v1/api_keys/ci/rotate", body).into(t, &made)
		return made.Key
	}
	second := secretOf(`{"overlap_seconds":3600}`)
	old(200, "GET", "/v1/vms", "")
	s.want(200, "GET", "/v1/vms", "", "Authorization", "Bearer "+second)
	third := secretOf(`{"overlap_seconds":0}`)
	old(401, "GET", "/v1/vms", "")
	s.want(401, "GET", "/v1/vms", "", "Authorization", "Bearer "+second)
	s.want(200, "GET", "/v1/vms", "", "Authorization", "Bearer "+third)
	secretOf("")
	if k := fsm.APIKeys.Get(s.f.Read(), "ci"); time.Until(k.PreviousExpires) > api.KeyOverlap || k.PreviousHash == "" {
		t.Errorf("got %+v", k)
	}
	s.want(400, "POST", "/v1/api_keys/ci/rotate", `{"overlap_seconds":604801}`)
	s.want(404, "POST", "/v1/api_keys/nobody/rotate", "")
	if body := string(s.want(200, "GET", "/v1/api_keys/ci", "").body); strings.Contains(body, "hash") {
		t.Errorf("a hash is shown: %s", body)
	}
}

// TestEveryRouteAsksTheRoles sends a request to every route of the router with
// a key whose role has no rules: none but those about the caller may answer.
func TestEveryRouteAsksTheRoles(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.want(201, "POST", "/v1/vms", vmBody("web"))
	s.want(201, "PUT", "/v1/roles/nothing", `{}`)
	var made api.Secret
	s.want(201, "POST", "/v1/api_keys", `{"name":"nobody","role":"nothing"}`).into(t, &made)
	self := []string{"GET /v1/version", "GET /v1/openapi.json", "GET /v1/can-i", "POST /v1/apply"}
	asked := 0
	err := s.api.Walk(func(method, path string) {
		right, _ := s.api.Right(method, path)
		switch {
		case open(method, path):
			return
		case right.Scope == authz.ScopeSelf:
			if !slices.Contains(self, method+" "+path) {
				t.Errorf("%s %s answers any key", method, path)
			}
			return
		}
		asked++
		a := s.call(method, concrete(path), "", "Authorization", "Bearer "+made.Key)
		if a.status != http.StatusForbidden && a.status != http.StatusNotFound {
			t.Errorf("%s %s with a role without rights: got %d %s", method, path, a.status, a.body)
		}
	})
	if err != nil || asked < 30 {
		t.Fatalf("%d routes: %v", asked, err)
	}
}
