package plugins

import (
	"cmp"
	"context"
	"slices"

	"github.com/debvisor/debvisor/api"
)

// Foreign tells of guests of this machine that debvisor does not manage.
type Foreign interface {
	// ForeignDomains lists the domains that carry no mark of any cluster, in any
	// state, ordered by name, at most api.ForeignMax. Their texts come from whoever
	// made them: no more than what is fit to be shown is kept.
	ForeignDomains(ctx context.Context) (api.ForeignDomains, error)
}

// CleanForeign bounds a listing and the texts in it.
func CleanForeign(all []api.ForeignDomain) api.ForeignDomains {
	out := api.ForeignDomains{Items: []api.ForeignDomain{}, More: len(all) > api.ForeignMax}
	const pathMax = 1024
	text := func(s string) string { return api.CleanText(s, api.NameLengthMax) }
	for _, d := range all[:min(len(all), api.ForeignMax)] {
		kept := api.ForeignDomain{ID: text(d.ID), Name: api.CleanText(d.Name, api.TextLengthMax), State: text(d.State), CPUs: d.CPUs, MemoryBytes: d.MemoryBytes,
			Disks: []api.ForeignDisk{}, NICs: []api.ForeignNIC{}}
		for _, disk := range d.Disks[:min(len(d.Disks), api.DisksMax)] {
			kept.Disks = append(kept.Disks, api.ForeignDisk{Device: text(disk.Device), Path: api.CleanText(disk.Path, pathMax), Format: text(disk.Format)})
		}
		for _, nic := range d.NICs[:min(len(d.NICs), api.NICsMax)] {
			kept.NICs = append(kept.NICs, api.ForeignNIC{MAC: text(nic.MAC), Bridge: text(nic.Bridge)})
		}
		out.Items = append(out.Items, kept)
	}
	return out
}

// SortForeign orders a listing.
func SortForeign(all []api.ForeignDomain) []api.ForeignDomain {
	slices.SortFunc(all, func(a, b api.ForeignDomain) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return all
}
