package bridge

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

const (
	leaseTime     = "1h"
	leaseBytesMax = 4 << 20 // of a file of leases that is read
	hostsMax      = 1 << 16 // on one network: what its largest subnet holds
)

// serverConfig writes what dnsmasq(8) is told: to give each host its address
// and nobody else any, and to answer questions about names where the network
// reaches out.
func serverConfig(spec plugins.NetworkSpec, dir string) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Written by debvisor for the bridge %s; changes are lost.", spec.Bridge)
	line("interface=%s\nexcept-interface=lo\nbind-dynamic", spec.Bridge)
	line("no-hosts\nno-ping\nbogus-priv\ndomain-needed")
	if !spec.NAT {
		line("port=0")
	}
	line("dhcp-authoritative\ndhcp-leasefile=%s/%s%s\ndhcp-hostsfile=%s/%s%s", dir, spec.Bridge, leaseSuffix, dir, spec.Bridge, hostsSuffix)
	for _, g := range spec.Gateways {
		if !g.Addr().Is4() {
			line("enable-ra\ndhcp-range=%s,static,%d,%s", g.Masked().Addr(), g.Bits(), leaseTime)
			lifetime := 1800 // seconds that guests use this router without hearing of it
			if !spec.NAT {
				lifetime = 0 // it is none: RFC 4861, section 6.2.3
			}
			line("ra-param=%s,60,%d", spec.Bridge, lifetime)
			if spec.NAT {
				line("dhcp-option=option6:dns-server,[%s]", g.Addr())
			}
			continue
		}
		line("dhcp-range=%s,static,%s,%s", g.Masked().Addr(), net.IP(net.CIDRMask(g.Bits(), 32)), leaseTime)
		if spec.NAT {
			line("dhcp-option=option:router,%s\ndhcp-option=option:dns-server,%s", g.Addr(), g.Addr())
		} else {
			line("dhcp-option=option:router") // without a value: none
		}
		if spec.MTU != 0 {
			line("dhcp-option=option:mtu,%d", spec.MTU)
		}
	}
	return b.String()
}

// hostsFile writes who is given which address.
func hostsFile(hosts []plugins.Host) string {
	var b strings.Builder
	for _, h := range hosts {
		b.WriteString(h.MAC)
		for _, ip := range h.Addresses {
			if ip.Is4() {
				fmt.Fprintf(&b, ",%s", ip)
			} else {
				fmt.Fprintf(&b, ",[%s]", ip)
			}
		}
		if h.Name != "" {
			fmt.Fprintf(&b, ",%s", h.Name)
		}
		fmt.Fprintf(&b, ",%s\n", leaseTime)
	}
	return b.String()
}

