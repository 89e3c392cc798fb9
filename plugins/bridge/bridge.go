// Package bridge implements plugins.Network with Linux bridges and VLANs
// through netlink, filters and address translation through nft(8), and
// dnsmasq(8) for DHCP, router advertisements and DNS. What it made carries the
// alias "debvisor:CLUSTERID" or that name; nothing else is changed for good.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

// Config says whose bridges they are. ClusterID and Dir are needed.
type Config struct {
	ClusterID string
	Node      string       // tells apart the rules of nodes that share a machine; may be empty
	Dir       string       // absolute; made when missing: what must survive a restart. The users of programs pass through it
	NetNS     string       // path of the network namespace to work in, as /proc/PID/ns/net; empty: our own
	Logger    hclog.Logger // nil: silent
}

// Network makes Linux bridges. It is safe for use from several goroutines.
type Network struct {
	handle  *netlink.Handle
	ns      netns.NsHandle // not open: our own
	root    *os.Root
	alias   string
	table   string // of our rules
	logger  hclog.Logger
	rules   rules
	closing sync.Once

	mu      sync.Mutex // one change at a time; guards below
	memory  memory
	servers map[string]*server // by bridge
}

var _ plugins.Network = (*Network)(nil)

// Open connects to the kernel, and takes back a change that an earlier process
// left on trial. It needs no rights yet; Ensure needs CAP_NET_ADMIN and says
// so.
func Open(config Config) (*Network, error) {
	if config.ClusterID == "" {
		return nil, api.Invalid("cluster_id", "is missing").Allow("the cluster's UUID")
	}
	if !filepath.IsAbs(config.Dir) {
		return nil, api.Invalid("dir", "is %q", config.Dir).Allow("an absolute directory")
	}
	n := &Network{alias: aliasPrefix + config.ClusterID, table: "debvisor-" + config.ClusterID, logger: config.Logger,
		ns: netns.None(), servers: map[string]*server{}}
	if config.Node != "" {
		if err := api.CheckName("node", config.Node); err != nil {
			return nil, err
		}
		n.table += "-" + config.Node
	}
	if n.logger == nil {
		n.logger = hclog.NewNullLogger()
	}
	if err := n.connect(config); err != nil {
		return nil, err
	}
	if err := errors.Join(n.load(), n.recover()); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

func (n *Network) connect(config Config) error {
	// dnsmasq gives up its rights, and reads what it is told with those that are
	// left.
	if err := os.MkdirAll(config.Dir, 0o755); err != nil {
		return fmt.Errorf("make the directory of networks: %w", err)
	}
	var err error
	if n.root, err = os.OpenRoot(config.Dir); err != nil {
		return fmt.Errorf("open the directory of networks: %w", err)
	}
	if config.NetNS == "" {
		n.handle, err = netlink.NewHandle(syscall.NETLINK_ROUTE)
	} else if n.ns, err = netns.GetFromPath(config.NetNS); err == nil {
		n.handle, err = netlink.NewHandleAt(n.ns, syscall.NETLINK_ROUTE)
	}
	if err != nil {
		_ = n.root.Close()
		if n.ns.IsOpen() {
			_ = n.ns.Close()
		}
		return fmt.Errorf("open netlink: %w", err)
	}
	return nil
}

// Close implements plugins.Network.
func (n *Network) Close() { n.closing.Do(n.close) }

func (n *Network) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.servers {
		s.letGo()
	}
	clear(n.servers)
	n.handle.Close()
	if n.ns.IsOpen() {
		_ = n.ns.Close()
	}
	_ = n.root.Close()
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

// Remove implements plugins.Network.
func (n *Network) Remove(ctx context.Context, bridge string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if checkName(bridge) != nil {
		return nil // no device can have that name
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	link, err := n.find(bridge)
	if err != nil || link == nil || !n.ours(link) {
		return errors.Join(err, n.stopServer(bridge))
	}
	all, err := n.links()
	if err != nil {
		return err
	}
	var trunks []netlink.Link
	for _, port := range all {
		if port.Attrs().MasterIndex != link.Attrs().Index {
			continue
		}
		if port.Type() == "vlan" && port.Attrs().Alias == n.alias {
			trunks = append(trunks, port)
			continue
		}
		n.logger.Debug("bridge kept: it has ports", "bridge", bridge, "port", port.Attrs().Name)
		return nil
	}
	if err := n.stopServer(bridge); err != nil {
		return err
	}
	for _, l := range append(trunks, link) {
		if err := n.handle.LinkDel(l); err != nil && !errors.Is(err, syscall.ENODEV) {
			return denied("remove", l.Attrs().Name, err)
		}
	}
	n.logger.Info("bridge removed", "bridge", bridge)
	return n.forget(bridge)
}

// forget undoes what the bridge needed on devices of others.
func (n *Network) forget(bridge string) error {
	if err := n.undo(n.memory.Carried[bridge]); err != nil {
		return err
	}
	_, proven := n.memory.Proven[bridge]
	if len(n.memory.Carried[bridge]) == 0 && !proven {
		return nil
	}
	delete(n.memory.Carried, bridge)
	delete(n.memory.Proven, bridge)
	return n.save()
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

// dumpAttempts is how often the kernel is asked again: it cuts a dump short
// when devices come and go meanwhile.
const dumpAttempts = 5

// links lists all devices.
func (n *Network) links() ([]netlink.Link, error) {
	var err error
	for range dumpAttempts {
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

// absent takes it for done that what is to be removed is not there.
func absent(err error) error {
	if errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

func denied(what, name string, err error) error {
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		return api.Errorf(api.CodeUnavailable, "%s %s: not permitted", what, name).Do("run the agent as root or with CAP_NET_ADMIN")
	}
	if errors.Is(err, syscall.EOPNOTSUPP) {
		return api.Errorf(api.CodeUnavailable, "%s %s: the kernel does not know how", what, name).Do("load the kernel modules bridge and 8021q")
	}
	return fmt.Errorf("%s %s: %w", what, name, err)
}
