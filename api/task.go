package api

import (
	"encoding/json"
	"time"
)

// The states of a task. The last three are ends; nothing follows them.
const (
	TaskPending   = "pending" // waits for a node
	TaskRunning   = "running" // written to a node at an epoch
	TaskDone      = "done"
	TaskFailed    = "failed"
	TaskCancelled = "cancelled"
)

// Verbs that a task may carry. TaskVerbs says what each is about.
const (
	TaskRestart = "vm.restart" // stop and start the guest; args: {"force": bool}
	TaskStop    = "vm.stop"    // force the guest off now; the VM's power is set to off in the same entry
	TaskApply   = "apply"      // the rest of a large apply
	TaskMigrate = "vm.migrate" // move the executing guest to another node; args: MigrateArgs
	TaskDrain   = "node.drain" // live-migrate every running VM away; args: DrainArgs. The node takes no new VMs from the same entry on
	TaskBalance = "balance"    // carry out proposed moves; args: BalanceArgs

	TaskSnapshot       = "vm.snapshot"        // args: SnapshotArgs
	TaskSnapshotRevert = "vm.snapshot.revert" // args: SnapshotRevertArgs
	TaskSnapshotDelete = "vm.snapshot.delete" // args: SnapshotDeleteArgs
	TaskFetch          = "image.fetch"        // fetch an image from its URL; args: {"node": "NAME"}, or none
	TaskTemplate       = "vm.template"        // make an image of a disk; args: TemplateArgs

	TaskMoveVolume = "volume.move" // copy it to another pool, under its guest if one runs; args: VolumeMove
)

// Limits of tasks.
const (
	TaskAttemptsMax     = 10
	TaskDeadlineMax     = 24 * time.Hour
	TaskDefaultDeadline = 10 * time.Minute
	TaskArgsMax         = 128 << 10
	TasksActiveMax      = 10000 // that have not ended
)

// Task is something asked for once. It always reaches an end: the leader fails
// it when its deadline passes.
type Task struct {
	Meta
	Verb      string          `json:"verb"`
	Kind      string          `json:"kind,omitzero"`   // of the object that it is about
	Object    string          `json:"object,omitzero"` // its key
	Args      json.RawMessage `json:"args,omitzero"`
	By        string          `json:"by,omitzero"`
	Deadline  time.Time       `json:"deadline"`
	State     string          `json:"state"`
	Node      string          `json:"node,omitzero"`  // who does it; empty with a running task: the leader
	Epoch     uint64          `json:"epoch,omitzero"` // of that node, or the Raft term of the leader
	Attempt   int             `json:"attempt,omitzero"`
	NotBefore time.Time       `json:"not_before,omitzero"` // backoff after a failed attempt
	Percent   int             `json:"percent,omitzero"`    // 0 to 100
	Step      string          `json:"step,omitzero"`       // what it does now, for people
	Cancel    bool            `json:"cancel,omitzero"`     // cancellation was asked for
	Error     *Error          `json:"error,omitzero"`
	Decision  *Decision       `json:"decision,omitzero"` // where to, of a vm.migrate: made by the leader at each dispatch
	StartedAt time.Time       `json:"started_at,omitzero"`
	EndedAt   time.Time       `json:"ended_at,omitzero"`
}

// Ended reports whether the task reached an end state.
func (t *Task) Ended() bool {
	return t.State == TaskDone || t.State == TaskFailed || t.State == TaskCancelled
}

// Validate implements Object.
func (t *Task) Validate() error {
	var p problems
	if _, known := LookupTaskVerb(t.Verb); !known {
		p.add("verb", "is %q", t.Verb).Allow("%s", joinWords(taskVerbNames()))
	}
	checkOneOf(&p, "state", t.State, TaskPending, TaskRunning, TaskDone, TaskFailed, TaskCancelled)
	if len(t.Args) > TaskArgsMax {
		p.add("args", "has %d bytes", len(t.Args)).Allow("at most %d", TaskArgsMax)
	}
	if t.Percent < 0 || t.Percent > 100 {
		p.add("percent", "is %d", t.Percent).Allow("0 to 100")
	}
	checkText(&p, "step", t.Step, TextLengthMax)
	return p.err()
}
