// Package bridge implements plugins.Network with Linux bridges, through
// netlink. A bridge that it made carries the alias "debvisor:CLUSTERID"; no
// other device is ever changed or removed.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

const (
	nameMax     = 15 // bytes; IFNAMSIZ less the end mark
	aliasPrefix = "debvisor:"
)

// Config says whose bridges they are. ClusterID is needed.
type Config struct {
	ClusterID string
	NetNS     string       // path of the network namespace to work in, as /proc/PID/ns/net; empty: our own
	Logger    hclog.Logger // nil: silent
}

// Network makes Linux bridges. It is safe for use from several goroutines.
type Network struct {
	handle *netlink.Handle
	alias  string
	logger hclog.Logger
	mu     sync.Mutex // serializes changes
}

var _ plugins.Network = (*Network)(nil)

// Open connects to the kernel. It needs no rights yet; Ensure needs
// CAP_NET_ADMIN and says so.
func Open(config Config) (*Network, error) {
	if config.ClusterID == "" {
		return nil, api.Invalid("cluster_id", "is missing").Allow("the cluster's UUID")
	}
	n := &Network{alias: aliasPrefix + config.ClusterID, logger: config.Logger}
	if n.logger == nil {
		n.logger = hclog.NewNullLogger()
	}
	var err error
	if config.NetNS == "" {
		n.handle, err = netlink.NewHandle(syscall.NETLINK_ROUTE)
	} else {
		n.handle, err = handleAt(config.NetNS)
	}
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return n, nil
}

func handleAt(path string) (*netlink.Handle, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	defer func() { _ = ns.Close() }()
	return netlink.NewHandleAt(ns, syscall.NETLINK_ROUTE)
}

// Close lets go of the kernel's socket. Bridges stay.
func (n *Network) Close() { n.handle.Close() }

// Ensure implements plugins.Network. A bridge that others made is used as it
// is; a device of that name that is no bridge is CodeConflict.
func (n *Network) Ensure(ctx context.Context, network plugins.NetworkSpec) error {
	if err := checkName(network.Bridge); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	link, err := n.find(network.Bridge)
	if err != nil {
		return err
	}
	if link == nil {
		if link, err = n.make(network.Bridge); err != nil {
			return err
		}
	}
	if link.Type() != "bridge" {
		return api.Errorf(api.CodeConflict, "the machine has a device %s that is no bridge but %s", network.Bridge, link.Type()).
			On(api.KindNetwork, network.Bridge).Do("choose another bridge name for the network")
	}
	if err := n.handle.LinkSetUp(link); err != nil {
		return denied("set bridge up", network.Bridge, err)
	}
	return nil
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
	return link, nil
}

// Remove implements plugins.Network.
func (n *Network) Remove(ctx context.Context, network plugins.NetworkSpec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if checkName(network.Bridge) != nil {
		return nil // no device can have that name
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	link, err := n.find(network.Bridge)
	if err != nil || link == nil || !n.ours(link) {
		return err
	}
	all, err := n.links()
	if err != nil {
		return err
	}
	for _, port := range all {
		if port.Attrs().MasterIndex == link.Attrs().Index {
			n.logger.Debug("bridge kept: it has ports", "bridge", network.Bridge, "port", port.Attrs().Name)
			return nil
		}
	}
	if err := n.handle.LinkDel(link); err != nil && !errors.Is(err, syscall.ENODEV) {
		return denied("remove bridge", network.Bridge, err)
	}
	n.logger.Info("bridge removed", "bridge", network.Bridge)
	return nil
}

// Owned implements plugins.Network.
func (n *Network) Owned(ctx context.Context) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	all, err := n.links()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, link := range all {
		if n.ours(link) {
			out = append(out, link.Attrs().Name)
		}
	}
	slices.Sort(out)
	return out, nil
}

func (n *Network) ours(link netlink.Link) bool {
	return link.Type() == "bridge" && link.Attrs().Alias == n.alias
}

// find returns nil without an error when there is no such device.
func (n *Network) find(name string) (netlink.Link, error) {
	link, err := n.handle.LinkByName(name)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for device %s: %w", name, err)
	}
	if link.Attrs().Name != name { // found by an alternative name
		return nil, api.Errorf(api.CodeConflict, "%s is another name of the device %s", name, link.Attrs().Name).
			On(api.KindNetwork, name).Do("choose another bridge name for the network")
	}
	return link, nil
}

// links lists all devices. The kernel may cut a dump short when devices come
// and go; it is then asked again.
func (n *Network) links() ([]netlink.Link, error) {
	const attempts = 5
	var err error
	for range attempts {
		var all []netlink.Link
		if all, err = n.handle.LinkList(); err == nil {
			return all, nil
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return nil, fmt.Errorf("list devices: %w", err)
}

func checkName(name string) error {
	bad := name == "" || len(name) > nameMax || name == "." || name == ".." || strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune("/:;\\%", r)
	})
	if bad {
		return api.Invalid("bridge", "is %q", name).Allow("1 to %d printable characters without / : ; \\ %%", nameMax)
	}
	return nil
}

func denied(what, name string, err error) error {
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		return api.Errorf(api.CodeUnavailable, "%s %s: not permitted", what, name).Do("run the agent as root or with CAP_NET_ADMIN")
	}
	if errors.Is(err, syscall.EOPNOTSUPP) {
		return api.Errorf(api.CodeUnavailable, "%s %s: the kernel knows no bridges", what, name).Do("load the kernel module bridge")
	}
	return fmt.Errorf("%s %s: %w", what, name, err)
}
