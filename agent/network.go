package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

const (
	reachTimeout = 2 * time.Second        // for one try to reach the leader
	reachPause   = 200 * time.Millisecond // between two
)

// networks is what this agent knows of its networks beyond the tables.
type networks struct {
	changing sync.Mutex        // one change at a time: a trial ends before the next begins
	mu       sync.Mutex        // guards below
	problems map[string]string // by network: why this node cannot offer it
}

// ensureNetwork makes a network and returns its row.
func (a *Agent) ensureNetwork(ctx context.Context, view *fsm.View, key string) (*api.Network, error) {
	network := fsm.Networks.Get(view, key)
	if network == nil {
		return nil, &waitingError{fmt.Sprintf("network %s does not exist", key)}
	}
	if err := a.ensure(ctx, key, networkSpec(view, network)); err != nil {
		if waiting, ok := errors.AsType[*waitingError](err); ok {
			return nil, waiting
		}
		return nil, fmt.Errorf("network %s: %w", key, err)
	}
	return network, nil
}

// networkSpec resolves a network for this machine.
func networkSpec(view *fsm.View, n *api.Network) plugins.NetworkSpec {
	spec := plugins.NetworkSpec{Bridge: n.Device(), Revision: n.Modified, VLAN: n.VLAN, Uplink: n.Uplink, Private: n.Local(),
		NAT: n.Driver == api.NetworkNAT, MTU: n.MTU}
	if n.VLAN != 0 {
		spec.Carrier, spec.Trunk = n.Bridge, n.Trunk()
	}
	if !n.Local() {
		return spec
	}
	for _, subnet := range n.Prefixes() {
		spec.Gateways = append(spec.Gateways, netip.PrefixFrom(api.Gateway(subnet), subnet.Bits()))
	}
	if len(spec.Gateways) == 0 {
		return spec
	}
	for vm := range fsm.VMs.By(view, "network", api.Key(n.Tenant, n.Name)) {
		for i := range vm.NICs {
			nic := &vm.NICs[i]
			if nic.Network != n.Name || len(nic.Addresses) == 0 {
				continue
			}
			host := plugins.Host{MAC: nic.MAC, Addresses: parseAddresses(nic.Addresses)}
			if i == 0 {
				host.Name = vm.Name
			}
			spec.Hosts = append(spec.Hosts, host)
		}
	}
	return spec
}

func parseAddresses(texts []string) []netip.Addr {
	var out []netip.Addr
	for _, text := range texts {
		if ip, err := netip.ParseAddr(text); err == nil {
			out = append(out, ip)
		}
	}
	return out
}

// ensure makes a network, and notes whether this node can offer it.
func (a *Agent) ensure(ctx context.Context, key string, spec plugins.NetworkSpec) error {
	a.networks.changing.Lock()
	defer a.networks.changing.Unlock()
	err := a.ensureOnTrial(ctx, key, spec)
	if ctx.Err() == nil {
		a.noteProblem(key, err)
	}
	return err
}

// ensureOnTrial makes what might cut this node off only while it reaches the
// leader, and takes it back when it does not reach it afterwards. A process
// that dies in between leaves that to the next one.
func (a *Agent) ensureOnTrial(ctx context.Context, key string, spec plugins.NetworkSpec) error {
	needed, err := a.config.Network.Ensure(ctx, spec, false)
	if err != nil || !needed {
		return err
	}
	if !a.reaches(ctx) {
		return &waitingError{fmt.Sprintf("network %s waits for a leader: making it might cut this node off, and without a leader that could not be told", key)}
	}
	if needed, err = a.config.Network.Ensure(ctx, spec, true); err != nil || !needed {
		return err
	}
	a.log.Info("network change is on trial", "network", key, "bridge", spec.Bridge)
	kept := a.staysReachable(ctx)
	if ctx.Err() != nil {
		return ctx.Err() // the next process takes it back, and tries again
	}
	if err := a.config.Network.Settle(ctx, kept); err != nil || kept {
		return err
	}
	return api.Errorf(api.CodeConflict, "was made on bridge %s and taken back: for %s this node did not reach the leader", spec.Bridge, a.config.Timings.Trial).
		Do("correct the network, or repeat its change, to have it tried again")
}

