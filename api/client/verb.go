package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/debvisor/debvisor/api"
)

func tenantQuery(tenant string) url.Values {
	q := url.Values{}
	if tenant != "" {
		q.Set("tenant", tenant)
	}
	return q
}

// result makes a change and returns its answer; nil for a plan.
func result[T any](ctx context.Context, c *Client, call *call, options []Option) (*T, error) {
	out := new(T)
	call.out = out
	if _, err := c.do(ctx, call, options...); err != nil {
		return nil, err
	}
	if call.plan != nil {
		return nil, nil
	}
	return out, nil
}

func read[T any](ctx context.Context, c *Client, path string, query url.Values) (*T, error) {
	return result[T](ctx, c, &call{method: http.MethodGet, path: path, query: query}, nil)
}

func (c *Client) power(ctx context.Context, tenant, name, verb string, force bool, options []Option) (*api.Action, error) {
	return result[api.Action](ctx, c, &call{method: http.MethodPost, path: "/v1/vms/" + url.PathEscape(name) + "/" + verb,
		query: tenantQuery(tenant), in: map[string]bool{"force": force}}, options)
}

// StartVM sets the VM's power to on.
func (c *Client) StartVM(ctx context.Context, tenant, name string, options ...Option) (*api.Action, error) {
	return c.power(ctx, tenant, name, "start", false, options)
}

// StopVM sets the VM's power to off: the guest is asked to shut down; with
// force it is ended now, by the task in the answer.
func (c *Client) StopVM(ctx context.Context, tenant, name string, force bool, options ...Option) (*api.Action, error) {
	return c.power(ctx, tenant, name, "stop", force, options)
}

// RestartVM stops and starts the guest, by the task in the answer.
func (c *Client) RestartVM(ctx context.Context, tenant, name string, force bool, options ...Option) (*api.Action, error) {
	return c.power(ctx, tenant, name, "restart", force, options)
}

// MigrateVM moves the running guest to another node, by the task in the answer.
func (c *Client) MigrateVM(ctx context.Context, tenant, name string, args api.MigrateArgs, options ...Option) (*api.Action, error) {
	return result[api.Action](ctx, c, &call{method: http.MethodPost, path: "/v1/vms/" + url.PathEscape(name) + "/migrate",
		query: tenantQuery(tenant), in: args}, options)
}

// CancelTask asks a task to end.
func (c *Client) CancelTask(ctx context.Context, name string, options ...Option) (*api.Task, error) {
	return result[api.Task](ctx, c, &call{method: http.MethodPost, path: "/v1/tasks/" + url.PathEscape(name) + "/cancel"}, options)
}

// WaitTask blocks until the task has ended, or ctx ends. changed, when not
// nil, sees it now and after every change.
func (c *Client) WaitTask(ctx context.Context, name string, changed func(*api.Task)) (*api.Task, error) {
	tasks, o := Resource[api.Task](c, api.KindTask), ReadOptions{}
	for {
		t, answer, err := tasks.Get(ctx, "", name, o)
		if err != nil {
			return nil, err
		}
		if changed != nil {
			changed(t)
		}
		if t.Ended() {
			return t, nil
		}
		o.Index, o.Wait = answer.Index, time.Minute
	}
}

// Apply makes several changes. A small one is one entry, all or nothing; the
// rest of a large one goes on in the task of the answer.
func (c *Client) Apply(ctx context.Context, in *api.Apply, options ...Option) (*api.Applied, error) {
	return result[api.Applied](ctx, c, &call{method: http.MethodPost, path: "/v1/apply", in: in}, options)
}

func objectPath(prefix, kind, name string) string {
	return prefix + url.PathEscape(kind) + "/" + url.PathEscape(name)
}

// History lists the changes of an object below the index before (0: the
// newest), newest first, at most limit (0: the server's default).
func (c *Client) History(ctx context.Context, kind, tenant, name string, before uint64, limit int) ([]api.HistoryItem, error) {
	q := tenantQuery(tenant)
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	if before > 0 {
		q.Set("before", strconv.FormatUint(before, 10))
	}
	out, err := read[List[api.HistoryItem]](ctx, c, objectPath("/v1/history/", kind, name), q)
	if err != nil {
		return nil, err
	}
	return out.Items, nil
}

