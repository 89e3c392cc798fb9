package agent

import (
	"context"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// guestTimeout bounds one call of a guest's agent.
const guestTimeout = 15 * time.Second

// AskGuest asks the agent inside the guest of a VM that this node owns. It is
// CodeNotFound when this node does not own the VM. What a guest says decides
// nothing.
func (a *Agent) AskGuest(ctx context.Context, vmID string, in api.GuestRequest) (api.GuestAnswer, error) {
	var out api.GuestAnswer
	row := fsm.Instances.Get(a.view(), vmID)
	if a.config.Witness || row == nil || row.Owner != a.config.Name {
		return out, api.Errorf(api.CodeNotFound, "does not run on node %s", a.config.Name).On(api.KindInstance, vmID).Do("ask again: it may have moved")
	}
	guests := a.config.Guests
	if guests == nil {
		return out, api.Errorf(api.CodeConflict, "the hypervisor of node %s does not reach guests' agents", a.config.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, guestTimeout)
	defer cancel()
	var err error
	switch in.Call {
	case "":
		var info api.GuestInfo
		info, err = guests.GuestInfo(ctx, vmID)
		out.Info = &info
	case api.GuestFreeze:
		out.Freezing = &api.GuestFreezing{Limit: in.Limit}
		out.Freezing.Filesystems, err = guests.FreezeGuest(ctx, vmID, in.Limit)
	case api.GuestThaw:
		out.Freezing = &api.GuestFreezing{}
		out.Freezing.Filesystems, err = guests.ThawGuest(ctx, vmID)
	case api.GuestPassword:
		if in.Password == nil {
			return out, api.Invalid("password", "is missing")
		}
		if err := in.Password.Validate(); err != nil {
			return out, err
		}
		err = guests.SetGuestPassword(ctx, vmID, *in.Password)
	case api.GuestTime:
		err = guests.SetGuestTime(ctx, vmID)
	default:
		err = api.Invalid("call", "is %q", api.CleanText(in.Call, api.NameLengthMax))
	}
	if err != nil {
		return api.GuestAnswer{}, api.AsError(err).OnMissing(api.KindVM, row.VM)
	}
	return out, nil
}
