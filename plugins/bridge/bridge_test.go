package bridge_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/bridge"
	"github.com/debvisor/debvisor/plugins/plugintest"
)

// world is a network namespace that lives as long as the test.
type world struct {
	path      string
	dir       string // of the adapter
	clusterID string
}

// newWorld holds the namespace open with a process that waits for its input to
// end, so that it goes away even when the test is killed.
func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("requires root: bridges are made")
	}
	cmd := exec.Command("cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("requires network namespaces: %v", err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	return &world{path: fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid), clusterID: uuid.NewString(), dir: openDir(t)}
}

// openDir is a directory that the users of programs can pass through.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "debvisor-bridge-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (w *world) open(t testing.TB) plugins.Network {
	t.Helper()
	n, err := bridge.Open(bridge.Config{ClusterID: w.clusterID, Dir: w.dir, NetNS: w.path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

func (w *world) handle(t testing.TB) *netlink.Handle {
	t.Helper()
	ns, err := netns.GetFromPath(w.path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func (w *world) add(t testing.TB, link netlink.Link) netlink.Link {
	t.Helper()
	h := w.handle(t)
	if err := h.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	made, err := h.LinkByName(link.Attrs().Name)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func attrs(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

func (w *world) plug(t testing.TB, bridgeName string) {
	t.Helper()
	w.add(t, &netlink.Veth{LinkAttrs: attrs("port0"), PeerName: "port1"})
	w.join(t, "port0", bridgeName)
}

// join makes a device a port of a bridge.
func (w *world) join(t testing.TB, port, bridgeName string) {
	t.Helper()
	h := w.handle(t)
	link, err := h.LinkByName(port)
	if err != nil {
		t.Fatal(err)
	}
	master, err := h.LinkByName(bridgeName)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetMaster(link, master); err != nil {
		t.Fatal(err)
	}
}

// ensure makes a bridge, with a trial where it needs one.
func ensure(n plugins.Network, name string) error {
	_, err := n.Ensure(context.Background(), plugins.NetworkSpec{Bridge: name}, true)
	return err
}

func TestNetworkKeepsItsContract(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.add(t, &netlink.Bridge{LinkAttrs: attrs("br0")})
	w.add(t, &netlink.Veth{LinkAttrs: attrs("eth0"), PeerName: "eth1"})
	w.join(t, "eth1", "br0")
	plugintest.Network(t, plugintest.Networks{Open: w.open, Plug: w.plug, Bridge: "br0", Card: "eth0", VLAN: w.needVLAN, Private: needPrograms})
}

// needPrograms skips a test where those are missing that serve addresses and
// filter.
func needPrograms(t testing.TB) {
	t.Helper()
	for _, program := range []string{"nft", "dnsmasq"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("requires the program %s", program)
		}
	}
}

// needVLAN skips a test where the kernel has no VLANs.
func (w *world) needVLAN(t testing.TB) {
	t.Helper()
	h := w.handle(t)
	parent, err := h.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	a := attrs("probe.5")
	a.ParentIndex = parent.Attrs().Index
	link := &netlink.Vlan{LinkAttrs: a, VlanId: 5}
	if err := h.LinkAdd(link); err != nil {
		t.Skipf("requires a kernel with VLANs: %v", err)
	}
	if err := h.LinkDel(link); err != nil {
		t.Fatal(err)
	}
}

func TestBridgeIsUpAndMarked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if err := ensure(w.open(t), "br0"); err != nil {
		t.Fatal(err)
	}
	link, err := w.handle(t).LinkByName("br0")
	if err != nil {
		t.Fatal(err)
	}
	if link.Type() != "bridge" || link.Attrs().Alias != "debvisor:"+w.clusterID || link.Attrs().Flags&1 == 0 {
		t.Errorf("the bridge is %s %+v", link.Type(), link.Attrs())
	}
	if _, err := netlink.LinkByName("br0"); err == nil && runtime.GOOS == "linux" {
		t.Error("the bridge is in the namespace of the test, not in its own")
	}
}

func TestBridgesOfOthersAreUsedAndStay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.add(t, &netlink.Bridge{LinkAttrs: attrs("foreign")})
	other := *w
	other.clusterID = uuid.NewString()
	if err := ensure(other.open(t), "cousin"); err != nil {
		t.Fatal(err)
	}
	n := w.open(t)
	for _, name := range []string{"foreign", "cousin"} {
		if err := ensure(n, name); err != nil {
			t.Errorf("Ensure of %s: %v", name, err)
		}
		if err := n.Remove(t.Context(), name); err != nil {
			t.Errorf("Remove of %s: %v", name, err)
		}
		if _, err := w.handle(t).LinkByName(name); err != nil {
			t.Errorf("%s was removed: %v", name, err)
		}
	}
	if owned, err := n.Owned(t.Context()); err != nil || len(owned) != 0 {
		t.Errorf("Owned: %q, %v", owned, err)
	}
}

func TestDevicesThatAreNoBridgesAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.add(t, &netlink.Veth{LinkAttrs: attrs("eth0"), PeerName: "eth1"})
	n := w.open(t)
	for _, name := range []string{"eth0", "lo"} {
		err := ensure(n, name)
		if api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), name) {
			t.Errorf("Ensure of %s: %v, want CodeConflict", name, err)
		}
		if err := n.Remove(t.Context(), name); err != nil {
			t.Errorf("Remove of %s: %v", name, err)
		}
		if _, err := w.handle(t).LinkByName(name); err != nil {
			t.Errorf("%s was removed: %v", name, err)
		}
	}
}
