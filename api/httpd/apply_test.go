package httpd_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/httpd"
	"github.com/debvisor/debvisor/fsm"
)

func putNetwork(name string) api.Operation {
	return api.Operation{Op: "network.put", Body: json.RawMessage(`{"name":"` + name + `","tenant":"default","driver":"bridge","bridge":"br0"}`)}
}

func encode(t *testing.T, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestASmallApplyIsAllOrNothing(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	body := encode(t, api.Apply{Operations: []api.Operation{putNetwork("a"), putNetwork("b")}})
	var plan api.Plan
	s.want(200, "POST", "/v1/apply?plan=true", body).into(t, &plan)
	if len(plan.Changes) != 2 || fsm.Networks.Len(s.f.Read()) != 0 {
		t.Fatalf("got %+v", plan)
	}
	var done api.Applied
	s.want(200, "POST", "/v1/apply", encode(t, api.Apply{Operations: []api.Operation{putNetwork("a"), putNetwork("b")}, Revisions: plan.Revisions})).into(t, &done)
	if done.Changed != 2 || done.Task != nil || fsm.Networks.Len(s.f.Read()) != 2 {
		t.Fatalf("got %+v", done)
	}
	s.want(409, "POST", "/v1/apply", encode(t, api.Apply{Operations: []api.Operation{putNetwork("c"), putNetwork("a")}}))
	if fsm.Networks.Get(s.f.Read(), "default/c") != nil {
		t.Fatal("a part of a refused apply was carried out")
	}
}

func TestAnApplyIsRefusedWhenTheWorldMoved(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	body := encode(t, api.Apply{Operations: []api.Operation{putNetwork("a")}, Revisions: map[string]uint64{"network/default/b": 0, "instance/x": 5}})
	s.want(201, "PUT", "/v1/networks/b", netBody)
	if p := s.want(409, "POST", "/v1/apply", body).problem(t); p.Key != "default/b" {
		t.Fatalf("got %+v", p)
	}
}

func TestBadOperationsAreNamed(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	for body, want := range map[string]string{
		`{"operations":[]}`: "operations",
		`{"operations":[{"op":"node.remove","body":{"node":"node1"}}]}`:                                     "operations[0].op",
		`{"operations":[{"op":"apply","body":{}}]}`:                                                         "operations[0].op",
		`{"operations":[{"op":"api_key.create","body":{}}]}`:                                                "operations[0].op",
		`{"operations":[{"op":"network.put","body":{"name":"a","tenant":"default","bridges":"x"}}]}`:        "operations[0].bridges",
		`{"operations":[{"op":"network.put"}]}`:                                                             "operations[0]",
		`{"operations":[{"op":"network.delete","body":{"name":"a"}}]}`:                                      "operations[0].modified",
		`{"operations":[{"op":"network.delete","body":{"name":"../a","modified":1}}]}`:                      "operations[0].name",
		`{"operations":[{"op":"tenant.put","body":{"name":"x"}}],"revisions":{"none/x":1}}`:                 "revisions",
		`{"operations":[{"op":"tenant.put","body":{"name":"x"}},{"op":"tenant.put","body":{"name":"-x"}}]}`: "operations[1].name",
		`{"operations":[{"op":"tenant.put","body":{"name":"x","name":"y"}}]}`:                               "name",
	} {
		if p := s.want(400, "POST", "/v1/apply", body).problem(t); p.Field != want {
			t.Errorf("%s: got the field %q, want %q", body, p.Field, want)
		}
	}
}

// large is an apply of n networks with long descriptions.
func large(n int) api.Apply {
	in := api.Apply{Revisions: map[string]uint64{"network/default/other": 0}}
	for i := range n {
		o := putNetwork(fmt.Sprintf("n-%04d", i))
		o.Body = append(o.Body[:len(o.Body)-1], []byte(`,"description":"`+strings.Repeat("x", 900)+`"}`)...)
		in.Operations = append(in.Operations, o)
		in.Revisions[fmt.Sprintf("network/default/n-%04d", i)] = 0
	}
	return in
}

func TestALargeApplyBecomesPartsThatResume(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	body := encode(t, large(600))
	var plan api.Plan
	s.want(200, "POST", "/v1/apply?plan=true", body).into(t, &plan)
	if len(plan.Changes) != 600 {
		t.Fatalf("the plan has %d changes", len(plan.Changes))
	}
	var done, again api.Applied
	s.want(202, "POST", "/v1/apply", body, "Idempotency-Key", "large").into(t, &done)
	s.want(202, "POST", "/v1/apply", body, "Idempotency-Key", "large").into(t, &again)
	if done.Task == nil || again.Task == nil || done.Task.Name != again.Task.Name {
		t.Fatalf("got %+v, then %+v", done, again)
	}
	var tasks []*api.Task
	for task := range fsm.Tasks.All(s.f.Read()) {
		tasks = append(tasks, task)
	}
	if len(tasks) < 4 {
		t.Fatalf("got %d parts", len(tasks))
	}
	do := httpd.ApplyParts(s)
	finish := func(task *api.Task, state string) {
		d := s.do(fsm.DispatchTask.Entry(fsm.TaskDispatch{Name: task.Name, Epoch: 1, Attempt: 0})).Row.(*api.Task)
		s.do(fsm.FinishTask.Entry(fsm.TaskReport{Name: task.Name, Epoch: 1, Attempt: d.Attempt, State: state}))
	}
	slices.SortFunc(tasks, func(a, b *api.Task) int { return int(a.Created) - int(b.Created) })
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan error, 1)
	go func() { waiting <- do(ctx, tasks[1], nil) }() // waits for the first part, and is killed
	cancel()
	if err := <-waiting; err == nil {
		t.Fatal("the second part did not wait for the first")
	}
	for _, task := range tasks {
		for range 2 { // carried out, and then again by the next leader
			if err := do(t.Context(), task, nil); err != nil {
				t.Fatalf("part %s: %v", task.Name, err)
			}
		}
		finish(task, api.TaskDone)
	}
	if n := fsm.Networks.Len(s.f.Read()); n != 600 {
		t.Fatalf("got %d networks", n)
	}
}

