package client

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/debvisor/debvisor/api"
)

func guestPath(vm, verb string) string { return "/v1/vms/" + url.PathEscape(vm) + "/guest" + verb }

// GuestInfo is what the agent inside the guest says of it.
func (c *Client) GuestInfo(ctx context.Context, tenant, vm string) (*api.GuestInfo, error) {
	return read[api.GuestInfo](ctx, c, guestPath(vm, ""), tenantQuery(tenant))
}

func (c *Client) askGuest(ctx context.Context, tenant, vm, verb string, in any, options []Option) (*api.GuestAnswer, error) {
	return result[api.GuestAnswer](ctx, c, &call{method: http.MethodPost, path: guestPath(vm, "/"+verb), query: tenantQuery(tenant), in: in}, options)
}

// SetGuestPassword sets the password of an account of the guest.
func (c *Client) SetGuestPassword(ctx context.Context, tenant, vm string, set api.GuestPasswordSet, options ...Option) error {
	_, err := c.askGuest(ctx, tenant, vm, "password", set, options)
	return err
}

// FreezeGuest freezes the guest's file systems. They thaw by themselves after
// limit.
func (c *Client) FreezeGuest(ctx context.Context, tenant, vm string, limit time.Duration, options ...Option) (*api.GuestAnswer, error) {
	return c.askGuest(ctx, tenant, vm, "freeze", map[string]time.Duration{"limit_ns": limit}, options)
}

// ThawGuest ends what FreezeGuest did.
func (c *Client) ThawGuest(ctx context.Context, tenant, vm string, options ...Option) (*api.GuestAnswer, error) {
	return c.askGuest(ctx, tenant, vm, "thaw", nil, options)
}

// SetGuestTime sets the guest's clock to that of its host.
func (c *Client) SetGuestTime(ctx context.Context, tenant, vm string, options ...Option) error {
	_, err := c.askGuest(ctx, tenant, vm, "time", nil, options)
	return err
}
