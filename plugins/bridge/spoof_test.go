package bridge_test

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/plugins"
)

func TestGuestsSendOnlyFromTheirOwnAddresses(t *testing.T) {
	t.Parallel()
	needPrograms(t)
	w := newWorld(t)
	n := w.open(t)
	if err := ensure(n, "lan"); err != nil {
		t.Fatal(err)
	}
	a := w.station(t, "lan", 1, "", "10.80.0.1/24", "fd80::1/64")
	b := w.station(t, "lan", 2, "", "10.80.0.2/24", "fd80::2/64")
	a.address("10.80.0.99/24")
	a.address("fd80::99/64")
	b.listen(80)
	a.reaches("a foreign address without rules", "10.80.0.99", "10.80.0.2:80")
	a.port.AntiSpoof, b.port.AntiSpoof = true, true
	protect(t, n, plugins.Protection{Ports: []plugins.Port{a.port, b.port}})
	a.reaches("its own address", "10.80.0.1", "10.80.0.2:80")
	a.reaches("its own IPv6 address", "fd80::1", "[fd80::2]:80")
	a.misses("a foreign address", "10.80.0.99", "10.80.0.2:80")
	a.misses("a foreign IPv6 address", "fd80::99", "[fd80::2]:80")
	a.mac("52:54:00:00:00:77")
	a.misses("a foreign MAC", "10.80.0.1", "10.80.0.2:80")
	a.mac(a.port.MAC)
	a.reaches("its own MAC again", "10.80.0.1", "10.80.0.2:80")
}

// TestRulesOfOursComeBack: others may flush everything.
func TestRulesOfOursComeBack(t *testing.T) {
	t.Parallel()
	needPrograms(t)
	w := newWorld(t)
	n := w.open(t)
	if err := ensure(n, "lan"); err != nil {
		t.Fatal(err)
	}
	a := w.station(t, "lan", 1, "", "10.80.0.1/24")
	b := w.station(t, "lan", 2, "", "10.80.0.2/24")
	a.address("10.80.0.99/24")
	b.listen(80)
	a.port.AntiSpoof = true
	p := plugins.Protection{Ports: []plugins.Port{a.port}}
	protect(t, n, p)
	a.misses("a foreign address", "10.80.0.99", "10.80.0.2:80")
	nft(t, w, "add table inet others")
	nft(t, w, "delete table bridge debvisor-"+w.clusterID)
	a.reaches("a foreign address once the rules were taken away", "10.80.0.99", "10.80.0.2:80")
	n.Close() // a new agent knows nothing of what the last one applied
	n = w.open(t)
	protect(t, n, p)
	a.misses("a foreign address after the rules came back", "10.80.0.99", "10.80.0.2:80")
	nft(t, w, "flush chain bridge debvisor-"+w.clusterID+" prerouting")
	deadline, again := time.After(time.Minute), time.Tick(100*time.Millisecond)
	for strings.Count(nft(t, w, "list table bridge debvisor-"+w.clusterID), "iifname vmap") == 0 {
		select {
		case <-deadline:
			t.Fatal("rules that others changed never come back")
		case <-again: // the adapter looks once in ten seconds
			protect(t, n, p)
		}
	}
	if tables := nft(t, w, "list tables"); !strings.Contains(tables, "inet others") {
		t.Errorf("the table of others is gone: %q", tables)
	}
	protect(t, n, plugins.Protection{})
	if tables := nft(t, w, "list tables"); strings.Contains(tables, "debvisor") {
		t.Errorf("with nothing to protect there is still %q", tables)
	}
}

// nft runs a command in the namespace of the bridges.
func nft(t testing.TB, w *world, command string) string {
	t.Helper()
	var out []byte
	err := in(t, w.path, func() (err error) {
		out, err = exec.Command("nft", command).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("nft %s: %v: %s", command, err, out)
	}
	return string(out)
}
