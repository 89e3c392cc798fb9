package cluster_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/e2e/cluster/harness"
)

// TestQuickStart goes the way of a new user, from the first apply to the
// destroy.
func TestQuickStart(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, harness.Options{})
	for _, step := range []struct {
		name string
		run  func(*testing.T, *harness.Cluster)
	}{
		{"StatusNamesLeaderAndMembers", statusNamesLeaderAndMembers},
		{"PlanShowsPlacementAndChangesNothing", planChangesNothing},
		{"ApplyRunsTheVM", applyRunsTheVM},
		{"SecondApplyChangesNothing", secondApplyChangesNothing},
		{"MemoryOfAnObject", memoryOfAnObject},
		{"EveryListHasEveryFormat", everyListHasEveryFormat},
		{"PowerVerbs", powerVerbs},
		{"ExitStatuses", exitStatuses},
		{"DestroyRemovesEverything", destroyRemovesEverything},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(t, c) }) && step.name == "ApplyRunsTheVM" {
			return
		}
	}
}

func decode(t *testing.T, r harness.Result, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.Stdout), into); err != nil {
		t.Fatalf("output is not JSON: %v\n%v", err, r)
	}
}

func contains(t *testing.T, r harness.Result, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(r.Stdout+r.Stderr, w) {
			t.Errorf("%q is missing in\n%v", w, r)
		}
	}
}

func statusNamesLeaderAndMembers(t *testing.T, c *harness.Cluster) {
	var status api.ClusterStatus
	decode(t, c.Must("cluster", "status", "-o", "json"), &status)
	var names []string
	for _, m := range status.Members {
		names = append(names, m.Name)
		if !m.Voter || !m.Healthy {
			t.Errorf("member %+v, want a healthy voter", m)
		}
	}
	slices.Sort(names)
	if !slices.Equal(names, []string{"node1", "node2", "node3"}) || !slices.Contains(names, status.Leader) || !status.Healthy {
		t.Errorf("status %+v, want node1 to node3, one of them leading, healthy", status)
	}
	var nodes []api.Node
	decode(t, c.Must("node", "list", "-o", "json"), &nodes)
	for _, n := range nodes {
		if n.Lease != api.NodeLive || !n.Hypervisor.Simulated {
			t.Errorf("node %+v, want live and simulated", n)
		}
	}
	contains(t, c.Must("node", "list"), "simulated")
}

func planChangesNothing(t *testing.T, c *harness.Cluster) {
	r := c.Must("plan", "-f", example)
	contains(t, r, "web", "on node")
	contains(t, c.Wants(3, "vm", "show", "web"), "web")
	contains(t, c.Must("vm", "create", "planned", "--plan"), "planned")
	c.Wants(3, "vm", "show", "planned")
}

func applyRunsTheVM(t *testing.T, c *harness.Cluster) {
	r := c.Must("apply", "-f", example)
	t.Logf("applied in %v", r.Took.Round(time.Millisecond))
	contains(t, r, "vm web is running on node", "simulated")
	var row struct {
		api.VM
		Instance *api.Instance `json:"instance"`
	}
	decode(t, c.Must("vm", "show", "web", "-o", "json"), &row)
	if row.Instance == nil || row.Instance.State != api.InstanceRunning || !row.Instance.Simulated {
		t.Errorf("instance %+v, want running and simulated", row.Instance)
	}
}

func secondApplyChangesNothing(t *testing.T, c *harness.Cluster) {
	before := c.Must("vm", "show", "web", "-o", "json")
	r := c.Must("apply", "-f", example, "-o", "json")
	var out struct {
		Changed *int `json:"changed"`
	}
	decode(t, r, &out)
	if out.Changed == nil || *out.Changed != 0 {
		t.Errorf("second apply changed something: %v", r)
	}
	contains(t, c.Must("apply", "-f", example), "nothing to do")
	var was, is struct {
		Modified uint64 `json:"modified"`
	}
	decode(t, before, &was)
	decode(t, c.Must("vm", "show", "web", "-o", "json"), &is)
	if was != is {
		t.Errorf("revision was %d and is %d", was.Modified, is.Modified)
	}
}

