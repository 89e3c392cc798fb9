package cluster_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/e2e/cluster/harness"
)

// TestBackupBecomesANewCluster backs three nodes up and restores them onto one.
func TestBackupBecomesANewCluster(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, harness.Options{})
	c.Must("vm", "create", "guest", "--cpus", "1", "--memory", "64MiB", "--label", "tier=gold")
	c.Must("vm", "create", "idle", "--cpus", "2", "--memory", "128MiB", "--off")
	c.Must("tenant", "create", "shop", "--description", "the web shop")
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	right, wrong, short := file("right", "correct horse battery"), file("wrong", "incorrect horse battery"), file("short", "short")
	backup := filepath.Join(dir, "monday.backup")
	c.Wants(2, "cluster", "backup", "--out", backup, "--passphrase-file", short)
	c.Must("cluster", "backup", "--out", backup, "--passphrase-file", right)
	c.Wants(4, "cluster", "backup", "--out", backup, "--passphrase-file", right)
	audit := c.Must("audit", "list", "-o", "json", "--limit", "1000")
	key := c.Key()
	c.Shutdown()

	contains(t, c.Must("cluster", "restore", backup, "--verify", "--passphrase-file", right), "a whole backup")
	refuseBackups(t, c, backup, right, wrong)

	home := t.TempDir()
	restored := harness.Own(t, home, "DEBVISOR_ADDR="+beside(t, c, "7"), "DEBVISOR_KEY="+key, "DEBVISOR_CACERT="+filepath.Join(home, "fresh", "data", "ca.pem"))
	n := restored.Add("fresh", beside(t, c, "7"))
	restored.Must(append([]string{"cluster", "restore", backup, "--passphrase-file", right}, place(n)...)...)
	restored.Wants(4, append([]string{"cluster", "restore", backup, "--passphrase-file", right}, place(n)...)...)
	n.Start()
	t.Logf("the restored cluster was ready after %v", n.Ready(40*time.Second).Round(time.Millisecond))
	restoredIsWhole(t, restored, audit)
}

// refuseBackups tries what is no backup for this passphrase.
func refuseBackups(t *testing.T, c *harness.Cluster, backup, right, wrong string) {
	t.Helper()
	raw, err := os.ReadFile(backup)
	if err != nil {
		t.Fatal(err)
	}
	flipped := append([]byte(nil), raw...)
	flipped[len(flipped)/2] ^= 1
	spoilt := map[string][]byte{"flipped": flipped, "cut": raw[:len(raw)*3/4], "empty": nil, "longer": append(append([]byte(nil), raw...), 0)}
	for name, content := range spoilt {
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		data := filepath.Join(t.TempDir(), "data")
		for _, args := range [][]string{{"--verify"}, {"--data-dir", data, "--name", "fresh", "--advertise", beside(t, c, "8")}} {
			r := c.Run(append([]string{"cluster", "restore", file, "--passphrase-file", right}, args...)...)
			if r.Status == 0 || strings.Contains(r.Stderr, "panic") {
				t.Errorf("%s backup was not refused: %v", name, r)
			}
		}
		if _, err := os.Stat(filepath.Join(data, "identity.json")); err == nil {
			t.Errorf("%s backup left a node behind", name)
		}
	}
	r := c.Run("cluster", "restore", backup, "--verify", "--passphrase-file", wrong)
	if r.Status == 0 || !strings.Contains(r.Stderr, "passphrase") {
		t.Errorf("a wrong passphrase was not refused as such: %v", r)
	}
	t.Log(strings.TrimSpace(r.Stderr))
}

// restoredIsWhole checks that rows, keys and history came back.
func restoredIsWhole(t *testing.T, c *harness.Cluster, audit harness.Result) {
	t.Helper()
	var vm struct {
		api.VM
		Instance *api.Instance `json:"instance"`
	}
	decode(t, c.Must("vm", "show", "guest", "-o", "json"), &vm)
	if vm.Labels["tier"] != "gold" || vm.CPUs != 1 {
		t.Errorf("vm %+v, want what was backed up", vm)
	}
	contains(t, c.Must("vm", "list"), "guest", "idle")
	contains(t, c.Must("tenant", "show", "shop"), "the web shop")
	contains(t, c.Must("audit", "verify"), "the journal is whole")
	contains(t, c.Must("history", "vm/guest"), "create")
	var was, is []api.Record
	decode(t, audit, &was)
	decode(t, c.Must("audit", "list", "-o", "json", "--limit", "1000"), &is)
	if len(was) == 0 || len(is) < len(was) {
		t.Fatalf("%d journal records, want at least the %d of the backup", len(is), len(was))
	}
	for i := range was {
		if is[i].Hash != was[i].Hash {
			t.Fatalf("journal record %d has another hash than before the backup", was[i].Index)
		}
	}
	waitRunning(t, c.Client(10*time.Second), "guest", 60*time.Second)
	var nodes []api.Node
	if err := json.Unmarshal([]byte(c.Must("node", "list", "-o", "json").Stdout), &nodes); err != nil || len(nodes) != 1 || nodes[0].Name != "fresh" {
		t.Errorf("nodes %+v (%v), want the new one alone", nodes, err)
	}
}
