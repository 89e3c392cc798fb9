package httpd_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/httpd"
	"github.com/debvisor/debvisor/fsm"
)

// askedGuests remembers what guests were asked.
type askedGuests struct{ asked []api.GuestRequest }

func (g *askedGuests) Ask(_ context.Context, _ *api.VM, _ *api.Instance, in api.GuestRequest) (api.GuestAnswer, error) {
	g.asked = append(g.asked, in)
	return api.GuestAnswer{Info: &api.GuestInfo{Hostname: "inside"}, Freezing: &api.GuestFreezing{Filesystems: 2}}, nil
}

func TestPasswordsReachTheGuestAndNothingElse(t *testing.T) {
	t.Parallel()
	guests := &askedGuests{}
	s := newServer(t, func(c *httpd.Config) { c.Guests = guests })
	s.want(201, "PUT", "/v1/vms/web", vmBody("web"))
	const secret = "horse-battery-staple"
	body := `{"account":"root","password":"` + secret + `"}`
	const path = "/v1/vms/web/guest"
	if p := s.call("POST", path+"/password", body).problem(t); p.Code != api.CodeConflict || len(guests.asked) > 0 {
		t.Errorf("a VM on no node: %+v", p)
	}
	s.runOn("default/web")
	if a := s.call("POST", path+"/password?plan=true", body); a.status != 200 || len(guests.asked) > 0 || !strings.Contains(string(a.body), "set-password") {
		t.Errorf("the plan: %d %s", a.status, a.body)
	}
	s.want(200, "POST", path+"/password", body)
	if len(guests.asked) != 1 || guests.asked[0].Password == nil || guests.asked[0].Password.Password != secret {
		t.Fatalf("asked %+v", guests.asked)
	}
	for _, wrong := range []string{`{}`, `{"account":"root"}`, `{"account":"a:b","password":"x"}`, `{"account":"root","password":"` + strings.Repeat("x", api.GuestPasswordMax+1) + `"}`} {
		if a := s.call("POST", path+"/password", wrong); a.problem(t).Code != api.CodeInvalid || strings.Contains(string(a.body), "xxx") {
			t.Errorf("%s: %s", wrong, a.body)
		}
	}
	if got := s.call("GET", path, ""); got.status != 200 || !strings.Contains(string(got.body), "inside") {
		t.Errorf("info: %d %s", got.status, got.body)
	}
	s.want(200, "POST", path+"/freeze", "")
	if last := guests.asked[len(guests.asked)-1]; last.Call != api.GuestFreeze || last.Limit != api.GuestFreezeDefault {
		t.Errorf("asked %+v", last)
	}
	if p := s.call("POST", path+"/freeze", `{"limit_ns":3600000000000}`).problem(t); p.Code != api.CodeInvalid {
		t.Errorf("a freeze for an hour: %+v", p)
	}
	s.want(200, "POST", path+"/thaw", "")
	s.want(200, "POST", path+"/time", "")
	for _, read := range []string{"/v1/audit?limit=1000", "/v1/instances", "/v1/history/vm/web", "/v1/tasks"} {
		if a := s.call("GET", read, ""); a.status != 200 || strings.Contains(string(a.body), secret) {
			t.Errorf("%s: %d, with the password: %v", read, a.status, strings.Contains(string(a.body), secret))
		}
	}
	i := fsm.Instances.Get(s.f.Read(), fsm.VMs.Get(s.f.Read(), "default/web").ID)
	if i.GuestCall == nil || i.GuestCall.Call != api.GuestTime || time.Since(i.GuestCall.At) > time.Hour {
		t.Errorf("the last call is %+v", i.GuestCall)
	}
}
