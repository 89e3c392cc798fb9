package cluster_test

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
	"github.com/debvisor/debvisor/e2e/cluster/harness"
)

const (
	// countOnDisk makes the guest write one number after another to its disk,
	// each to a sector of its own, and say so once the disk has it.
	countOnDisk = `(n=0;while :;do n=$((n+1));echo $n|dd of=/dev/vda bs=512 seek=$((400000+n)) conv=sync,fsync 2>/dev/null&&echo "wrote $n";usleep 200000;done)&`
	// compareDisk makes the guest compare its disk, and not what it remembers of
	// it, with what it has written. The mark is split so that the echo of the
	// line has none.
	compareDisk = `echo 3 >/proc/sys/vm/drop_caches;dd if=/dev/vda bs=512 skip=400001 count=%d 2>/dev/null|tr -d '\000' >/tmp/a;seq 1 %[1]d >/tmp/b;cmp /tmp/a /tmp/b&&echo DISK''-WHOLE||echo DISK''-TORN`
	// moveBandwidth makes a migration of the tiny guest take some seconds.
	moveBandwidth   = 16 * api.MiB
	consolePatience = 2 * time.Minute
)

var wroteLine = regexp.MustCompile(`wrote (\d+)\r?\n`)

// counting is a guest of the README that counts on its disk.
type counting struct {
	*guests
	daemons []*libvirt.Libvirt // in the order of the nodes
	last    int                // number that it said last that its disk has
}

// TestRealGuestMigrates moves a guest of QEMU with its disk between the nodes,
// and kills the agent at either end while it is copied. It is started once,
// executes at one node at a time, and every number that it was told to be on its
// disk is there at the end.
func TestRealGuestMigrates(t *testing.T) {
	t.Parallel()
	g := &counting{guests: startGuests(t)}
	for i := range g.Nodes {
		g.daemons = append(g.daemons, g.daemon(i))
	}
	g.Must("apply", "-f", example)
	g.vm = waitRunning(t, g.conn, "web", time.Minute)
	g.booted(t)
	g.say(countOnDisk)
	g.counts()

	home := g.vm.Owner
	away := g.Others(g.Node(home))[0].Name
	for _, to := range []string{away, home} {
		r := g.Must("vm", "migrate", "web", "--to", to, "--copy-storage")
		t.Logf("moved to %s within %v", to, r.Took.Round(time.Millisecond))
		g.arrived(to)
	}
	for _, victim := range []string{"source", "destination"} {
		g.killed(t, victim, away)
		home, away = away, home
	}
	g.expect(fmt.Sprintf(compareDisk, g.last), "DISK-WHOLE")
	t.Logf("%d numbers are on the disk", g.last)
}

// killed kills the agent at one end of a migration while the guest is copied.
func (g *counting) killed(t *testing.T, victim, to string) {
	from := g.vm.Owner
	action, err := g.conn.MigrateVM(t.Context(), api.DefaultTenant, "web", api.MigrateArgs{Node: to, CopyStorage: true, BandwidthBytesMax: moveBandwidth})
	if err != nil {
		t.Fatal(err)
	}
	task := func() (*api.Task, error) {
		row, _, err := client.Resource[api.Task](g.conn, api.KindTask).Get(t.Context(), "", action.Task.Name, client.ReadOptions{Stale: true})
		return row, err
	}
	harness.Until(t, time.Minute, "the guest is being copied", func() (bool, string) {
		is, err := task()
		if err != nil {
			return false, err.Error()
		}
		if is.Ended() {
			t.Fatalf("the migration ended before anybody was killed: %+v", is)
		}
		return strings.Contains(is.Step, "left of"), is.State + " " + is.Step
	})
	n := g.Node(to)
	if victim == "source" {
		n = g.Node(from)
	}
	n.Kill()
	g.oneRunner(t)
	n.Start()
	n.Ready(time.Minute)
	took := harness.Until(t, 2*time.Minute, "the migration is done after the death of the "+victim, func() (bool, string) {
		g.oneRunner(t)
		is, err := task()
		if err != nil {
			return false, err.Error()
		}
		if is.State == api.TaskFailed {
			t.Fatalf("the migration failed: %+v", is.Error)
		}
		if is.State == api.TaskDone && is.Attempt < 2 {
			t.Fatalf("the migration was not broken by the death of the %s: %+v", victim, is)
		}
		return is.State == api.TaskDone, fmt.Sprintf("%s, attempt %d: %s", is.State, is.Attempt, is.Step)
	})
	t.Logf("done %v after the %s was back", took.Round(time.Millisecond), victim)
	g.arrived(to)
}

