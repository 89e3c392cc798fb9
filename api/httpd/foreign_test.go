package httpd_test

import (
	"context"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/httpd"
)

func TestForeignGuestsOfANodeAreListed(t *testing.T) {
	t.Parallel()
	asked := ""
	s := newServer(t, func(c *httpd.Config) {
		c.Foreign = func(_ context.Context, node string) (api.ForeignDomains, error) {
			asked = node
			return api.ForeignDomains{Items: []api.ForeignDomain{{Name: "theirs"}}}, nil
		}
	})
	var list api.ForeignDomains
	s.want(200, "GET", "/v1/nodes/node1/domains", "").into(t, &list)
	if asked != "node1" || len(list.Items) != 1 || list.Items[0].Name != "theirs" {
		t.Errorf("asked %q, got %+v", asked, list)
	}
	s.want(404, "GET", "/v1/nodes/other/domains", "")
	s.want(401, "GET", "/v1/nodes/node1/domains", "", "Authorization", "")
}
