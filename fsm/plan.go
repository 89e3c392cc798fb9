package fsm

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/api"
)

// Plan applies entries to a throw-away copy of the state and tells the rows
// that would change. The entries get the indexes that follow the state's own.
// The first refusal ends it and is returned. The view that it returns shows
// the state as it would be, for placement.
func (f *FSM) Plan(entries []Entry) (*api.Plan, *View, error) {
	copied := f.copied()
	before := copied.view()
	b := newBatch(f.registry, copied)
	defer b.txn.Abort()
	plan := &api.Plan{Index: before.Index(), Changes: []api.Change{}, Revisions: map[string]uint64{}}
	merged := &Tx{b: b}
	for i := range entries {
		e := &entries[i]
		if err := f.Check(e); err != nil {
			return nil, nil, err
		}
		cmd := f.registry.commands[e.Op]
		b.sys.Index++
		if e.Time.After(b.sys.Time) {
			b.sys.Time = e.Time.UTC()
		}
		tx := &Tx{Index: b.sys.Index, Time: b.sys.Time, By: e.By, RequestID: e.RequestID, b: b}
		_, refusal, err := cmd.run(tx, e.Body)
		if err != nil {
			return nil, nil, fmt.Errorf("plan %s: %w", e.Op, err)
		}
		if refusal != nil {
			return nil, nil, refusal
		}
		merged.merge(tx.changes)
	}
	plan.Changes = append(plan.Changes, merged.apiChanges()...)
	for _, c := range plan.Changes {
		plan.Revisions[c.Kind+"/"+c.Key] = f.registry.byKind[c.Kind].revisionOf(before, c.Key)
	}
	b.commit()
	return plan, copied.view(), nil
}

// copied is the state as it is now in a store of its own.
func (f *FSM) copied() *generation {
	for {
		gen := f.current.Load()
		db := gen.db.Snapshot()
		if f.current.Load() == gen { // as in Read
			return &generation{db: db, requests: newRequests()}
		}
	}
}

// merge folds the changes of one entry into those before it: the first before
// and the last after of every row.
func (tx *Tx) merge(changes []change) {
	for _, c := range changes {
		if at, ok := tx.changed(c.rowRef); ok {
			tx.changes[at].after = c.after
		} else {
			tx.note(c)
		}
	}
}

// Users reports whether users may propose the op; the others are for
// controllers and agents.
func (f *FSM) Users(op string) bool {
	cmd := f.registry.commands[op]
	return cmd != nil && cmd.users
}

// Agents reports whether agents propose the op, each about its own node.
func (f *FSM) Agents(op string) bool {
	cmd := f.registry.commands[op]
	return cmd != nil && cmd.agents
}

// Ops lists every operation of this binary, sorted.
func Ops() []string {
	return slices.Sorted(maps.Keys(newRegistry().commands))
}

// Known reports whether op is an operation, and the cluster version that it needs.
func (f *FSM) Known(op string) (since uint32, ok bool) {
	cmd := f.registry.commands[op]
	if cmd == nil {
		return 0, false
	}
	return cmd.since, true
}

// Check refuses an entry that Apply here would not understand: one that every
// node would stop at. Whoever proposes calls it first. An op that the active
// cluster version does not allow yet is CodeUnavailable.
func (f *FSM) Check(e *Entry) error {
	return f.registry.check(e, f.Read().ClusterVersion())
}

// check looks into an apply too: its parts are understood or the whole is not.
// Whether they may be parts is for Apply to say.
func (r *registry) check(e *Entry, active uint32) error {
	if err := r.understand(e.Op, e.Body, active); err != nil {
		return err
	}
	if e.Op != opApply {
		return nil
	}
	var in Operations
	if err := decodeStrict(e.Body, &in); err != nil {
		return api.Invalid("body", "of %s is not understood: %v", e.Op, err)
	}
	for i, o := range in.Operations {
		if err := r.understand(o.Op, o.Body, active); err != nil {
			err.Field = strings.TrimSuffix(fmt.Sprintf("operations[%d].%s", i, err.Field), ".")
			return err
		}
	}
	return nil
}

func (r *registry) understand(op string, body []byte, active uint32) *api.Error {
	cmd := r.commands[op]
	if cmd == nil {
		return api.Invalid("op", "%q is no operation of this node", op).Do("upgrade this node if the operation is newer")
	}
	if cmd.since > active {
		return tooNew(op, cmd.since, active)
	}
	if err := cmd.check(body); err != nil {
		return api.Invalid("body", "of %s is not understood: %v", op, err)
	}
	return nil
}

// Quiet reports whether the outcomes of an op are not remembered by request
// ID: repeating it does no harm.
func (f *FSM) Quiet(op string) bool {
	cmd := f.registry.commands[op]
	return cmd != nil && cmd.quiet
}
