package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/coder/websocket"

	"github.com/debvisor/debvisor/api"
)

func vmPath(name, rest string) string { return "/v1/vms/" + url.PathEscape(name) + "/" + rest }

// Console opens the serial console of a VM's guest; replay sends first what it
// printed before. It ends with ctx, or when either side closes it.
func (c *Client) Console(ctx context.Context, tenant, name string, replay bool) (io.ReadWriteCloser, error) {
	q := tenantQuery(tenant)
	if replay {
		q.Set("replay", "true")
	}
	return c.socket(ctx, vmPath(name, "console"), q, "debvisor")
}

// Display opens the display of a VM's guest: RFB (RFC 6143) without
// authentication. It ends with ctx, or when either side closes it.
func (c *Client) Display(ctx context.Context, tenant, name string) (io.ReadWriteCloser, error) {
	return c.socket(ctx, vmPath(name, "vnc"), tenantQuery(tenant), "binary")
}

// ConsoleMoved reports whether a console ended with err because the VM runs on
// another node now: open it again.
func ConsoleMoved(err error) bool {
	return websocket.CloseStatus(err) == api.ConsoleMoved
}

// socket opens a WebSocket as a stream of bytes.
func (c *Client) socket(ctx context.Context, path string, q url.Values, protocol string) (io.ReadWriteCloser, error) {
	header := http.Header{"User-Agent": {c.cfg.Agent}}
	if c.cfg.Key != "" {
		header.Set("Authorization", "Bearer "+c.cfg.Key)
	}
	var last error
	first := int(c.last.Load())
	for n := range c.addresses {
		at := (first + n) % len(c.addresses)
		conn, resp, err := websocket.Dial(ctx, c.addresses[at]+path+"?"+q.Encode(),
			&websocket.DialOptions{HTTPClient: c.upgrade, HTTPHeader: header, Subprotocols: []string{protocol}})
		if err == nil {
			c.last.Store(int64(at))
			return websocket.NetConn(ctx, conn, websocket.MessageBinary), nil
		}
		last = &failure{err, c.addresses[at]}
		if resp != nil && resp.StatusCode >= 400 {
			last = problem(resp, c.addresses[at])
		}
		if !retryable(last) {
			return nil, last
		}
	}
	return nil, final(last, "", false)
}

// ConsoleTicket makes a ticket that opens one console of the kind, once, on
// any node and without a key.
func (c *Client) ConsoleTicket(ctx context.Context, tenant, name, kind string) (*api.ConsoleTicket, error) {
	return result[api.ConsoleTicket](ctx, c, &call{method: http.MethodPost, path: vmPath(name, "console-ticket"), query: tenantQuery(tenant),
		in: map[string]string{"kind": kind}}, nil)
}

// Screenshot is what a VM's display shows, as a PNG file.
func (c *Client) Screenshot(ctx context.Context, tenant, name string) ([]byte, error) {
	var picture []byte
	err := c.stream(ctx, &call{method: http.MethodGet, path: vmPath(name, "screenshot"), query: tenantQuery(tenant)}, func(resp *http.Response) error {
		var err error
		if picture, err = io.ReadAll(io.LimitReader(resp.Body, pictureBytesMax)); err != nil || resp.ContentLength >= 0 && int64(len(picture)) != resp.ContentLength {
			return api.Errorf(api.CodeUnavailable, "the picture was cut short").Do("try again")
		}
		return nil
	})
	return picture, err
}

const pictureBytesMax = 32 << 20

// ConsoleLog finds lines in what the log of a VM's serial console has kept:
// the last ones that match the RE2 pattern.
func (c *Client) ConsoleLog(ctx context.Context, tenant, name string, query api.LogQuery) (*api.ConsoleLog, error) {
	q := tenantQuery(tenant)
	if query.Tail > 0 {
		q.Set("tail", strconv.Itoa(query.Tail))
	}
	if query.Grep != "" {
		q.Set("grep", query.Grep)
	}
	return read[api.ConsoleLog](ctx, c, vmPath(name, "log"), q)
}
