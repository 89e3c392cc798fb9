package httpd

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
	"github.com/debvisor/debvisor/fsm"
)

// statsAtOnce is how many nodes are asked at a time.
const statsAtOnce = 32

// Stats asks nodes what they and their guests do. Nothing of it is in the
// replicated state: each node knows its own part, for an hour.
type Stats interface {
	Node(ctx context.Context, node string, q api.StatsQuery) (*api.NodeStats, error)
	// VMs is every guest of a node, without points.
	VMs(ctx context.Context, node string) ([]api.VMStats, error)
	VM(ctx context.Context, node, vmID string, q api.StatsQuery) (*api.VMStats, error)
}

type windowInput struct {
	Name   string `path:"name" maxLength:"63" doc:"name of the object"`
	Window string `query:"window" maxLength:"16" example:"1h" doc:"of the points, up to now, at most 1h; left out: no points"`
	Step   string `query:"step" maxLength:"16" example:"1m" doc:"that a point covers, at least 10s; left out: a sixtieth of the window"`
}

type tenantWindowInput struct {
	Name   string `path:"name" maxLength:"63" doc:"name of the VM"`
	Window string `query:"window" maxLength:"16" example:"1h" doc:"of the points, up to now, at most 1h; left out: no points"`
	Step   string `query:"step" maxLength:"16" example:"1m" doc:"that a point covers, at least 10s; left out: a sixtieth of the window"`
	Tenant string `query:"tenant" maxLength:"63" doc:"of the VM; default when left out"`
}

type poolStatsInput struct {
	Name string `path:"name" maxLength:"63" doc:"name of the pool"`
}

type nodesStatsInput struct{}

type vmsStatsInput struct {
	Tenant string `query:"tenant" maxLength:"63" doc:"of the VMs; default when left out, * for all"`
	Node   string `query:"node" maxLength:"63" doc:"only VMs of this node"`
}

// statsList is what several nodes said.
type statsList[T any] struct {
	Items   []T               `json:"items"`
	Missing []api.MissingNode `json:"missing" doc:"nodes that gave no answer in time, and why"`
}

func (s *Server) registerStats() error {
	right := func(v authz.Verb, kind string, scope authz.Scope) authz.Right {
		return authz.Right{Verb: v, Kind: kind, Scope: scope}
	}
	const about = "Each node is asked, for at most 2 seconds; the answer says which ones it lacks. Rates are of the last 5 seconds."
	return errors.Join(
		handle(s, route{method: http.MethodGet, path: "/v1/stats/nodes", right: right(authz.List, api.KindNode, authz.ScopeCluster),
			answer: statsList[api.NodeStats]{}, summary: "See what every node does now", about: about}, (*exchange).nodesStats),
		handle(s, route{method: http.MethodGet, path: "/v1/stats/vms", right: right(authz.List, api.KindVM, authz.ScopeTenant),
			answer: statsList[api.VMStats]{}, summary: "See what every VM does now", about: about}, (*exchange).vmsStats),
		handle(s, route{method: http.MethodGet, path: "/v1/nodes/{name}/stats", right: right(authz.Read, api.KindNode, authz.ScopeCluster),
			answer: api.NodeStats{}, summary: "See what a node does, and did in the last hour"}, (*exchange).nodeStats),
		handle(s, route{method: http.MethodGet, path: "/v1/vms/{name}/stats", right: right(authz.Read, api.KindVM, authz.ScopeTenant),
			answer: api.VMStats{}, summary: "See what a VM does, and did in the last hour"}, (*exchange).vmStats),
		handle(s, route{method: http.MethodGet, path: "/v1/pools/{name}/stats", right: right(authz.Read, api.KindPool, authz.ScopeCluster),
			answer: api.PoolStats{}, summary: "See how full a pool is", about: "As the nodes measured it last: every 15 seconds, and reported when it changes by a hundredth."}, (*exchange).poolStats))
}

// statsNodes are the nodes that run guests, ordered by name.
func statsNodes(view *fsm.View) (names []string) {
	for n := range fsm.Nodes.All(view) {
		if !n.Witness {
			names = append(names, n.Name)
		}
	}
	slices.Sort(names)
	return names
}

// askNodes asks all of them at once, each within its time, and gives the
// answers in the order of the nodes.
func askNodes[T any](ctx context.Context, nodes []string, ask func(ctx context.Context, node string) (T, error)) ([]T, []api.MissingNode) {
	type part struct {
		answer T
		err    error
	}
	parts, slots := make([]part, len(nodes)), make(chan struct{}, statsAtOnce)
	var group sync.WaitGroup
	for i, node := range nodes {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			within, cancel := context.WithTimeout(ctx, api.StatsNodeTimeout)
			defer cancel()
			parts[i].answer, parts[i].err = ask(within, node)
		})
	}
	group.Wait()
	answers, missing := []T{}, []api.MissingNode{}
	for i, p := range parts {
		if p.err != nil {
			missing = append(missing, api.MissingNode{Node: nodes[i], Reason: missingReason(p.err)})
			continue
		}
		answers = append(answers, p.answer)
	}
	return answers, missing
}

