package plugins

import (
	"context"
	"net/netip"
	"time"

	"github.com/debvisor/debvisor/api"
)

// Network makes what NICs plug into, and decides what passes. It touches
// devices, addresses and rules that carry this cluster's mark and no others,
// but for what a trial is about.
type Network interface {
	// Ensure makes the network what spec says, or finds that it is. A change
	// that might cut the machine off (addresses, routing, a bridge that others
	// made) is made only if try is true; without it nothing of that is done. needed
	// tells that there is such a change. One that was made is on trial until
	// Settle: how it was before is on disk, and is brought back by Settle, or by
	// the next process that opens the adapter. While one is on trial another that
	// needs one is CodeUnavailable.
	//
	// A bridge that others made is used as it is, unless spec is Private; a device
	// of its name that is no bridge is CodeConflict, and so is a subnet that the
	// machine reaches elsewhere, and a change that was taken back under the same
	// revision.
	Ensure(ctx context.Context, spec NetworkSpec, try bool) (needed bool, err error)

	// Settle ends a trial: keep says that the change stays. Without a trial it
	// does nothing.
	Settle(ctx context.Context, keep bool) error

	// Remove takes away what Ensure made: servers, addresses, devices. A bridge
	// that others made, that is unknown or that still has ports of guests is left
	// and is no error.
	Remove(ctx context.Context, bridge string) error

	// Owned lists the names of the bridges that Ensure made and that exist.
	Owned(ctx context.Context) ([]string, error)

	// Protect makes p all that is filtered and translated, at once: no packet sees
	// a part of it. What others did to the rules meanwhile is put right. Ports need
	// not be there yet. Firewalls need a kernel that follows connections over
	// bridges: without it they are CodeUnavailable, and nothing changes.
	Protect(ctx context.Context, p Protection) error

	// Leases lists the addresses that guests took, ordered by MAC and address.
	Leases(ctx context.Context) ([]Lease, error)

	// Probe tells what the machine's network has. Its Problems are empty.
	Probe(ctx context.Context) (api.NodeNetwork, error)

	// Close lets go of the kernel. Networks and their servers stay.
	Close()
}

// NetworkSpec is a network on this machine, with everything resolved.
type NetworkSpec struct {
	Bridge   string // that interfaces plug into
	Revision uint64 // of the network's row; a change that was taken back is not tried again under the same one

	Carrier string // of a VLAN: the bridge that carries it, which is there already
	Trunk   string // of a VLAN: the name of its device above Carrier
	VLAN    int    // 0: none

	Uplink   bool           // the bridge must be there already, with a port to the outside
	Private  bool           // the bridge must be ours alone
	Gateways []netip.Prefix // the machine's own addresses on a private bridge, with the length of their subnets
	NAT      bool           // guests reach out
	MTU      int            // of a bridge of ours; 0: the kernel's
	Hosts    []Host         // to whom the machine gives addresses; only on a private bridge with gateways
}

// Host is an interface that is given its addresses.
type Host struct {
	MAC       string
	Name      string // DNS label
	Addresses []netip.Addr
}

// Protection is everything that is filtered on this machine.
type Protection struct {
	Ports     []Port
	Firewalls []Firewall
	Groups    []Group
	Networks  []NetworkSpec // private ones with gateways: what passes between them and the world
}

// Port is a tap device and what may pass it.
type Port struct {
	Device    string
	Bridge    string
	MAC       string
	Addresses []netip.Addr
	AntiSpoof bool     // only from MAC, and where there are addresses only from these
	Filtered  bool     // has firewalls, or had some that are gone: what none allows does not pass
	Firewalls []string // keys
}

// Firewall is a list of what is allowed. Key is unique.
type Firewall struct {
	Key   string // tenant/name
	Rules []api.FirewallRule
}

// Group is the addresses of the interfaces that have a firewall.
type Group struct {
	Key       string
	Addresses []netip.Addr
}

// Lease is an address that a guest took.
type Lease struct {
	MAC     string
	Address netip.Addr
	Expires time.Time // zero: never
}
