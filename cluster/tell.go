package cluster

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// tellDelay is how long the leader waits after a commit before it tells the
// others: while entries keep coming, the next one tells them for nothing.
const tellDelay = 5 * time.Millisecond

// tellCommits tells every node what is committed, once nothing more is on its
// way. Raft does so by polling its followers every commitTimeout, which is
// either late for whoever waits on a follower, or the larger part of what an
// idle cluster costs.
//
// The message is the one that Raft itself would send to a follower that has
// the whole log: an append of no entries after the last committed one. The
// follower takes the index only if it has that very entry, and only from a
// leader of its term.
func (s *Server) tellCommits(ctx context.Context, term uint64) {
	busy := map[string]*atomic.Bool{} // a call to the peer is under way
	var told uint64
	for {
		advanced := s.state.Advanced()
		if commit := s.raft.CommitIndex(); commit > told && commit == s.raft.LastIndex() && s.leadsIn(term) {
			told = commit
			s.tellAll(commit, term, busy)
		}
		select {
		case <-ctx.Done():
			return
		case <-advanced:
		}
		if !waitFor(ctx, tellDelay) {
			return
		}
	}
}

// tellAll does not wait for the answers: a peer that hangs must not keep this
// node from leaving its leadership.
func (s *Server) tellAll(commit, term uint64, busy map[string]*atomic.Bool) {
	var last raft.Log
	if err := s.stores.log.GetLog(commit, &last); err != nil {
		return // compacted; Raft's own polling tells
	}
	request := &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(s.identity.NodeID),
			Addr: s.trans.EncodePeer(raft.ServerID(s.identity.NodeID), raft.ServerAddress(s.self))},
		Term: term, PrevLogEntry: commit, PrevLogTerm: last.Term, LeaderCommitIndex: commit,
	}
	for _, m := range s.raft.GetConfiguration().Configuration().Servers {
		id := string(m.ID)
		if id == s.identity.NodeID || s.health.reason(id) != "" {
			continue
		}
		if busy[id] == nil {
			busy[id] = &atomic.Bool{}
		}
		if flag := busy[id]; flag.CompareAndSwap(false, true) {
			s.wait.Go(func() {
				defer flag.Store(false)
				var answer raft.AppendEntriesResponse
				_ = s.trans.AppendEntries(m.ID, m.Address, request, &answer) // Raft's own polling tells again
			})
		}
	}
}

// reason is why a peer counts as unhealthy; empty when it does not.
func (h *healthTable) reason(id string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.byID[id].Reason
}
