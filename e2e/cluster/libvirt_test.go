package cluster_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"
	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
	"github.com/debvisor/debvisor/e2e/cluster/harness"
	"github.com/debvisor/debvisor/e2e/lab"
)

// foreignDomain is a guest that somebody else made on the same machine.
const foreignDomain = `<domain type="qemu"><name>not-ours</name><memory unit="MiB">32</memory><vcpu>1</vcpu>
<os><type arch="x86_64">hvm</type></os></domain>`

// guests is a cluster over real libvirt daemons, and the VM on it.
type guests struct {
	*harness.Cluster
	t    *testing.T
	lab  *lab.Lab
	conn *client.Client
	vm   *api.Instance // as it was seen last
}

// TestRealGuest boots the guest of the README on real libvirt daemons, and
// then breaks what is around it and the guest itself.
func TestRealGuest(t *testing.T) {
	t.Parallel()
	g := startGuests(t)
	c := g.Cluster
	foreign := g.defineForeign()

	r := c.Must("apply", "-f", example)
	contains(t, r, "vm web is running on node")
	g.vm = waitRunning(t, g.conn, "web", time.Minute)
	t.Logf("applied in %v, on %s with %s", r.Took.Round(time.Millisecond), g.vm.Owner, g.vm.Acceleration)
	t.Logf("ready on its console after another %v", g.booted(t).Round(time.Millisecond))

	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"AgentKilledAdoptsTheGuest", g.agentKilled},
		{"KilledGuestIsStartedAgain", g.guestKilled},
		{"DaemonKilledKeepsTheGuest", g.daemonKilled},
		{"DeleteRemovesDomainAndFiles", g.deleted},
	} {
		if !t.Run(step.name, step.run) {
			return // what follows is about a guest in another state
		}
	}
	for i, id := range foreign {
		if d, err := g.daemon(i).DomainLookupByUUID(id); err != nil || d.Name != "not-ours" {
			t.Errorf("the domain of somebody else on node%d: %v, %v; want it untouched", i+1, d, err)
		}
	}
}

// startGuests starts three nodes, each on a libvirt daemon of its own, with the
// image of the tiny guest.
func startGuests(t *testing.T) *guests {
	t.Helper()
	lab.Require(t)
	guest := lab.TinyGuestFor(t)
	l := lab.StartLibvirt(t, 3)
	args := []string{"--log-level", "debug", "--image", "tiny=" + guest.Disk}
	for _, s := range l.Sockets() {
		args = append(args, "--libvirt-socket", s)
	}
	c := harness.Start(t, harness.Options{Hypervisor: "libvirt", Args: args, Dir: filepath.Join(l.Dir(), "cluster")})
	return &guests{Cluster: c, t: t, lab: l, conn: c.Client(20 * time.Second)}
}

// booted waits until the guest says on its console that it is ready. That takes
// minutes where its emulation shares two processors with everything else.
func (g *guests) booted(t *testing.T) time.Duration {
	t.Helper()
	return harness.Until(t, 4*time.Minute, "the guest is ready", func() (bool, string) {
		r := g.Run("vm", "console", "web", "--replay", "--no-input", "--until", "GUEST-READY", "--timeout", "50s")
		return r.Status == 0 && strings.Contains(r.Stdout, "GUEST-READY"), r.String()
	})
}

// daemon connects to the libvirt daemon of a node, beside debvisor.
func (g *guests) daemon(i int) *libvirt.Libvirt {
	g.t.Helper()
	c := libvirt.NewWithDialer(dialers.NewLocal(dialers.WithSocket(g.lab.Sockets()[i])))
	if err := c.Connect(); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = c.Disconnect() })
	return c
}

// defineForeign makes a domain on each daemon that is not debvisor's.
func (g *guests) defineForeign() []libvirt.UUID {
	g.t.Helper()
	var ids []libvirt.UUID
	for i := range g.lab.Nodes() {
		d, err := g.daemon(i).DomainDefineXML(foreignDomain)
		if err != nil {
			g.t.Fatalf("define a domain of somebody else: %v", err)
		}
		ids = append(ids, d.UUID)
	}
	return ids
}

// owner is the place of the node that runs the VM.
func (g *guests) owner() int {
	g.t.Helper()
	i, err := strconv.Atoi(strings.TrimPrefix(g.vm.Owner, "node"))
	if err != nil {
		g.t.Fatal(err)
	}
	return i - 1
}

// qemu is the process of the guest; 0 when there is none. The test fails when
// there are several.
func (g *guests) qemu() int {
	g.t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		g.t.Fatal(err)
	}
	var found []int
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(raw), "qemu-system-") || !strings.Contains(string(raw), "\x00-uuid\x00"+g.vm.Name+"\x00") {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
			found = append(found, pid)
		}
	}
	if len(found) > 1 {
		g.t.Fatalf("the guest runs %d times: processes %v", len(found), found)
	}
	if len(found) == 0 {
		return 0
	}
	return found[0]
}