// reaches reports whether the leader, with a quorum behind it, answers now.
func (a *Agent) reaches(ctx context.Context) bool {
	within, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	_, err := a.config.Cluster.ReadIndex(within)
	return err == nil
}

// staysReachable reports whether the leader answers once the change has had
// the time to do its harm: what was under way before may have got through.
func (a *Agent) staysReachable(ctx context.Context) bool {
	begun := a.config.Clock()
	for {
		if !wait(ctx, min(reachPause, a.config.Timings.TrialHold)) {
			return false
		}
		since := a.config.Clock().Sub(begun)
		if since >= a.config.Timings.TrialHold && a.reaches(ctx) {
			return true
		}
		if since >= a.config.Timings.Trial {
			return false
		}
	}
}

func (a *Agent) noteProblem(key string, err error) {
	if key == "" {
		return
	}
	reason := ""
	if err != nil {
		reason = printable(err.Error())
	}
	a.networks.mu.Lock()
	defer a.networks.mu.Unlock()
	if a.networks.problems[key] == reason {
		return
	}
	if a.networks.problems == nil {
		a.networks.problems = map[string]string{}
	}
	if a.networks.problems[key] = reason; reason == "" {
		delete(a.networks.problems, key)
	}
	a.remeasure()
}

// nodeNetwork is what this node reports of its network.
func (a *Agent) nodeNetwork(ctx context.Context, view *fsm.View) api.NodeNetwork {
	within, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	found, err := a.config.Network.Probe(within)
	if err != nil {
		return api.NodeNetwork{Reason: printable(err.Error())}
	}
	found.Reason = printable(found.Reason)
	a.networks.mu.Lock()
	defer a.networks.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(a.networks.problems)) {
		switch {
		case fsm.Networks.Get(view, key) == nil:
			delete(a.networks.problems, key)
		case len(found.Problems) < api.NodeProblemsMax:
			found.Problems = append(found.Problems, api.NetworkProblem{Network: key, Reason: a.networks.problems[key]})
		}
	}
	return found
}

// filtered reports whether rules or an address server know of the VM.
func filtered(vm *api.VM) bool {
	return slices.ContainsFunc(vm.NICs, func(n api.NIC) bool { return len(n.Addresses)+len(n.Firewalls) > 0 || n.AntiSpoof != "" })
}

// plugIn makes the networks of a VM and returns what its guest plugs into.
func (a *Agent) plugIn(ctx context.Context, view *fsm.View, vm *api.VM) ([]plugins.NICSpec, error) {
	var nics []plugins.NICSpec
	for i := range vm.NICs {
		nic := &vm.NICs[i]
		network, err := a.ensureNetwork(ctx, view, api.Key(vm.Tenant, nic.Network))
		if err != nil {
			return nil, err
		}
		spec := plugins.NICSpec{Bridge: network.Device(), MAC: nic.MAC, Device: nic.Device(), Model: nic.Model, MTU: nic.MTU,
			BootOrder: nic.BootOrder, LinkDown: nic.Link == api.LinkDown}
		if spec.MTU == 0 {
			spec.MTU = network.MTU
		}
		nics = append(nics, spec)
	}
	return nics, nil
}

// portsOf is what may pass the ports of a VM whose networks exist. It goes
// into the record of the guest, and from there into the rules.
func portsOf(view *fsm.View, vm *api.VM) []plugins.Port {
	var ports []plugins.Port
	for i := range vm.NICs {
		if n := fsm.Networks.Get(view, api.Key(vm.Tenant, vm.NICs[i].Network)); n != nil {
			ports = append(ports, portOf(vm, n, &vm.NICs[i]))
		}
	}
	return ports
}

