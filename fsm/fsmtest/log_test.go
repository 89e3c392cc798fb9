package fsmtest_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/fsm/fsmtest"
)

// drawn takes a generator's choices from rapid.
type drawn struct{ t *rapid.T }

func (d drawn) IntN(n int) int { return rapid.IntRange(0, n-1).Draw(d.t, "n") }

func newGenerator(tb interface{ Fatal(...any) }, source fsmtest.Source) *fsmtest.Generator {
	g, err := fsmtest.NewGenerator(source)
	if err != nil {
		tb.Fatal(err)
	}
	return g
}

// seeded is a source of choices that is the same for the same seed.
func seeded(seed uint64) fsmtest.Source { return rand.New(rand.NewPCG(seed, 0)) }

// grow makes a log of n entries, with every check after each of them.
func grow(t interface{ Fatal(...any) }, g *fsmtest.Generator, n int, checks func(m *fsmtest.Machine, before *fsm.View, e fsm.Entry, out fsm.Outcome, y *fsm.Yield)) *fsmtest.Machine {
	m := fsmtest.NewMachine()
	for i := range n {
		before := m.FSM.Read()
		e := g.First()
		if i > 0 {
			e = g.Next(before)
		}
		out, y, err := m.Append(e)
		if err != nil {
			t.Fatal(err)
		}
		if checks != nil {
			checks(m, before, e, out, y)
		}
	}
	return m
}

// TestRandomLogsKeepEveryPromise is a few long logs; together they must have
// met every operation both carried out and refused.
func TestRandomLogsKeepEveryPromise(t *testing.T) {
	t.Parallel()
	const logs, long = 14, 900
	accepted, refused := map[string]int{}, map[string]int{}
	for seed := range uint64(logs) {
		grow(t, newGenerator(t, seeded(seed)), long, func(m *fsmtest.Machine, before *fsm.View, e fsm.Entry, out fsm.Outcome, y *fsm.Yield) {
			if out.Err == nil {
				accepted[e.Op]++
			} else {
				refused[e.Op]++
			}
			if err := check(m, before, e, out, y); err != nil {
				t.Fatalf("seed %d, entry %d, %s %s: %v", seed, m.FSM.Index(), e.Op, e.Body, err)
			}
		})
	}
	never := map[string]bool{ // by their nature
		"accepted " + fsm.ActivateVersion.Op():       true, // there is one version only
		"accepted " + fsm.Configs.Kind() + ".delete": true,
		"refused " + fsm.RenewNodes.Op():             true, // what does not hold is passed over
	}
	for _, op := range fsm.Ops() {
		if accepted[op] == 0 && !never["accepted "+op] {
			t.Errorf("%s was never accepted (refused %d times): the log is blind for it", op, refused[op])
		}
		if refused[op] == 0 && !never["refused "+op] {
			t.Errorf("%s was never refused (accepted %d times): the log is blind for it", op, accepted[op])
		}
	}
}

// check is every check that holds for each entry.
func check(m *fsmtest.Machine, before *fsm.View, e fsm.Entry, out fsm.Outcome, y *fsm.Yield) error {
	after := m.FSM.Read()
	if err := fsmtest.CheckRows(before); err != nil {
		return err
	}
	if err := fsmtest.CheckStep(before, after, out.Err != nil || out.Replayed); err != nil {
		return err
	}
	if err := fsmtest.CheckState(after); err != nil {
		return err
	}
	return checkRecord(before, after, e, out, y)
}

// checkRecord: the record says what happened, and its chain verifies.
func checkRecord(before, after *fsm.View, e fsm.Entry, out fsm.Outcome, y *fsm.Yield) error {
	if y == nil {
		if e.Op != fsm.RenewNodes.Op() && !out.Replayed {
			return errors.New("left no record")
		}
		if before.Chain() != after.Chain() {
			return errors.New("the chain grew without a record")
		}
		return nil
	}
	switch got := y.Record.Chain(before.Chain()); {
	case got != y.Record.Hash || got != after.Chain():
		return errors.New("the chain does not verify")
	case !bytes.Equal(y.Canonical, y.Record.Canonical()):
		return errors.New("the canonical encoding is another one")
	case (y.Record.Code == "") != (out.Err == nil):
		return errors.New("the record and the outcome disagree")
	}
	return checkChanges(before, after, y.Record.Changes)
}

// checkChanges: the changes of a record lead from the state before to the one after.
func checkChanges(before, after *fsm.View, changes []api.Change) error {
	state := map[string]string{}
	for _, r := range fsmtest.Rows(before) {
		state[r.Kind+"/"+r.Key] = string(r.JSON)
	}
	for _, c := range changes {
		at := c.Kind + "/" + c.Key
		if state[at] != string(c.Before) {
			return errors.New("the record says that " + at + " was " + string(c.Before))
		}
		if state[at] = string(c.After); c.After == nil {
			delete(state, at)
		}
	}
	want := map[string]string{}
	for _, r := range fsmtest.Rows(after) {
		want[r.Kind+"/"+r.Key] = string(r.JSON)
	}
	if diff := cmp.Diff(want, state); diff != "" {
		return errors.New("the record's changes lead elsewhere: " + diff)
	}
	return nil
}

