package main

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

// cannedStats is a cluster that is busy in a way that never changes.
func cannedStats(t *testing.T) *fakeCluster {
	t.Helper()
	at := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	usage := func(n float64) api.VMUsage {
		return api.VMUsage{At: at, CPUPercent: 10 * n, MemoryBytes: api.GiB, MemoryRSSBytes: int64(n) * 50 * api.MiB, DiskReadRate: n * 1e6, DiskWriteRate: n * 3e5,
			DiskReadsRate: 40 * n, DiskWritesRate: 7 * n, DiskReadLatency: 0.4, DiskWriteLatency: 12.5, NetReceiveRate: n * 1e5, NetSendRate: n * 2e7, NetDropsRate: 0.2}
	}
	vm := func(name, node string, n float64) api.VMStats {
		return api.VMStats{ID: "x", Tenant: "default", Name: name, Node: node, CPUs: 2, Now: usage(n)}
	}
	web := vm("web", "node1", 12)
	web.Disks, web.NICs, web.StepSeconds = []api.DiskUsage{{Name: "vda", ReadRate: 1e6, ReadsRate: 40, ReadLatency: 0.4}}, []api.NICUsage{{Name: "vnet0", ReceiveRate: 1e5, SendPacketsRate: 3}}, 10
	node := func(name string) api.NodeStats {
		return api.NodeStats{Node: name, CPUs: 16, MemoryBytes: 64 * api.GiB, VMs: 2, Now: api.NodeUsage{At: at, CPUPercent: 37.5, Load: 4.25, MemoryUsedBytes: 20 * api.GiB,
			DiskReadRate: 5e6, DiskWriteRate: 1e6, NetReceiveRate: 1e8, NetSendRate: 1e3}}
	}
	one := node("node1")
	one.StepSeconds = 10
	for i := range 60 {
		web.Points = append(web.Points, usage(float64(i%14)))
		one.Points = append(one.Points, api.NodeUsage{CPUPercent: float64(i % 100), Load: float64(i % 7)})
	}
	return newFakeCluster(t, map[string]any{
		"GET /v1/nodes":             list(api.Node{Meta: meta("node1", "")}),
		"GET /v1/stats/nodes":       client.Stats[api.NodeStats]{Items: []api.NodeStats{node("node1"), node("node2")}, Missing: []api.MissingNode{{Node: "node3", Reason: "it did not answer within 2s\x1b[31m"}}},
		"GET /v1/stats/vms":         client.Stats[api.VMStats]{Items: []api.VMStats{vm("app", "node2", 1), vm("a-name-that-is-as-long-as-a-dns-label-may-be-0123456789-abcdefg", "node2", 0), web}, Missing: []api.MissingNode{{Node: "node3", Reason: "it did not answer within 2s"}}},
		"GET /v1/vms/web/stats":     web,
		"GET /v1/nodes/node1/stats": one,
		"GET /v1/pools/local/stats": api.PoolStats{Pool: "local", TotalBytes: 3 * api.TiB, UsedBytes: api.TiB, FreeBytes: 2 * api.TiB,
			Nodes: []api.PoolUsage{{Node: "node1", TotalBytes: 3 * api.TiB, UsedBytes: api.TiB, FreeBytes: 2 * api.TiB}, {Node: "node2", Reason: "no such directory"}}},
	})
}

func TestStatisticsFit80Columns(t *testing.T) {
	t.Parallel()
	f := cannedStats(t)
	for name, args := range map[string]string{"top": "top", "vm-stats": "vm stats web", "node-stats": "node stats node1", "pool-stats": "pool stats local"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := f.command(t, strings.Fields(args)...)
			if got.status != statusDone {
				t.Fatalf("debvisor %s: status %d: %s", args, got.status, got.err)
			}
			golden(t, name, got.out)
			for line := range strings.Lines(got.out) {
				if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > widthDefault || strings.ContainsRune(line, '\x1b') {
					t.Errorf("a line has %d columns, or steers the terminal: %q", n, line)
				}
			}
		})
	}
}

func TestTopOrdersAndSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	f := cannedStats(t)
	got := f.command(t, "top", "--by", "memory", "--rows", "2", "-o", "json")
	web, app := strings.Index(got.out, `"name": "web"`), strings.Index(got.out, `"name": "app"`)
	if web < 0 || app < web || strings.Contains(got.out, "a-name-that") || strings.Count(got.out, `"node": "node3"`) != 1 {
		t.Errorf("got %s", got.out)
	}
	for _, args := range []string{"top --by colour", "top --watch --interval 1ms", "top --rows -1"} {
		if got := f.command(t, strings.Fields(args)...); got.status != statusUsage {
			t.Errorf("debvisor %s: status %d, want %d", args, got.status, statusUsage)
		}
	}
}

func TestSparksAreDrawnFromZeroToTheTop(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]struct {
		values []float64
		top    float64
	}{
		"":                              {nil, 100},
		"▁▁▁":                           {[]float64{0, 0, 0}, 0},
		"▁▅█":                           {[]float64{0, 50, 100}, 100},
		"▁▂▄█":                          {[]float64{0, 25, 75, 199}, 100},
		"▁":                             {[]float64{-5}, 1},
		strings.Repeat("█", sparkWidth): {append([]float64{0, 0, 0}, slicesOf(9, sparkWidth)...), 1},
	} {
		if got := spark(c.values, c.top); got != want {
			t.Errorf("spark(%v, %v) = %q, want %q", c.values, c.top, got, want)
		}
	}
}

func slicesOf(v float64, n int) (out []float64) {
	for range n {
		out = append(out, v)
	}
	return out
}
