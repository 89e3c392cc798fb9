package sim

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// What a simulated machine's network has: a card, and a bridge that its
// operator made with the card as its uplink.
const (
	bridgeNameMax = 15 // bytes of the name of a network device on Linux
	simCard       = "eth0"
	simBridge     = "br0"
)

// Network simulates bridges and what is on them. It implements
// plugins.Network.
type Network struct {
	bridges *drawer
	domains *drawer
	state   *drawer
	mu      sync.Mutex // serializes changes; guards cut
	cut     func(bool) // see CutWhenTried
}

var _ plugins.Network = (*Network)(nil)

type bridgeRecord struct {
	Bridge string
	Spec   plugins.NetworkSpec
	Tried  bool // what needs a trial was made
}

// networkMemory is what must not be forgotten about trials.
type networkMemory struct {
	Trial    string            `json:",omitempty"` // bridge on trial
	Revision uint64            `json:",omitempty"` // of what is on trial there
	Reverted map[string]uint64 `json:",omitempty"` // bridge to the revision that was taken back
}

const (
	memoryName     = "trials"
	protectionName = "protection"
)

// OpenNetwork opens the simulated bridges of the machine at Config.Dir. A
// change that was left on trial is taken back.
func OpenNetwork(config Config) (*Network, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	n := &Network{}
	for _, d := range []struct {
		drawer **drawer
		name   string
	}{{&n.bridges, "bridges"}, {&n.domains, "domains"}, {&n.state, "network"}} {
		if *d.drawer, err = openDrawer(config.Dir, d.name); err != nil {
			return nil, err
		}
	}
	m := n.memory()
	if m.Trial == "" {
		return n, nil
	}
	return n, n.takeBack(m)
}

// memory is what is remembered; nothing, where nothing was kept.
func (n *Network) memory() networkMemory {
	var m networkMemory
	if err := n.state.load(memoryName, &m); err != nil {
		return networkMemory{}
	}
	return m
}

func (n *Network) takeBack(m networkMemory) error {
	var r bridgeRecord
	if err := n.bridges.load(m.Trial, &r); err == nil {
		r.Tried = false
		if err := n.bridges.put(m.Trial, r); err != nil {
			return err
		}
	}
	m.Trial = ""
	return n.state.put(memoryName, m)
}

func checkBridge(name string) error {
	if name == "" || len(name) > bridgeNameMax || name[0] == '.' || strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune("/:;\\", r)
	}) {
		return api.Invalid("bridge", "is %q", name).Allow("1 to %d printable characters without / : ; \\", bridgeNameMax)
	}
	return nil
}

// Ensure implements plugins.Network. Addresses of the machine and VLANs need a
// trial.
func (n *Network) Ensure(ctx context.Context, spec plugins.NetworkSpec, try bool) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if err := checkBridge(spec.Bridge); err != nil {
		return false, err
	}
	switch {
	case spec.Bridge == simCard:
		return false, api.Errorf(api.CodeConflict, "the machine has a device %s that is no bridge but a network card", simCard).On(api.KindNetwork, spec.Bridge)
	case spec.Private && spec.Bridge == simBridge:
		return false, api.Errorf(api.CodeConflict, "bridge %s was made by others, and this network needs one for itself", simBridge).On(api.KindNetwork, spec.Bridge)
	case spec.VLAN != 0 && spec.Carrier != simBridge:
		return false, api.Errorf(api.CodeUnavailable, "this node has no bridge %s that could carry VLAN %d", spec.Carrier, spec.VLAN).On(api.KindNetwork, spec.Bridge)
	case spec.Uplink && spec.VLAN == 0 && spec.Bridge != simBridge:
		return false, api.Errorf(api.CodeUnavailable, "this node has no bridge %s", spec.Bridge).On(api.KindNetwork, spec.Bridge)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var have bridgeRecord
	_ = n.bridges.load(spec.Bridge, &have) // a new one is empty
	if spec.Bridge == simBridge {
		return false, nil
	}
	wants := len(spec.Gateways) > 0 || spec.VLAN != 0
	same := have.Tried && slices.Equal(have.Spec.Gateways, spec.Gateways) && have.Spec.VLAN == spec.VLAN && have.Spec.NAT == spec.NAT
	r := bridgeRecord{Bridge: spec.Bridge, Spec: spec, Tried: same}
	if !wants || same {
		if sameJSON(have, r) {
			return false, nil
		}
		return false, n.bridges.put(spec.Bridge, r)
	}
	m := n.memory()
	switch {
	case m.Reverted[spec.Bridge] == spec.Revision && spec.Revision != 0:
		return false, api.Errorf(api.CodeConflict, "its change on bridge %s was taken back: this node could not reach the cluster with it", spec.Bridge).
			Do("correct the network, or repeat its change, to have it tried again")
	case m.Trial != "":
		return false, api.Errorf(api.CodeUnavailable, "another change of the network is on trial")
	case !try:
		return true, nil
	}
	m.Trial, m.Revision, r.Tried = spec.Bridge, spec.Revision, true
	if err := n.state.put(memoryName, m); err != nil {
		return false, err
	}
	if n.cut != nil {
		n.cut(true)
	}
	return true, n.bridges.put(spec.Bridge, r)
}

