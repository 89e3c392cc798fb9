package main

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/debvisor/debvisor/api"
)

var update = flag.Bool("update", false, "write the golden files")

// fakeCluster answers requests from a table of paths.
type fakeCluster struct {
	*httptest.Server
	caFile string
}

func newFakeCluster(t *testing.T, answers map[string]any) *fakeCluster {
	t.Helper()
	f := &fakeCluster{caFile: filepath.Join(t.TempDir(), "ca.pem")}
	f.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[r.Method+" "+r.URL.Path]
		if !ok {
			answer = api.Errorf(api.CodeNotFound, "does not exist")
		}
		w.Header().Set("X-Request-Id", "req-1")
		if problem, ok := answer.(*api.Error); ok {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(statusOfCode(problem.Code))
			answer = problem
		}
		_ = json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(f.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw})
	if err := os.WriteFile(f.caFile, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func statusOfCode(code api.Code) int {
	switch code {
	case api.CodeNotFound:
		return http.StatusNotFound
	case api.CodeConflict:
		return http.StatusConflict
	case api.CodeForbidden:
		return http.StatusForbidden
	case api.CodeUnauthenticated:
		return http.StatusUnauthorized
	case api.CodeUnavailable, api.CodeNoLeader:
		return http.StatusServiceUnavailable
	case api.CodeUnknown:
		return http.StatusGatewayTimeout
	case api.CodeInvalid:
		return http.StatusBadRequest
	}
	return http.StatusInternalServerError
}

// list is the body of a list.
func list(items ...any) map[string]any {
	if items == nil {
		items = []any{}
	}
	return map[string]any{"items": items, "index": 7}
}

// outputOf is what one command line printed.
type outputOf struct {
	status   int
	out, err string
}

// command runs one command line against the fake cluster, at a fixed time.
func (f *fakeCluster) command(t *testing.T, args ...string) outputOf {
	t.Helper()
	env := map[string]string{"DEBVISOR_KEY": "dvk_test_secret"}
	if f != nil {
		env["DEBVISOR_ADDR"], env["DEBVISOR_CACERT"] = f.URL, f.caFile
	}
	return runIn(t, env, args...)
}

func runIn(t *testing.T, env map[string]string, args ...string) outputOf {
	t.Helper()
	var out, errOut bytes.Buffer
	a := newApp(strings.NewReader(""), &out, &errOut, func(name string) string { return env[name] })
	a.now = func() time.Time { return time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC) }
	status := run(t.Context(), a, args)
	return outputOf{status, out.String(), errOut.String()}
}

// golden compares a text with testdata/NAME.golden; -update writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got); run with -update if that is meant:\n%s", file, diff)
	}
}

func meta(name, tenant string) api.Meta {
	return api.Meta{ID: "4d4a1f6e-0000-4000-8000-000000000001", Name: name, Tenant: tenant, Labels: map[string]string{"app": "demo"},
		Created: 5, Modified: 6, CreatedAt: time.Date(2026, 5, 1, 9, 0, 0, 0, time.UTC)}
}

const longReason = "no node fits: 2 have too little space in a pool, 1 is full (memory), and this goes on for a while"

