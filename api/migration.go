package api

import "time"

// Limits of a migration.
const (
	DowntimeLimitMSMax     = 60_000
	MigrationBandwidthMin  = 1 * MiB // a second
	MigrationBandwidthMax  = 1 * TiB // a second
	MigrationVolumesMax    = DisksMax
	MigrationDeadline      = 6 * time.Hour          // of a vm.migrate task that names none
	DowntimeLimitMSDefault = 300                    // when the arguments name none
	MigrationPhaseCopying  = "copying the guest"    // steps of the task, for people
	MigrationPhasePrepare  = "preparing the disks"  //
	MigrationPhaseCommit   = "handing the guest on" //
)

// MigrateArgs are the arguments of a vm.migrate task.
type MigrateArgs struct {
	Node              string `json:"node,omitzero"`                // destination; empty: placement chooses
	DowntimeLimitMS   int64  `json:"downtime_limit_ms,omitzero"`   // longest pause that the hypervisor aims at; 0: 300 ms
	BandwidthBytesMax int64  `json:"bandwidth_bytes_max,omitzero"` // a second; 0: no limit
	AutoConverge      bool   `json:"auto_converge,omitzero"`       // slow the guest's CPUs down while it changes memory faster than it is copied
	CopyStorage       bool   `json:"copy_storage,omitzero"`        // copy volumes that only the source sees; without it they are a refusal
}

// Validate reports every argument that is out of bounds.
func (a *MigrateArgs) Validate() error {
	var p problems
	if a.Node != "" {
		p.addErr(CheckName("node", a.Node))
	}
	if a.DowntimeLimitMS < 0 || a.DowntimeLimitMS > DowntimeLimitMSMax {
		p.add("downtime_limit_ms", "is %d", a.DowntimeLimitMS).Allow("1 to %d, or 0 for %d", DowntimeLimitMSMax, DowntimeLimitMSDefault)
	}
	if b := a.BandwidthBytesMax; b != 0 && (b < MigrationBandwidthMin || b > MigrationBandwidthMax) {
		p.add("bandwidth_bytes_max", "is %d", b).Allow("%d to %d bytes a second, or 0 for no limit", MigrationBandwidthMin, MigrationBandwidthMax)
	}
	return p.err()
}

// Migration is the move of an executing guest to another node while it lasts:
// the instance's owner is the source. It ends with the entry that makes To the
// owner, or with one that leaves the guest where it was.
type Migration struct {
	To        string    `json:"to"`
	ToEpoch   uint64    `json:"to_epoch"`
	FromEpoch uint64    `json:"from_epoch"`       // of the owner when it began
	Task      string    `json:"task"`             // that carries it out
	Volumes   []string  `json:"volumes,omitzero"` // IDs of the volumes that are copied along
	Decision  *Decision `json:"decision,omitzero"`
	// FromOff says that the source's machine was confirmed to be off: the VM
	// gets a new place once the destination has let go of what arrived there.
	FromOff   bool      `json:"from_off,omitzero"`
	StartedAt time.Time `json:"started_at"`
}