// missingReason is an error as far as a client may see it.
func missingReason(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "it did not answer within " + api.StatsNodeTimeout.String()
	}
	return api.AsError(err).Message
}

func (x *exchange) nodesStats(*nodesStatsInput) error {
	view := x.s.cfg.Cluster.State().Read()
	answers, missing := askNodes(x.ctx(), statsNodes(view), func(ctx context.Context, node string) (*api.NodeStats, error) {
		return x.s.cfg.Stats.Node(ctx, node, api.StatsQuery{})
	})
	out := statsList[api.NodeStats]{Items: []api.NodeStats{}, Missing: missing}
	for _, a := range answers {
		out.Items = append(out.Items, *a)
	}
	return x.answer(http.StatusOK, out)
}

func (x *exchange) vmsStats(in *vmsStatsInput) error {
	view := x.s.cfg.Cluster.State().Read()
	nodes := statsNodes(view)
	if in.Node != "" {
		if !slices.Contains(nodes, in.Node) {
			return api.Errorf(api.CodeNotFound, "is no member that runs VMs").On(api.KindNode, bounded(in.Node))
		}
		nodes = []string{in.Node}
	}
	sel, err := x.selection(x.s.resources[api.KindVM], x.tenant, nil)
	if err != nil {
		return err
	}
	answers, missing := askNodes(x.ctx(), nodes, x.s.cfg.Stats.VMs)
	out := statsList[api.VMStats]{Items: []api.VMStats{}, Missing: missing}
	for _, part := range answers {
		for _, v := range part {
			if (sel.tenant == "" || sel.tenant == v.Tenant) && x.shows(sel, view, api.Key(v.Tenant, v.Name)) {
				out.Items = append(out.Items, v)
			}
		}
	}
	slices.SortFunc(out.Items, func(a, b api.VMStats) int {
		return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Name, b.Name))
	})
	return x.answer(http.StatusOK, out)
}

func (x *exchange) nodeStats(in *windowInput) error {
	var q api.StatsQuery
	if err := q.Settle(in.Window, in.Step); err != nil {
		return err
	}
	if fsm.Nodes.Get(x.s.cfg.Cluster.State().Read(), in.Name) == nil {
		return api.Errorf(api.CodeNotFound, "does not exist").On(api.KindNode, in.Name)
	}
	out, err := x.s.cfg.Stats.Node(x.ctx(), in.Name, q)
	if err != nil {
		return err
	}
	return x.answer(http.StatusOK, out)
}

func (x *exchange) vmStats(in *tenantWindowInput) error {
	var q api.StatsQuery
	if err := q.Settle(in.Window, in.Step); err != nil {
		return err
	}
	vm, instance, err := x.placedVM(in.Name)
	if err != nil {
		return err
	}
	out, err := x.s.cfg.Stats.VM(x.ctx(), instance.Owner, vm.ID, q)
	if err != nil {
		return err
	}
	return x.answer(http.StatusOK, out)
}

func (x *exchange) poolStats(in *poolStatsInput) error {
	view, err := x.barrier(ReadOptions{})
	if err != nil {
		return err
	}
	pool := fsm.Pools.Get(view, in.Name)
	if pool == nil {
		return api.Errorf(api.CodeNotFound, "does not exist").On(api.KindPool, in.Name)
	}
	out := api.PoolStats{Pool: in.Name, Nodes: []api.PoolUsage{}}
	for n := range fsm.Nodes.All(view) {
		for _, p := range n.Pools {
			if p.Pool == in.Name {
				out.Nodes = append(out.Nodes, api.PoolUsage{Node: n.Name, TotalBytes: p.TotalBytes, FreeBytes: p.FreeBytes,
					UsedBytes: max(0, p.TotalBytes-p.FreeBytes), Reason: p.Reason})
			}
		}
	}
	slices.SortFunc(out.Nodes, func(a, b api.PoolUsage) int { return cmp.Compare(a.Node, b.Node) })
	for _, n := range out.Nodes {
		if pool.Shared { // every node sees the same space
			out.TotalBytes, out.FreeBytes = max(out.TotalBytes, n.TotalBytes), max(out.FreeBytes, n.FreeBytes)
			continue
		}
		out.TotalBytes, out.FreeBytes = out.TotalBytes+n.TotalBytes, out.FreeBytes+n.FreeBytes
	}
	out.UsedBytes = max(0, out.TotalBytes-out.FreeBytes)
	return x.answer(http.StatusOK, out)
}
