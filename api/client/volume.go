package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/debvisor/debvisor/api"
)

// MoveVolume asks for the move of a volume to another pool, by the task in the
// answer.
func (c *Client) MoveVolume(ctx context.Context, tenant, name, pool string, options ...Option) (*api.Task, error) {
	return result[api.Task](ctx, c, &call{method: http.MethodPost, path: "/v1/volumes/" + url.PathEscape(name) + "/move",
		query: tenantQuery(tenant), in: map[string]string{"pool": pool}}, options)
}
