package cluster_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/e2e/cluster/harness"
)

// request is one request that a client should not have made, and its answer.
type request struct {
	name   string
	method string
	path   string
	body   string
	header map[string]string
	status int
	code   api.Code
	says   string // somewhere in the problem
}

// noKey as the key in a header sends none.
const noKey = "none"

func badRequests() []request {
	tenant := `{"name":"made"}`
	key := func(v string) map[string]string { return map[string]string{"Authorization": v} }
	return []request{
		{"no key", "GET", "/v1/vms", "", key(noKey), 401, api.CodeUnauthenticated, ""},
		{"no key on an unknown route", "GET", "/v1/nothing", "", key(noKey), 401, api.CodeUnauthenticated, ""},
		{"a wrong key", "GET", "/v1/vms", "", key("Bearer dvk_admin_" + strings.Repeat("a", 52)), 401, api.CodeUnauthenticated, ""},
		{"another scheme", "GET", "/v1/vms", "", key("Basic YWRtaW46YWRtaW4="), 401, api.CodeUnauthenticated, ""},
		{"an unknown route", "GET", "/v1/nothing", "", nil, 404, api.CodeNotFound, "route"},
		{"an unknown method", "PATCH", "/v1/vms", "", nil, 405, api.CodeInvalid, "PATCH"},
		{"an absent object", "GET", "/v1/vms/nobody", "", nil, 404, api.CodeNotFound, "nobody"},
		{"a name that is no label", "GET", "/v1/vms/Not_A_Label", "", nil, 400, api.CodeInvalid, "name"},
		{"an unknown parameter", "GET", "/v1/vms?colour=red", "", nil, 400, api.CodeInvalid, "colour"},
		{"a limit beyond the limit", "GET", "/v1/vms?limit=50001", "", nil, 400, api.CodeInvalid, "limit"},
		{"a label without a value", "GET", "/v1/vms?label=web", "", nil, 400, api.CodeInvalid, "label"},
		{"no body", "POST", "/v1/tenants", "", nil, 400, api.CodeInvalid, "name"},
		{"no JSON", "POST", "/v1/tenants", "name: made", nil, 400, api.CodeInvalid, "JSON"},
		{"a wrong content type", "POST", "/v1/tenants", tenant, map[string]string{"Content-Type": "text/plain"}, 415, api.CodeInvalid, "application/json"},
		{"another character set", "POST", "/v1/tenants", tenant, map[string]string{"Content-Type": "application/json; charset=latin1"}, 415, api.CodeInvalid, "application/json"},
		{"a duplicate key", "POST", "/v1/tenants", `{"name":"made","name":"other"}`, nil, 400, api.CodeInvalid, "name"},
		{"a key in capitals", "POST", "/v1/tenants", `{"Name":"made"}`, nil, 400, api.CodeInvalid, "Name"},
		{"an unknown field", "POST", "/v1/tenants", `{"name":"made","colour":"red"}`, nil, 400, api.CodeInvalid, "colour"},
		{"a field of another type", "POST", "/v1/tenants", `{"name":7}`, nil, 400, api.CodeInvalid, "name"},
		{"data behind the body", "POST", "/v1/tenants", tenant + tenant, nil, 400, api.CodeInvalid, "after"},
		{"text that is not UTF-8", "POST", "/v1/tenants", "{\"name\":\"m\xff\"}", nil, 400, api.CodeInvalid, "UTF-8"},
		{"control characters", "POST", "/v1/tenants", `{"name":"made","description":"a\u001b[2Jb"}`, nil, 400, api.CodeInvalid, "description"},
		{"deep nesting", "POST", "/v1/tenants", strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100), nil, 400, api.CodeInvalid, "nested"},
		{"a body that is too large", "POST", "/v1/tenants", `{"name":"made","description":"` + strings.Repeat("x", 300<<10) + `"}`, nil, 413, api.CodeLimit, "large"},
		{"an apply that is too large", "POST", "/v1/apply", `{"operations":[{"op":"tenant.put","body":{"name":"` + strings.Repeat("x", 17<<20) + `"}}]}`, nil, 413, api.CodeLimit, "large"},
		{"an unknown operation", "POST", "/v1/apply", `{"operations":[{"op":"tenant.explode","body":{}}]}`, nil, 400, api.CodeInvalid, "tenant.explode"},
		{"a transition in an apply", "POST", "/v1/apply", `{"operations":[{"op":"instance.assign","body":{}}]}`, nil, 400, api.CodeInvalid, "instance.assign"},
		{"a change without its revision", "PUT", "/v1/tenants/default", `{"description":"new"}`, nil, 428, api.CodeConflict, "If-Match"},
		{"a change of another revision", "PUT", "/v1/tenants/default", `{"description":"new"}`, map[string]string{"If-Match": `"999999"`}, 409, api.CodeConflict, "default"},
		{"a creation of what exists", "PUT", "/v1/tenants/default", `{"description":"new"}`, map[string]string{"If-None-Match": "*"}, 409, api.CodeConflict, "exists"},
		{"a revision that is none", "PUT", "/v1/tenants/default", `{"description":"new"}`, map[string]string{"If-Match": "yesterday"}, 400, api.CodeInvalid, "If-Match"},
		{"a name unlike the path's", "PUT", "/v1/tenants/made", `{"name":"other"}`, nil, 400, api.CodeInvalid, "name"},
		{"an object of an absent tenant", "POST", "/v1/vms?tenant=nobody", `{"name":"made","cpus":1,"memory_bytes":67108864}`, nil, 400, api.CodeInvalid, "nobody"},
		{"a VM too large for the type", "POST", "/v1/vms", `{"name":"made","cpus":1,"memory_bytes":99999999999999999999}`, nil, 400, api.CodeInvalid, "memory_bytes"},
		{"an index that is none", "GET", "/v1/events?index=-1", "", nil, 400, api.CodeInvalid, "index"},
		{"history of an unknown kind", "GET", "/v1/history/ghost/web", "", nil, 404, api.CodeNotFound, "ghost"},
		{"a state of the future", "GET", "/v1/vms?at=99999999", "", nil, 400, api.CodeInvalid, "at"},
		{"a short passphrase", "POST", "/v1/cluster/backup", `{"passphrase":"short"}`, nil, 400, api.CodeInvalid, "passphrase"},
		{"a long request ID", "POST", "/v1/tenants", tenant, map[string]string{"Idempotency-Key": strings.Repeat("x", 500)}, 400, api.CodeInvalid, "Idempotency-Key"},
	}
}

