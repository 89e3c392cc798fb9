package control

import (
	"cmp"
	"slices"
	"time"
)

// Times of the membership controller.
const (
	promotionAfter   = 10 * time.Second // healthy and caught up for so long before a node may vote
	promotionSoon    = 2 * time.Second  // the same while fewer than votersSafe vote: one loss would stop the cluster
	replacementAfter = 60 * time.Second // dead for so long before another node votes instead
	orphanAfter      = 10 * time.Second // without a row for so long before a server is removed
	contactMax       = 2 * time.Second  // since the last contact with a healthy server
)

// votersSafe is how many voters survive the loss of one.
const votersSafe = 3

// votersMax is how many servers vote at most, also in between.
const votersMax = 7

// Member is what the choice of voters knows of one node or server.
type Member struct {
	ID      string // of the server
	Zone    string
	Row     bool // it has a row: it is a member of the cluster
	Server  bool // Raft knows it
	Voter   bool // it votes now
	Leader  bool // it is this leader
	Live    bool // its lease holds
	Witness bool
	Healthy bool          // in contact and caught up
	For     time.Duration // it has been healthy, or not, for so long
	Joined  uint64        // log index of its row; breaks ties
}

// dead reports whether nothing will be expected of the member any more.
func (m *Member) dead() bool { return !m.Healthy && m.For >= replacementAfter }

// StepKind is a change of the Raft configuration.
type StepKind int

// The changes that a Step may be.
const (
	StepNone    StepKind = iota
	StepAdd              // a member that Raft does not know becomes a server without a vote
	StepPromote          // a server gets a vote
	StepDemote           // a voter loses its vote
	StepRemove           // a server that is no member goes
)

// Step is one change. Raft can make only one at a time.
type Step struct {
	Kind StepKind
	ID   string
}

// Voters chooses the members that should vote: an odd number, at most wanted,
// spread over the zones. The leader is among them; for the rest, whoever votes
// stays if that is as good. A voter that is dead leaves only for one that is
// ready to take its place, and nobody leaves for the sake of the number while
// somebody may still become ready. Called again with the answer carried out,
// it gives the same answer.
func Voters(members []Member, wanted int) map[string]bool {
	var ready, dead, staying []Member
	prospects := 0
	settled := settleTime(members)
	for _, m := range members {
		switch {
		case !m.Row || !m.Server:
		case m.Leader, m.Voter && !m.dead():
			ready, staying = append(ready, m), append(staying, m)
		case m.Voter:
			dead = append(dead, m)
		case m.Healthy && m.For >= settled:
			ready = append(ready, m)
		case !m.dead():
			prospects++
		}
	}
	sure := odd(min(wanted, votersMax, len(ready)+len(dead)))
	kept := odd(min(wanted, votersMax, len(ready)+len(dead)+prospects))
	c := choice{ids: map[string]bool{}, zones: map[string]int{}}
	c.fill(ready, sure)
	c.fill(dead, sure)
	c.fill(staying, kept)
	return c.ids
}

// settleTime is how long a member must have been healthy before it may vote.
func settleTime(members []Member) time.Duration {
	voters := 0
	for _, m := range members {
		if m.Voter {
			voters++
		}
	}
	if voters < votersSafe {
		return promotionSoon
	}
	return promotionAfter
}

// odd is n, or the number below when n is even: an even number of voters
// tolerates no more losses than the odd one below.
func odd(n int) int {
	if n%2 == 0 {
		return max(0, n-1)
	}
	return n
}

// choice is the voters chosen so far.
type choice struct {
	ids   map[string]bool
	zones map[string]int
}

// fill adds the best of pool until there are count.
func (c *choice) fill(pool []Member, count int) {
	pool = slices.DeleteFunc(slices.Clone(pool), func(m Member) bool { return c.ids[m.ID] })
	for len(c.ids) < count && len(pool) > 0 {
		best := slices.MinFunc(pool, func(a, b Member) int { return compareVoters(a, b, c.zones) })
		c.ids[best.ID] = true
		c.zones[best.Zone]++
		pool = slices.DeleteFunc(pool, func(m Member) bool { return m.ID == best.ID })
	}
}

// compareVoters puts the better next voter first.
func compareVoters(a, b Member, zones map[string]int) int {
	return cmp.Or(
		first(a.Leader, b.Leader),
		cmp.Compare(zones[a.Zone], zones[b.Zone]),
		first(a.Voter, b.Voter),
		first(a.Live, b.Live),
		first(a.Witness, b.Witness), // it is there for nothing else
		cmp.Compare(a.Joined, b.Joined),
		cmp.Compare(a.ID, b.ID),
	)
}

// first orders true before false.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// NextStep is the next change on the way to the chosen voters, or StepNone. It
// never takes one after which fewer healthy voters would be left than a quorum,
// and never demotes or removes the leader.
func NextStep(members []Member, chosen map[string]bool) Step {
	voters := 0
	for _, m := range members {
		if m.Server && m.Voter {
			voters++
		}
	}
	find := func(kind StepKind, match func(m *Member) bool) Step {
		for i := range members {
			if m := &members[i]; match(m) && safe(members, kind, m) {
				return Step{kind, m.ID}
			}
		}
		return Step{}
	}
	steps := []Step{
		find(StepRemove, func(m *Member) bool { return m.Server && !m.Row && !m.Leader && m.For >= orphanAfter }),
		find(StepPromote, func(m *Member) bool {
			return m.Server && m.Row && !m.Voter && m.Healthy && chosen[m.ID] && voters < votersMax
		}),
		find(StepDemote, func(m *Member) bool { return m.Server && m.Row && m.Voter && !m.Leader && !chosen[m.ID] }),
		find(StepAdd, func(m *Member) bool { return m.Row && !m.Server && m.For >= orphanAfter }),
	}
	for _, s := range steps {
		if s.Kind != StepNone {
			return s
		}
	}
	return Step{}
}

// safe reports whether a quorum of healthy voters is left after the change.
func safe(members []Member, kind StepKind, subject *Member) bool {
	voters, healthy := 0, 0
	for i := range members {
		m := &members[i]
		votes := m.Server && m.Voter
		if m.ID == subject.ID {
			votes = kind == StepPromote || votes && kind != StepDemote && kind != StepRemove
		}
		if !votes {
			continue
		}
		voters++
		// A voter without a row was removed: its process ends as soon as it knows.
		if m.Healthy && m.Row || m.Leader {
			healthy++
		}
	}
	return healthy >= voters/2+1
}