// CutWhenTried makes every change that needs a trial cut the machine off: f is
// told true when it is made and false when it is taken back. nil ends it.
func (n *Network) CutWhenTried(f func(cut bool)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = f
}

func sameJSON(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}

// Settle implements plugins.Network.
func (n *Network) Settle(_ context.Context, keep bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := n.memory()
	if m.Trial == "" {
		return nil
	}
	if keep {
		delete(m.Reverted, m.Trial)
		m.Trial = ""
		return n.state.put(memoryName, m)
	}
	if m.Reverted == nil {
		m.Reverted = map[string]uint64{}
	}
	m.Reverted[m.Trial] = m.Revision
	if n.cut != nil {
		n.cut(false)
	}
	return n.takeBack(m)
}

// Remove implements plugins.Network. The ports of a simulated bridge are the
// interfaces of executing guests of the same machine.
func (n *Network) Remove(ctx context.Context, bridge string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	owned, err := n.bridges.names()
	if err != nil || !slices.Contains(owned, bridge) {
		return err
	}
	used := false
	err = n.executing(func(_ plugins.DomainSpec, nic plugins.NICSpec) { used = used || nic.Bridge == bridge })
	if err != nil || used {
		return err
	}
	return n.bridges.drop(bridge)
}

// executing calls f for every interface of every executing guest.
func (n *Network) executing(f func(plugins.DomainSpec, plugins.NICSpec)) error {
	ids, err := n.domains.names()
	if err != nil {
		return err
	}
	for _, id := range ids {
		var r record
		if err := n.domains.load(id, &r); err != nil || !r.executing() {
			continue // removed since it was listed
		}
		for _, nic := range r.Spec.NICs {
			f(r.Spec, nic)
		}
	}
	return nil
}

// Owned implements plugins.Network.
func (n *Network) Owned(ctx context.Context) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return n.bridges.names()
}

// Protect implements plugins.Network.
func (n *Network) Protect(ctx context.Context, p plugins.Protection) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, port := range p.Ports {
		if err := checkBridge(port.Device); err != nil {
			return err
		}
		for _, key := range port.Firewalls {
			if !slices.ContainsFunc(p.Firewalls, func(f plugins.Firewall) bool { return f.Key == key }) {
				return api.Invalid("ports", "%s has the unknown firewall %q", port.Device, key)
			}
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var have plugins.Protection
	_ = n.state.load(protectionName, &have) // none at the first time
	if sameJSON(have, p) {
		return nil
	}
	return n.state.put(protectionName, p)
}

// Protection is what Protect was told last, for tests.
func (n *Network) Protection() plugins.Protection {
	n.mu.Lock()
	defer n.mu.Unlock()
	var p plugins.Protection
	_ = n.state.load(protectionName, &p) // none yet
	return p
}

// Leases implements plugins.Network. Every executing guest takes what it is
// given.
func (n *Network) Leases(ctx context.Context) ([]plugins.Lease, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	names, err := n.bridges.names()
	if err != nil {
		return nil, err
	}
	given := map[string][]plugins.Lease{} // by MAC
	for _, name := range names {
		var r bridgeRecord
		if err := n.bridges.load(name, &r); err != nil || !r.Tried {
			continue
		}
		for _, h := range r.Spec.Hosts {
			for _, address := range h.Addresses {
				given[h.MAC] = append(given[h.MAC], plugins.Lease{MAC: h.MAC, Address: address})
			}
		}
	}
	var out []plugins.Lease
	if len(given) == 0 {
		return nil, nil
	}
	err = n.executing(func(_ plugins.DomainSpec, nic plugins.NICSpec) { out = append(out, given[nic.MAC]...) })
	slices.SortFunc(out, func(a, b plugins.Lease) int {
		return cmp.Or(strings.Compare(a.MAC, b.MAC), a.Address.Compare(b.Address))
	})
	return out, err
}

// Probe implements plugins.Network.
func (n *Network) Probe(ctx context.Context) (api.NodeNetwork, error) {
	return api.NodeNetwork{Bridges: []api.BridgeStatus{{Name: simBridge, Uplinks: []string{simCard}}}, Devices: []string{simCard, "lo"}, Stateful: true}, ctx.Err()
}

// Close implements plugins.Network.
func (n *Network) Close() {}
