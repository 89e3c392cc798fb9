package agent

import (
	"context"
	"io"
)

// Console opens the serial console of the guest of a VM that this node owns,
// with what was kept of its output first if replay is true. It is CodeNotFound
// when this node does not own the VM, CodeConflict when the guest does not
// execute. The caller closes it.
func (a *Agent) Console(ctx context.Context, vmID string, replay bool) (io.ReadWriteCloser, error) {
	if err := a.runsHere(vmID); err != nil {
		return nil, err
	}
	return a.config.Hypervisor.Console(ctx, vmID, replay)
}