// joinPorts is the ports that a guest had and those that it gets now.
func joinPorts(had, now []plugins.Port) []plugins.Port {
	out := slices.Clone(now)
	for _, p := range had {
		if !slices.ContainsFunc(now, func(n plugins.Port) bool { return n.Device == p.Device }) {
			out = append(out, p)
		}
	}
	return out
}

func portOf(vm *api.VM, network *api.Network, nic *api.NIC) plugins.Port {
	p := plugins.Port{Device: nic.Device(), Bridge: network.Device(), MAC: nic.MAC, Addresses: parseAddresses(nic.Addresses),
		AntiSpoof: network.AntiSpoofing(nic), Filtered: len(nic.Firewalls) > 0}
	for _, name := range nic.Firewalls {
		p.Firewalls = append(p.Firewalls, api.Key(vm.Tenant, name))
	}
	return p
}

// protect makes the rules of this machine what the tables say. Guests that
// start afterwards find them there.
func (a *Agent) protect(ctx context.Context) error {
	a.networks.changing.Lock()
	defer a.networks.changing.Unlock()
	p, err := a.protection(ctx, a.view())
	if err != nil {
		return err
	}
	if err := a.config.Network.Protect(ctx, p); err != nil {
		return fmt.Errorf("filter what guests send and receive: %w", err)
	}
	return nil
}

// protection is what the rules are made from. An interface that the VM no
// longer has, and its running guest still does, keeps what it had.
func (a *Agent) protection(ctx context.Context, view *fsm.View) (plugins.Protection, error) {
	var p plugins.Protection
	for id, ports := range a.records.ports() {
		vm := vmByID(view, id)
		for _, had := range ports {
			p.Ports = append(p.Ports, currentPort(view, vm, had))
		}
	}
	slices.SortFunc(p.Ports, func(a, b plugins.Port) int { return strings.Compare(a.Device, b.Device) })
	p.Ports = slices.CompactFunc(p.Ports, func(a, b plugins.Port) bool { return a.Device == b.Device })
	addFirewalls(view, &p)
	owned, err := a.config.Network.Owned(ctx)
	if err != nil {
		return p, fmt.Errorf("list bridges: %w", err)
	}
	for _, bridge := range owned {
		for n := range fsm.Networks.By(view, "device", bridge) {
			if n.Local() {
				spec := networkSpec(view, n)
				spec.Hosts, spec.Revision = nil, 0
				p.Networks = append(p.Networks, spec)
			}
		}
	}
	return p, nil
}

func currentPort(view *fsm.View, vm *api.VM, had plugins.Port) plugins.Port {
	if vm == nil {
		return had
	}
	for i := range vm.NICs {
		nic := &vm.NICs[i]
		if nic.MAC != had.MAC {
			continue
		}
		if n := fsm.Networks.Get(view, api.Key(vm.Tenant, nic.Network)); n != nil && n.Device() == had.Bridge {
			return portOf(vm, n, nic)
		}
	}
	return had
}