// cannedCluster has one of everything, with texts that are long, wide or
// hostile.
func cannedCluster(t *testing.T) *fakeCluster {
	t.Helper()
	web := api.VM{Meta: meta("web", "default"), CPUs: 2, MemoryBytes: 512 * api.MiB}
	lost := api.VM{Meta: meta("a-name-that-is-as-long-as-a-dns-label-may-be-0123456789-abcdefg", "default"), CPUs: 128, MemoryBytes: 3 * api.GiB / 2}
	lost.ID = "4d4a1f6e-0000-4000-8000-000000000002"
	node := api.Node{Meta: meta("node1", ""), Address: "127.83.12.1:7443", Lease: api.NodeLive, Voter: true, Epoch: 3, Version: "v1",
		Hypervisor: api.HypervisorInfo{Driver: "sim", Simulated: true, Healthy: true, Acceleration: "none"},
		Capacity:   api.Capacity{CPUs: 16, MemoryBytes: 64 * api.GiB}, Pools: []api.PoolStatus{{Pool: "local", FreeBytes: 9 * api.GiB}}}
	image := api.Image{Meta: meta("tiny", "default"), Format: "qcow2", SHA256: strings.Repeat("ab", 32), SizeBytes: 5 * api.MiB}
	member := func(name string, leader bool) api.Member {
		return api.Member{Name: name, ID: name, Address: "127.83.12.1:7443", Voter: true, Leader: leader, Lease: "live", Healthy: leader, LastContactMS: 12, Reason: map[bool]string{false: "it was not heard for 12s"}[leader]}
	}
	return newFakeCluster(t, map[string]any{
		"GET /v1/vms":       list(web, lost),
		"GET /v1/vms/web":   web,
		"GET /v1/instances": list(api.Instance{Meta: api.Meta{Name: web.ID}, VM: "default/web", Owner: "node1", State: api.InstanceRunning, Simulated: true, Addresses: []string{"10.0.0.17"}}, api.Instance{Meta: api.Meta{Name: lost.ID}, State: api.InstancePending, Decision: &api.Decision{Summary: longReason + "\x1b[31m\u202e"}}),
		"GET /v1/instances/" + web.ID: api.Instance{Meta: api.Meta{Name: web.ID}, VM: "default/web", Owner: "node1", State: api.InstanceRunning, Simulated: true,
			Addresses: []string{"10.0.0.17"}, StartedAt: time.Date(2026, 5, 1, 11, 0, 0, 0, time.UTC)},
		"GET /v1/nodes":    list(node),
		"GET /v1/images":   list(image),
		"GET /v1/replicas": list(api.Replica{Meta: api.Meta{Name: "r"}, Kind: api.KindImage, OfID: image.ID, Node: "node1", State: api.ReplicaReady}),
		"GET /v1/networks": list(api.Network{Meta: meta("lan", "default"), Driver: "bridge", Bridge: "br0", Description: "日本語の説明がここにあります。とても長い"}),
		"GET /v1/pools":    list(api.Pool{Meta: meta("local", ""), Driver: "dir"}),
		"GET /v1/volumes":  list(api.Volume{Meta: meta("web-root", "default"), Pool: "local", Image: "tiny", OwnerVM: "x"}),
		"GET /v1/tenants":  list(api.Tenant{Meta: meta("default", "")}),
		"GET /v1/api_keys": list(api.APIKey{Meta: meta("admin", ""), Role: "admin", Expires: time.Date(2026, 5, 3, 12, 0, 0, 0, time.UTC), By: "node:node1"}),
		"GET /v1/tasks": list(api.Task{Meta: meta("task-1", ""), Verb: "vm.restart", Kind: "vm", Object: "default/web", State: "failed", Node: "node1", Percent: 40,
			Error: api.Errorf(api.CodeUnavailable, "libvirtd does not answer at /run/libvirt/libvirt-sock")}),
		"GET /v1/cluster": api.ClusterStatus{ClusterID: "a167bffa-a376-4e84-b51a-d820af0c1e45", Region: "dev", Leader: "node1", Term: 2, Index: 13, ClusterVersion: 1,
			Members: []api.Member{member("node1", true), member("node2", false)}, Summary: "1 of 2 nodes healthy, 2 vote"},
		"GET /v1/history/vm/web": list(api.HistoryItem{Index: 9, Time: time.Date(2026, 5, 1, 9, 0, 0, 0, time.Local), Op: "vm.put", By: "key:admin", Action: "update",
			Before: json.RawMessage(`{"name":"web","cpus":1,"modified":5}`), After: json.RawMessage(`{"name":"web","cpus":2,"memory_bytes":536870912,"modified":6}`)}),
		"GET /v1/why/vm/web": api.Explanation{Kind: "vm", Key: "default/web", Summary: "it runs on node1", Facts: []api.Fact{{Text: "made by admin", By: "key:admin"}},
			Decision: &api.Decision{Considered: 2, Candidates: []api.Candidate{{Node: "node1", Fits: true, Score: 0.5, Reasons: []string{"0 VMs there"}}, {Node: "node2", Reasons: []string{longReason}}}}},
		"GET /v1/diff/vm/web": api.Diff{Kind: "vm", Key: "default/web", From: 5, To: 9, Action: "update", Fields: []api.FieldChange{{Field: "cpus", Before: json.RawMessage("1"), After: json.RawMessage("2")}}},
	})
}
