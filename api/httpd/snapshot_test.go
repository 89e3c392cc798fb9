package httpd_test

import (
	"strings"
	"testing"

	"github.com/debvisor/debvisor/api"
)

func TestSnapshotsAreTakenPlannedAndRefused(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.want(201, "POST", "/v1/vms", `{"name":"web","cpus":1,"memory_bytes":134217728,"disks":[{"name":"root","size_bytes":1073741824}]}`)
	refused := func(path, body string, code api.Code, says string) {
		t.Helper()
		a := s.call("POST", path, body)
		if p := a.problem(t); p.Code != code || !strings.Contains(string(a.body), says) {
			t.Errorf("%s %s: got %s", path, body, a.body)
		}
	}
	const path = "/v1/vms/web/snapshots"
	refused(path, `{"name":"one"}`, api.CodeConflict, "on no node")
	s.runOn("default/web")
	refused(path, `{"name":"One"}`, api.CodeInvalid, "DNS label")
	refused(path, `{"name":"one","memory":true,"quiesce":true}`, api.CodeInvalid, "quiesce")
	refused(path, `{"name":"one","slot":"2026-01-01T00:00:00Z"}`, api.CodeInvalid, "slot")
	refused(path+"/one/revert", `{}`, api.CodeNotFound, "web.one")
	if a := s.call("POST", path+"?plan=true", `{"name":"one"}`); a.status != 200 || !strings.Contains(string(a.body), "default/web.one") {
		t.Errorf("the plan: %d %s", a.status, a.body)
	}
	if a := s.call("POST", path, `{"name":"one"}`); a.status != 200 || !strings.Contains(string(a.body), api.TaskSnapshot) {
		t.Fatalf("got %d %s", a.status, a.body)
	}
	refused(path, `{"name":"one"}`, api.CodeConflict, "exists already")
	refused(path+"/one/revert", `{}`, api.CodeConflict, "creating")
	if a := s.call("GET", path, ""); !strings.Contains(string(a.body), `"web.one"`) {
		t.Errorf("the list: %s", a.body)
	}
	for _, read := range []string{"/v1/snapshots", "/v1/snapshots/web.one"} {
		if a := s.call("GET", read, ""); a.status != 200 || !strings.Contains(string(a.body), `"creating"`) {
			t.Errorf("%s: %d %s", read, a.status, a.body)
		}
	}
	if a := s.call("DELETE", path+"/one", ""); a.problem(t).Code != api.CodeConflict {
		t.Errorf("the deletion of one that is being taken: %s", a.body)
	}
}
