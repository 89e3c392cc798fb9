package bridge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// step is one change that is to be made, and how to take it back. It touches
// something that others rely on.
type step struct {
	undo undo
	do   func() error
}

// Ensure implements plugins.Network.
func (n *Network) Ensure(ctx context.Context, spec plugins.NetworkSpec, try bool) (bool, error) {
	if err := checkSpec(spec); err != nil {
		return false, err
	}
	if err := ctx.Err(); err != nil {
		return false, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	link, err := n.ensureBridge(spec)
	if err != nil {
		return false, err
	}
	steps, err := n.plan(spec, link)
	if err != nil {
		return false, err
	}
	digest := digestOf(spec)
	onTrial := false
	if len(steps) > 0 {
		proven := n.memory.Proven[spec.Bridge] == digest
		switch {
		case n.memory.Reverted[spec.Bridge] == spec.Revision && spec.Revision != 0:
			return false, api.Errorf(api.CodeConflict, "its change on bridge %s was taken back: this node could not reach the cluster with it", spec.Bridge).
				Do("correct the network, or repeat its change, to have it tried again")
		case n.memory.Trial != nil:
			return false, api.Errorf(api.CodeUnavailable, "another change of the network is on trial")
		case !try && !proven:
			return true, nil
		}
		if onTrial, err = n.carryOut(spec, digest, steps, proven); err != nil {
			return false, err
		}
	}
	return onTrial, n.serve(spec)
}

// carryOut makes the changes, after it has written down how to take them back.
// What was proven not to cut the machine off needs no trial: so a node without
// a quorum gets its networks back after a reboot.
func (n *Network) carryOut(spec plugins.NetworkSpec, digest string, steps []step, proven bool) (bool, error) {
	t := &trial{Bridge: spec.Bridge, Revision: spec.Revision, Digest: digest}
	for _, s := range steps {
		if s.undo.Kind != "" {
			t.Undo = append(t.Undo, s.undo)
		}
	}
	n.memory.Trial = t
	if err := n.save(); err != nil {
		n.memory.Trial = nil
		return false, err
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			err = errors.Join(err, n.undo(t.Undo))
			n.memory.Trial = nil
			return false, errors.Join(err, n.save())
		}
	}
	if !proven {
		return true, nil
	}
	n.memory.Trial = nil
	return false, n.save()
}