// addFirewalls adds the firewalls that ports have, and the groups that these
// name. A firewall that is gone allows nothing.
func addFirewalls(view *fsm.View, p *plugins.Protection) {
	walls, groups := map[string]*api.Firewall{}, map[string]bool{}
	for i := range p.Ports {
		port := &p.Ports[i]
		port.Firewalls = slices.DeleteFunc(slices.Clone(port.Firewalls), func(key string) bool {
			if f := fsm.Firewalls.Get(view, key); f != nil {
				walls[key] = f
				return false
			}
			return true
		})
	}
	for _, key := range slices.Sorted(maps.Keys(walls)) {
		f := walls[key]
		p.Firewalls = append(p.Firewalls, plugins.Firewall{Key: key, Rules: f.Rules})
		for _, r := range f.Rules {
			for _, name := range r.Groups {
				groups[api.Key(f.Tenant, name)] = true
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(groups)) {
		p.Groups = append(p.Groups, plugins.Group{Key: key, Addresses: members(view, key)})
	}
}

// members lists the addresses of the interfaces that have a firewall, in the
// whole cluster.
func members(view *fsm.View, key string) []netip.Addr {
	_, name := api.SplitKey(key)
	var out []netip.Addr
	for vm := range fsm.VMs.By(view, "firewall", key) {
		for i := range vm.NICs {
			if slices.Contains(vm.NICs[i].Firewalls, name) {
				out = append(out, parseAddresses(vm.NICs[i].Addresses)...)
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// reconcileNetworks keeps the networks that guests of this machine use and
// their rules, and removes bridges that were made here and that neither a
// guest nor a network row needs.
func (a *Agent) reconcileNetworks(ctx context.Context) error {
	found, err := a.domains.all()
	if err != nil {
		return nil // what is used is not known; reaching the hypervisor brings a new look
	}
	view := a.view()
	needed := map[string]bool{}
	for _, d := range found {
		if one, _ := a.records.find(d.ID); executing(d) {
			for _, bridge := range one.Bridges {
				needed[bridge] = true
			}
		}
	}
	var all error // one network that cannot be had does not hold up the others
	for _, bridge := range slices.Sorted(maps.Keys(needed)) {
		if err := a.ensureBridge(ctx, view, bridge); err != nil {
			all = errors.Join(all, fmt.Errorf("bridge %s: %w", bridge, err))
		}
	}
	if err := a.protect(ctx); err != nil {
		all = errors.Join(all, err)
	}
	if !a.isSynced() {
		return all
	}
	return errors.Join(all, a.removeBridges(ctx))
}

// ensureBridge makes the network of a bridge, or a plain bridge where its
// network is gone.
func (a *Agent) ensureBridge(ctx context.Context, view *fsm.View, bridge string) error {
	for n := range fsm.Networks.By(view, "device", bridge) {
		return a.ensure(ctx, api.Key(n.Tenant, n.Name), networkSpec(view, n))
	}
	return a.ensure(ctx, "", plugins.NetworkSpec{Bridge: bridge})
}

func (a *Agent) removeBridges(ctx context.Context) error {
	used, view := a.records.bridges(), a.view()
	for n := range fsm.Networks.All(view) {
		used[n.Device()] = true
	}
	for vm := range ownedVMs(view, a.config.Name) {
		for _, nic := range vm.NICs { // of a guest that starts just now
			if n := fsm.Networks.Get(view, api.Key(vm.Tenant, nic.Network)); n != nil {
				used[n.Device()] = true
			}
		}
	}
	owned, err := a.config.Network.Owned(ctx)
	if err != nil {
		return fmt.Errorf("list bridges: %w", err)
	}
	for _, bridge := range owned {
		if used[bridge] {
			continue
		}
		a.log.Info("removing a bridge that nothing uses", "bridge", bridge)
		if err := a.config.Network.Remove(ctx, bridge); err != nil {
			return fmt.Errorf("remove bridge %s: %w", bridge, err)
		}
	}
	return nil
}

// addLeases adds to the domains the addresses that their guests took from
// this machine's own servers.
func (a *Agent) addLeases(ctx context.Context, listed []plugins.Domain) {
	macs := a.records.macs()
	if len(macs) == 0 {
		return
	}
	leases, err := a.config.Network.Leases(ctx)
	if err != nil {
		a.log.Debug("leases not read", "error", err)
		return
	}
	taken := map[string][]string{} // by guest
	for _, l := range leases {
		if id := macs[l.MAC]; id != "" {
			taken[id] = append(taken[id], l.Address.String())
		}
	}
	for i := range listed {
		d := &listed[i]
		for _, address := range taken[d.ID] {
			if executing(*d) && !slices.Contains(d.Addresses, address) && len(d.Addresses) < api.AddressesMax {
				d.Addresses = append(d.Addresses, address)
			}
		}
	}
}

// ownedVMs yields the VMs whose instances a node owns.
func ownedVMs(view *fsm.View, node string) func(yield func(*api.VM) bool) {
	return func(yield func(*api.VM) bool) {
		for i := range fsm.Instances.By(view, "owner", node) {
			if vm := vmByID(view, i.Name); vm != nil && !yield(vm) {
				return
			}
		}
	}
}
