package httpd_test

import (
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/httpd"
	"github.com/debvisor/debvisor/fsm"
)

// at sets the clock of what is proposed from now on.
func (s *server) at(t time.Time) {
	s.mu.Lock()
	s.now = t
	s.mu.Unlock()
}

// past is a VM that was made three hours ago, grown two hours ago, renamed in
// its text one hour ago.
func past(t *testing.T) (s *server, indexes [3]uint64) {
	t.Helper()
	s = newServer(t)
	now := time.Now().UTC().Add(4 * time.Hour) // the cluster was made just now
	for i, body := range []string{
		vmBody("web"),
		strings.Replace(vmBody("web"), `"cpus":1`, `"cpus":2`, 1),
		strings.Replace(vmBody("web"), `"cpus":1`, `"cpus":2,"description":"shop"`, 1),
	} {
		s.at(now.Add(time.Duration(i-3) * time.Hour))
		tag := ""
		if i > 0 {
			tag = s.want(200, "GET", "/v1/vms/web", "").header.Get("ETag")
		}
		if a := s.call("PUT", "/v1/vms/web", body, "If-Match", tag); a.status >= 300 {
			t.Fatalf("got %d %s", a.status, a.body)
		}
		indexes[i] = s.f.Index()
	}
	s.at(now)
	s.want(201, "PUT", "/v1/networks/later", netBody)
	return s, indexes
}

func TestHistoryIsNewestFirst(t *testing.T) {
	t.Parallel()
	s, at := past(t)
	var page struct {
		Items []api.HistoryItem `json:"items"`
		Next  string            `json:"next"`
	}
	s.want(200, "GET", "/v1/history/vm/web?limit=2", "").into(t, &page)
	if len(page.Items) != 2 || page.Items[0].Index != at[2] || page.Items[0].Action != "update" || page.Items[0].By != "key:root" || page.Next != u(at[1]) {
		t.Fatalf("got %+v", page)
	}
	before := page.Next
	page.Items = nil
	s.want(200, "GET", "/v1/history/vms/web?before="+before, "").into(t, &page)
	if len(page.Items) != 1 || page.Items[0].Action != "create" || len(page.Items[0].Before) != 0 {
		t.Fatalf("got %+v", page)
	}
}

func TestDiffTakesIndexesTimesAndDurations(t *testing.T) {
	t.Parallel()
	s, at := past(t)
	when := s.now.Add(-150 * time.Minute).Format(time.RFC3339)
	for query, want := range map[string]string{
		"from=" + u(at[0]):                       "update cpus description",
		"from=" + u(at[1]):                       "update description",
		"from=" + u(at[0]) + "&to=" + u(at[1]):   "update cpus",
		"from=90m":                               "update description",
		"from=2h30m":                             "update cpus description",
		"from=" + when + "&to=90m":               "update cpus",
		"from=" + u(at[2]):                       "none",
		"from=90m&to=80m":                        "none",
		"from=" + u(at[0]-1) + "&to=" + u(at[0]): "create",
	} {
		var d api.Diff
		s.want(200, "GET", "/v1/diff/vm/web?"+query, "").into(t, &d)
		got := d.Action
		for _, f := range d.Fields {
			if d.Action == "update" {
				got += " " + f.Field
			}
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", query, got, want)
		}
	}
	s.want(404, "GET", "/v1/diff/vm/web?from=10h&to=9h", "")
	s.want(400, "GET", "/v1/diff/vm/web?from=-2h", "")
	s.want(400, "GET", "/v1/diff/vm/web?from=99999", "")
}