// memoryOfAnObject changes a VM and looks at what the cluster remembers.
func memoryOfAnObject(t *testing.T, c *harness.Cluster) {
	contains(t, c.Must("why", "vm/web"), "vm/default/web", "node1", "node2", "node3")
	var items []api.HistoryItem
	decode(t, c.Must("history", "vm/web", "-o", "json"), &items)
	if len(items) == 0 || items[len(items)-1].Action != "create" {
		t.Fatalf("history %+v, want it to begin with the creation", items)
	}
	created := strconv.FormatUint(items[0].Index, 10)

	changed := filepath.Join(t.TempDir(), "first-vm.hcl")
	raw, err := os.ReadFile(filepath.Join(harness.Root(t), example))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(raw), `app = "demo"`, `app = "changed"`, 1)
	if err := os.WriteFile(changed, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	contains(t, c.Must("apply", "-f", changed), "done: 1 changed")
	contains(t, c.Must("diff", "vm/web", "--from", created), "demo", "changed")
	contains(t, c.Must("diff", "vm/web", "--from", "2h"), "web")
	contains(t, c.Must("revert", "vm/web", "--to", created, "--plan"), "demo")
	contains(t, c.Must("vm", "show", "web", "-o", "json"), "changed")
	c.Must("revert", "vm/web", "--to", created)
	contains(t, c.Must("vm", "show", "web", "-o", "json"), `"demo"`)
	contains(t, c.Must("diff", "vm/web", "--from", created), "no difference")

	contains(t, c.Must("events", "--after", "1", "--kind", "vm", "--limit", "2"), "create vm/default/web")
	for _, n := range c.Nodes {
		contains(t, c.Must("audit", "verify", "--addr", n.Address), "the journal is whole")
	}
	c.Must("task", "list")
	contains(t, c.Must("audit", "list", "--limit", "5"), "INDEX")
}

func everyListHasEveryFormat(t *testing.T, c *harness.Cluster) {
	for _, noun := range []string{"vm", "image", "network", "pool", "volume", "tenant", "key", "task", "node"} {
		for _, format := range []string{"table", "wide", "json", "yaml"} {
			r := c.Must(noun, "list", "-o", format)
			var rows []any
			var err error
			switch format {
			case "table":
				narrow(t, r)
			case "json":
				err = json.Unmarshal([]byte(r.Stdout), &rows)
			case "yaml":
				err = yaml.Unmarshal([]byte(r.Stdout), &rows)
			}
			if err != nil {
				t.Errorf("%s list -o %s: %v", noun, format, err)
			}
		}
	}
	for _, args := range [][]string{{"cluster", "status"}, {"vm", "show", "web"}, {"history", "vm/web"},
		{"audit", "list", "--limit", "20"}, {"events", "--after", "1", "--limit", "5"}, {"doctor", "--client"}} {
		narrow(t, c.Must(args...))
	}
}

// narrow checks that a table fits 80 columns.
func narrow(t *testing.T, r harness.Result) {
	t.Helper()
	for line := range strings.Lines(r.Stdout) {
		if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 80 {
			t.Errorf("debvisor %s: a line has %d columns: %s", strings.Join(r.Args, " "), n, line)
		}
	}
}

func powerVerbs(t *testing.T, c *harness.Cluster) {
	c.Must("vm", "create", "idle", "--cpus", "1", "--memory", "64MiB")
	contains(t, c.Must("vm", "stop", "idle", "--plan"), "off")
	contains(t, c.Must("vm", "stop", "idle"), "idle is stopped")
	contains(t, c.Must("vm", "start", "idle"), "idle is running")
	contains(t, c.Must("vm", "restart", "idle", "--force"), "idle is running")
	var tasks []api.Task
	decode(t, c.Must("task", "list", "-o", "json"), &tasks)
	if !slices.ContainsFunc(tasks, func(v api.Task) bool { return v.State == api.TaskDone }) {
		t.Errorf("tasks %+v, want the restart among them, done", tasks)
	}
	c.Must("vm", "delete", "idle", "--yes")
	c.Wants(3, "vm", "show", "idle")
}

