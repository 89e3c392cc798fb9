package httpd_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/debvisor/debvisor/api"
)

// Many creates at once at the edge of a quota: exactly as many succeed as it
// allows.
func TestExactlyTheQuotaSucceeds(t *testing.T) {
	t.Parallel()
	const clients, each, bound = 16, 20, 37
	s := newServer(t)
	s.want(201, "PUT", "/v1/tenants/shop", fmt.Sprintf(`{"quota":{"vms":%d}}`, bound))
	var made atomic.Int64
	var group sync.WaitGroup
	for client := range clients {
		group.Go(func() {
			for n := range each {
				switch a := s.call("POST", "/v1/vms?tenant=shop", vmBody(fmt.Sprintf("vm-%d-%d", client, n))); a.status {
				case 201:
					made.Add(1)
				case 429, 409, 403, 400, 507:
				default:
					t.Errorf("got %d %s", a.status, a.body)
				}
			}
		})
	}
	group.Wait()
	if made.Load() != bound {
		t.Errorf("%d were made, want %d", made.Load(), bound)
	}
	var u api.TenantUsage
	s.want(200, "GET", "/v1/usage?tenant=shop", "").into(t, &u)
	if u.Total.VMs != bound || u.Total.Volumes != bound || u.Quota == nil || *u.Quota.VMs != bound {
		t.Errorf("got %+v", u)
	}
	send := s.as("ci", `"role":"developer","tenants":["shop"]`)
	send(200, "GET", "/v1/usage?tenant=shop", "")
	send(403, "GET", "/v1/usage?tenant=default", "")
	s.want(404, "GET", "/v1/usage?tenant=nowhere", "")
	s.want(400, "PUT", "/v1/tenants/bad", `{"quota":{"vms":-1}}`)
}
