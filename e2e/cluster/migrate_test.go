package cluster_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
	"github.com/debvisor/debvisor/e2e/cluster/harness"
)

// runnersOf lists the nodes whose simulator executes the guest.
func runnersOf(t *testing.T, c *harness.Cluster, id string) (running, present []string) {
	t.Helper()
	for _, n := range c.Nodes {
		raw, err := os.ReadFile(filepath.Join(n.DataDir(), "sim", "domains", id+".json"))
		if err != nil {
			continue
		}
		var record struct{ State string }
		if err := json.Unmarshal(raw, &record); err != nil {
			t.Fatalf("record of the guest on %s: %v", n.Name, err)
		}
		present = append(present, n.Name)
		if record.State == api.InstanceRunning {
			running = append(running, n.Name)
		}
	}
	return running, present
}

// TestAVMMigratesInALoopUnderLoad: no restart, one runner, one copy of its disk.
func TestAVMMigratesInALoopUnderLoad(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, harness.Options{})
	conn := c.Client(20 * time.Second)
	c.Must("vm", "create", "web", "--cpus", "1", "--memory", "64MiB", "--disk", "1GiB")
	was := waitRunning(t, conn, "web", time.Minute)
	load := harness.StartLoad(t, c, 2)
	at := was.Owner
	if r := c.Run("vm", "migrate", "web", "--to", at); r.Status == 0 || !strings.Contains(r.Stderr, "there already") {
		t.Errorf("to its own node: %v", r)
	}
	if r := c.Run("vm", "migrate", "web"); r.Status == 0 || !strings.Contains(r.Stderr, "copy_storage") {
		t.Errorf("without its disk: %v", r)
	}
	if r := c.Must("vm", "migrate", "web", "--copy-storage", "--plan"); !strings.Contains(r.Stdout, "migrates from "+at) {
		t.Errorf("the plan is %v", r)
	}
	for range 6 {
		c.Must("vm", "migrate", "web", "--copy-storage")
		is := waitRunning(t, conn, "web", time.Minute)
		if is.Owner == at || !is.StartedAt.Equal(was.StartedAt) || is.Restarts != 0 {
			t.Fatalf("it was on %s since %v and is %+v", at, was.StartedAt, is)
		}
		at = is.Owner
		harness.Until(t, time.Minute, "only "+at+" has the guest and its disk", func() (bool, string) {
			running, present := runnersOf(t, c, is.Name)
			if len(running) > 1 {
				t.Fatalf("it runs on %v", running)
			}
			replicas, err := client.Resource[api.Replica](conn, api.KindReplica).All(t.Context(), client.ListOptions{})
			if err != nil {
				return false, err.Error()
			}
			var disks []string
			for _, r := range replicas.Items {
				if r.Kind == api.KindVolume {
					disks = append(disks, r.Node)
				}
			}
			return len(running) == 1 && len(present) == 1 && len(disks) == 1 && disks[0] == at, fmt.Sprintf("the guest is on %v, its disk on %v", present, disks)
		})
	}
	if r := c.Must("why", "vm/web"); !strings.Contains(r.Stdout, "migrates from") {
		t.Errorf("why does not tell of it: %s", r.Stdout)
	}
	load.Stop()
}

// TestAMigrationSurvivesTheDeathOfAnyNode kills the source, the destination and
// the leader while the guest is prepared and while it is copied.
func TestAMigrationSurvivesTheDeathOfAnyNode(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, harness.Options{})
	conn := c.Client(30 * time.Second)
	c.Must("vm", "create", "web", "--cpus", "1", "--memory", "64MiB", "--disk", "1GiB")
	was := waitRunning(t, conn, "web", time.Minute)
	tasks := client.Resource[api.Task](conn, api.KindTask)
	for _, step := range []string{api.MigrationPhasePrepare, "left of"} {
		for _, victim := range []string{"source", "destination", "leader"} {
			from := waitRunning(t, conn, "web", time.Minute).Owner
			var to *harness.Node
			for _, n := range c.Nodes {
				if n.Name != from {
					to = n
				}
			}
			action, err := conn.MigrateVM(t.Context(), api.DefaultTenant, "web", api.MigrateArgs{Node: to.Name, CopyStorage: true, BandwidthBytesMax: 32 * api.MiB})
			if err != nil {
				t.Fatalf("%s, %s: %v", step, victim, err)
			}
			harness.Until(t, time.Minute, "the task is at "+step, func() (bool, string) {
				task, _, err := tasks.Get(t.Context(), "", action.Task.Name, client.ReadOptions{Stale: true})
				if err != nil {
					return false, err.Error()
				}
				return strings.Contains(task.Step, step) || step == api.MigrationPhasePrepare && task.Step != "" || task.Ended(), task.Step
			})
			dies := to
			switch victim {
			case "source":
				dies = c.Node(from)
			case "leader":
				dies = c.Leader()
			}
			dies.Kill()
			dies.Start()
			dies.Ready(time.Minute)
			harness.Until(t, 2*time.Minute, "the migration is done after the death of the "+victim, func() (bool, string) {
				running, present := runnersOf(t, c, was.Name)
				if len(running) > 1 {
					t.Fatalf("%s, %s: it runs on %v", step, victim, running)
				}
				task, _, err := tasks.Get(t.Context(), "", action.Task.Name, client.ReadOptions{Stale: true})
				if err != nil {
					return false, err.Error()
				}
				if task.State == api.TaskFailed {
					t.Fatalf("%s, %s: the task failed: %v", step, victim, task.Error)
				}
				return task.State == api.TaskDone && len(running) == 1 && len(present) == 1 && running[0] == to.Name, task.State + " " + task.Step
			})
			if is := waitRunning(t, conn, "web", time.Minute); is.Owner != to.Name || !is.StartedAt.Equal(was.StartedAt) || is.Restarts != 0 {
				t.Fatalf("%s, %s: it was started at %v and is %+v", step, victim, was.StartedAt, is)
			}
		}
	}
}
