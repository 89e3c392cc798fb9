package control

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// Server is one server of the Raft configuration.
type Server struct {
	ID      string // of the node
	Address string
	Voter   bool
}

// Membership is the Raft configuration of the cluster, as its leader reads and
// changes it. A change returns when it is committed.
type Membership interface {
	Configuration() ([]Server, error)
	AddVoter(ctx context.Context, id, address string) error
	AddNonvoter(ctx context.Context, id, address string) error
	Demote(ctx context.Context, id string) error
	Remove(ctx context.Context, id string) error
	// Healthy tells whether the server's log has caught up with the leader's,
	// and how long ago the leader was last in contact with it.
	Healthy(id string) (caughtUp bool, lastContact time.Duration)
}

// Times of the membership loop.
const (
	membershipPause   = time.Second
	membershipTimeout = 10 * time.Second // of one change
)

// health is since when a member has been as it is.
type health struct {
	healthy, row, server bool
	since                time.Duration
}

// membership is the memory of the loop.
type membership struct {
	c     *Control
	known map[string]health // by server ID
}

func (c *Control) runMembership(ctx context.Context) error {
	m := &membership{c: c, known: map[string]health{}}
	for {
		if err := m.step(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("membership unchanged", "error", err)
		}
		if !wait(ctx, membershipPause, nil) {
			return nil
		}
	}
}

// step makes at most one change of the Raft configuration, and writes down
// which nodes should vote.
func (m *membership) step(ctx context.Context) error {
	servers, err := m.c.membership.Configuration()
	if err != nil {
		return err
	}
	view := m.c.cluster.State().Read()
	members := m.members(view, servers)
	chosen := Voters(members, fsm.Settings(view).Voters)
	for n := range fsm.Nodes.All(view) {
		if n.Voter == chosen[n.ID] {
			continue
		}
		if _, err := m.c.propose(ctx, fsm.SetVoter.Entry(fsm.NodeVoter{Node: n.Name, Voter: chosen[n.ID]})); err != nil {
			return err
		}
	}
	return m.carryOut(ctx, view, NextStep(members, chosen))
}

// members joins the rows of the nodes with the servers that Raft knows.
func (m *membership) members(view *fsm.View, servers []Server) []Member {
	var members []Member
	at := map[string]int{}
	for n := range fsm.Nodes.All(view) {
		at[n.ID] = len(members)
		members = append(members, Member{ID: n.ID, Zone: n.Zone, Row: true, Live: n.Lease == api.NodeLive, Witness: n.Witness,
			Joined: n.Created})
	}
	for _, s := range servers {
		i, ok := at[s.ID]
		if !ok {
			i = len(members)
			members = append(members, Member{ID: s.ID})
		}
		members[i].Server, members[i].Voter = true, s.Voter
	}
	now, known := m.c.clock.Elapsed(), make(map[string]health, len(members))
	for i := range members {
		mem := &members[i]
		if mem.ID == m.c.id {
			mem.Leader, mem.Healthy = true, true
		} else if mem.Server {
			caughtUp, lastContact := m.c.membership.Healthy(mem.ID)
			// A voter that lags is at work; a new one must have caught up.
			mem.Healthy = lastContact <= contactMax && (caughtUp || mem.Voter)
		}
		h := health{mem.Healthy, mem.Row, mem.Server, now}
		if have, ok := m.known[mem.ID]; ok && have.healthy == h.healthy && have.row == h.row && have.server == h.server {
			h.since = have.since
		}
		known[mem.ID] = h
		mem.For = now - h.since
	}
	m.known = known
	slices.SortFunc(members, func(a, b Member) int { return cmp.Or(cmp.Compare(a.Joined, b.Joined), cmp.Compare(a.ID, b.ID)) })
	return members
}

// carryOut makes one change.
func (m *membership) carryOut(ctx context.Context, view *fsm.View, s Step) error {
	ctx, cancel := context.WithTimeout(ctx, membershipTimeout)
	defer cancel()
	var node api.Node
	for n := range fsm.Nodes.By(view, "id_of", s.ID) {
		node = *n
	}
	var err error
	switch s.Kind {
	case StepNone:
		return nil
	case StepAdd:
		err = m.c.membership.AddNonvoter(ctx, s.ID, node.Address)
	case StepPromote:
		err = m.c.membership.AddVoter(ctx, s.ID, node.Address)
	case StepDemote:
		err = m.c.membership.Demote(ctx, s.ID)
	case StepRemove:
		err = m.c.membership.Remove(ctx, s.ID)
	}
	if err != nil {
		return err
	}
	m.c.log.Info("membership changed", "change", s.Kind.String(), "node", node.Name, "id", s.ID)
	return nil
}

// String names the change, for logs.
func (k StepKind) String() string {
	switch k {
	case StepAdd:
		return "added"
	case StepPromote:
		return "votes"
	case StepDemote:
		return "votes no longer"
	case StepRemove:
		return "removed"
	}
	return "nothing"
}