func TestShortRandomLogsKeepEveryPromise(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		grow(t, newGenerator(t, drawn{t}), rapid.IntRange(1, 60).Draw(t, "entries"), func(m *fsmtest.Machine, before *fsm.View, e fsm.Entry, out fsm.Outcome, y *fsm.Yield) {
			if err := check(m, before, e, out, y); err != nil {
				t.Fatalf("entry %d, %s %s: %v", m.FSM.Index(), e.Op, e.Body, err)
			}
		})
	})
}

// TestBatchingDoesNotMatter applies one log in two ways.
func TestBatchingDoesNotMatter(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := grow(t, newGenerator(t, seeded(rapid.Uint64().Draw(t, "seed"))), 120, nil)
		f, records := fsm.New(), []fsm.Yield{}
		for rest := m.Log; len(rest) > 0; {
			n := rapid.IntRange(1, min(64, len(rest))).Draw(t, "batch")
			_, yields, err := f.ApplyBatch(rest[:n])
			if err != nil {
				t.Fatal(err)
			}
			records, rest = append(records, yields...), rest[n:]
		}
		same(t, m.FSM, f)
		all, ok := m.FSM.Recent(0, len(m.Log))
		if !ok || len(all) != len(records) {
			t.Fatalf("got %d records, want %d", len(records), len(all))
		}
		for i := range all {
			if all[i].Hash != records[i].Record.Hash {
				t.Fatalf("record %d differs", all[i].Index)
			}
		}
		for i := range m.Log {
			a, _ := m.FSM.HashAt(uint64(i + 1))
			if b, ok := f.HashAt(uint64(i + 1)); !ok || a != b {
				t.Fatalf("the state hashes at %d differ", i+1)
			}
		}
	})
}

func same(t interface{ Fatalf(string, ...any) }, a, b *fsm.FSM) {
	x, y := a.Read(), b.Read()
	if x.Index() != y.Index() || x.Chain() != y.Chain() || x.StateHash() != y.StateHash() || !x.Time().Equal(y.Time()) {
		t.Fatalf("the states differ: index %d and %d, chain %v and %v, rows %v and %v", x.Index(), y.Index(), x.Chain(), y.Chain(), x.StateHash(), y.StateHash())
	}
}

// TestSnapshotAnywhereChangesNothing restores at a random entry and goes on.
func TestSnapshotAnywhereChangesNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := grow(t, newGenerator(t, seeded(rapid.Uint64().Draw(t, "seed"))), 120, nil)
		cut := rapid.IntRange(0, len(m.Log)).Draw(t, "cut")
		f := fsm.New()
		if cut > 0 {
			if _, _, err := f.ApplyBatch(m.Log[:cut]); err != nil {
				t.Fatal(err)
			}
		}
		var first, second bytes.Buffer
		if _, err := f.Snapshot().WriteTo(&first); err != nil {
			t.Fatal(err)
		}
		g := fsm.New()
		if err := g.Restore(bytes.NewReader(first.Bytes())); err != nil {
			t.Fatal(err)
		}
		same(t, f, g)
		if _, err := g.Snapshot().WriteTo(&second); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first.Bytes(), second.Bytes()) {
			t.Fatal("a restored state gives another snapshot")
		}
		if cut < len(m.Log) {
			if _, _, err := g.ApplyBatch(m.Log[cut:]); err != nil {
				t.Fatal(err)
			}
		}
		same(t, m.FSM, g)
	})
}

// TestPlanTellsWhatApplyDoes plans every entry before it is applied.
func TestPlanTellsWhatApplyDoes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		g, m := newGenerator(t, seeded(rapid.Uint64().Draw(t, "seed"))), fsmtest.NewMachine()
		for i := range 60 {
			e := g.First()
			if i > 0 {
				e = g.Next(m.FSM.Read())
			}
			e.Auth, e.RequestID = nil, "" // what a plan does not look at
			hash := m.FSM.Read().StateHash()
			plan, view, refusal := m.FSM.Plan([]fsm.Entry{e})
			if m.FSM.Read().StateHash() != hash {
				t.Fatalf("planning %s changed the state", e.Op)
			}
			out, y, err := m.Append(e)
			if err != nil {
				t.Fatal(err)
			}
			if refusal != nil || out.Err != nil {
				if refusal == nil || out.Err == nil || refusal.Error() != out.Err.Error() {
					t.Fatalf("%s: planned %v, got %v", e.Op, refusal, out.Err)
				}
				continue
			}
			if view.StateHash() != m.FSM.Read().StateHash() {
				t.Fatalf("%s: the plan leads to another state", e.Op)
			}
			if y != nil {
				if diff := cmp.Diff(append([]api.Change{}, y.Record.Changes...), plan.Changes); diff != "" {
					t.Fatalf("%s: the plan differs from the record: %s", e.Op, diff)
				}
			}
		}
	})
}
