package api

import "time"

// The states of an instance.
const (
	InstancePending  = "pending"  // no node owns it: see Decision for why
	InstanceAssigned = "assigned" // a node owns it and has not reported yet
	InstanceStarting = "starting"
	InstanceRunning  = "running"
	InstancePaused   = "paused"
	InstanceStopped  = "stopped" // owned, defined or not, and not executing
	InstanceFailed   = "failed"  // its node tried and gave a reason
)

// AddressesMax is how many addresses of a guest are kept.
const AddressesMax = 32

// PendingMax is how many edits that wait are kept.
const PendingMax = 32

// Instance is what became of a VM: who owns it and what that node reports.
// It is keyed by the VM's ID and written by transitions only. Owner, Gen,
// Decision and SnapshotSlot are the leader's, GuestCall is that of whoever makes
// the call; the rest is the owning node's.
type Instance struct {
	Meta                 // Name is the VM's ID
	VM         string    `json:"vm"`                   // key of the VM, tenant/name
	Gen        uint64    `json:"gen,omitzero"`         // grows with every assignment; a fencing token
	Owner      string    `json:"owner,omitzero"`       // name of the node that may run it
	OwnerEpoch uint64    `json:"owner_epoch,omitzero"` // the owner's epoch at assignment
	Decision   *Decision `json:"decision,omitzero"`    // why there, or why nowhere
	AssignedAt time.Time `json:"assigned_at,omitzero"`

	State         string    `json:"state"`
	Reason        string    `json:"reason,omitzero"`
	StartedAt     time.Time `json:"started_at,omitzero"`
	ReportedAt    time.Time `json:"reported_at,omitzero"`
	Addresses     []string  `json:"addresses,omitzero"`
	Acceleration  string    `json:"acceleration,omitzero"` // kvm, tcg or none
	Simulated     bool      `json:"simulated,omitzero"`
	SpecRevision  uint64    `json:"spec_revision,omitzero"`  // VM revision that the running guest was started from
	Drift         []string  `json:"drift,omitzero"`          // what differs from the tables, and what happens about it
	Pending       []string  `json:"pending,omitzero"`        // edits of the VM that wait for the guest's next start, or for the guest
	Restarts      uint64    `json:"restarts,omitzero"`       // starts by the agent after the guest ended by itself
	RestartedTask string    `json:"restarted_task,omitzero"` // last restart task that was carried out

	Migration     *Migration `json:"migration,omitzero"`      // nil: it does not move
	MigrationNote string     `json:"migration_note,omitzero"` // why the last one was given up; empty once one succeeded

	SnapshotSlot time.Time  `json:"snapshot_slot,omitzero"` // last slot of the VM's schedule of snapshots that fired
	GuestCall    *GuestCall `json:"guest_call,omitzero"`    // last thing that somebody did through the guest's agent
}

// Validate implements Object.
func (i *Instance) Validate() error {
	var p problems
	checkOneOf(&p, "state", i.State, InstancePending, InstanceAssigned, InstanceStarting, InstanceRunning, InstancePaused, InstanceStopped, InstanceFailed)
	checkText(&p, "reason", i.Reason, TextLengthMax)
	if len(i.Addresses) > AddressesMax {
		p.add("addresses", "has %d", len(i.Addresses)).Allow("at most %d", AddressesMax)
	}
	if len(i.Drift) > AddressesMax {
		p.add("drift", "has %d", len(i.Drift)).Allow("at most %d", AddressesMax)
	}
	if len(i.Pending) > PendingMax {
		p.add("pending", "has %d", len(i.Pending)).Allow("at most %d", PendingMax)
	}
	return p.err()
}

// Decision explains a placement.
type Decision struct {
	Node       string      `json:"node,omitzero"` // empty: none fits
	Strategy   string      `json:"strategy,omitzero"`
	Summary    string      `json:"summary"`             // one sentence for people
	Candidates []Candidate `json:"candidates,omitzero"` // best first, at most CandidatesMax
	Considered int         `json:"considered,omitzero"` // nodes looked at in all
	At         time.Time   `json:"at,omitzero"`
}

// CandidatesMax is how many candidates a decision keeps.
const CandidatesMax = 16

// Candidate is one node that placement looked at.
type Candidate struct {
	Node    string   `json:"node"`
	Fits    bool     `json:"fits"`
	Score   float64  `json:"score,omitzero"`   // 0 to 1; meaningless unless it fits
	Reasons []string `json:"reasons,omitzero"` // why not, or what made the score
}
