package agent

import (
	"context"
	"io"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// Console opens the serial console of the guest of a VM that this node owns,
// with what was kept of its output first if replay is true. It is CodeNotFound
// when this node does not own the VM, CodeConflict when the guest does not
// execute. The caller closes it.
func (a *Agent) Console(ctx context.Context, vmID string, replay bool) (io.ReadWriteCloser, error) {
	if a.config.Witness {
		return nil, api.Errorf(api.CodeConflict, "node %s is a witness and runs no guests", a.config.Name)
	}
	row := fsm.Instances.Get(a.view(), vmID)
	if row == nil || row.Owner != a.config.Name {
		return nil, api.Errorf(api.CodeNotFound, "does not run on node %s", a.config.Name).On(api.KindInstance, vmID).
			Do("ask again: it may have moved")
	}
	return a.config.Hypervisor.Console(ctx, vmID, replay)
}
