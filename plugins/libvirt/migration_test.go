package libvirt_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/e2e/lab"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/dir"
	"github.com/debvisor/debvisor/plugins/libvirt"
)

// twoMachines is two lab nodes of one cluster.
func twoMachines(t testing.TB) [2]*machine {
	t.Helper()
	l := lab.StartLibvirt(t, 2)
	guest, cluster := lab.TinyGuestFor(t), uuid.NewString()
	var out [2]*machine
	for i, node := range l.Nodes() {
		out[i] = &machine{node: node, guest: guest, config: libvirt.Config{
			Socket: node.Socket, ClusterID: cluster, StateDir: filepath.Join(l.Dir(), fmt.Sprintf("s%d", i+1)),
			Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: testWriter{t}}),
		}}
	}
	return out
}

// wire is a stream between two machines.
func wire(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// move migrates a guest and lets it go on at the end that commit chose.
func move(t testing.TB, from, to *libvirt.Hypervisor, d plugins.Departure, a plugins.Arrival, commit func() error) (sent, received error) {
	t.Helper()
	here, there := wire(t)
	defer here.Close()
	defer there.Close()
	d.Control = here
	d.Dial = func(ctx context.Context, channel string) (net.Conn, error) {
		near, far := wire(t)
		go func() { _ = to.Join(context.WithoutCancel(ctx), d.ID, channel, far) }()
		return near, nil
	}
	d.Tell = func(p plugins.Progress) { t.Logf("%d of %d bytes left", p.LeftBytes, p.TotalBytes) }
	d.Commit = func(_ context.Context, downtime func() time.Duration) error {
		err := commit()
		t.Logf("committed after %v: %v", downtime(), err)
		return err
	}
	done := make(chan error, 1)
	go func() { done <- to.Receive(context.WithoutCancel(t.Context()), a, there) }()
	sent = from.Send(t.Context(), d)
	received = <-done
	return sent, received
}

// beyond reads the guest's console until it has printed a number above last, and
// returns it.
func beyond(t testing.TB, h plugins.Hypervisor, id string, last int) int {
	t.Helper()
	c, err := h.Console(t.Context(), id, true)
	if err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(bootTimeout, func() { _ = c.Close() })
	defer timer.Stop()
	defer func() { _ = c.Close() }()
	ticks := regexp.MustCompile(`tick (\d+)\r?\n`)
	var seen strings.Builder
	p := make([]byte, 4096)
	for {
		n, err := c.Read(p)
		seen.Write(p[:n])
		highest := 0
		for _, m := range ticks.FindAllStringSubmatch(seen.String(), -1) {
			n, _ := strconv.Atoi(m[1])
			highest = max(highest, n)
		}
		if highest > last {
			return highest
		}
		if err != nil {
			t.Fatalf("the console ended (%v) before the guest counted beyond %d: %q", err, last, seen.String())
		}
	}
}

// traveller is a guest with a local disk that counts on its console, and the two
// machines that it moves between.
type traveller struct {
	t     testing.TB
	m     [2]*machine
	hs    [2]*libvirt.Hypervisor
	store *dir.Storage
	spec  plugins.DomainSpec
	id    string // of its volume
	disks [2]plugins.Source
	at    int // machine that it is on
	last  int // highest number that it was seen to print
}

func newTraveller(t testing.TB) *traveller {
	t.Helper()
	g := &traveller{t: t, m: twoMachines(t), id: uuid.NewString()}
	for i := range g.m {
		h := g.m[i].open(t).(*libvirt.Hypervisor)
		t.Cleanup(func() { _ = h.Close() })
		g.hs[i] = h
	}
	var err error
	if g.store, err = dir.Open(dir.Config{}); err != nil {
		t.Fatal(err)
	}
	g.makeDisk(0)
	g.spec = g.m[0].spec(t)
	g.spec.Disks = []plugins.DiskSpec{{Name: "data", Source: g.disks[0], Bus: "virtio", Cache: "none"}}
	g.spec.Seed, g.spec.SeedID = &api.CloudInit{Hostname: "mover"}, "seed-1"
	if err := g.hs[0].Start(t.Context(), g.spec); err != nil {
		t.Fatal(err)
	}
	readUntil(t, g.hs[0], g.spec.ID, "GUEST-READY")
	g.last = beyond(t, g.hs[0], g.spec.ID, 0)
	return g
}

// makeDisk makes the volume, blank, on a machine.
func (g *traveller) makeDisk(i int) {
	g.t.Helper()
	pool := plugins.PoolSpec{Name: "local", Path: filepath.Join(filepath.Dir(g.m[i].config.StateDir), fmt.Sprintf("pool%d", i))}
	if err := g.store.DeleteVolume(g.t.Context(), pool, g.id); err != nil {
		g.t.Fatal(err)
	}
	stored, err := g.store.CreateVolume(g.t.Context(), pool, plugins.VolumeSpec{ID: g.id, Format: api.FormatQCOW2, SizeBytes: 16 * api.MiB})
	if err != nil {
		g.t.Fatal(err)
	}
	g.disks[i] = stored.Source
}

// try migrates the guest to the other machine; commit decides.
func (g *traveller) try(gen uint64, commit error) (sent, received error) {
	g.t.Helper()
	from, to := g.at, 1-g.at
	g.makeDisk(to)
	use, err := g.hs[from].Describe(g.t.Context(), g.spec.ID)
	if err != nil || use.Gen != gen {
		g.t.Fatalf("gen %d, %v; want %d", use.Gen, err, gen)
	}
	a := plugins.Arrival{ID: g.spec.ID, ClusterID: g.spec.ClusterID, Name: g.spec.Name, Gen: gen + 1, Files: map[string]plugins.Source{},
		Copy: []string{g.disks[from].Path}, Seed: g.spec.Seed, SeedID: g.spec.SeedID}
	for _, f := range use.Files {
		a.Files[f.Path] = plugins.Source{Path: f.Path} // kernel and RAM disk
	}
	a.Files[g.disks[from].Path] = g.disks[to]
	d := plugins.Departure{ID: g.spec.ID, Gen: gen, Copy: a.Copy, DowntimeLimit: 300 * time.Millisecond}
	return move(g.t, g.hs[from], g.hs[to], d, a, func() error { return commit })
}

// drop ends and removes the guest on a machine.
func (g *traveller) drop(i int) {
	g.t.Helper()
	if err := errors.Join(g.hs[i].Stop(g.t.Context(), g.spec.ID, 0), g.hs[i].Remove(g.t.Context(), g.spec.ID)); err != nil {
		g.t.Fatal(err)
	}
}

// arrive checks the guest on the other machine and lets it go on.
func (g *traveller) arrive(gen uint64) {
	g.t.Helper()
	h := g.hs[1-g.at]
	all, err := h.Domains(g.t.Context())
	if err != nil || len(all) != 1 || all[0].State != api.InstancePaused || all[0].Gen != gen || len(all[0].Drift) > 0 {
		g.t.Fatalf("arrived %+v, %v; want it paused with gen %d and without drift", all, err, gen)
	}
	if err := h.Continue(g.t.Context(), g.spec.ID, gen-1); api.CodeOf(err) != api.CodeConflict {
		g.t.Errorf("another gen goes on: %v", err)
	}
	if err := h.Continue(g.t.Context(), g.spec.ID, gen); err != nil {
		g.t.Fatal(err)
	}
	g.drop(g.at)
	g.at = 1 - g.at
	g.last = beyond(g.t, h, g.spec.ID, g.last)
}

func TestAGuestMovesBackAndForthAndCountsOn(t *testing.T) {
	t.Parallel()
	g := newTraveller(t)
	for gen := g.spec.Gen; gen < g.spec.Gen+3; gen++ {
		sent, received := g.try(gen, nil)
		if sent != nil || received != nil {
			t.Fatalf("sent %v, received %v", sent, received)
		}
		g.arrive(gen + 1)
	}
}

func TestARefusedCommitLeavesTheGuestWhereItWas(t *testing.T) {
	t.Parallel()
	g := newTraveller(t)
	sent, received := g.try(g.spec.Gen, api.Errorf(api.CodeUnavailable, "no"))
	if api.CodeOf(sent) != api.CodeUnavailable || received != nil {
		t.Fatalf("sent %v, received %v", sent, received)
	}
	g.drop(1)
	if err := g.hs[0].Continue(t.Context(), g.spec.ID, g.spec.Gen); err != nil {
		t.Fatal(err)
	}
	g.last = beyond(t, g.hs[0], g.spec.ID, g.last)
}