// digestOf stands for what a spec changes on the machine.
func digestOf(spec plugins.NetworkSpec) string {
	spec.Hosts, spec.Revision, spec.MTU = nil, 0, 0
	raw, err := json.Marshal(spec)
	if err != nil {
		panic(err) // a struct of texts and numbers
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

func checkSpec(spec plugins.NetworkSpec) error {
	names := []string{spec.Bridge}
	if spec.VLAN != 0 {
		if spec.VLAN < 1 || spec.VLAN > api.VLANMax {
			return api.Invalid("vlan", "is %d", spec.VLAN).Allow("1 to %d", api.VLANMax)
		}
		names = append(names, spec.Carrier, spec.Trunk)
	}
	for _, name := range names {
		if err := checkName(name); err != nil {
			return err
		}
	}
	if len(spec.Gateways) > 0 && !spec.Private {
		return api.Invalid("gateways", "are given to a bridge that others may share").Allow("private bridges")
	}
	return nil
}

// ensureBridge makes the bridge and sets it up. Nothing that others rely on is
// touched.
func (n *Network) ensureBridge(spec plugins.NetworkSpec) (netlink.Link, error) {
	link, err := n.find(spec.Bridge)
	if err != nil {
		return nil, err
	}
	if link == nil && spec.Uplink && spec.VLAN == 0 {
		return nil, api.Errorf(api.CodeUnavailable, "this node has no bridge %s", spec.Bridge).
			On(api.KindNetwork, spec.Bridge).Do("make it, with its uplink, in the node's own network configuration")
	}
	if link == nil {
		if link, err = n.make(spec.Bridge); err != nil {
			return nil, err
		}
	}
	if link.Type() != "bridge" {
		return nil, api.Errorf(api.CodeConflict, "the machine has a device %s that is no bridge but %s", spec.Bridge, kindOf(link)).
			On(api.KindNetwork, spec.Bridge).Do("make a bridge with it as a port in the node's own network configuration, and name that one")
	}
	if spec.Private && !n.ours(link) {
		return nil, api.Errorf(api.CodeConflict, "bridge %s was made by others, and this network needs one for itself", spec.Bridge).
			On(api.KindNetwork, spec.Bridge).Do("choose another bridge name for the network, or leave it out")
	}
	if n.ours(link) {
		if spec.MTU != 0 && link.Attrs().MTU != spec.MTU {
			if err := n.handle.LinkSetMTU(link, spec.MTU); err != nil {
				return nil, denied("set the MTU of", spec.Bridge, err)
			}
		}
		if err := n.handle.LinkSetUp(link); err != nil {
			return nil, denied("set bridge up", spec.Bridge, err)
		}
	}
	return link, nil
}

// kindOf names a device for people: physical ones are of the type "device".
func kindOf(link netlink.Link) string {
	if link.Type() == "device" {
		return "a network card"
	}
	return link.Type()
}

func (n *Network) make(name string) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	err := n.handle.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	if err != nil && !errors.Is(err, syscall.EEXIST) {
		return nil, denied("make bridge", name, err)
	}
	link, findErr := n.find(name)
	if findErr != nil {
		return nil, findErr
	}
	if link == nil {
		return nil, fmt.Errorf("make bridge %s: it went away at once", name)
	}
	if err != nil {
		return link, nil // somebody else was faster: theirs, without our mark
	}
	if err := n.handle.LinkSetAlias(link, n.alias); err != nil {
		// Without its mark nobody would ever remove it.
		return nil, errors.Join(denied("mark bridge", name, err), n.handle.LinkDel(link))
	}
	n.logger.Info("bridge made", "bridge", name)
	return n.find(name)
}

// plan lists the changes that others might feel.
func (n *Network) plan(spec plugins.NetworkSpec, link netlink.Link) ([]step, error) {
	var steps []step
	if !n.ours(link) && link.Attrs().Flags&unixUp == 0 {
		steps = append(steps, step{undo{Kind: undoDown, Device: spec.Bridge}, func() error {
			return denied2(n.handle.LinkSetUp(link), "set bridge up", spec.Bridge)
		}})
	}
	if spec.Uplink {
		if err := n.wantUplink(spec); err != nil {
			return nil, err
		}
	}
	for _, more := range []func(plugins.NetworkSpec, netlink.Link) ([]step, error){n.planVLAN, n.planAddresses, n.planRouting} {
		found, err := more(spec, link)
		if err != nil {
			return nil, err
		}
		steps = append(steps, found...)
	}
	return steps, nil
}

const unixUp = 1 // net.FlagUp and IFF_UP

func denied2(err error, what, name string) error {
	if err == nil {
		return nil
	}
	return denied(what, name, err)
}

// wantUplink refuses a bridge without a port to the outside.
func (n *Network) wantUplink(spec plugins.NetworkSpec) error {
	name := spec.Bridge
	if spec.VLAN != 0 {
		name = spec.Carrier
	}
	all, err := n.links()
	if err != nil {
		return err
	}
	for _, l := range all {
		if l.Attrs().Name == name && len(n.uplinks(l, all)) > 0 {
			return nil
		}
	}
	return api.Errorf(api.CodeUnavailable, "bridge %s of this node has no port to the outside", name).
		On(api.KindNetwork, name).Do("give it one in the node's own network configuration")
}

// planVLAN carries a VLAN: a device of it above the carrier becomes a port of
// the network's own bridge. So the ports of guests need no tag, which libvirt
// could give them only after the guest had run without. A carrier that filters
// VLANs is told to pass this one, at its own end and at its uplinks.
func (n *Network) planVLAN(spec plugins.NetworkSpec, link netlink.Link) ([]step, error) {
	if spec.VLAN == 0 {
		return nil, nil
	}
	carrier, err := n.find(spec.Carrier)
	if err != nil {
		return nil, err
	}
	if carrier == nil || carrier.Type() != "bridge" {
		return nil, api.Errorf(api.CodeUnavailable, "this node has no bridge %s that could carry VLAN %d", spec.Carrier, spec.VLAN).
			On(api.KindNetwork, spec.Carrier).Do("make it, with its uplink, in the node's own network configuration")
	}
	var steps []step
	if b, ok := carrier.(*netlink.Bridge); ok && b.VlanFiltering != nil && *b.VlanFiltering {
		more, err := n.planPassage(spec, carrier)
		if err != nil {
			return nil, err
		}
		steps = append(steps, more...)
	}
	trunk, err := n.find(spec.Trunk)
	if err != nil {
		return nil, err
	}
	if trunk != nil && trunk.Attrs().MasterIndex == link.Attrs().Index && trunk.Attrs().Flags&unixUp != 0 {
		return steps, nil
	}
	if trunk != nil && trunk.Attrs().Alias != n.alias && trunk.Attrs().Alias != "" {
		return nil, api.Errorf(api.CodeConflict, "the machine has a device %s that others made", spec.Trunk).On(api.KindNetwork, spec.Bridge)
	}
	return append(steps, step{undo{Kind: undoLink, Device: spec.Trunk}, func() error { return n.makeTrunk(spec, carrier, link) }}), nil
}

func (n *Network) makeTrunk(spec plugins.NetworkSpec, carrier, bridge netlink.Link) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = spec.Trunk, carrier.Attrs().Index
	err := n.handle.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: spec.VLAN, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q})
	if err != nil && !errors.Is(err, syscall.EEXIST) {
		return denied(fmt.Sprintf("make VLAN %d above", spec.VLAN), spec.Carrier, err)
	}
	trunk, err := n.find(spec.Trunk)
	if err != nil || trunk == nil {
		return errors.Join(err, fmt.Errorf("make VLAN %d above %s: it went away at once", spec.VLAN, spec.Carrier))
	}
	return denied2(errors.Join(n.handle.LinkSetAlias(trunk, n.alias), n.handle.LinkSetMaster(trunk, bridge), n.handle.LinkSetUp(trunk)),
		"plug in the VLAN device", spec.Trunk)
}

