package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/rpc"
	"github.com/debvisor/debvisor/fsm"
)

const (
	proposeTimeout = 60 * time.Second       // where the caller's context has no deadline
	proposeTry     = 10 * time.Second       // one attempt, before the leader is looked up again
	proposePause   = 25 * time.Millisecond  // between attempts
	leaderLook     = 200 * time.Millisecond // between two looks at who leads, while the leader does not answer
	enqueueTimeout = time.Second            // for a place in Raft's queue
	leaderAsk      = 500 * time.Millisecond // for one peer's word on who leads
	leaderWait     = 5                      // election timeouts: how long a proposal waits while nobody leads
)

// Propose commits an entry and returns what it did. It may be called on any
// node: this is the one place where entries are forwarded to the leader.
//
// The entry's Time and RequestID are stamped if they are empty. Propose tries
// again under the same request ID through changes of leader, until ctx ends
// (or a minute has passed, where ctx has no deadline). While nobody leads it
// waits as long as elections take, five timeouts of them: then there seems to
// be no majority, and the caller learns that nothing happened, if so, before it
// gives up, or asks another node. A refusal by the state
// machine is in Outcome.Err and not an error of Propose; both are *api.Error.
// CodeUnknown means that the entry may or may not have been carried out: call
// again with the same RequestID to learn it. CodeNoLeader and CodeUnavailable
// mean that it was not.
func (s *Server) Propose(ctx context.Context, e fsm.Entry) (fsm.Outcome, error) {
	if e.Time.IsZero() {
		e.Time = s.stamp()
	}
	if e.RequestID == "" && !s.state.Quiet(e.Op) {
		e.RequestID = uuid.NewString()
	}
	raw, err := e.Encode()
	if err != nil {
		return fsm.Outcome{}, err
	}
	if err := s.mayPropose(&e); err != nil {
		return fsm.Outcome{}, err
	}
	s.proposals.Add(1)
	defer s.proposals.Add(-1)
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, proposeTimeout)
		defer cancel()
	}
	sent := false // an attempt may have reached a log
	here := s.leadersOnly(&e)
	var last error
	var leaderless time.Time // since when; zero: somebody may lead
	for s.founding.Load() && !founds(&e) {
		if !s.pause(ctx) {
			return fsm.Outcome{}, errNoLeader("the first entry of the cluster is not committed yet")
		}
	}
	for {
		outcome, err := s.proposeOnce(ctx, raw, here)
		if err == nil {
			return outcome, nil
		}
		code := api.CodeOf(err)
		switch {
		case code == api.CodeNoLeader && leaderless.IsZero():
			leaderless = time.Now()
		case code == api.CodeNoLeader:
		case code == api.CodeUnknown:
			sent, leaderless = true, time.Time{}
		default:
			return fsm.Outcome{}, err
		}
		last = err
		if here && s.follows() || !leaderless.IsZero() && !founds(&e) && s.noElection(leaderless) || !s.pause(ctx) {
			return fsm.Outcome{}, gaveUp(sent, last)
		}
	}
}

// noElection reports whether nobody has led for longer than electing somebody
// takes.
func (s *Server) noElection(leaderless time.Time) bool {
	return time.Since(leaderless) > leaderWait*s.cfg.Timing.Election
}

// stamp is the time of a new entry. A state that is ahead, because a leader's
// clock was, must not make every entry look like one from long ago.
func (s *Server) stamp() time.Time {
	now := time.Now().UTC()
	if at := s.state.Read().Time(); at.After(now) {
		return at
	}
	return now
}

// founds reports whether an entry begins a new or restored cluster. Nothing may
// come before it: what a restored cluster must not keep, it would take away.
func founds(e *fsm.Entry) bool {
	return e.Op == fsm.InitCluster.Op() || e.Op == fsm.RehomeCluster.Op()
}

func gaveUp(sent bool, last error) error {
	if !sent {
		return last
	}
	return &api.Error{Code: api.CodeUnknown, Message: "the change may or may not have been carried out: " + last.Error(),
		Next: "repeat it with the same request ID; it is carried out once"}
}

// mayPropose refuses what must not reach the log.
func (s *Server) mayPropose(e *fsm.Entry) error {
	if s.draining.Load() {
		return errStopping()
	}
	if err := s.journal.Healthy(); err != nil {
		return err
	}
	return s.state.Check(e)
}

// whenReplaced calls gone once this node knows another leader than the one of
// that ID: a leader that is cut off does not answer, and the next one is there
// long before the attempt's time is over. It looks until stop is called.
func (s *Server) whenReplaced(id string, gone func()) (stop func()) {
	looking, end := context.WithCancel(context.Background())
	var look func()
	look = func() {
		if _, now := s.raft.LeaderWithID(); now != "" && string(now) != id {
			gone()
		} else if looking.Err() == nil {
			time.AfterFunc(leaderLook, look)
		}
	}
	timer := time.AfterFunc(leaderLook, look)
	return func() {
		timer.Stop()
		end()
	}
}

