package client

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/debvisor/debvisor/api"
)

// Stats is what several nodes said: Missing are those that gave no answer.
type Stats[T any] struct {
	Items   []T               `json:"items"`
	Missing []api.MissingNode `json:"missing"`
}

func stats[T any](ctx context.Context, c *Client, path string, q url.Values) (*T, error) {
	out := new(T)
	// The node that is asked waits so long for others.
	_, err := c.do(ctx, &call{method: http.MethodGet, path: path, query: q, out: out, wait: api.StatsNodeTimeout})
	return out, err
}

func windowQuery(q url.Values, window, step time.Duration) url.Values {
	for name, d := range map[string]time.Duration{"window": window, "step": step} {
		if d > 0 {
			q.Set(name, d.String())
		}
	}
	return q
}

// NodesStats is what every node does now.
func (c *Client) NodesStats(ctx context.Context) (*Stats[api.NodeStats], error) {
	return stats[Stats[api.NodeStats]](ctx, c, "/v1/stats/nodes", url.Values{})
}

// VMsStats is what every VM of the tenant does now; "*" is all of them. node
// may be empty.
func (c *Client) VMsStats(ctx context.Context, tenant, node string) (*Stats[api.VMStats], error) {
	q := tenantQuery(tenant)
	if node != "" {
		q.Set("node", node)
	}
	return stats[Stats[api.VMStats]](ctx, c, "/v1/stats/vms", q)
}

// NodeStats is what a node does, with points of a window of the past; 0: none.
func (c *Client) NodeStats(ctx context.Context, name string, window, step time.Duration) (*api.NodeStats, error) {
	return stats[api.NodeStats](ctx, c, "/v1/nodes/"+url.PathEscape(name)+"/stats", windowQuery(url.Values{}, window, step))
}

// VMStats is what a VM does, with points of a window of the past; 0: none.
func (c *Client) VMStats(ctx context.Context, tenant, name string, window, step time.Duration) (*api.VMStats, error) {
	return stats[api.VMStats](ctx, c, vmPath(name, "stats"), windowQuery(tenantQuery(tenant), window, step))
}

// PoolStats is how full a pool is.
func (c *Client) PoolStats(ctx context.Context, name string) (*api.PoolStats, error) {
	return stats[api.PoolStats](ctx, c, "/v1/pools/"+url.PathEscape(name)+"/stats", url.Values{})
}