// planPassage lets a VLAN through a carrier that filters them.
func (n *Network) planPassage(spec plugins.NetworkSpec, carrier netlink.Link) ([]step, error) {
	all, err := n.links()
	if err != nil {
		return nil, err
	}
	passes, err := n.handle.BridgeVlanList()
	if err != nil {
		return nil, fmt.Errorf("list the VLANs of bridge %s: %w", spec.Carrier, err)
	}
	var steps []step
	for _, end := range append([]netlink.Link{carrier}, n.uplinks(carrier, all)...) {
		has, self := false, end == carrier
		for _, info := range passes[int32(end.Attrs().Index)] {
			has = has || int(info.Vid) == spec.VLAN
		}
		if has {
			continue
		}
		u := undo{Kind: undoVLAN, Device: end.Attrs().Name, VLAN: uint16(spec.VLAN), Self: self}
		steps = append(steps, step{u, func() error {
			return denied2(n.handle.BridgeVlanAdd(end, u.VLAN, false, false, self, !self), fmt.Sprintf("pass VLAN %d on", u.VLAN), u.Device)
		}})
	}
	return steps, nil
}

// uplinks are the ports of a bridge to the outside: all but those of guests
// and our own.
func (n *Network) uplinks(bridge netlink.Link, all []netlink.Link) []netlink.Link {
	var out []netlink.Link
	for _, l := range all {
		a := l.Attrs()
		if a.MasterIndex == bridge.Attrs().Index && l.Type() != "tuntap" && a.Alias != n.alias && !strings.HasPrefix(a.Name, "vnet") {
			out = append(out, l)
		}
	}
	return out
}

// planAddresses gives the machine its addresses on a private bridge, and takes
// away others that it has there.
func (n *Network) planAddresses(spec plugins.NetworkSpec, link netlink.Link) ([]step, error) {
	if !spec.Private {
		return nil, nil
	}
	have, err := n.handle.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the addresses of %s: %w", spec.Bridge, err)
	}
	wanted := map[string]bool{}
	for _, g := range spec.Gateways {
		wanted[g.String()] = true
	}
	var steps []step
	for _, a := range have {
		text := a.IPNet.String()
		if wanted[text] {
			delete(wanted, text)
			continue
		}
		if ip, ok := netip.AddrFromSlice(a.IP); ok && !ip.Unmap().IsLinkLocalUnicast() {
			steps = append(steps, step{do: func() error { return absent(n.handle.AddrDel(link, &a)) }}) // of an earlier state of the network
		}
	}
	for _, g := range spec.Gateways {
		if !wanted[g.String()] {
			continue
		}
		if err := n.wantFree(spec, link, g); err != nil {
			return nil, err
		}
		address, err := netlink.ParseAddr(g.String())
		if err != nil {
			return nil, err
		}
		// Nobody else answers on a bridge of our own: waiting for that would only
		// keep the servers from it.
		address.Flags |= syscall.IFA_F_NODAD
		steps = append(steps, step{undo{Kind: undoAddress, Device: spec.Bridge, Value: g.String()}, func() error {
			err := n.handle.AddrAdd(link, address)
			if errors.Is(err, syscall.EEXIST) {
				return nil
			}
			return denied2(err, "give an address to", spec.Bridge)
		}})
	}
	return steps, nil
}