// pause waits a moment before the next attempt, and not at all once ctx ended.
func (s *Server) pause(ctx context.Context) bool {
	select {
	case <-s.stopped:
		return false
	default:
		return waitFor(ctx, proposePause)
	}
}

// proposeOnce makes one attempt: here if this node leads, else at the leader.
// here keeps the entry from being sent.
func (s *Server) proposeOnce(ctx context.Context, raw []byte, here bool) (fsm.Outcome, error) {
	if s.raft.State() == raft.Leader {
		return s.commit(ctx, raw) // without a bound of its own: Raft answers as soon as it no longer leads
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTry)
	defer cancel()
	leader, err := s.findLeader(ctx)
	if err != nil {
		return fsm.Outcome{}, err
	}
	if leader.ID == s.identity.NodeID {
		return s.commit(ctx, raw)
	}
	if here {
		return fsm.Outcome{}, errNoLeader("this node no longer leads")
	}
	client, err := s.peers.to(leader.ID)
	if err != nil {
		return fsm.Outcome{}, err
	}
	defer s.whenReplaced(leader.ID, cancel)()
	answer, err := client.Propose(ctx, &rpc.Propose{Entry: raw[1:], Version: raw[0]})
	if err != nil {
		if _, ok := errors.AsType[*api.Error](err); !ok {
			err = api.Errorf(api.CodeUnknown, "the leader %s did not answer: %v", leader.Name, err)
		}
		return fsm.Outcome{}, err
	}
	var out wireOutcome
	if err := json.Unmarshal(answer.Outcome, &out); err != nil {
		return fsm.Outcome{}, api.Errorf(api.CodeUnknown, "the leader %s answered in an unknown form", leader.Name)
	}
	return out.outcome(), nil
}

// commit appends an entry to the log of this node, the leader, and waits until
// it is applied here.
func (s *Server) commit(ctx context.Context, raw []byte) (fsm.Outcome, error) {
	if err := s.journal.Healthy(); err != nil {
		return fsm.Outcome{}, err
	}
	future := s.raft.Apply(raw, enqueueTimeout)
	if err := s.await(ctx, future); err != nil {
		if lostLeadership(err) {
			return fsm.Outcome{}, errNoLeader("this node does not lead: %v", err)
		}
		return fsm.Outcome{}, api.Errorf(api.CodeUnknown, "the entry was not confirmed: %v", err)
	}
	switch answer := future.Response().(type) {
	case fsm.Outcome:
		return answer, nil
	case error:
		return fsm.Outcome{}, api.Errorf(api.CodeUnknown, "this node stops: %v", answer)
	default:
		return fsm.Outcome{}, fmt.Errorf("the log answered %T", answer) // a bug
	}
}

// findLeader is whom Raft follows, or else whom a peer follows: a node whose
// address has changed is not reached by its leader, and must tell it first.
func (s *Server) findLeader(ctx context.Context) (Peer, error) {
	if leader, ok := s.Leader(); ok {
		return leader, nil
	}
	for _, p := range s.others() {
		client, err := s.peers.to(p.ID)
		if err != nil {
			continue
		}
		call, cancel := context.WithTimeout(ctx, leaderAsk)
		status, err := client.Status(call, &rpc.Hello{Address: s.self})
		cancel()
		if err == nil && status.Leader != "" && status.Leader != s.identity.NodeID {
			return s.peer(status.Leader), nil
		}
		if leader, ok := s.Leader(); ok {
			return leader, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return Peer{}, errNoLeader("nobody leads now")
}

// leaderClient is a client of the leader, which is another node.
func (s *Server) leaderClient(ctx context.Context) (Peer, *rpc.NodeClient, error) {
	leader, err := s.findLeader(ctx)
	if err != nil {
		return leader, nil, err
	}
	client, err := s.peers.to(leader.ID)
	return leader, client, err
}

// wireOutcome is an outcome as it travels. The row does not: the caller's own
// replica will have it.
type wireOutcome struct {
	Index    uint64     `json:"index"`
	Err      *api.Error `json:"err,omitzero"`
	Kind     string     `json:"kind,omitzero"`
	Key      string     `json:"key,omitzero"`
	Replayed bool       `json:"replayed,omitzero"`
}

func (w *wireOutcome) outcome() fsm.Outcome {
	return fsm.Outcome{Index: w.Index, Err: w.Err, Kind: w.Kind, Key: w.Key, Replayed: w.Replayed}
}
