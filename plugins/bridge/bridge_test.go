package bridge_test

import (
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
	return &world{path: fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid), clusterID: uuid.NewString()}
}

func (w *world) open(t testing.TB) plugins.Network {
	t.Helper()
	n, err := bridge.Open(bridge.Config{ClusterID: w.clusterID, NetNS: w.path})
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
	h := w.handle(t)
	port := w.add(t, &netlink.Veth{LinkAttrs: attrs("port0"), PeerName: "port1"})
	master, err := h.LinkByName(bridgeName)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetMaster(port, master); err != nil {
		t.Fatal(err)
	}
}

func TestNetworkKeepsItsContract(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	plugintest.Network(t, plugintest.Networks{Open: w.open, Plug: w.plug})
}

func TestBridgeIsUpAndMarked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if err := w.open(t).Ensure(t.Context(), plugins.NetworkSpec{Bridge: "br0"}); err != nil {
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
	if err := other.open(t).Ensure(t.Context(), plugins.NetworkSpec{Bridge: "cousin"}); err != nil {
		t.Fatal(err)
	}
	n := w.open(t)
	for _, name := range []string{"foreign", "cousin"} {
		if err := n.Ensure(t.Context(), plugins.NetworkSpec{Bridge: name}); err != nil {
			t.Errorf("Ensure of %s: %v", name, err)
		}
		if err := n.Remove(t.Context(), plugins.NetworkSpec{Bridge: name}); err != nil {
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
		err := n.Ensure(t.Context(), plugins.NetworkSpec{Bridge: name})
		if api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), name) {
			t.Errorf("Ensure of %s: %v, want CodeConflict", name, err)
		}
		if err := n.Remove(t.Context(), plugins.NetworkSpec{Bridge: name}); err != nil {
			t.Errorf("Remove of %s: %v", name, err)
		}
		if _, err := w.handle(t).LinkByName(name); err != nil {
			t.Errorf("%s was removed: %v", name, err)
		}
	}
}
