package httpd_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

func TestADrainClosesTheNodeInTheSameEntry(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	var plan api.Plan
	s.want(200, "POST", "/v1/nodes/node1/drain?plan=true", `{"reason":"new memory"}`).into(t, &plan)
	if len(plan.Changes) != 2 || fsm.Nodes.Get(s.f.Read(), "node1").Unschedulable {
		t.Fatalf("got %+v", plan)
	}
	var action api.Action
	s.want(200, "POST", "/v1/nodes/node1/drain", `{"reason":"new memory"}`).into(t, &action)
	n := fsm.Nodes.Get(s.f.Read(), "node1")
	if action.Task == nil || action.Task.Verb != api.TaskDrain || !n.Unschedulable || n.Maintenance != "new memory" {
		t.Fatalf("got %+v, %+v", action.Task, n)
	}
	if p := s.want(409, "POST", "/v1/nodes/node1/drain", "").problem(t); !strings.Contains(p.Message, action.Task.Name) {
		t.Fatalf("a second drain: got %+v", p)
	}
	s.want(404, "POST", "/v1/nodes/node9/drain", "")
	s.want(400, "POST", "/v1/nodes/node1/drain", `{"parallel":33}`)
	s.want(400, "POST", "/v1/nodes/node1/drain", `{"paralel":1}`)
	s.want(200, "POST", "/v1/nodes/node1/schedule", `{"unschedulable":false}`)
	if n := fsm.Nodes.Get(s.f.Read(), "node1"); n.Unschedulable || n.Maintenance != "" {
		t.Fatalf("got %+v", n)
	}
	s.want(400, "POST", "/v1/nodes/node1/schedule", `{"unschedulable":false,"maintenance":"x"}`)
}

func TestBalanceProposesAndCarriesOutOnlyWhatHolds(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	var b api.Balance
	s.want(200, "GET", "/v1/balance?moves=1", "").into(t, &b)
	if len(b.Moves) != 1 || b.Index == 0 {
		t.Fatalf("got %+v", b)
	}
	s.want(400, "GET", "/v1/balance?moves=51", "")
	move := `{"vm":"default/web","id":"x","from":"node9","to":"node1"}`
	for _, body := range []string{
		`{"moves":[]}`, `{"moves":[` + move + `]}`, `{"moves":[{"vm":"web","from":"node9","to":"node1"}]}`,
		`{"moves":[{"vm":"default/web","from":"node1","to":"node1"}]}`,
		fmt.Sprintf(`{"moves":[%s]}`, strings.Repeat(move+",", 50)+move),
	} {
		s.want(400, "POST", "/v1/balance", body)
	}
	s.want(201, "POST", "/v1/vms", vmBody("web"))
	s.want(400, "POST", "/v1/balance", `{"moves":[`+move+`,`+move+`]}`)
	s.want(400, "POST", "/v1/balance", `{"moves":[{"vm":"default/web","from":"node1","to":"node9"}]}`)
	var action api.Action
	s.want(200, "POST", "/v1/balance", `{"moves":[`+move+`]}`).into(t, &action)
	if action.Task == nil || action.Task.Verb != api.TaskBalance {
		t.Fatalf("got %+v", action)
	}
}
