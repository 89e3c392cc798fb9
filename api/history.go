package api

import (
	"encoding/json"
	"time"
)

// HistoryItem is one change of one object.
type HistoryItem struct {
	Index     uint64          `json:"index"`
	Time      time.Time       `json:"time"`
	Op        string          `json:"op"`
	By        string          `json:"by,omitzero"`
	RequestID string          `json:"request_id,omitzero"`
	Action    string          `json:"action"` // create, update or delete
	Before    json.RawMessage `json:"before,omitzero"`
	After     json.RawMessage `json:"after,omitzero"`
}

// Explanation tells in plain sentences why an object is as it is, oldest
// sentence first.
type Explanation struct {
	Kind     string    `json:"kind"`
	Key      string    `json:"key"`
	Index    uint64    `json:"index"` // of the state that it explains
	Summary  string    `json:"summary"`
	Facts    []Fact    `json:"facts"`
	Decision *Decision `json:"decision,omitzero"` // of a VM: why there, or why nowhere
}

// Fact is one sentence of an explanation.
type Fact struct {
	Time  time.Time `json:"time"`
	Index uint64    `json:"index,omitzero"` // of the entry that it tells of; 0: the present
	By    string    `json:"by,omitzero"`
	Text  string    `json:"text"`
}

// Diff is what differs between an object at two indexes.
type Diff struct {
	Kind   string        `json:"kind"`
	Key    string        `json:"key"`
	From   uint64        `json:"from"`
	To     uint64        `json:"to"`
	Action string        `json:"action"` // create, update, delete, or none
	Fields []FieldChange `json:"fields"`
}

// FieldChange is one field before and after; an absent side did not exist.
type FieldChange struct {
	Field  string          `json:"field"` // as "disks[0].size_bytes"
	Before json.RawMessage `json:"before,omitzero"`
	After  json.RawMessage `json:"after,omitzero"`
}

// AuditReport is the progress of a verification of the journal, and with Done
// its result.
type AuditReport struct {
	Records uint64 `json:"records"` // verified so far
	Done    bool   `json:"done,omitzero"`
	First   uint64 `json:"first,omitzero"` // index of the first record
	Last    uint64 `json:"last,omitzero"`  // index of the last record
	Head    Hash   `json:"head,omitzero"`  // hash of the last record
	Error   *Error `json:"error,omitzero"` // names the first bad record
}
