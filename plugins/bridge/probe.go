package bridge

import (
	"context"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/api"
)

// Probe implements plugins.Network.
func (n *Network) Probe(ctx context.Context) (api.NodeNetwork, error) {
	var out api.NodeNetwork
	if err := ctx.Err(); err != nil {
		return out, err
	}
	all, err := n.links()
	if err != nil {
		return out, err
	}
	for _, l := range all {
		name := l.Attrs().Name
		switch {
		case l.Type() == "bridge":
			b := api.BridgeStatus{Name: name}
			for _, u := range n.uplinks(l, all) {
				b.Uplinks = append(b.Uplinks, u.Attrs().Name)
			}
			if n.ours(l) && len(b.Uplinks) == 0 || len(out.Bridges) >= api.NodeBridgesMax {
				continue // what networks need of ours is made where it is missing
			}
			slices.Sort(b.Uplinks)
			out.Bridges = append(out.Bridges, b)
		case l.Type() != "tuntap" && l.Attrs().Alias != n.alias && len(out.Devices) < api.NodeDevicesMax && !strings.HasPrefix(name, "vnet"):
			out.Devices = append(out.Devices, name)
		}
	}
	slices.SortFunc(out.Bridges, func(a, b api.BridgeStatus) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(out.Devices)
	n.rules.mu.Lock()
	defer n.rules.mu.Unlock()
	if err := n.followsLocked(ctx); err != nil {
		out.Reason = err.Error()
	} else {
		out.Stateful = true
	}
	return out, nil
}
