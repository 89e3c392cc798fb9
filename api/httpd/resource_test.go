package httpd_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/httpd"
	"github.com/debvisor/debvisor/fsm"
)

func TestObjectsAreCreatedReadChangedAndDeleted(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	a := s.want(201, "POST", "/v1/vms", vmBody("web"))
	var vm api.VM
	a.into(t, &vm)
	if vm.ID == "" || vm.Tenant != "default" || a.header.Get("ETag") == "" || a.header.Get("X-Debvisor-Version") != "1.2.3" {
		t.Fatalf("got %s, %v", a.body, a.header)
	}
	s.want(409, "POST", "/v1/vms", vmBody("web"))
	tag := s.want(200, "GET", "/v1/vms/web", "").header.Get("ETag")
	s.want(304, "GET", "/v1/vms/web", "", "If-None-Match", tag)
	change := strings.Replace(vmBody("web"), `"cpus":1`, `"cpus":2`, 1)
	if p := s.want(428, "PUT", "/v1/vms/web", change).problem(t); p.Code != api.CodeConflict {
		t.Fatalf("got %+v", p)
	}
	s.want(428, "PUT", "/v1/vms/web", change, "Idempotency-Key", "without-a-revision")
	s.want(409, "PUT", "/v1/vms/web", change, "If-None-Match", "*")
	s.want(409, "PUT", "/v1/vms/web", change, "If-Match", `"999"`)
	s.want(200, "PUT", "/v1/vms/web", change, "If-Match", tag)
	s.want(409, "PUT", "/v1/vms/web", change, "If-Match", tag)
	s.want(428, "DELETE", "/v1/vms/web", "")
	s.want(409, "DELETE", "/v1/vms/web", "", "If-Match", tag)
	s.want(204, "DELETE", "/v1/vms/web", "", "If-Match", "*")
	s.want(404, "GET", "/v1/vms/web", "")
	s.want(404, "DELETE", "/v1/vms/web", "", "If-Match", "*")
}

func TestAPlanChangesNothingAndEqualsTheChange(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	before := s.f.Read().StateHash()
	var plan api.Plan
	s.want(200, "PUT", "/v1/vms/web?plan=true", vmBody("web")).into(t, &plan)
	if s.f.Read().StateHash() != before {
		t.Fatal("the plan changed the state")
	}
	if len(plan.Changes) != 2 || len(plan.Placements) != 1 || plan.Placements[0].VM != "default/web" {
		t.Fatalf("got %+v", plan)
	}
	if rev, ok := plan.Revisions["vm/default/web"]; !ok || rev != 0 {
		t.Fatalf("got the revisions %v", plan.Revisions)
	}
}

func TestARepeatedRequestHappensOnce(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	first := s.want(201, "PUT", "/v1/vms/web", vmBody("web"), "Idempotency-Key", "k1")
	again := s.want(201, "PUT", "/v1/vms/web", vmBody("web"), "Idempotency-Key", "k1")
	if string(first.body) != string(again.body) || again.header.Get("X-Request-Id") != "k1" {
		t.Fatalf("got %s, then %s", first.body, again.body)
	}
	other := strings.Replace(vmBody("web"), `"cpus":1`, `"cpus":3`, 1)
	if p := s.want(422, "PUT", "/v1/vms/web", other, "Idempotency-Key", "k1").problem(t); p.Field != "request_id" {
		t.Fatalf("got %+v", p)
	}
	s.runOn("default/web")
	var a, b api.Action
	s.want(200, "POST", "/v1/vms/web/restart", `{}`, "Idempotency-Key", "k2").into(t, &a)
	s.want(200, "POST", "/v1/vms/web/restart", `{}`, "Idempotency-Key", "k2").into(t, &b)
	if a.Task == nil || b.Task == nil || a.Task.Name != b.Task.Name || fsm.Tasks.Len(s.f.Read()) != 1 {
		t.Fatalf("got %+v and %+v", a.Task, b.Task)
	}
}

