package client

import (
	"context"
	"net/url"

	"github.com/debvisor/debvisor/api"
)

// ForeignDomains lists the guests of a node that debvisor does not manage.
func (c *Client) ForeignDomains(ctx context.Context, node string) (*api.ForeignDomains, error) {
	return read[api.ForeignDomains](ctx, c, "/v1/nodes/"+url.PathEscape(node)+"/domains", nil)
}
