package api

import (
	"strings"
	"time"
)

// The states of a snapshot.
const (
	SnapshotCreating = "creating" // its task has not ended
	SnapshotReady    = "ready"
	SnapshotDeleting = "deleting" // its task has not ended
	SnapshotFailed   = "failed"   // it cannot be reverted to, only deleted: see Reason
)

// Why a snapshot was made.
const (
	SnapshotByUser     = "user"
	SnapshotBySchedule = "schedule"
	SnapshotBySafety   = "safety" // before a revert
)

// Limits of snapshots.
const (
	SnapshotsPerVMMax  = 64
	SnapshotMachineMax = 64 << 10
)

// Snapshot is a state of a VM that it can be put back to: its disks, what it
// was configured as, and for some its memory. Name is that of the VM and its own,
// joined by a dot. The snapshots of a VM are a tree: Parent is the one that the
// VM descended from when this one was taken.
type Snapshot struct {
	Meta                        // Name is SnapshotName(VM, its own)
	VM           string         `json:"vm"`                     // name, in the same tenant
	VMID         string         `json:"vm_id"`                  // survives a rename of the VM
	Parent       string         `json:"parent,omitzero"`        // own name of a snapshot of the same VM
	Current      bool           `json:"current,omitzero"`       // the VM descends from it: it was taken or reverted to last
	Memory       bool           `json:"memory,omitzero"`        // a revert continues the guest where it was
	Quiesced     bool           `json:"quiesced,omitzero"`      // the guest's agent had frozen its file systems
	Why          string         `json:"why"`                    // user, schedule or safety
	By           string         `json:"by,omitzero"`            // who asked for it
	Slot         time.Time      `json:"slot,omitzero"`          // of the schedule
	TakenAt      time.Time      `json:"taken_at,omitzero"`      // when it was ready
	State        string         `json:"state"`                  //
	Reason       string         `json:"reason,omitzero"`        // why it failed, or is less than was asked for
	Task         string         `json:"task,omitzero"`          // that makes or deletes it
	RestoredTask string         `json:"restored_task,omitzero"` // last task that put the VM's definition back to this one
	SizeBytes    int64          `json:"size_bytes,omitzero"`    // of the memory; what disks share with it cannot be told apart
	Disks        []SnapshotDisk `json:"disks,omitzero"`
	Definition   *VM            `json:"definition,omitzero"` // the VM at that time
	Machine      string         `json:"machine,omitzero"`    // with memory: the hypervisor's own description of the guest
}

// SnapshotDisk is one disk that a snapshot holds.
type SnapshotDisk struct {
	Name      string `json:"name"`
	Volume    string `json:"volume"` // name
	VolumeID  string `json:"volume_id"`
	SizeBytes int64  `json:"size_bytes,omitzero"` // as the volume says; 0: that of its image
}

// SnapshotName is the name of a snapshot among those of its tenant.
func SnapshotName(vm, own string) string { return vm + "." + own }

// OwnName is the snapshot's name among those of its VM.
func (s *Snapshot) OwnName() string {
	_, own, _ := strings.Cut(s.Name, ".")
	return own
}

// Validate implements Object.
func (s *Snapshot) Validate() error {
	var p problems
	p.addErr(CheckName("tenant", s.Tenant))
	p.addErr(CheckName("vm", s.VM))
	p.addErr(CheckName("name", s.OwnName()))
	checkOneOf(&p, "state", s.State, SnapshotCreating, SnapshotReady, SnapshotDeleting, SnapshotFailed)
	checkOneOf(&p, "why", s.Why, SnapshotByUser, SnapshotBySchedule, SnapshotBySafety)
	checkText(&p, "reason", s.Reason, TextLengthMax)
	if len(s.Disks) > DisksMax {
		p.add("disks", "has %d", len(s.Disks)).Allow("at most %d", DisksMax)
	}
	if len(s.Machine) > SnapshotMachineMax {
		p.add("machine", "has %d bytes", len(s.Machine)).Allow("at most %d", SnapshotMachineMax)
	}
	return p.err()
}

// SnapshotArgs are the arguments of TaskSnapshot.
type SnapshotArgs struct {
	Name    string    `json:"name"`             // its own
	Memory  bool      `json:"memory,omitzero"`  // of a running guest
	Quiesce bool      `json:"quiesce,omitzero"` // let the guest's agent freeze its file systems meanwhile
	Slot    time.Time `json:"slot,omitzero"`    // of a schedule, which takes less than Memory or Quiesce rather than nothing
}

// SnapshotRevertArgs are the arguments of TaskSnapshotRevert.
type SnapshotRevertArgs struct {
	Name   string `json:"name"`            // own name of the snapshot
	Safety string `json:"safety,omitzero"` // own name of a snapshot that is taken before; empty: none
}

// SnapshotDeleteArgs are the arguments of TaskSnapshotDelete.
type SnapshotDeleteArgs struct {
	Name string `json:"name"` // own name of the snapshot
}
