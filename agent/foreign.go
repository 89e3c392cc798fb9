package agent

import (
	"context"

	"github.com/debvisor/debvisor/api"
)

// ForeignDomains lists the guests of this machine that debvisor does not
// manage.
func (a *Agent) ForeignDomains(ctx context.Context) (api.ForeignDomains, error) {
	if a.config.Foreign == nil {
		return api.ForeignDomains{}, api.Errorf(api.CodeUnavailable, "runs no guests").On(api.KindNode, a.config.Name)
	}
	within, cancel := context.WithTimeout(ctx, actTimeout)
	defer cancel()
	return a.config.Foreign.ForeignDomains(within)
}
