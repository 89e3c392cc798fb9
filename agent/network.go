package agent

import (
	"context"
	"errors"

	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// reconcileNetworks takes away the bridges that this node made and that no
// network names any more. Bridges are made when a guest needs them.
func (a *Agent) reconcileNetworks(ctx context.Context) error {
	owned, err := a.cfg.Network.Owned(ctx)
	if err != nil {
		return err
	}
	wanted := map[string]bool{}
	for n := range fsm.Networks.All(a.view()) {
		wanted[n.Bridge] = true
	}
	var failed error
	for _, bridge := range owned {
		if !wanted[bridge] {
			failed = errors.Join(failed, a.cfg.Network.Remove(ctx, plugins.NetworkSpec{Bridge: bridge}))
		}
	}
	return failed
}
