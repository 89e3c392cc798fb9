package sim

import (
	"context"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// foreignDrawer holds the guests that others made, by ID.
const foreignDrawer = "foreign"

var _ plugins.Foreign = (*Hypervisor)(nil)

// AddForeign puts a guest on the simulated machine that debvisor does not
// manage.
func (h *Hypervisor) AddForeign(d api.ForeignDomain) error {
	if err := checkID(d.ID); err != nil {
		return err
	}
	records, err := openDrawer(h.config.Dir, foreignDrawer)
	if err != nil {
		return err
	}
	return records.put(d.ID, d)
}

// ForeignDomains implements plugins.Foreign.
func (h *Hypervisor) ForeignDomains(ctx context.Context) (api.ForeignDomains, error) {
	if err := h.usable(ctx); err != nil {
		return api.ForeignDomains{}, err
	}
	records, err := openDrawer(h.config.Dir, foreignDrawer)
	if err != nil {
		return api.ForeignDomains{}, err
	}
	ids, err := records.names()
	if err != nil {
		return api.ForeignDomains{}, err
	}
	var out []api.ForeignDomain
	for _, id := range ids {
		var d api.ForeignDomain
		if err := records.load(id, &d); err != nil {
			return api.ForeignDomains{}, err
		}
		out = append(out, d)
	}
	return plugins.CleanForeign(plugins.SortForeign(out)), nil
}