// TestBadRequestsGetProblems sends what clients should not. Each gets a problem
// that says what is wrong, and nothing is changed.
func TestBadRequestsGetProblems(t *testing.T) {
	t.Parallel()
	c := harness.Single(t)
	send := sender(t, c)
	for _, r := range badRequests() {
		t.Run(strings.ReplaceAll(r.name, " ", "-"), func(t *testing.T) { r.run(t, send) })
	}
	var rows []api.Tenant
	decode(t, c.Must("tenant", "list", "-o", "json"), &rows)
	if len(rows) != 1 || rows[0].Description == "new" {
		t.Errorf("tenants %+v, want the default one as it was", rows)
	}
	healthNeedsNoKey(t, send)
}

func healthNeedsNoKey(t *testing.T, send func(*request) (*http.Response, []byte)) {
	t.Helper()
	for _, path := range []string{"/health/live", "/health/ready"} {
		if resp, raw := send(&request{method: "GET", path: path, header: map[string]string{"Authorization": noKey}}); resp.StatusCode != http.StatusOK {
			t.Errorf("%s without a key: %s %s", path, resp.Status, raw)
		}
	}
	for path, says := range map[string]string{"/v1/openapi.json": `"openapi":"3.1`, "/metrics": "# TYPE", "/v1/version": `"api":"v1"`} {
		resp, raw := send(&request{method: "GET", path: path})
		if resp.StatusCode != http.StatusOK || !bytes.Contains(raw, []byte(says)) {
			t.Errorf("%s: %s %.200s, want %s", path, resp.Status, raw, says)
		}
	}
}

// sender sends requests to the first node as they are.
func sender(t *testing.T, c *harness.Cluster) func(*request) (*http.Response, []byte) {
	t.Helper()
	pem, err := os.ReadFile(c.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	hc := &http.Client{Transport: transport, Timeout: 30 * time.Second}
	return func(r *request) (*http.Response, []byte) {
		req, err := http.NewRequestWithContext(t.Context(), r.method, "https://"+c.Nodes[0].Address+r.path, strings.NewReader(r.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+c.Key())
		if r.body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		for k, v := range r.header {
			req.Header.Set(k, v)
			if v == noKey {
				req.Header.Del(k)
			}
		}
		resp, err := hc.Do(req)
		if err != nil {
			t.Fatalf("%s %s: %v", r.method, r.path, err)
		}
		defer func() { _ = resp.Body.Close() }()
		raw, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, raw
	}
}

func (r *request) run(t *testing.T, send func(*request) (*http.Response, []byte)) {
	resp, raw := send(r)
	var p api.Error
	if err := json.Unmarshal(raw, &p); err != nil || resp.Header.Get("Content-Type") != "application/problem+json" {
		t.Fatalf("the answer is no problem: %s, %s: %.300s", resp.Status, resp.Header.Get("Content-Type"), raw)
	}
	if resp.StatusCode != r.status || p.Code != r.code || !bytes.Contains(raw, []byte(r.says)) {
		t.Errorf("got %d %s, want %d %s with %q: %.400s", resp.StatusCode, p.Code, r.status, r.code, r.says, raw)
	}
	if p.RequestID == "" || resp.Header.Get("X-Request-Id") != p.RequestID {
		t.Errorf("request ID %q in the problem, %q in the header", p.RequestID, resp.Header.Get("X-Request-Id"))
	}
}
