package libvirt

import (
	"context"

	"github.com/digitalocean/go-libvirt"
	"golang.org/x/sync/errgroup"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

var _ plugins.Foreign = (*Hypervisor)(nil)

// ForeignDomains implements plugins.Foreign.
func (h *Hypervisor) ForeignDomains(ctx context.Context) (api.ForeignDomains, error) {
	c, err := h.connect(ctx)
	if err != nil {
		return api.ForeignDomains{}, err
	}
	var handles []libvirt.Domain
	err = c.call(ctx, func(l *libvirt.Libvirt) (err error) {
		handles, _, err = l.ConnectListAllDomains(1, 0)
		return err
	})
	if err != nil {
		return api.ForeignDomains{}, err
	}
	all := make([]*api.ForeignDomain, len(handles))
	group, within := errgroup.WithContext(ctx)
	group.SetLimit(readersMax)
	for i, handle := range handles {
		group.Go(func() (err error) {
			all[i], err = h.foreign(within, c, handle)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return api.ForeignDomains{}, err
	}
	var out []api.ForeignDomain
	for _, d := range all {
		if d != nil {
			out = append(out, *d)
		}
	}
	return plugins.CleanForeign(plugins.SortForeign(out)), nil
}

// foreign returns nil for a domain of ours or of another cluster, and for one
// that went away.
func (h *Hypervisor) foreign(ctx context.Context, c *conn, handle libvirt.Domain) (*api.ForeignDomain, error) {
	f := &found{handle: handle}
	if err := h.read(ctx, c, f); err != nil {
		if api.CodeOf(err) == api.CodeNotFound {
			return nil, nil
		}
		return nil, err
	}
	if f.xml.Metadata != nil && f.xml.Metadata.Mark != nil {
		return nil, nil
	}
	state, _ := stateOf(f.state, f.reason)
	is := f.xml.essentials()
	d := &api.ForeignDomain{ID: f.xml.UUID, Name: f.xml.Name, State: state, CPUs: is.CPUs, MemoryBytes: is.MemoryKiB * api.KiB}
	for _, disk := range is.Disks {
		d.Disks = append(d.Disks, api.ForeignDisk{Device: disk.Dev, Path: disk.Path, Format: disk.Format})
	}
	for _, nic := range is.NICs {
		d.NICs = append(d.NICs, api.ForeignNIC{MAC: nic.MAC, Bridge: nic.Bridge})
	}
	return d, nil
}