// Why explains an object.
func (c *Client) Why(ctx context.Context, kind, tenant, name string) (*api.Explanation, error) {
	return read[api.Explanation](ctx, c, objectPath("/v1/why/", kind, name), tenantQuery(tenant))
}

// Diff compares an object between two points: each an index, a time in RFC
// 3339, or a duration before now as "2h". An empty to means now.
func (c *Client) Diff(ctx context.Context, kind, tenant, name, from, to string) (*api.Diff, error) {
	q := tenantQuery(tenant)
	q.Set("from", from)
	if to != "" {
		q.Set("to", to)
	}
	return read[api.Diff](ctx, c, objectPath("/v1/diff/", kind, name), q)
}

// Revert makes the object what it was at the index to.
func (c *Client) Revert(ctx context.Context, kind, tenant, name string, to uint64, options ...Option) (*api.Applied, error) {
	return result[api.Applied](ctx, c, &call{method: http.MethodPost, path: objectPath("/v1/revert/", kind, name), query: tenantQuery(tenant),
		in: map[string]uint64{"to": to}}, options)
}

// Audit lists journal records after the index from, oldest first.
func (c *Client) Audit(ctx context.Context, from uint64, limit int) ([]api.Record, error) {
	q := url.Values{"from": {strconv.FormatUint(from, 10)}}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	out, err := read[List[api.Record]](ctx, c, "/v1/audit", q)
	if err != nil {
		return nil, err
	}
	return out.Items, nil
}

// Status is how the cluster looks from the node that answers.
func (c *Client) Status(ctx context.Context) (*api.ClusterStatus, error) {
	return read[api.ClusterStatus](ctx, c, "/v1/cluster", nil)
}

// Version tells what the answering node runs.
func (c *Client) Version(ctx context.Context) (*api.Version, error) {
	return read[api.Version](ctx, c, "/v1/version", nil)
}

// Ready reports nil when the answering node serves, or the reasons why not.
func (c *Client) Ready(ctx context.Context) error {
	_, err := c.do(ctx, &call{method: http.MethodGet, path: "/health/ready"})
	return err
}

// Activate raises the version of the log's meaning. There is no way back.
func (c *Client) Activate(ctx context.Context, version uint32, options ...Option) error {
	_, err := c.do(ctx, &call{method: http.MethodPost, path: "/v1/cluster/activate", in: map[string]uint32{"version": version}}, options...)
	return err
}

// Backup writes an encrypted backup of the whole cluster to w.
func (c *Client) Backup(ctx context.Context, passphrase string, w io.Writer) error {
	return c.stream(ctx, &call{method: http.MethodPost, path: "/v1/cluster/backup", in: map[string]string{"passphrase": passphrase}}, func(resp *http.Response) error {
		if _, err := io.Copy(w, resp.Body); err != nil {
			return api.Errorf(api.CodeUnavailable, "the backup was cut short: %v", err).Do("throw the file away and repeat it")
		}
		if resp.Trailer.Get("X-Debvisor-Complete") != "true" {
			return api.Errorf(api.CodeUnavailable, "the backup was cut short").Do("throw the file away and repeat it")
		}
		return nil
	})
}

// ScheduleNode sets whether a node takes new instances, why it is in
// maintenance ("": it is not) and, unless nil, its labels.
func (c *Client) ScheduleNode(ctx context.Context, name string, unschedulable bool, maintenance string, labels map[string]string, options ...Option) (*api.Node, error) {
	in := map[string]any{"unschedulable": unschedulable}
	if maintenance != "" {
		in["maintenance"] = maintenance
	}
	if labels != nil {
		in["labels"] = labels
	}
	return result[api.Node](ctx, c, &call{method: http.MethodPost, path: "/v1/nodes/" + url.PathEscape(name) + "/schedule", in: in}, options)
}

// DrainNode moves every running VM off a node, by the task in the answer; the
// node takes no new VMs from now on.
func (c *Client) DrainNode(ctx context.Context, name string, args api.DrainArgs, options ...Option) (*api.Action, error) {
	return result[api.Action](ctx, c, &call{method: http.MethodPost, path: "/v1/nodes/" + url.PathEscape(name) + "/drain", in: args}, options)
}

