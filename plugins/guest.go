package plugins

import (
	"context"
	"time"

	"github.com/debvisor/debvisor/api"
)

// GuestAgent asks the agent inside an executing guest (qemu-guest-agent). A
// guest that does not execute is CodeConflict; one whose agent is not there, or
// does not answer in time, is CodeUnavailable. What a guest answers is bounded
// and cleaned.
type GuestAgent interface {
	// GuestInfo tells what the agent says of its guest. What it does not know is
	// left out.
	GuestInfo(ctx context.Context, id string) (api.GuestInfo, error)

	// FreezeGuest flushes and freezes the guest's file systems and returns how
	// many. They thaw by ThawGuest, and by themselves after limit, even when this
	// process has been killed. Freezing a frozen guest is CodeConflict.
	FreezeGuest(ctx context.Context, id string, limit time.Duration) (int, error)

	// ThawGuest ends what FreezeGuest did and returns how many file systems were
	// still frozen: 0 says that they had thawed before. Thawing a guest that is
	// not frozen is no error.
	ThawGuest(ctx context.Context, id string) (int, error)

	// SetGuestPassword sets the password of an account. The guest's refusal is
	// CodeInvalid. The password is in no error, log or command line.
	SetGuestPassword(ctx context.Context, id string, set api.GuestPasswordSet) error

	// SetGuestTime sets the guest's clock to this machine's.
	SetGuestTime(ctx context.Context, id string) error
}