func checkHosts(spec plugins.NetworkSpec) error {
	if len(spec.Hosts) > hostsMax {
		return api.Errorf(api.CodeLimit, "bridge %s has %d hosts", spec.Bridge, len(spec.Hosts)).Allow("at most %d", hostsMax)
	}
	for _, h := range spec.Hosts {
		hw, err := net.ParseMAC(h.MAC)
		if err != nil || len(hw) != 6 || hw.String() != h.MAC {
			return api.Invalid("hosts", "MAC %q", h.MAC).Allow("a lower-case MAC")
		}
		if h.Name != "" {
			if err := api.CheckName("hosts", h.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// serve sees to it that a server runs as spec wants it.
func (n *Network) serve(spec plugins.NetworkSpec) error {
	if len(spec.Gateways) == 0 {
		return n.stopServer(spec.Bridge)
	}
	if err := checkHosts(spec); err != nil {
		return err
	}
	config, hosts := serverConfig(spec, n.root.Name()), hostsFile(spec.Hosts)
	s := n.servers[spec.Bridge]
	if s != nil && s.config == config {
		if s.hosts == hosts {
			return nil
		}
		if err := n.writeFile(spec.Bridge+hostsSuffix, hosts); err != nil {
			return err
		}
		s.hosts = hosts
		s.reload()
		return nil
	}
	n.endServer(spec.Bridge) // the leases stay: guests do not ask again before they end
	program, err := find("dnsmasq", "dnsmasq-base")
	if err != nil {
		return err
	}
	for name, content := range map[string]string{configSuffix: config, hostsSuffix: hosts} {
		if err := n.writeFile(spec.Bridge+name, content); err != nil {
			return err
		}
	}
	s = &server{network: n, bridge: spec.Bridge, program: program, config: config, hosts: hosts}
	if err := s.start(); err != nil {
		return err
	}
	n.servers[spec.Bridge] = s
	return nil
}

// writeFile replaces a file that the server reads without rights.
func (n *Network) writeFile(name, content string) error {
	temp := name + ".new"
	if err := n.root.WriteFile(temp, []byte(content), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := errors.Join(n.root.Chmod(temp, 0o644), n.root.Rename(temp, name)); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// endServer ends the server of a bridge, also one that an earlier process
// left.
func (n *Network) endServer(bridge string) {
	if s := n.servers[bridge]; s != nil {
		s.stop()
		delete(n.servers, bridge)
	}
	n.endLeft(bridge)
}

// stopServer ends the server of a bridge and removes its files.
func (n *Network) stopServer(bridge string) error {
	n.endServer(bridge)
	for _, suffix := range []string{configSuffix, hostsSuffix, leaseSuffix, pidSuffix} {
		if err := n.root.Remove(bridge + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", bridge+suffix, err)
		}
	}
	return nil
}

// Leases implements plugins.Network.
func (n *Network) Leases(ctx context.Context) ([]plugins.Lease, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	entries, err := fs.ReadDir(n.root.FS(), ".")
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	var out []plugins.Lease
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), leaseSuffix) {
			continue
		}
		f, err := n.root.Open(e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since it was listed
		}
		if err != nil {
			return nil, fmt.Errorf("read leases: %w", err)
		}
		raw, err := io.ReadAll(io.LimitReader(f, leaseBytesMax))
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("read leases: %w", err)
		}
		out = append(out, parseLeases(raw, time.Now())...)
	}
	slices.SortFunc(out, func(a, b plugins.Lease) int {
		return cmp.Or(strings.Compare(a.MAC, b.MAC), a.Address.Compare(b.Address))
	})
	return out, nil
}

// parseLeases reads a file of leases: lines of "EXPIRES MAC ADDRESS NAME
// CLIENT", and after a line "duid …" of "EXPIRES IAID ADDRESS NAME DUID" for
// IPv6, where the MAC is the end of a DUID of kind 1 or 3 (RFC 8415, section
// 11). What guests sent is in it: whatever else stands there is left out.
func parseLeases(raw []byte, now time.Time) []plugins.Lease {
	var out []plugins.Lease
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		seconds, err := strconv.ParseInt(fields[0], 10, 64)
		address, errAddress := netip.ParseAddr(fields[2])
		if err != nil || errAddress != nil || address.Zone() != "" || seconds < 0 {
			continue
		}
		mac := fields[1]
		if address.Is6() {
			mac = macOfDUID(fields[4])
		}
		hw, err := net.ParseMAC(mac)
		if err != nil || len(hw) != 6 {
			continue
		}
		l := plugins.Lease{MAC: hw.String(), Address: address}
		if seconds > 0 {
			l.Expires = time.Unix(seconds, 0).UTC()
			if l.Expires.Before(now) {
				continue
			}
		}
		out = append(out, l)
	}
	return out
}

func macOfDUID(duid string) string {
	const macLength = len("52:54:00:12:34:56")
	for _, kind := range []struct {
		prefix string
		length int
	}{{"00:01:00:01:", len("00:01:00:01:11:22:33:44:") + macLength}, {"00:03:00:01:", len("00:03:00:01:") + macLength}} {
		if strings.HasPrefix(duid, kind.prefix) && len(duid) == kind.length {
			return duid[len(duid)-macLength:]
		}
	}
	return ""
}