func TestListsHavePagesAndFilters(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.want(201, "PUT", "/v1/tenants/other", `{}`)
	for _, name := range []string{"a", "b", "c"} {
		s.want(201, "PUT", "/v1/networks/"+name, `{"driver":"bridge","bridge":"br0","labels":{"role":"`+name+`"}}`)
	}
	s.want(201, "PUT", "/v1/networks/a?tenant=other", `{"driver":"bridge","bridge":"br0"}`)
	names := func(path string) (out, next string) {
		var page struct {
			Items []api.Network `json:"items"`
			Next  string        `json:"next"`
		}
		s.want(200, "GET", path, "").into(t, &page)
		for _, n := range page.Items {
			out += n.Tenant + "/" + n.Name + " "
		}
		return strings.TrimSpace(out), page.Next
	}
	for path, want := range map[string]string{
		"/v1/networks":                        "default/a default/b default/c",
		"/v1/networks?tenant=other":           "other/a",
		"/v1/networks?tenant=*":               "default/a default/b default/c other/a",
		"/v1/networks?label=role=b":           "default/b",
		"/v1/networks?label=role=b&label=x=y": "",
		"/v1/networks?limit=2":                "default/a default/b",
		"/v1/networks?after=default/b":        "default/c",
		"/v1/networks?tenant=nobody":          "",
		"/v1/networks?stale=true":             "default/a default/b default/c",
	} {
		if got, _ := names(path); got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
	if _, next := names("/v1/networks?limit=2"); next != "default/b" {
		t.Errorf("got the cursor %q", next)
	}
	if _, next := names("/v1/networks?limit=3"); next != "" {
		t.Errorf("the last page has the cursor %q", next)
	}
}

func TestThePastCanBeRead(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.want(201, "PUT", "/v1/networks/a", `{"driver":"bridge","bridge":"br0"}`)
	at := s.f.Index()
	tag := s.want(200, "GET", "/v1/networks/a", "").header.Get("ETag")
	s.want(204, "DELETE", "/v1/networks/a", "", "If-Match", tag)
	s.want(201, "PUT", "/v1/networks/b", `{"driver":"bridge","bridge":"br0"}`)
	path := func(p string, index uint64) string { return p + "?at=" + u(index) }
	s.want(200, "GET", path("/v1/networks/a", at), "")
	s.want(404, "GET", path("/v1/networks/a", at-1), "")
	s.want(404, "GET", path("/v1/networks/a", at+1), "")
	s.want(404, "GET", path("/v1/networks/b", at), "")
	s.want(400, "GET", path("/v1/networks/a", at+100), "")
	var page struct {
		Items []api.Network `json:"items"`
	}
	s.want(200, "GET", path("/v1/networks", at), "").into(t, &page)
	if len(page.Items) != 1 || page.Items[0].Name != "a" {
		t.Fatalf("got %+v", page.Items)
	}
}

func TestSecretsNeverLeave(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	var key, token api.Secret
	s.want(201, "POST", "/v1/api_keys", `{"name":"ci","role":"admin"}`).into(t, &key)
	s.want(201, "POST", "/v1/join_tokens", `{"witness":true}`).into(t, &token)
	s.do(fsm.PutSeal.Entry(api.Seal{Meta: api.Meta{Name: "ca"}, Ciphertext: []byte("canary-of-a-seal")}))
	hash := fsm.APIKeys.Get(s.f.Read(), "ci").Hash
	tokenHash := fsm.JoinTokens.Get(s.f.Read(), token.Name).Hash
	s.want(200, "GET", "/v1/version", "", "Authorization", "Bearer "+key.Key)
	for _, path := range []string{
		"/v1/api_keys", "/v1/api_keys/ci", "/v1/join_tokens", "/v1/join_tokens/" + token.Name, "/v1/history/api_key/ci",
		"/v1/history/join_token/" + token.Name, "/v1/audit?limit=1000", "/v1/why/api_key/ci", "/v1/api_keys/ci?at=" + u(s.f.Index()),
		"/v1/diff/api_key/ci?from=1", "/v1/api_keys?at=" + u(s.f.Index()),
	} {
		body := string(s.want(200, "GET", path, "").body)
		for _, canary := range []string{hash, tokenHash, httpd.HashSecret(secret), secret, "Y2FuYXJ5LW9mLWEtc2VhbA"} {
			if strings.Contains(body, canary) {
				t.Errorf("%s shows %s: %s", path, canary, body)
			}
		}
	}
	plan := s.want(200, "POST", "/v1/api_keys?plan=true", `{"name":"ci2","role":"viewer"}`)
	if strings.Contains(string(plan.body), `"hash"`) {
		t.Errorf("the plan shows a hash: %s", plan.body)
	}
	s.want(204, "DELETE", "/v1/api_keys/ci", "")
	s.want(401, "GET", "/v1/version", "", "Authorization", "Bearer "+key.Key)
	s.want(409, "DELETE", "/v1/api_keys/root", "")
}

func TestVerbsReachTheirObjects(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.want(201, "PUT", "/v1/vms/web", vmBody("web"))
	s.runOn("default/web")
	var act api.Action
	s.want(200, "POST", "/v1/vms/web/stop", "").into(t, &act)
	if act.VM == nil || act.VM.Power != api.PowerOff || act.Task != nil {
		t.Fatalf("got %+v", act)
	}
	s.want(409, "POST", "/v1/vms/web/restart", `{"force":true}`)
	s.want(200, "POST", "/v1/vms/web/start", `{}`)
	s.want(400, "POST", "/v1/vms/web/start", `{"force":true}`)
	act = api.Action{}
	s.want(200, "POST", "/v1/vms/web/stop", `{"force":true}`).into(t, &act)
	if act.Task == nil || act.Task.Verb != api.TaskStop || act.VM.Power != api.PowerOff {
		t.Fatalf("got %+v", act)
	}
	s.want(200, "POST", "/v1/tasks/"+act.Task.Name+"/cancel", "")
	s.want(409, "POST", "/v1/tasks/"+act.Task.Name+"/cancel", "")
	s.want(404, "POST", "/v1/vms/none/start", "")
	s.want(200, "POST", "/v1/nodes/node1/schedule", `{"unschedulable":true,"labels":{"rack":"a"}}`)
	if n := fsm.Nodes.Get(s.f.Read(), "node1"); !n.Unschedulable || n.Labels["rack"] != "a" {
		t.Fatalf("got %+v", n)
	}
	s.want(409, "DELETE", "/v1/nodes/node1?reason=gone&force=true", "") // the last one
	s.want(200, "POST", "/v1/nodes/node1/confirm-off?plan=true", `{"epoch":1}`)
	s.want(200, "POST", "/v1/nodes/node1/confirm-off", `{"epoch":1,"reason":"no power"}`)
	if i := fsm.Instances.Get(s.f.Read(), act.VM.ID); i.Owner != "" {
		t.Fatalf("got %+v", i)
	}
	s.want(400, "POST", "/v1/cluster/activate", `{"version":1}`)
	var status api.ClusterStatus
	s.want(200, "GET", "/v1/cluster", "").into(t, &status)
	if status.Leader != "node1" {
		t.Fatalf("got %+v", status)
	}
}

func TestTheNodeSaysWhyItIsNotReady(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.want(200, "GET", "/health/live", "", "Authorization", "")
	s.want(200, "GET", "/health/ready", "", "Authorization", "")
	s.notReady = []string{"no leader", "journal disk is full"}
	p := s.want(http.StatusServiceUnavailable, "GET", "/health/ready", "", "Authorization", "").problem(t)
	if len(p.Reasons) != 2 {
		t.Fatalf("got %+v", p)
	}
}