func exitStatuses(t *testing.T, c *harness.Cluster) {
	without := func(name string, value string) []string {
		env := slices.DeleteFunc(slices.Clone(c.Env), func(s string) bool { return strings.HasPrefix(s, name+"=") })
		return append(env, name+"="+value)
	}
	for _, test := range []struct {
		status int
		name   string
		env    []string
		args   []string
		says   string
	}{
		{1, "a VM without CPUs", c.Env, []string{"vm", "create", "none", "--cpus", "0"}, "cpus"},
		{1, "a name that is no label", c.Env, []string{"vm", "create", "Not_A_Label"}, "DNS label"},
		{1, "a VM larger than any node", c.Env, []string{"vm", "create", "huge", "--memory", "60TiB"}, "node"},
		{2, "a misspelt verb", c.Env, []string{"vm", "lst"}, `did you mean "list"`},
		{2, "a misspelt flag", c.Env, []string{"vm", "list", "--wacth"}, "--watch"},
		{2, "an unknown format", c.Env, []string{"vm", "list", "-o", "xml"}, "allowed"},
		{2, "a missing name", c.Env, []string{"vm", "show"}, "NAME is missing"},
		{3, "an absent VM", c.Env, []string{"vm", "show", "nobody"}, "nobody"},
		{4, "a VM that exists", c.Env, []string{"vm", "create", "web", "--cpus", "1"}, "exists"},
		{5, "a wrong key", without("DEBVISOR_KEY", "dvk_admin_"+strings.Repeat("a", 52)), []string{"vm", "list"}, "key"},
		{5, "no key", without("DEBVISOR_KEY", ""), []string{"vm", "list"}, "DEBVISOR_KEY"},
		{6, "nobody there", c.Env, []string{"vm", "list", "--addr", "127.0.0.1:1"}, "127.0.0.1:1"},
		{6, "a wrong CA", without("DEBVISOR_CACERT", otherCA(t)), []string{"vm", "list"}, "CA"},
	} {
		r := harness.Run(t, test.env, test.args...)
		if r.Status != test.status || !strings.Contains(r.Stderr, test.says) {
			t.Errorf("%s: want exit status %d and %q:\n%v", test.name, test.status, test.says, r)
		}
	}
	_ = harness.Run(t, c.Env, "vm", "delete", "huge", "--yes") // it waits for a node that is large enough
}

// otherCA is the CA certificate of another cluster, in a file.
func otherCA(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	r := harness.Run(t, nil, "init", "--data-dir", dir, "--name", "other", "--advertise", "127.0.0.1:7443", "--key-file", filepath.Join(dir, "key"))
	if r.Status != 0 {
		t.Fatalf("init of another cluster: %v", r)
	}
	return filepath.Join(dir, "ca.pem")
}

func destroyRemovesEverything(t *testing.T, c *harness.Cluster) {
	contains(t, c.Must("destroy", "-f", example, "--plan"), "web")
	c.Must("vm", "show", "web")
	c.Must("destroy", "-f", example, "--yes")
	c.Wants(3, "vm", "show", "web")
	harness.Until(t, 20*time.Second, "the VM's volume and instance are gone", func() (bool, string) {
		volumes, instance := c.Must("volume", "list", "-o", "json"), instanceOf(t, c.Client(5*time.Second), "web")
		return strings.TrimSpace(volumes.Stdout) == "[]" && instance == nil, fmt.Sprint(volumes.Stdout, instance)
	})
	contains(t, c.Must("destroy", "-f", example, "--yes"), "nothing to do")
}
