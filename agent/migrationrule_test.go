package agent_test

import (
	"testing"

	"github.com/debvisor/debvisor/agent"
	"github.com/debvisor/debvisor/api"
)

func TestMigrationStep(t *testing.T) {
	t.Parallel()
	migrating := func(change ...func(*api.Migration)) *api.Instance {
		m := &api.Migration{To: "b", ToEpoch: 5, FromEpoch: 3}
		for _, f := range change {
			f(m)
		}
		return &api.Instance{Owner: "a", Gen: 7, Migration: m}
	}
	off := func(m *api.Migration) { m.FromOff = true }
	owned := func(by string, gen uint64) *api.Instance { return &api.Instance{Owner: by, Gen: gen} }
	source := func(lease string, epoch uint64) *api.Node { return &api.Node{Lease: lease, Epoch: epoch} }
	live := source(api.NodeLive, 3)
	for name, test := range map[string]struct {
		part agent.Part
		want string
	}{
		"no instance":                               {agent.Part{Me: "a", Epoch: 3}, "none"},
		"nothing migrates":                          {agent.Part{Me: "a", Epoch: 3, Row: owned("a", 7), Here: true, Gen: 7}, "none"},
		"the source sends":                          {agent.Part{Me: "a", Epoch: 3, Row: migrating(), Source: live, Busy: true, Moving: true, Here: true, Gen: 7}, "wait"},
		"the source was interrupted":                {agent.Part{Me: "a", Epoch: 3, Row: migrating(), Source: live, Moving: true, Here: true, Gen: 7}, "abort"},
		"the source has a new epoch":                {agent.Part{Me: "a", Epoch: 4, Row: migrating(), Source: source(api.NodeLive, 4), Moving: true, Here: true, Gen: 7}, "abort"},
		"the source is not registered":              {agent.Part{Me: "a", Row: migrating(), Source: live, Moving: true, Here: true, Gen: 7}, "wait"},
		"the source was said to be off, and is not": {agent.Part{Me: "a", Epoch: 4, Row: migrating(off), Source: source(api.NodeLive, 4), Moving: true, Here: true, Gen: 7}, "wait"},
		"given up: the source goes on":              {agent.Part{Me: "a", Epoch: 4, Row: owned("a", 7), Moving: true, Here: true, Gen: 7}, "continue"},
		"given up: the guest is dead":               {agent.Part{Me: "a", Epoch: 4, Row: owned("a", 7), Moving: true}, "forget"},
		"given up: another gen is here":             {agent.Part{Me: "a", Epoch: 4, Row: owned("a", 7), Moving: true, Here: true, Gen: 6}, "forget"},
		"given up: nothing was begun":               {agent.Part{Me: "a", Epoch: 4, Row: owned("a", 7), Here: true, Gen: 7}, "none"},
		"committed: the source lets go":             {agent.Part{Me: "a", Epoch: 3, Row: owned("b", 8), Moving: true, Here: true, Gen: 7}, "none"},
		"the destination waits for the source":      {agent.Part{Me: "b", Epoch: 5, Row: migrating(), Source: live}, "wait"},
		"the destination receives":                  {agent.Part{Me: "b", Epoch: 5, Row: migrating(), Source: live, Busy: true, Moving: true, Here: true, Gen: 8}, "wait"},
		"it arrived, nobody has decided":            {agent.Part{Me: "b", Epoch: 5, Row: migrating(), Source: live, Moving: true, Here: true, Gen: 8}, "wait"},
		"the destination was interrupted":           {agent.Part{Me: "b", Epoch: 6, Row: migrating(), Source: live, Moving: true, Here: true, Gen: 8}, "drop"},
		"the destination is not registered":         {agent.Part{Me: "b", Row: migrating(), Source: live, Moving: true, Here: true, Gen: 8}, "wait"},
		"the source is fenced":                      {agent.Part{Me: "b", Epoch: 5, Row: migrating(), Source: source(api.NodeFenced, 3), Moving: true, Here: true, Gen: 8}, "drop"},
		"the source registered anew":                {agent.Part{Me: "b", Epoch: 5, Row: migrating(), Source: source(api.NodeLive, 4), Moving: true, Here: true, Gen: 8}, "drop"},
		"the source is no member":                   {agent.Part{Me: "b", Epoch: 5, Row: migrating(), Moving: true, Here: true, Gen: 8}, "drop"},
		"the source's machine is off":               {agent.Part{Me: "b", Epoch: 5, Row: migrating(off), Source: live, Moving: true, Here: true, Gen: 8}, "drop"},
		"committed: the destination goes on":        {agent.Part{Me: "b", Epoch: 5, Row: owned("b", 8), Moving: true, Here: true, Gen: 8}, "continue"},
		"committed, after a restart":                {agent.Part{Me: "b", Epoch: 6, Row: owned("b", 8), Moving: true, Here: true, Gen: 8}, "continue"},
		"committed: it died on arrival":             {agent.Part{Me: "b", Epoch: 5, Row: owned("b", 8), Moving: true}, "forget"},
		"given up: the destination lets go":         {agent.Part{Me: "b", Epoch: 5, Row: owned("a", 7), Moving: true, Here: true, Gen: 8}, "none"},
		"a third node":                              {agent.Part{Me: "c", Epoch: 9, Row: migrating(), Source: live}, "none"},
	} {
		if got := agent.MigrationStep(test.part); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
}
