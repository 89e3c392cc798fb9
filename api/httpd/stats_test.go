package httpd_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/httpd"
	"github.com/debvisor/debvisor/fsm"
)

// fakeStats answers for every node, but not for those that hang or are broken.
type fakeStats struct {
	hangs  string
	broken string
	vms    map[string][]api.VMStats // by node
}

func (f fakeStats) reach(ctx context.Context, node string) error {
	switch node {
	case f.hangs:
		<-ctx.Done()
		return ctx.Err()
	case f.broken:
		return api.Errorf(api.CodeUnavailable, "node %s cannot be reached", node)
	}
	return nil
}

func (f fakeStats) Node(ctx context.Context, node string, q api.StatsQuery) (*api.NodeStats, error) {
	return &api.NodeStats{Node: node, CPUs: 4, StepSeconds: int(q.Step / time.Second), Points: make([]api.NodeUsage, q.Window/time.Minute)}, f.reach(ctx, node)
}

func (f fakeStats) VMs(ctx context.Context, node string) ([]api.VMStats, error) {
	return f.vms[node], f.reach(ctx, node)
}

func (f fakeStats) VM(ctx context.Context, node, id string, q api.StatsQuery) (*api.VMStats, error) {
	return &api.VMStats{ID: id, Node: node, StepSeconds: int(q.Step / time.Second)}, f.reach(ctx, node)
}

// joined adds a node to the fake cluster.
func (s *server) joined(name, id string) {
	s.tb.Helper()
	s.do(fsm.CreateToken.Entry(fsm.TokenCreate{Name: "token-" + name, Hash: httpd.HashSecret(secret), Expires: time.Now().Add(time.Hour)}))
	s.do(fsm.JoinNode.Entry(fsm.NodeJoin{ID: id, Name: name, Address: "127.0.0.1:7444", TokenHash: httpd.HashSecret(secret), Witness: strings.HasPrefix(name, "witness")}))
}

type vmStatsList struct {
	Items   []api.VMStats     `json:"items"`
	Missing []api.MissingNode `json:"missing"`
}

func TestStatsSayWhichNodesAreMissing(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.stats = fakeStats{hangs: "node2", broken: "node3", vms: map[string][]api.VMStats{"node1": {{Tenant: "default", Name: "web", Node: "node1"}}}}
	s := f.serve()
	for name, id := range map[string]string{"node2": "00000002-0000-4000-8000-000000000000", "node3": "00000003-0000-4000-8000-000000000000", "witness1": "00000004-0000-4000-8000-000000000000"} {
		s.joined(name, id)
	}
	began := time.Now()
	var nodes struct {
		Items   []api.NodeStats   `json:"items"`
		Missing []api.MissingNode `json:"missing"`
	}
	s.want(200, "GET", "/v1/stats/nodes", "").into(t, &nodes)
	if took := time.Since(began); took < api.StatsNodeTimeout || took > api.StatsNodeTimeout+patience {
		t.Errorf("a node that hangs was waited for %v", took)
	}
	if len(nodes.Items) != 1 || nodes.Items[0].Node != "node1" || len(nodes.Missing) != 2 ||
		nodes.Missing[0].Node != "node2" || !strings.Contains(nodes.Missing[0].Reason, "2s") || nodes.Missing[1].Reason != "node node3 cannot be reached" {
		t.Errorf("got %+v", nodes)
	}
	var vms vmStatsList
	s.want(201, "PUT", "/v1/vms/web", vmBody("web"))
	s.want(200, "GET", "/v1/stats/vms?node=node1", "").into(t, &vms)
	if len(vms.Items) != 1 || len(vms.Missing) != 0 {
		t.Errorf("got %+v", vms)
	}
	s.want(404, "GET", "/v1/stats/vms?node=witness1", "")
	s.want(404, "GET", "/v1/stats/vms?node=none", "")
}

func TestStatsOfVMsAreOfOneTenantUnlessAllAreAskedFor(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.stats = fakeStats{vms: map[string][]api.VMStats{"node1": {{Tenant: "other", Name: "db"}, {Tenant: "default", Name: "web"}, {Tenant: "default", Name: "app"}}}}
	s := f.serve()
	s.want(201, "PUT", "/v1/tenants/other", `{}`)
	s.want(201, "PUT", "/v1/vms/web", vmBody("web"))
	s.want(201, "PUT", "/v1/vms/app", vmBody("app"))
	for query, want := range map[string]string{"": "app web ", "?tenant=other": "db ", "?tenant=*": "app web db "} {
		var vms vmStatsList
		s.want(200, "GET", "/v1/stats/vms"+query, "").into(t, &vms)
		got := ""
		for _, v := range vms.Items {
			got += v.Name + " "
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", query, got, want)
		}
	}
}

func TestStatsOfOneObject(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.want(201, "PUT", "/v1/vms/web", vmBody("web"))
	s.want(409, "GET", "/v1/vms/web/stats", "")
	s.runOn("default/web")
	var vm api.VMStats
	s.want(200, "GET", "/v1/vms/web/stats?window=1h", "").into(t, &vm)
	if vm.Node != "node1" || vm.StepSeconds != 60 || vm.ID == "" {
		t.Errorf("got %+v", vm)
	}
	var node api.NodeStats
	s.want(200, "GET", "/v1/nodes/node1/stats?window=10m&step=30s", "").into(t, &node)
	if node.StepSeconds != 30 || len(node.Points) != 10 {
		t.Errorf("got %+v", node)
	}
	for _, path := range []string{"/v1/vms/none/stats", "/v1/nodes/none/stats", "/v1/pools/none/stats"} {
		s.want(404, "GET", path, "")
	}
	for _, path := range []string{"/v1/vms/web/stats?window=2h", "/v1/vms/web/stats?step=1s", "/v1/nodes/node1/stats?window=x"} {
		s.want(400, "GET", path, "")
	}
}

func TestPoolsAddUpUnlessTheyAreShared(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.joined("node2", "00000002-0000-4000-8000-000000000000")
	s.want(201, "PUT", "/v1/pools/nfs", `{"driver":"dir","path":"/srv/nfs","shared":true}`)
	for node, id := range map[string]string{"node1": nodeID, "node2": "00000002-0000-4000-8000-000000000000"} {
		s.do(fsm.RegisterNode.Entry(fsm.NodeRegister{ID: id, Nonce: "n", Address: "127.0.0.1:7443"}))
		s.do(fsm.ReportNode.Entry(fsm.NodeReport{Node: node, Epoch: 1, Pools: []api.PoolStatus{
			{Pool: "local", TotalBytes: 1000, FreeBytes: 400}, {Pool: "nfs", TotalBytes: 500, FreeBytes: 500}}}))
	}
	for pool, want := range map[string][3]int64{"local": {2000, 1200, 800}, "nfs": {500, 0, 500}} {
		var got api.PoolStats
		s.want(200, "GET", "/v1/pools/"+pool+"/stats", "").into(t, &got)
		if [3]int64{got.TotalBytes, got.UsedBytes, got.FreeBytes} != want || len(got.Nodes) != 2 || got.Nodes[0].Node != "node1" {
			t.Errorf("%s: got %+v, want %v", pool, got, want)
		}
	}
}
