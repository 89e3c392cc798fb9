package libvirt

import (
	"cmp"
	"context"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/digitalocean/go-libvirt"
	"golang.org/x/sync/errgroup"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// Limits of one listing.
const (
	readersMax     = 8               // domains that are looked at at once
	addressTimeout = 2 * time.Second // for all addresses together
	agentTimeout   = time.Second     // for one guest's own answer
	agentMute      = time.Minute     // a guest that did not answer is left alone so long
)

// muted says until when a guest's agent is not asked.
type muted struct{ until time.Time }

// Domains implements plugins.Hypervisor.
func (h *Hypervisor) Domains(ctx context.Context) ([]plugins.Domain, error) {
	c, err := h.connect(ctx)
	if err != nil {
		return nil, err
	}
	var handles []libvirt.Domain
	err = c.call(ctx, func(l *libvirt.Libvirt) (err error) {
		handles, _, err = l.ConnectListAllDomains(1, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	inTime, cancel := context.WithTimeout(ctx, addressTimeout)
	defer cancel()
	all := make([]*plugins.Domain, len(handles))
	group, within := errgroup.WithContext(ctx)
	group.SetLimit(readersMax)
	for i, handle := range handles {
		group.Go(func() (err error) {
			all[i], err = h.describe(within, inTime, c, handle)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	out := []plugins.Domain{}
	for _, d := range all {
		if d != nil {
			out = append(out, *d)
		}
	}
	slices.SortFunc(out, func(a, b plugins.Domain) int { return cmp.Compare(a.ID, b.ID) })
	h.rememberOnly(out)
	return out, nil
}

// describe returns nil for a domain that is not ours or that went away.
func (h *Hypervisor) describe(ctx, inTime context.Context, c *conn, handle libvirt.Domain) (*plugins.Domain, error) {
	f := &found{handle: handle}
	if err := h.read(ctx, c, f); err != nil {
		if api.CodeOf(err) == api.CodeNotFound {
			return nil, nil
		}
		return nil, err
	}
	if f.mark == nil {
		return nil, nil
	}
	state, reason := stateOf(f.state, f.reason)
	d := &plugins.Domain{
		ID: f.xml.UUID, Name: f.xml.Name, Gen: f.mark.Gen, SpecRevision: f.mark.Revision,
		State: state, Reason: reason, Acceleration: accelerationOf(f.xml.Type), Drift: f.xml.drift(f.mark, ""),
	}
	if !f.executing() {
		return d, nil
	}
	d.StartedAt = f.mark.startedAt()
	d.Drift = append(d.Drift, h.definitionDrift(ctx, c, f)...)
	d.Pending, d.Unsettled, d.Holding = f.xml.pending(f.mark)
	d.Addresses = h.addresses(inTime, c, f)
	if err := trimLog(filepath.Join(h.config.StateDir, d.ID, consoleFile)); err != nil {
		h.config.Logger.Warn("console log not trimmed", "id", d.ID, "error", err)
	}
	return d, nil
}

func accelerationOf(virtType string) string {
	if virtType == "kvm" {
		return "kvm"
	}
	return "tcg"
}

// definitionDrift looks at what the guest would be at its next start.
func (h *Hypervisor) definitionDrift(ctx context.Context, c *conn, f *found) []string {
	var text string
	err := c.call(ctx, func(l *libvirt.Libvirt) (err error) {
		text, err = l.DomainGetXMLDesc(f.handle, libvirt.DomainXMLInactive)
		return err
	})
	if err != nil {
		return nil
	}
	inactive, err := decodeDomain(text)
	if err != nil {
		return nil
	}
	m := inactive.markOf(h.config.ClusterID)
	if m == nil {
		return []string{"definition: lost its mark"}
	}
	return inactive.drift(m, "definition: ")
}

// remember notes an ID whose events are worth a hint.
func (h *Hypervisor) remember(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ours[id] = struct{}{}
}

func (h *Hypervisor) rememberOnly(domains []plugins.Domain) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range domains {
		h.ours[d.ID] = struct{}{}
	}
	const forgetAbove = 1 << 16 // far above what a machine runs
	if len(h.ours) > forgetAbove {
		clear(h.ours)
	}
}

// stateOf names the state and why the domain is in it, as libvirt does
// (virDomainState and the enumerations of reasons).
func stateOf(state libvirt.DomainState, reason int32) (string, string) {
	switch state {
	case libvirt.DomainRunning, libvirt.DomainBlocked, libvirt.DomainShutdown:
		return api.InstanceRunning, nameOf(reason, "unknown", "booted", "migrated", "restored", "from snapshot", "unpaused",
			"migration cancelled", "save cancelled", "woken up", "crashed", "post-copy")
	case libvirt.DomainPaused, libvirt.DomainPmsuspended:
		return api.InstancePaused, nameOf(reason, "unknown", "user", "migration", "save", "dump", "i/o error", "watchdog",
			"from snapshot", "shutting down", "snapshot", "crashed", "starting up", "post-copy", "post-copy failed")
	case libvirt.DomainCrashed:
		return api.InstanceFailed, "crashed"
	}
	why := nameOf(reason, "unknown", "shutdown", "destroyed", "crashed", "migrated", "saved", "failed", "from snapshot", "daemon")
	if why == "crashed" || why == "failed" {
		return api.InstanceFailed, why
	}
	return api.InstanceStopped, why
}

func nameOf(reason int32, names ...string) string {
	if reason < 0 || int(reason) >= len(names) {
		return names[0]
	}
	return names[reason]
}

// addresses asks the machine first and the guest's agent only if it is there.
func (h *Hypervisor) addresses(ctx context.Context, c *conn, f *found) []string {
	if len(f.xml.Devices.Interfaces) == 0 {
		return nil
	}
	sources := []libvirt.DomainInterfaceAddressesSource{libvirt.DomainInterfaceAddressesSrcLease, libvirt.DomainInterfaceAddressesSrcArp}
	if f.xml.agentConnected() && h.agentAnswers(f.xml.UUID) {
		sources = slices.Insert(sources, 0, libvirt.DomainInterfaceAddressesSrcAgent)
	}
	for _, source := range sources {
		var interfaces []libvirt.DomainInterface
		limited, cancel := context.WithTimeout(ctx, agentTimeout)
		err := c.call(limited, func(l *libvirt.Libvirt) (err error) {
			interfaces, err = l.DomainInterfaceAddresses(f.handle, uint32(source), 0)
			return err
		})
		cancel()
		if err != nil && source == libvirt.DomainInterfaceAddressesSrcAgent {
			h.muteAgent(f.xml.UUID)
		}
		if err != nil {
			continue // the call may go on, and still write its answer
		}
		if out := usable(interfaces); len(out) > 0 {
			return out
		}
	}
	return nil
}

// usable keeps what others can reach: no loopback and no link-local address.
// The guest's agent may answer anything: what is kept is an address and no more.
func usable(interfaces []libvirt.DomainInterface) []string {
	var out []string
	for _, i := range interfaces {
		for _, a := range i.Addrs {
			if i.Name == "lo" || len(out) == api.AddressesMax {
				continue
			}
			if ip, ok := routable(a.Addr); ok {
				out = append(out, ip)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (d *domainXML) agentConnected() bool {
	return slices.ContainsFunc(d.Devices.Channels, func(c channelXML) bool {
		return c.Target != nil && c.Target.Name == agentChannel && c.Target.State == "connected"
	})
}

func (h *Hypervisor) agentAnswers(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	m, known := h.mute[id]
	if known && time.Now().After(m.until) {
		delete(h.mute, id)
		return true
	}
	return !known
}

func (h *Hypervisor) muteAgent(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mute[id] = muted{until: time.Now().Add(agentMute)}
}

// routable is the address in its usual form. A zone is free text, and means
// nothing outside the guest.
func routable(address string) (string, bool) {
	ip, err := netip.ParseAddr(address)
	if err != nil || ip.Zone() != "" || ip.IsLoopback() || ip.IsLinkLocalUnicast() {
		return "", false
	}
	return ip.String(), true
}
