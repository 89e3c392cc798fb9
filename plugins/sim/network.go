package sim

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// bridgeNameMax is the longest name of a network device on Linux, in bytes.
const bridgeNameMax = 15

// Network simulates bridges. It implements plugins.Network.
type Network struct {
	bridges *drawer
	domains *drawer
	mu      sync.Mutex // serializes changes
}

var _ plugins.Network = (*Network)(nil)

type bridgeRecord struct{ Bridge string }

// OpenNetwork opens the simulated bridges of the machine at Config.Dir.
func OpenNetwork(config Config) (*Network, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	bridges, err := openDrawer(config.Dir, "bridges")
	if err != nil {
		return nil, err
	}
	domains, err := openDrawer(config.Dir, "domains")
	if err != nil {
		return nil, err
	}
	return &Network{bridges: bridges, domains: domains}, nil
}

// Ensure implements plugins.Network.
func (n *Network) Ensure(ctx context.Context, network plugins.NetworkSpec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	name := network.Bridge
	if name == "" || len(name) > bridgeNameMax || name[0] == '.' || strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune("/:;\\", r)
	}) {
		return api.Invalid("bridge", "is %q", name).Allow("1 to %d printable characters without / : ; \\", bridgeNameMax)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.bridges.put(name, bridgeRecord{Bridge: name})
}

// Remove implements plugins.Network. The ports of a simulated bridge are the
// interfaces of executing guests of the same machine.
func (n *Network) Remove(ctx context.Context, network plugins.NetworkSpec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	owned, err := n.bridges.names()
	if err != nil || !slices.Contains(owned, network.Bridge) {
		return err
	}
	ids, err := n.domains.names()
	if err != nil {
		return err
	}
	for _, id := range ids {
		var r record
		if err := n.domains.load(id, &r); err != nil {
			continue // removed since it was listed
		}
		for _, nic := range r.Spec.NICs {
			if r.executing() && nic.Bridge == network.Bridge {
				return nil
			}
		}
	}
	return n.bridges.drop(network.Bridge)
}

// Owned implements plugins.Network.
func (n *Network) Owned(ctx context.Context) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return n.bridges.names()
}
