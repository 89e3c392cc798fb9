package bridge_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/debvisor/debvisor/plugins"
)

const (
	passTime = 10 * time.Second       // within which what passes is there
	dropTime = 700 * time.Millisecond // after which what has not come is taken to be dropped
)

// station stands in for a guest: a namespace of its own, with one end of a
// veth pair whose other end is a port of a bridge, named as a tap would be.
type station struct {
	t    testing.TB
	path string // of its namespace
	port plugins.Port
}

// newNamespace lives as long as the test.
func newNamespace(t testing.TB) string {
	t.Helper()
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
	return fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)
}

// in runs f in a network namespace.
func in(t testing.TB, path string, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		ns, err := netns.GetFromPath(path)
		if err == nil {
			err = netns.Set(ns)
			_ = ns.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// handleIn reaches the devices of a namespace.
func handleIn(t testing.TB, path string) *netlink.Handle {
	t.Helper()
	ns, err := netns.GetFromPath(path)
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

func check(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// station plugs a new one into a bridge. It has the addresses, and uses via as
// its router where that is not empty.
func (w *world) station(t testing.TB, bridgeName string, number int, via string, addresses ...string) *station {
	t.Helper()
	s := &station{t: t, path: newNamespace(t)}
	s.port = plugins.Port{Device: fmt.Sprintf("dv5254000000%02x", number), Bridge: bridgeName, MAC: fmt.Sprintf("52:54:00:00:00:%02x", number)}
	w.add(t, &netlink.Veth{LinkAttrs: attrs(s.port.Device), PeerName: fmt.Sprintf("peer%d", number)})
	host := w.handle(t)
	peer, err := host.LinkByName(fmt.Sprintf("peer%d", number))
	check(t, err)
	ns, err := netns.GetFromPath(s.path)
	check(t, err)
	check(t, host.LinkSetNsFd(peer, int(ns)), ns.Close())
	w.join(t, s.port.Device, bridgeName)
	port, err := host.LinkByName(s.port.Device)
	check(t, err, host.LinkSetUp(port))
	h := handleIn(t, s.path)
	mine, err := h.LinkByName(fmt.Sprintf("peer%d", number))
	check(t, err)
	hw, err := net.ParseMAC(s.port.MAC)
	check(t, err, h.LinkSetHardwareAddr(mine, hw), h.LinkSetName(mine, "eth0"))
	mine, err = h.LinkByName("eth0")
	check(t, err)
	lo, err := h.LinkByName("lo")
	check(t, err, h.LinkSetUp(lo), h.LinkSetUp(mine))
	for _, text := range addresses {
		s.address(text)
		s.port.Addresses = append(s.port.Addresses, netip.MustParsePrefix(text).Addr())
	}
	if via != "" {
		s.route(via)
	}
	return s
}

func (s *station) route(via string) {
	s.t.Helper()
	h := handleIn(s.t, s.path)
	mine, err := h.LinkByName("eth0")
	check(s.t, err, h.RouteAdd(&netlink.Route{LinkIndex: mine.Attrs().Index, Gw: net.ParseIP(via)}))
}

// address gives the station one more.
func (s *station) address(text string) {
	s.t.Helper()
	s.addressOn("eth0", text)
}

func (s *station) addressOn(device, text string) {
	s.t.Helper()
	h := handleIn(s.t, s.path)
	mine, err := h.LinkByName(device)
	check(s.t, err)
	a, err := netlink.ParseAddr(text)
	check(s.t, err)
	a.Flags |= syscall.IFA_F_NODAD
	check(s.t, h.AddrAdd(mine, a))
}

// mac gives the station another one.
func (s *station) mac(text string) {
	s.t.Helper()
	h := handleIn(s.t, s.path)
	mine, err := h.LinkByName("eth0")
	check(s.t, err)
	hw, err := net.ParseMAC(text)
	check(s.t, err, h.LinkSetHardwareAddr(mine, hw))
}

// listen answers on a TCP port of the station with its own greeting, until the
// test ends.
func (s *station) listen(port int) { listenIn(s.t, s.path, port) }

func listenIn(t testing.TB, path string, port int) {
	t.Helper()
	check(t, in(t, path, func() error {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go echo(c)
			}
		}()
		return nil
	}))
}

func echo(c net.Conn) {
	defer func() { _ = c.Close() }()
	p := make([]byte, 64)
	for {
		n, err := c.Read(p)
		if err != nil {
			return
		}
		if _, err := c.Write(p[:n]); err != nil {
			return
		}
	}
}

// dial connects from the station, from a certain address where from is not
// empty, and sees that bytes come back.
func (s *station) dial(from, to string, timeout time.Duration) (net.Conn, error) {
	var conn net.Conn
	err := in(s.t, s.path, func() error {
		d := net.Dialer{Timeout: timeout}
		if from != "" {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
		}
		c, err := d.DialContext(context.Background(), "tcp", to)
		conn = c
		return err
	})
	if err != nil {
		return nil, err
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	return conn, talk(conn, timeout)
}

// talk sends a byte and waits for it to come back.
func talk(c net.Conn, timeout time.Duration) error {
	check := c.SetDeadline(time.Now().Add(timeout))
	if _, err := c.Write([]byte("x")); err != nil {
		return errors.Join(check, err)
	}
	_, err := c.Read(make([]byte, 1))
	return errors.Join(check, err)
}

func (s *station) reaches(what, from, to string) {
	s.t.Helper()
	if _, err := s.dial(from, to, passTime); err != nil {
		s.t.Errorf("%s: %v, want it to pass", what, err)
	}
}

func (s *station) misses(what, from, to string) {
	s.t.Helper()
	if _, err := s.dial(from, to, dropTime); !timedOut(err) {
		s.t.Errorf("%s: got %v, want that nothing comes", what, err)
	}
}

// timedOut reports whether nothing came back, not even a refusal: either in
// time, or not even from the neighbour that was asked for its MAC.
func timedOut(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.EHOSTUNREACH) || err != nil && os.IsTimeout(err)
}

func protect(t testing.TB, n plugins.Network, p plugins.Protection) {
	t.Helper()
	if err := n.Protect(t.Context(), p); err != nil {
		t.Fatalf("Protect: %v", err)
	}
}
