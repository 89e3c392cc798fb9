package api

import (
	"encoding/json"
	"strconv"
)

// Operation is one change among several: the op and the body of a log entry
// that users may propose.
type Operation struct {
	Op   string          `json:"op"` // as "vm.put"
	Body json.RawMessage `json:"body"`
}

// Apply asks for several changes at once.
type Apply struct {
	Operations []Operation `json:"operations"`
	// Revisions is what the plan saw: "kind/key" to the revision, 0 for an
	// object that did not exist. The change is refused if one has moved.
	Revisions map[string]uint64 `json:"revisions,omitzero"`
}

// Applied answers an Apply.
type Applied struct {
	Index   uint64 `json:"index"`         // of the entry
	Changed int    `json:"changed"`       // operations that were carried out
	Task    *Task  `json:"task,omitzero"` // a large apply goes on in this task, which is the last of its parts
}

// ApplyPart is the argument of a task of verb TaskApply: one part of a large
// apply. Part n is carried out when all parts exist and part n-1 is done; when
// it fails, the parts after it fail too.
type ApplyPart struct {
	Set         string `json:"set"`  // the same for all parts; part n is the task PartName(Set, n)
	Part        int    `json:"part"` // from 0
	Parts       int    `json:"parts"`
	Key         string `json:"key"`          // API key that asked; the part is refused once it is revoked
	KeyRevision uint64 `json:"key_revision"` // its Modified then
	Apply
}

// PartName is the name of the task that carries out a part of a large apply.
func PartName(set string, part int) string { return set + "-" + strconv.Itoa(part) }

// Secret is a new secret. It is shown once.
type Secret struct {
	Name  string `json:"name"`
	Token string `json:"token,omitzero"` // of a join token
	Key   string `json:"key,omitzero"`   // of an API key
}

// Action answers a verb on a VM.
type Action struct {
	VM   *VM   `json:"vm,omitzero"`
	Task *Task `json:"task,omitzero"` // that carries it out; nil when nothing is left to do but what the VM's row says
}
