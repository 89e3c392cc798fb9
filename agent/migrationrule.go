package agent

import "github.com/debvisor/debvisor/api"

// part is what a node knows of a VM when it asks what to do about a migration.
// The epoch was read before the rows: rows that are as old as a former epoch
// could still be followed by a commit of that epoch.
type part struct {
	me     string
	epoch  uint64        // of this node's registration; 0: none
	row    *api.Instance // nil: there is none
	source *api.Node     // row of the owner; nil: it is no member
	busy   bool          // this process is carrying the migration out, at either end
	moving bool          // the record says that a pause of the guest here may come from a migration
	here   bool          // the guest executes here, paused or not …
	gen    uint64        // … with this gen
}

// step is what a node does about a migration.
type step string

// The steps.
const (
	stepNone     step = "none"     // nothing migrates: go on as with any VM
	stepWait     step = "wait"     // leave everything as it is
	stepAbort    step = "abort"    // give the migration up, in the log
	stepDrop     step = "drop"     // end what arrived here, then give the migration up
	stepContinue step = "continue" // the guest is this node's: let it go on
	stepForget   step = "forget"   // nothing is left of the migration: note that
)

// migrationStep decides from the replicated rows, and from nothing that the
// machine says, who may let the guest go on. It is asked after a restart of the
// agent as well as before.
//
//   - The source gives a migration up that nobody carries out: it began in a
//     former life of the process, and its stream is gone.
//   - The destination ends what arrived once a commit is impossible, that is
//     when an epoch of the two is over or the source's machine is known to be
//     off. As long as a commit is possible it waits: the source decides.
//   - Whoever owns the guest when nothing migrates lets it go on.
func migrationStep(p part) step {
	if p.row == nil {
		return stepNone
	}
	m, mine := p.row.Migration, p.row.Owner == p.me
	switch {
	case p.busy:
		return stepWait
	case m == nil && mine && p.moving:
		if p.here && p.gen == p.row.Gen {
			return stepContinue
		}
		return stepForget
	case m == nil || !mine && m.To != p.me:
		return stepNone
	case p.epoch == 0 || mine && m.FromOff:
		return stepWait
	case mine:
		return stepAbort
	case m.FromOff || m.ToEpoch != p.epoch || p.source == nil || p.source.Lease != api.NodeLive || p.source.Epoch != m.FromEpoch:
		return stepDrop
	}
	return stepWait
}
