package place_test

import (
	"strings"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster/place"
)

// TestNodesWithoutTheNetworkAreLeftOut: node a has everything that the network
// asks for, node b lacks it, and the decision says what.
func TestNodesWithoutTheNetworkAreLeftOut(t *testing.T) {
	t.Parallel()
	full := api.NodeNetwork{Bridges: []api.BridgeStatus{{Name: "br0", Uplinks: []string{"eth0"}}}, Devices: []string{"eth0"}, Stateful: true}
	for _, c := range []struct {
		name    string
		network api.Network
		nic     api.NIC
		b       api.NodeNetwork
		why     string
	}{
		{"vlan", api.Network{Driver: api.NetworkVLAN, Bridge: "br0", VLAN: 5}, api.NIC{}, api.NodeNetwork{}, "no bridge br0 that could carry VLAN 5"},
		{"uplink", api.Network{Driver: api.NetworkBridge, Bridge: "br0", Uplink: true}, api.NIC{},
			api.NodeNetwork{Bridges: []api.BridgeStatus{{Name: "br0"}}}, "bridge br0 of the node has no port"},
		{"no bridge", api.Network{Driver: api.NetworkBridge, Bridge: "br0", Uplink: true}, api.NIC{}, api.NodeNetwork{}, "the node has no bridge br0"},
		{"the uplink itself", api.Network{Driver: api.NetworkBridge, Bridge: "br0"}, api.NIC{}, api.NodeNetwork{Devices: []string{"br0"}}, "device br0 of the node is no bridge"},
		{"firewall", api.Network{Driver: api.NetworkBridge, Bridge: "br0"}, api.NIC{Firewalls: []string{"web"}},
			api.NodeNetwork{Reason: "the kernel lacks nf_conntrack_bridge"}, "firewall web: the kernel lacks"},
		{"reverted", api.Network{Driver: api.NetworkBridge, Bridge: "br0"}, api.NIC{},
			api.NodeNetwork{Problems: []api.NetworkProblem{{Network: "default/lan", Reason: "was taken back"}}}, "network lan: was taken back"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			in := input()
			in.Nodes = []*api.Node{node("a", func(n *api.Node) { n.Network = full }), node("b", func(n *api.Node) { n.Network = c.b })}
			c.network.Meta = api.Meta{Name: "lan", Tenant: "default"}
			in.Networks = map[string]*api.Network{"default/lan": &c.network}
			c.nic.Network = "lan"
			v := vm("web", func(v *api.VM) { v.NICs = []api.NIC{c.nic} })
			d := place.New(in).Decide(v, noon)
			if d.Node != "a" || len(d.Candidates) != 2 || !strings.Contains(strings.Join(d.Candidates[1].Reasons, "; "), c.why) {
				t.Errorf("got %+v, want node a, and for b %q", d, c.why)
			}
		})
	}
}
