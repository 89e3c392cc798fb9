package cluster_test

import (
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

func TestTheJournalIsKeptForItsRetentionOnEveryNode(t *testing.T) {
	t.Parallel()
	c := start(t, 2, nil)
	config := *fsm.Configs.Get(c.nodes[0].State().Read(), api.ConfigName)
	config.JournalRetention = 48 * time.Hour
	e, err := fsm.Configs.Put(&config)
	if err != nil {
		t.Fatal(err)
	}
	old := c.must(c.nodes[0], e)
	later := tenant("later")
	later.Time = time.Now().Add(49 * time.Hour).UTC()
	recent := c.must(c.waitLeader(), later) // a leader's clock is believed
	c.must(c.nodes[0], tenant("latest"))    // stamped with the state's time, which is ahead
	c.converged(c.nodes...)
	for _, n := range c.nodes {
		journal := n.Journal()
		if err := journal.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := n.TrimJournal(t.Context(), time.Now()); err != nil || journal.Floor() != 0 {
			t.Fatalf("%s: floor %d %v: a state ahead of the clock cost history", n.name, journal.Floor(), err)
		}
		if err := n.TrimJournal(t.Context(), time.Now().Add(96*time.Hour)); err != nil {
			t.Fatalf("%s: %v", n.name, err)
		}
		if floor := journal.Floor(); floor < old.Index || floor >= recent.Index {
			t.Fatalf("%s: floor %d, want it from %d to below %d", n.name, floor, old.Index, recent.Index)
		}
		if _, err := journal.At(t.Context(), api.KindConfig, api.ConfigName, old.Index-1); api.CodeOf(err) != api.CodeGone {
			t.Errorf("%s: history below the floor: %v", n.name, err)
		}
		if _, err := n.VerifyJournal(t.Context(), nil); err != nil {
			t.Errorf("%s: %v", n.name, err)
		}
	}
}

func TestJournalRetentionHasBounds(t *testing.T) {
	t.Parallel()
	c := start(t, 1, nil)
	for _, wrong := range []time.Duration{-1, time.Hour, 20 * 365 * 24 * time.Hour} {
		config := *fsm.Configs.Get(c.nodes[0].State().Read(), api.ConfigName)
		config.JournalRetention = wrong
		e, err := fsm.Configs.Put(&config)
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.nodes[0].Propose(t.Context(), e)
		if err != nil || out.Err == nil || api.AsError(out.Err).Field != "journal_retention_ns" {
			t.Errorf("%v: got %v, want it refused", wrong, out.Err)
		}
	}
}