// same fails the test unless the guest is the one that was seen last.
func (g *guests) same(t *testing.T, pid int) {
	t.Helper()
	is := waitRunning(t, g.conn, "web", 30*time.Second)
	if now := g.qemu(); now != pid || !is.StartedAt.Equal(g.vm.StartedAt) || is.Restarts != g.vm.Restarts {
		t.Errorf("process %d became %d; instance was %+v and is %+v", pid, now, g.vm, is)
	}
}

func (g *guests) agentKilled(t *testing.T) {
	pid, n := g.qemu(), g.Nodes[g.owner()]
	n.Kill()
	if now := g.qemu(); now != pid {
		t.Fatalf("the guest (process %d) did not outlive its agent: process %d", pid, now)
	}
	n.Start()
	t.Logf("%s was ready %v after its restart", n.Name, n.Ready(40*time.Second).Round(time.Millisecond))
	harness.Until(t, 30*time.Second, "the guest is reported again", func() (bool, string) {
		i := instanceOf(t, g.conn, "web")
		return i != nil && i.State == api.InstanceRunning && len(i.Drift) == 0, fmt.Sprintf("%+v", i)
	})
	g.same(t, pid)
	g.booted(t)
}

func (g *guests) daemonKilled(t *testing.T) {
	pid, i := g.qemu(), g.owner()
	if err := g.lab.Nodes()[i].Kill(); err != nil {
		t.Fatal(err)
	}
	took := harness.Until(t, 30*time.Second, "the node says that its hypervisor is down", g.hypervisorIs(t, false))
	t.Logf("the lost daemon was reported after %v", took.Round(time.Millisecond))
	if now := g.qemu(); now != pid {
		t.Fatalf("the guest (process %d) did not outlive the daemon: process %d", pid, now)
	}
	if err := g.lab.Nodes()[i].Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	took = harness.Until(t, 30*time.Second, "the hypervisor is well again", g.hypervisorIs(t, true))
	t.Logf("it was well again after %v", took.Round(time.Millisecond))
	g.same(t, pid)
}

// hypervisorIs is the condition that the VM's node reports its hypervisor so.
func (g *guests) hypervisorIs(t *testing.T, healthy bool) func() (bool, string) {
	return func() (bool, string) {
		n, _, err := client.Resource[api.Node](g.conn, api.KindNode).Get(t.Context(), "", g.vm.Owner, client.ReadOptions{})
		if err != nil {
			return false, err.Error()
		}
		return n.Hypervisor.Healthy == healthy, fmt.Sprintf("%+v", n.Hypervisor)
	}
}

func (g *guests) guestKilled(t *testing.T) {
	pid := g.qemu()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	took := harness.Until(t, 10*time.Second, "the death of the guest is noticed", func() (bool, string) {
		i := instanceOf(t, g.conn, "web")
		return i != nil && (i.State != api.InstanceRunning || i.Restarts > g.vm.Restarts), fmt.Sprintf("%+v", i)
	})
	t.Logf("the killed guest was noticed after %v", took.Round(time.Millisecond))
	harness.Until(t, 30*time.Second, "the guest runs again", func() (bool, string) {
		i := instanceOf(t, g.conn, "web")
		ok := i != nil && i.State == api.InstanceRunning && i.Restarts == g.vm.Restarts+1 && i.StartedAt.After(g.vm.StartedAt)
		if ok {
			g.vm = i
		}
		return ok, fmt.Sprintf("%+v", i)
	})
	if now := g.qemu(); now == 0 || now == pid {
		t.Errorf("process %d runs the guest, want a new one", now)
	}
	contains(t, g.Must("why", "vm/web"), "ended")
}

func (g *guests) deleted(t *testing.T) {
	i := g.owner()
	id := uuid.MustParse(g.vm.Name)
	daemon := g.daemon(i)
	g.Must("destroy", "-f", example, "--yes")
	took := harness.Until(t, 30*time.Second, "the guest and its domain are gone", func() (bool, string) {
		_, err := daemon.DomainLookupByUUID(libvirt.UUID(id))
		return err != nil && g.qemu() == 0, fmt.Sprintf("domain %v, process %d", err, g.qemu())
	})
	t.Logf("gone after %v", took.Round(time.Millisecond))
	harness.Until(t, 30*time.Second, "the guest's files are gone", func() (bool, string) {
		left := filesNamed(t, g.Dir, g.vm.Name, "web-root")
		return len(left) == 0, strings.Join(left, " ")
	})
}

// filesNamed finds files whose path has one of the words.
func filesNamed(t *testing.T, dir string, words ...string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // it went away meanwhile
		}
		for _, w := range words {
			if strings.Contains(filepath.Base(path), w) {
				found = append(found, path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
