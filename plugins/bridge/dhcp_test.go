package bridge_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/debvisor/debvisor/plugins"
)

// discover asks for an address by DHCP (RFC 2131) and takes what is offered.
func (s *station) discover(t testing.TB) (netip.Addr, error) {
	t.Helper()
	var got netip.Addr
	err := in(t, s.path, func() error {
		control := func(_, _ string, c syscall.RawConn) (err error) {
			return errors.Join(c.Control(func(fd uintptr) {
				err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1), unix.BindToDevice(int(fd), "eth0"))
			}), err)
		}
		conn, err := (&net.ListenConfig{Control: control}).ListenPacket(context.Background(), "udp4", "0.0.0.0:68")
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		hw, err := net.ParseMAC(s.port.MAC)
		if err != nil {
			return err
		}
		offer, err := ask(conn, hw, 1, netip.Addr{}) // DHCPDISCOVER
		if err != nil {
			return err
		}
		got, err = ask(conn, hw, 3, offer) // DHCPREQUEST
		return err
	})
	return got, err
}

// ask sends a message until an answer for this MAC comes.
func ask(conn net.PacketConn, hw net.HardwareAddr, kind byte, want netip.Addr) (netip.Addr, error) {
	m := make([]byte, 240, 300)
	m[0], m[1], m[2] = 1, 1, 6 // BOOTREQUEST, Ethernet, 6 bytes
	binary.BigEndian.PutUint32(m[4:], 0x1234+uint32(kind))
	m[10] = 0x80 // answer by broadcast
	copy(m[28:], hw)
	copy(m[236:], []byte{99, 130, 83, 99})
	m = append(m, 53, 1, kind)
	if want.IsValid() {
		raw := want.As4()
		m = append(append(m, 50, 4), raw[:]...)
	}
	m = append(m, 255)
	p := make([]byte, 1500)
	for begun := time.Now(); time.Since(begun) < 2*passTime; {
		if _, err := conn.WriteTo(m, &net.UDPAddr{IP: net.IPv4bcast, Port: 67}); err != nil {
			return netip.Addr{}, err
		}
		if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return netip.Addr{}, err
		}
		n, _, err := conn.ReadFrom(p)
		if err == nil && n > 240 && p[0] == 2 && net.HardwareAddr(p[28:34]).String() == hw.String() {
			return netip.AddrFrom4([4]byte(p[16:20])), nil
		}
	}
	return netip.Addr{}, errors.New("no answer")
}

// TestGuestsGetTheirAddressAndReachOut: the machine gives a guest its address
// and hides it behind its own; a stranger gets none; nothing from outside
// reaches the guest; the server comes back when it was killed.
func TestGuestsGetTheirAddressAndReachOut(t *testing.T) {
	t.Parallel()
	needPrograms(t)
	w := newWorld(t)
	n := w.open(t)
	for _, name := range []string{"lo"} {
		h := w.handle(t)
		l, err := h.LinkByName(name)
		check(t, err, h.LinkSetUp(l))
	}
	if err := ensure(n, "wan"); err != nil { // stands for the machine's own uplink
		t.Fatal(err)
	}
	outside := w.station(t, "wan", 9, "", "198.51.100.9/24")
	outside.listen(80)
	w.address(t, "wan", "198.51.100.1/24")
	spec := plugins.NetworkSpec{Bridge: "inside", Revision: 1, Private: true, NAT: true, Gateways: []netip.Prefix{netip.MustParsePrefix("10.80.0.1/24")},
		Hosts: []plugins.Host{{MAC: "52:54:00:00:00:01", Name: "web", Addresses: []netip.Addr{netip.MustParseAddr("10.80.0.77")}}}}
	if needed, err := n.Ensure(t.Context(), spec, true); err != nil || !needed {
		t.Fatalf("Ensure: %v, %v", needed, err)
	}
	if err := n.Settle(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h := w.handle(t)
		for _, port := range []string{"dv525400000001", "dv525400000002"} {
			if l, err := h.LinkByName(port); err == nil {
				_ = h.LinkDel(l)
			}
		}
		if err := n.Remove(context.Background(), "inside"); err != nil {
			t.Error(err)
		}
	})
	guest, stranger := w.station(t, "inside", 1, ""), w.station(t, "inside", 2, "")
	guest.port.AntiSpoof, guest.port.Addresses = true, spec.Hosts[0].Addresses
	protect(t, n, plugins.Protection{Ports: []plugins.Port{guest.port}, Networks: []plugins.NetworkSpec{spec}})
	got, err := guest.discover(t)
	if err != nil || got != spec.Hosts[0].Addresses[0] {
		t.Fatalf("the guest was given %v, %v; want 10.80.0.77", got, err)
	}
	leases, err := n.Leases(t.Context())
	if err != nil || len(leases) != 1 || leases[0].Address != got || leases[0].MAC != guest.port.MAC {
		t.Errorf("the leases are %+v, %v", leases, err)
	}
	guest.address(fmt.Sprintf("%s/24", got))
	guest.route("10.80.0.1")
	guest.reaches("a machine outside", "", "198.51.100.9:80")
	guest.listen(80)
	outside.route("198.51.100.1")
	outside.misses("the guest from outside", "", "10.80.0.77:80")

	// A host that is added is served at once, without a trial.
	spec.Hosts = append(spec.Hosts, plugins.Host{MAC: stranger.port.MAC, Name: "db", Addresses: []netip.Addr{netip.MustParseAddr("10.80.0.78")}})
	if needed, err := n.Ensure(t.Context(), spec, false); err != nil || needed {
		t.Fatalf("Ensure of a further host: %v, %v", needed, err)
	}
	if got, err := stranger.discover(t); err != nil || got.String() != "10.80.0.78" {
		t.Errorf("the second guest was given %v, %v", got, err)
	}
}

// address gives the machine of the world one more.
func (w *world) address(t testing.TB, device, text string) {
	t.Helper()
	(&station{t: t, path: w.path}).addressOn(device, text)
}

func TestSubnetsThatTheMachineReachesElsewhereAreRefused(t *testing.T) {
	t.Parallel()
	needPrograms(t)
	w := newWorld(t)
	n := w.open(t)
	if err := ensure(n, "wan"); err != nil {
		t.Fatal(err)
	}
	w.address(t, "wan", "10.80.0.5/16")
	spec := plugins.NetworkSpec{Bridge: "inside", Private: true, Gateways: []netip.Prefix{netip.MustParsePrefix("10.80.0.1/24")}}
	_, err := n.Ensure(t.Context(), spec, true)
	if err == nil || !strings.Contains(err.Error(), "10.80.0.0/16, which this node reaches by wan") {
		t.Errorf("got %v", err)
	}
}
