package plugins

import "context"

// Updater changes guests while they execute. Adapters of Hypervisor implement
// it.
type Updater interface {
	// Update makes the executing domain of this ID and Gen what the spec says, as
	// far as that works while it executes, and puts the spec's revision into the
	// mark. The rest is what its Domain then shows as Pending: it happens at the
	// next start, or when the guest lets it (then Unsettled, and Update is to be
	// called again). A disk that the guest boots from is never taken from it.
	//
	// A domain that is unknown is CodeNotFound; one that does not execute, or with
	// another Gen, is CodeConflict. After any other error the revision is the old
	// one, some of the changes may be made, and Update is to be called again.
	Update(ctx context.Context, spec DomainSpec) error
}
