package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/debvisor/debvisor/api"
)

func snapshotsPath(vm string) string { return "/v1/vms/" + url.PathEscape(vm) + "/snapshots" }

// Snapshots lists the snapshots of a VM, in the order of their names.
func (c *Client) Snapshots(ctx context.Context, tenant, vm string) (*List[api.Snapshot], error) {
	return read[List[api.Snapshot]](ctx, c, snapshotsPath(vm), tenantQuery(tenant))
}

// TakeSnapshot keeps the VM's disks as they are, by the task in the answer:
// with the memory of a running guest, or quiesced by its agent, if asked for.
func (c *Client) TakeSnapshot(ctx context.Context, tenant, vm string, args api.SnapshotArgs, options ...Option) (*api.Action, error) {
	return result[api.Action](ctx, c, &call{method: http.MethodPost, path: snapshotsPath(vm), query: tenantQuery(tenant),
		in: map[string]any{"name": args.Name, "memory": args.Memory, "quiesce": args.Quiesce}}, options)
}

// RevertSnapshot puts the VM back to a snapshot, by the task in the answer.
// Unless safety is empty, a snapshot of that name is taken before.
func (c *Client) RevertSnapshot(ctx context.Context, tenant, vm, snapshot, safety string, options ...Option) (*api.Action, error) {
	return result[api.Action](ctx, c, &call{method: http.MethodPost, path: snapshotsPath(vm) + "/" + url.PathEscape(snapshot) + "/revert",
		query: tenantQuery(tenant), in: map[string]string{"safety": safety}}, options)
}

// DeleteSnapshot deletes a snapshot of the VM, by the task in the answer.
func (c *Client) DeleteSnapshot(ctx context.Context, tenant, vm, snapshot string, options ...Option) (*api.Action, error) {
	return result[api.Action](ctx, c, &call{method: http.MethodDelete, path: snapshotsPath(vm) + "/" + url.PathEscape(snapshot), query: tenantQuery(tenant)}, options)
}