// wantFree refuses a subnet that the machine reaches by another device: its
// own traffic would go to the guests.
func (n *Network) wantFree(spec plugins.NetworkSpec, link netlink.Link, gateway netip.Prefix) error {
	routes, err := n.handle.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil || r.LinkIndex == link.Attrs().Index {
			continue
		}
		ip, ok := netip.AddrFromSlice(r.Dst.IP)
		bits, _ := r.Dst.Mask.Size()
		route := netip.PrefixFrom(ip.Unmap(), bits)
		if !ok || bits == 0 || !route.Overlaps(gateway) {
			continue
		}
		device := fmt.Sprint(r.LinkIndex)
		if l, err := n.handle.LinkByIndex(r.LinkIndex); err == nil {
			device = l.Attrs().Name
		}
		return api.Errorf(api.CodeConflict, "subnet %s overlaps %s, which this node reaches by %s", gateway.Masked(), route, device).
			On(api.KindNetwork, spec.Bridge).Do("choose another subnet for the network")
	}
	return nil
}

// planRouting makes the machine a router for networks that reach out.
func (n *Network) planRouting(spec plugins.NetworkSpec, _ netlink.Link) ([]step, error) {
	if !spec.NAT {
		return nil, nil
	}
	var wanted [][2]string
	for _, g := range spec.Gateways {
		if g.Addr().Is4() {
			wanted = append(wanted, [2]string{"ipv4/ip_forward", "1"})
			continue
		}
		// A router takes no advice from other routers: a machine that has its own
		// route from advertisements would lose it.
		listening, err := n.listeners()
		if err != nil {
			return nil, err
		}
		for _, device := range listening {
			wanted = append(wanted, [2]string{"ipv6/conf/" + device + "/accept_ra", "2"})
		}
		wanted = append(wanted, [2]string{"ipv6/conf/all/forwarding", "1"})
	}
	var steps []step
	for _, w := range wanted {
		old := ""
		if err := n.within(func() (err error) { old, err = readSetting(w[0]); return err }); err != nil {
			return nil, err
		}
		if old != w[1] {
			steps = append(steps, step{undo{Kind: undoSetting, Device: w[0], Value: old}, func() error {
				return n.within(func() error { return writeSetting(w[0], w[1]) })
			}})
		}
	}
	return steps, nil
}

// listeners are devices that take routes from advertisements only while the
// machine is no router.
func (n *Network) listeners() ([]string, error) {
	all, err := n.links()
	if err != nil {
		return nil, err
	}
	var out []string
	err = n.within(func() error {
		for _, l := range all {
			name := l.Attrs().Name
			if value, err := readSetting("ipv6/conf/" + name + "/accept_ra"); err == nil && value == "1" && l.Attrs().Alias != n.alias &&
				l.Type() != "tuntap" && name != "lo" && l.Attrs().Flags&unixUp != 0 {
				out = append(out, name)
			}
		}
		return nil
	})
	return out, err
}

const settings = "/proc/sys/net"

// readSetting and writeSetting work in the network namespace of their thread.
func readSetting(name string) (string, error) {
	root, err := os.OpenRoot(settings)
	if err != nil {
		return "", fmt.Errorf("read setting %s: %w", name, err)
	}
	defer func() { _ = root.Close() }()
	raw, err := root.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("read setting %s: %w", name, err)
	}
	return strings.TrimSpace(string(raw)), nil
}

func writeSetting(name, value string) error {
	root, err := os.OpenRoot(settings)
	if err != nil {
		return fmt.Errorf("write setting %s: %w", name, err)
	}
	defer func() { _ = root.Close() }()
	f, err := root.OpenFile(name, os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // its device is gone
	}
	if err == nil {
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("write setting %s: %w", name, err)
	}
	return nil
}
