package agent

import (
	"context"
	"io"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// Display connects to the display of the guest of a VM that this node owns:
// RFB without authentication. Errors as for Console; the caller closes it.
func (a *Agent) Display(ctx context.Context, vmID string) (io.ReadWriteCloser, error) {
	if err := a.shows(vmID); err != nil {
		return nil, err
	}
	return a.config.Screens.OpenDisplay(ctx, vmID)
}

// Screenshot is the display of the guest of a VM that this node owns, as a PNG
// file. Errors as for Console.
func (a *Agent) Screenshot(ctx context.Context, vmID string) ([]byte, error) {
	if err := a.shows(vmID); err != nil {
		return nil, err
	}
	return a.config.Screens.Screenshot(ctx, vmID)
}

func (a *Agent) shows(vmID string) error {
	if err := a.runsHere(vmID); err != nil {
		return err
	}
	if a.config.Screens == nil {
		return api.Errorf(api.CodeConflict, "the hypervisor of node %s shows no displays", a.config.Name)
	}
	return nil
}

// runsHere refuses what is asked of a VM that another node owns.
func (a *Agent) runsHere(vmID string) error {
	if a.config.Witness {
		return api.Errorf(api.CodeConflict, "node %s is a witness and runs no guests", a.config.Name)
	}
	row := fsm.Instances.Get(a.view(), vmID)
	if row == nil || row.Owner != a.config.Name {
		return api.Errorf(api.CodeNotFound, "does not run on node %s", a.config.Name).On(api.KindInstance, vmID).
			Do("ask again: it may have moved")
	}
	return nil
}