// arrived checks that the guest is at a node, and nowhere else, and counts on
// from where it was.
func (g *counting) arrived(to string) {
	g.t.Helper()
	is := waitRunning(g.t, g.conn, "web", time.Minute)
	if is.Owner != to || is.Name != g.vm.Name || !is.StartedAt.Equal(g.vm.StartedAt) || is.Restarts != g.vm.Restarts {
		g.t.Fatalf("the instance was %+v and is %+v, want it on %s", g.vm, is, to)
	}
	g.vm = is
	harness.Until(g.t, time.Minute, "the domain is on "+to+" alone", func() (bool, string) {
		states := g.states()
		return len(states) == 1 && states[to] == libvirt.DomainRunning, fmt.Sprint(states)
	})
	if g.qemu() == 0 { // it fails the test when there are two
		g.t.Fatal("no process executes the guest")
	}
	g.counts()
}

// states is what the daemon of each node that has the guest's domain says of it.
func (g *counting) states() map[string]libvirt.DomainState {
	g.t.Helper()
	out := map[string]libvirt.DomainState{}
	for i, n := range g.Nodes {
		d, err := g.daemons[i].DomainLookupByUUID(libvirt.UUID(uuid.MustParse(g.vm.Name)))
		if err != nil {
			continue // it has none
		}
		if state, _, err := g.daemons[i].DomainGetState(d, 0); err == nil {
			out[n.Name] = libvirt.DomainState(state)
		}
	}
	return out
}

// oneRunner fails the test when two nodes execute the guest: one did before and
// after another one did.
func (g *counting) oneRunner(t *testing.T) {
	t.Helper()
	before, between, after := g.states(), g.states(), g.states()
	for a := range g.Nodes {
		for b := range g.Nodes {
			x, y := g.Nodes[a].Name, g.Nodes[b].Name
			if x != y && before[x] == libvirt.DomainRunning && between[y] == libvirt.DomainRunning && after[x] == libvirt.DomainRunning {
				t.Fatalf("the guest executes on %s and on %s", x, y)
			}
		}
	}
}

// say types a line on the guest's console.
func (g *counting) say(line string) {
	g.t.Helper()
	g.expect(line, "# ")
}

// expect types a line on the guest's console and waits for an answer.
func (g *counting) expect(line, answer string) {
	g.t.Helper()
	g.onConsole(false, line, func(seen string) bool {
		_, after, ok := strings.Cut(seen, "\n") // behind the echo
		return ok && strings.Contains(after, answer)
	})
}

// counts waits until the guest has written a number above all before, and
// fails the test when one on this node's console is not above the one before.
func (g *counting) counts() {
	g.t.Helper()
	was, highest := g.last, 0
	seen := g.onConsole(true, "", func(seen string) bool {
		for _, m := range wroteLine.FindAllStringSubmatch(seen, -1) {
			n, _ := strconv.Atoi(m[1])
			highest = max(highest, n)
		}
		return highest > was
	})
	before := 0
	for _, m := range wroteLine.FindAllStringSubmatch(seen, -1) {
		n, _ := strconv.Atoi(m[1])
		if n <= before {
			g.t.Fatalf("it wrote %d after %d: %q", n, before, seen)
		}
		before = n
	}
	g.last = highest
}

// onConsole types a line, unless it is empty, and returns what the console
// showed until that was enough.
func (g *counting) onConsole(replay bool, line string, enough func(string) bool) string {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), consolePatience)
	defer cancel()
	c, err := g.conn.Console(ctx, api.DefaultTenant, "web", replay)
	if err != nil {
		g.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if line != "" {
		if _, err := io.WriteString(c, line+"\n"); err != nil {
			g.t.Fatal(err)
		}
	}
	var seen strings.Builder
	for p := make([]byte, 4096); !enough(seen.String()); {
		n, err := c.Read(p)
		seen.Write(p[:n])
		if err != nil && !enough(seen.String()) {
			g.t.Fatalf("the console ended (%v) after %q", err, seen.String())
		}
	}
	return seen.String()
}