// ProposeBalance proposes at most movesMax moves (0: the server's limit) that
// even out how full the nodes are.
func (c *Client) ProposeBalance(ctx context.Context, movesMax int) (*api.Balance, error) {
	q := url.Values{}
	if movesMax > 0 {
		q.Set("moves", strconv.Itoa(movesMax))
	}
	return read[api.Balance](ctx, c, "/v1/balance", q)
}

// Balance carries out proposed moves, by the task in the answer.
func (c *Client) Balance(ctx context.Context, args api.BalanceArgs, options ...Option) (*api.Action, error) {
	return result[api.Action](ctx, c, &call{method: http.MethodPost, path: "/v1/balance", in: args}, options)
}

// ConfirmOffNode says that the machine has no power, so that its VMs may start
// elsewhere. epoch is the node's, as the operator saw it.
func (c *Client) ConfirmOffNode(ctx context.Context, name string, epoch uint64, reason string, options ...Option) (*api.Node, error) {
	return result[api.Node](ctx, c, &call{method: http.MethodPost, path: "/v1/nodes/" + url.PathEscape(name) + "/confirm-off",
		in: map[string]any{"epoch": epoch, "reason": reason}}, options)
}

// RemoveNode ends a node's membership for good.
func (c *Client) RemoveNode(ctx context.Context, name, reason string, force bool, options ...Option) error {
	q := url.Values{"force": {strconv.FormatBool(force)}}
	if reason != "" {
		q.Set("reason", reason)
	}
	_, err := c.do(ctx, &call{method: http.MethodDelete, path: "/v1/nodes/" + url.PathEscape(name), query: q}, options...)
	return err
}

// CreateJoinToken makes a token that admits one node. It is shown once.
func (c *Client) CreateJoinToken(ctx context.Context, witness bool, options ...Option) (*api.Secret, error) {
	return result[api.Secret](ctx, c, &call{method: http.MethodPost, path: "/v1/join_tokens", in: map[string]bool{"witness": witness}}, options)
}

// NewKey is what a new API key is to be, or what a rotated one is to become.
type NewKey struct {
	Name           string    `json:"name,omitzero"`
	Role           string    `json:"role,omitzero"`
	Tenants        []string  `json:"tenants,omitzero"`         // in which the role counts; empty: everywhere
	Addresses      []string  `json:"addresses,omitzero"`       // networks from which it may be used; empty: from everywhere
	Expires        time.Time `json:"expires,omitzero"`         // zero: in 90 days
	Forever        bool      `json:"forever,omitzero"`         // it does not expire
	OverlapSeconds *int64    `json:"overlap_seconds,omitzero"` // rotation: how long the old secret works on; nil: 7 days
}

// RotateAPIKey gives a key a new secret, which is shown once.
func (c *Client) RotateAPIKey(ctx context.Context, name string, in NewKey, options ...Option) (*api.Secret, error) {
	in.Name, in.Role, in.Tenants, in.Addresses = "", "", nil, nil
	return result[api.Secret](ctx, c, &call{method: http.MethodPost, path: "/v1/api_keys/" + url.PathEscape(name) + "/rotate", in: in}, options)
}

// Usage tells what a tenant has, and what it may have.
func (c *Client) Usage(ctx context.Context, tenant string) (*api.TenantUsage, error) {
	return read[api.TenantUsage](ctx, c, "/v1/usage", tenantQuery(tenant))
}

// CanI tells whether the caller may do something, and which rule says so. An
// empty name stands for any object.
func (c *Client) CanI(ctx context.Context, verb, kind, tenant, name string) (*api.Permission, error) {
	q := tenantQuery(tenant)
	q.Set("verb", verb)
	q.Set("kind", kind)
	if name != "" {
		q.Set("name", name)
	}
	return read[api.Permission](ctx, c, "/v1/can-i", q)
}

// CreateAPIKey makes a key. It is shown once.
func (c *Client) CreateAPIKey(ctx context.Context, in NewKey, options ...Option) (*api.Secret, error) {
	return result[api.Secret](ctx, c, &call{method: http.MethodPost, path: "/v1/api_keys", in: in}, options)
}
