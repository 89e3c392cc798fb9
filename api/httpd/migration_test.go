package httpd_test

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/httpd"
	"github.com/debvisor/debvisor/fsm"
)

// moving is a server with the VM web on node1, for which placement says what
// the test wants.
func moving(t *testing.T) (s *server, says func(api.Decision)) {
	t.Helper()
	var decision atomic.Pointer[api.Decision]
	decision.Store(&api.Decision{Node: "node2", Summary: "node2 takes it"})
	s = newServer(t, func(c *httpd.Config) {
		c.Moves = func(_ *fsm.View, vm *api.VM, args api.MigrateArgs) api.Decision {
			if vm.Name != "web" || args.Node == "" && args.CopyStorage {
				t.Errorf("placement was asked about %s with %+v", vm.Name, args)
			}
			return *decision.Load()
		}
	})
	s.want(201, "POST", "/v1/vms", vmBody("web"))
	s.runOn("default/web")
	return s, func(d api.Decision) { decision.Store(&d) }
}

func TestAPlannedMigrationSaysWhereToAndChangesNothing(t *testing.T) {
	t.Parallel()
	s, _ := moving(t)
	before := s.f.Index()
	var plan api.Plan
	s.want(200, "POST", "/v1/vms/web/migrate?plan=true", "").into(t, &plan)
	if len(plan.Placements) != 1 || plan.Placements[0].VM != "default/web" || plan.Placements[0].Decision.Node != "node2" {
		t.Errorf("the plan is %+v", plan)
	}
	if len(plan.Changes) != 1 || plan.Changes[0].Kind != api.KindTask || s.f.Index() != before {
		t.Errorf("it changes %+v, and the state went from %d to %d", plan.Changes, before, s.f.Index())
	}
}

func TestAMigrationIsATaskWithItsArguments(t *testing.T) {
	t.Parallel()
	s, _ := moving(t)
	var action api.Action
	s.want(200, "POST", "/v1/vms/web/migrate", `{"bandwidth_bytes_max":1073741824,"auto_converge":true}`).into(t, &action)
	task := fsm.Tasks.Get(s.f.Read(), action.Task.Name)
	if task == nil || task.Verb != api.TaskMigrate || task.Object != "default/web" {
		t.Fatalf("the task is %+v", task)
	}
	for _, want := range []string{`"bandwidth_bytes_max":1073741824`, `"auto_converge":true`} {
		if !strings.Contains(string(task.Args), want) {
			t.Errorf("%s is missing in %s", want, task.Args)
		}
	}
	if p := s.want(409, "POST", "/v1/vms/web/migrate", "").problem(t); !strings.Contains(p.Detail, task.Name) {
		t.Errorf("a second one: %+v", p)
	}
}

// Everything that keeps a VM from moving is told at once, before anything moves.
func TestARefusedMigrationNamesEveryReason(t *testing.T) {
	t.Parallel()
	s, says := moving(t)
	says(api.Decision{Summary: "none of 2 nodes takes it", Candidates: []api.Candidate{
		{Node: "node2", Reasons: []string{"memory: too little", "CPU model: another one"}}, {Node: "node3", Reasons: []string{"not live"}}}})
	for _, path := range []string{"/v1/vms/web/migrate", "/v1/vms/web/migrate?plan=true"} {
		p := s.want(409, "POST", path, "").problem(t)
		if p.Message != "none of 2 nodes takes it" || p.Kind != api.KindVM || p.Key != "default/web" || p.Next == "" || len(p.Details) != 2 {
			t.Fatalf("%s: %+v", path, p)
		}
		if d := p.Details[0]; d.Kind != api.KindNode || d.Key != "node2" || d.Message != "memory: too little; CPU model: another one" {
			t.Errorf("%s: the first detail is %+v", path, d)
		}
	}
	s.want(200, "POST", "/v1/vms/web/stop", "")
	p := s.want(409, "POST", "/v1/vms/web/migrate", "").problem(t)
	if !strings.Contains(p.Detail, "is off") || !strings.Contains(p.Detail, "none of 2 nodes takes it") || len(p.Details) != 2 {
		t.Errorf("an obstacle of the VM and one of placement: %+v", p)
	}
	for task := range fsm.Tasks.All(s.f.Read()) {
		if task.Verb == api.TaskMigrate {
			t.Errorf("a refused migration left %+v", task)
		}
	}
}

func TestAMigrationWithBadArgumentsIsRefused(t *testing.T) {
	t.Parallel()
	s, _ := moving(t)
	s.want(404, "POST", "/v1/vms/none/migrate", "")
	for body, field := range map[string]string{
		`{"downtime_limit_ms":-1}`:   "downtime_limit_ms",
		`{"bandwidth_bytes_max":1}`:  "bandwidth_bytes_max",
		`{"node":"No Such"}`:         "node",
		`{"copy_strage":true}`:       "copy_strage",
		`{"bandwidth_bytes_max":""}`: "bandwidth_bytes_max",
	} {
		if p := s.want(400, "POST", "/v1/vms/web/migrate", body).problem(t); !strings.Contains(p.Detail, field) {
			t.Errorf("%s: %+v", body, p)
		}
	}
	if p := s.want(404, "POST", "/v1/vms/web/migrate", `{"node":"node9"}`).problem(t); p.Kind != api.KindNode || p.Key != "node9" {
		t.Errorf("to a stranger: %+v", p)
	}
	if p := s.want(409, "POST", "/v1/vms/web/migrate", `{"node":"node1"}`).problem(t); !strings.Contains(p.Detail, "there already") {
		t.Errorf("to its own node: %+v", p)
	}
}
