package api

import "strings"

// NetworkBridge is the driver of networks that are Linux bridges.
const NetworkBridge = "bridge"

// Network is what a VM's NIC plugs into.
type Network struct {
	Meta
	Driver      string `json:"driver"` // bridge
	Bridge      string `json:"bridge"` // device name on each node; made where it is missing
	Description string `json:"description,omitzero"`
}

// Validate implements Object.
func (n *Network) Validate() error {
	var p problems
	n.check(&p, true)
	if n.Driver != NetworkBridge {
		p.add("driver", "is %q", n.Driver).Allow(NetworkBridge)
	}
	const chars = "abcdefghijklmnopqrstuvwxyz0123456789-_."
	if b := n.Bridge; b == "" || len(b) > 15 || strings.Trim(b, chars) != "" || b[0] == '-' || b[0] == '.' {
		p.add("bridge", "is %q", n.Bridge).Allow("a device name: 1 to 15 of a-z, 0-9, '-', '_', '.'")
	}
	checkText(&p, "description", n.Description, TextLengthMax)
	return p.err()
}
