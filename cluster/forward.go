package cluster

import (
	"encoding/json"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// authorize decides whether the node that forwards an entry may propose it.
// What users do needs the credential that they showed, and Apply checks it
// again; what an agent reports must be about the agent's own node; everything
// else is for the leader's own loops, and never comes from elsewhere. The node
// is the one in the certificate of the connection.
func (s *Server) authorize(e *fsm.Entry, from Peer) error {
	row := nodeRow(s.state.Read(), from.ID)
	switch {
	case row == nil && !s.IsLeader():
		return errNoLeader("this node does not lead yet")
	case row == nil:
		return api.Errorf(api.CodeForbidden, "is not a member").On(api.KindNode, from.ID)
	case s.state.Users(e.Op):
		return authorizeUser(e)
	}
	if !s.state.Agents(e.Op) {
		return forbiddenEntry(e, "is proposed by the leader only")
	}
	return authorizeAgent(e, row)
}

func authorizeUser(e *fsm.Entry) error {
	if e.Auth == nil || e.Auth.Key == "" {
		return forbiddenEntry(e, "needs the key of a user")
	}
	if e.By != "key:"+e.Auth.Key {
		return forbiddenEntry(e, "names another principal than its key")
	}
	return nil
}

func authorizeAgent(e *fsm.Entry, row *api.Node) error {
	if e.Auth != nil || e.By != "node:"+row.Name {
		return forbiddenEntry(e, "is not in the name of node "+row.Name)
	}
	var about struct {
		ID   string `json:"id"`   // node.register
		Node string `json:"node"` // the others
	}
	if err := json.Unmarshal(e.Body, &about); err != nil {
		return forbiddenEntry(e, "does not say which node it is about")
	}
	own := about.Node == row.Name
	if e.Op == fsm.RegisterNode.Op() {
		own = about.ID == row.ID
	}
	if !own {
		return forbiddenEntry(e, "is about another node than "+row.Name)
	}
	return nil
}

func forbiddenEntry(e *fsm.Entry, why string) *api.Error {
	return api.Errorf(api.CodeForbidden, "a forwarded %s %s", e.Op, why).Do("look at the log of the node that sent it: its program is too old, or not ours")
}

// aheadMax is how far the clock of a node that forwards may be ahead of the
// leader's. The state's clock never goes back, so one wrong clock, or one node
// that lies, would let every key and token of the cluster expire.
const aheadMax = 2 * time.Second

// clamp takes back the time of a forwarded entry that is ahead, and returns the
// entry's encoding.
func (s *Server) clamp(e *fsm.Entry, raw []byte) ([]byte, error) {
	if limit := s.stamp().Add(aheadMax); !e.Time.After(limit) {
		return raw, nil
	}
	e.Time = s.stamp()
	return e.Encode()
}

// leadersOnly reports whether only a leader may propose the entry, for itself.
// What its loops propose after they lost the lead is not sent on: the next
// leader computes it anew, and would refuse it.
func (s *Server) leadersOnly(e *fsm.Entry) bool {
	if s.state.Users(e.Op) {
		return e.Auth == nil
	}
	return !s.state.Agents(e.Op)
}

// follows reports whether this node knows of another that leads.
func (s *Server) follows() bool {
	leader, ok := s.Leader()
	return ok && leader.ID != s.identity.NodeID
}