func TestALargeApplyStopsAtItsFirstFailure(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	var done api.Applied
	s.want(202, "POST", "/v1/apply", encode(t, large(600))).into(t, &done)
	s.want(201, "PUT", "/v1/networks/other", netBody) // the plan saw none
	var part api.ApplyPart
	if err := json.Unmarshal(done.Task.Args, &part); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/v1/tasks", "/v1/audit?limit=1000", "/v1/tasks/" + done.Task.Name} {
		if body := s.want(200, "GET", path, "").body; strings.Contains(string(body), "xxxx") || !strings.Contains(string(body), part.Set) {
			t.Fatalf("%s shows the objects of a part, or not the part", path)
		}
	}
	task := func(n int) *api.Task { return fsm.Tasks.Get(s.f.Read(), api.PartName(part.Set, n)) }
	do := httpd.ApplyParts(s)
	if err := do(t.Context(), task(0), nil); api.CodeOf(err) != api.CodeConflict {
		t.Fatalf("got %v, want conflict", err)
	}
	s.do(fsm.CancelTask.Entry(fsm.TaskName{Name: task(0).Name}))
	if err := do(t.Context(), task(1), nil); api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), "part 1 of") {
		t.Fatalf("got %v, want that part 1 was not carried out", err)
	}
	if n := fsm.Networks.Len(s.f.Read()); n != 1 {
		t.Fatalf("got %d networks", n)
	}
}

func TestALargeApplyEndsWithItsKey(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	var key api.Secret
	s.want(201, "POST", "/v1/api_keys", `{"name":"ci","role":"admin"}`).into(t, &key)
	s.want(202, "POST", "/v1/apply", encode(t, large(600)), "Authorization", "Bearer "+key.Key)
	s.want(204, "DELETE", "/v1/api_keys/ci", "")
	for task := range fsm.Tasks.All(s.f.Read()) {
		if strings.HasSuffix(task.Name, "-0") {
			if err := httpd.ApplyParts(s)(t.Context(), task, nil); api.CodeOf(err) != api.CodeUnauthenticated {
				t.Fatalf("got %v, want unauthenticated", err)
			}
		}
	}
}