func TestRevertChangesBackCreatesAgainAndDeletes(t *testing.T) {
	t.Parallel()
	s, at := past(t)
	to := func(n uint64) string { return `{"to":` + u(n) + `}` }
	cpus := func() int { return fsm.VMs.Get(s.f.Read(), "default/web").CPUs }
	var plan api.Plan
	s.want(200, "POST", "/v1/revert/vm/web?plan=true", to(at[0])).into(t, &plan)
	if len(plan.Changes) != 1 || cpus() != 2 {
		t.Fatalf("got %+v", plan)
	}
	s.want(200, "POST", "/v1/revert/vm/web", to(at[0]))
	if cpus() != 1 {
		t.Fatalf("got %d CPUs, want 1", cpus())
	}
	var same api.Applied
	s.want(200, "POST", "/v1/revert/vm/web", to(at[0])).into(t, &same)
	if same.Changed != 0 {
		t.Fatalf("a second revert: got %+v", same)
	}
	id := fsm.VMs.Get(s.f.Read(), "default/web").ID
	s.want(204, "DELETE", "/v1/vms/web", "", "If-Match", "*")
	s.want(200, "POST", "/v1/revert/vm/web", to(at[2]))
	vm := fsm.VMs.Get(s.f.Read(), "default/web")
	if vm.ID != id || vm.Description != "shop" || vm.Disks[0].Volume == "" || fsm.Volumes.Get(s.f.Read(), "default/"+vm.Disks[0].Volume) == nil {
		t.Fatalf("got %+v", vm)
	}
	s.want(200, "POST", "/v1/revert/vm/web", to(at[0]-1))
	s.want(404, "GET", "/v1/vms/web", "")
	s.want(404, "POST", "/v1/revert/vm/web", to(at[0]-1))
	s.want(400, "POST", "/v1/revert/vm/web", `{}`)
	s.want(400, "POST", "/v1/revert/vm/web", to(99999))
	s.want(400, "POST", "/v1/revert/node/node1", to(at[0]))
}

func TestWhyTellsTheStory(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.want(201, "PUT", "/v1/vms/web", vmBody("web"))
	why := func(path string) (api.Explanation, string) {
		t.Helper()
		var e api.Explanation
		s.want(200, "GET", "/v1/why/"+path, "").into(t, &e)
		all := ""
		for _, f := range e.Facts {
			all += f.Text + "\n"
		}
		return e, all
	}
	if e, _ := why("vm/web"); !strings.Contains(e.Summary, "has not decided") {
		t.Errorf("got %q", e.Summary)
	}
	s.runOn("default/web")
	s.want(200, "POST", "/v1/vms/web/restart", "")
	e, all := why("vm/web")
	if e.Summary != "vm default/web shall be on and is running on node1" || e.Decision == nil || e.Decision.Node != "node1" {
		t.Errorf("got %q, %+v", e.Summary, e.Decision)
	}
	for i, want := range []string{"vm default/web was created by root", "placed on node1: the only node that fits", "the copy of volume default/web-root on node1 is pending",
		"node1 reports running", "vm.restart was asked for by root"} {
		if !strings.Contains(all, want) {
			t.Errorf("fact %d is missing: %q in\n%s", i, want, all)
		}
	}
	for i := 1; i < len(e.Facts)-1; i++ {
		if e.Facts[i].Index < e.Facts[i-1].Index {
			t.Errorf("the facts are out of order")
		}
	}
	s.want(204, "DELETE", "/v1/vms/web", "", "If-Match", "*")
	if e, all := why("vm/web"); !strings.Contains(e.Summary, "deleted by root") || !strings.Contains(all, "placed on node1") {
		t.Errorf("got %q\n%s", e.Summary, all)
	}
	if e, _ := why("node/node1"); !strings.Contains(e.Summary, "live at epoch 1") {
		t.Errorf("got %q", e.Summary)
	}
	s.want(404, "GET", "/v1/why/vm/none", "")
}

func TestTheJournalIsListedAndVerified(t *testing.T) {
	t.Parallel()
	s, _ := past(t)
	var page struct {
		Items []api.Record `json:"items"`
		Next  string       `json:"next"`
	}
	s.want(200, "GET", "/v1/audit?limit=2", "").into(t, &page)
	if len(page.Items) != 2 || page.Items[0].Index != 1 || page.Next != "2" {
		t.Fatalf("got %+v", page)
	}
	a := s.want(200, "GET", "/v1/audit/verify", "")
	lines := strings.Split(strings.TrimSpace(string(a.body)), "\n")
	if len(lines) != 2 || !strings.Contains(lines[1], `"done":true`) || strings.Contains(lines[1], "error") {
		t.Fatalf("got %q", lines)
	}
}

func TestFieldsAreFoundByPath(t *testing.T) {
	t.Parallel()
	got, err := httpd.Fields([]byte(`{"a":1,"b":[{"c":"x"},{"c":"y"}],"modified":3,"d":{}}`), []byte(`{"a":1,"b":[{"c":"x"},{"c":"z"}],"modified":4,"e":true}`))
	if err != nil || len(got) != 2 || got[0].Field != "b[1].c" || string(got[0].After) != `"z"` || got[1].Field != "e" || len(got[1].Before) != 0 {
		t.Fatalf("got %+v, %v", got, err)
	}
}
