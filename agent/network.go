package agent

import (
	"context"
	"fmt"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// ensureNetwork makes the bridge of a network and returns its name.
func (a *Agent) ensureNetwork(ctx context.Context, view *fsm.View, key string) (string, error) {
	network := fsm.Networks.Get(view, key)
	if network == nil {
		return "", &waitingError{fmt.Sprintf("network %s does not exist", key)}
	}
	if err := a.config.Network.Ensure(ctx, plugins.NetworkSpec{Bridge: network.Bridge}); err != nil {
		return "", fmt.Errorf("network %s: %w", key, err)
	}
	return network.Bridge, nil
}

// reconcileNetworks keeps the bridges that guests of this machine use, and
// removes those that were made here and that neither a guest nor a network
// row needs.
func (a *Agent) reconcileNetworks(ctx context.Context) error {
	found, err := a.domains.all()
	if err != nil {
		return nil // what is used is not known; reaching the hypervisor brings a new look
	}
	used := a.records.bridges()
	for _, d := range found {
		one, _ := a.records.find(d.ID)
		if !executing(d) {
			continue
		}
		for _, bridge := range one.Bridges {
			if err := a.config.Network.Ensure(ctx, plugins.NetworkSpec{Bridge: bridge}); err != nil {
				return fmt.Errorf("bridge %s: %w", bridge, err)
			}
		}
	}
	if !a.isSynced() {
		return nil
	}
	view := a.view()
	for n := range fsm.Networks.All(view) {
		used[n.Bridge] = true
	}
	for vm := range ownedVMs(view, a.config.Name) {
		for _, nic := range vm.NICs { // of a guest that starts just now
			if n := fsm.Networks.Get(view, api.Key(vm.Tenant, nic.Network)); n != nil {
				used[n.Bridge] = true
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
		if err := a.config.Network.Remove(ctx, plugins.NetworkSpec{Bridge: bridge}); err != nil {
			return fmt.Errorf("remove bridge %s: %w", bridge, err)
		}
	}
	return nil
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
