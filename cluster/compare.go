package cluster

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/rpc"
)

const (
	compareEvery   = 30 * time.Second
	compareTimeout = 3 * time.Second // for the answers of all
	compareWait    = time.Second     // of a node that is asked, until it has the index
)

// compareStates compares this node's state with the voters' now and then.
func (s *Server) compareStates(ctx context.Context) {
	for waitFor(ctx, compareEvery) {
		s.compareState(ctx)
	}
}

// compareState asks every other voter for the hash of its state at the index
// of this one. A difference means that Apply was not deterministic, or that a
// memory or disk lied. Every node looks for itself: nobody has to be believed
// but a quorum, and against that a node does not go on.
func (s *Server) compareState(ctx context.Context) {
	view := s.state.Read()
	index, own := view.Index(), view.StateHash()
	if index == 0 {
		return
	}
	votes := s.askHashes(ctx, index)
	quorum := len(s.voters())/2 + 1
	if vote, _ := s.votes(s.identity.NodeID); vote {
		votes[own] = append(votes[own], s.identity.Name)
	}
	for hash, names := range votes {
		if hash != own && len(names) >= quorum {
			s.logger.Error("the state differs from a quorum's", "index", index, "here", own, "there", hash, "voters", names)
			s.end(Fatal{ExitStatus: ExitError, Err: &api.Error{Code: api.CodeInternal,
				Message: fmt.Sprintf("the state of this node at index %d is not that of %s, which are a quorum", index, strings.Join(names, ", ")),
				Next:    "start it once more; if it ends this way again, remove it from the cluster, empty its data directory and join it again"}})
			return
		}
	}
	s.noteDifference(index, own, votes, len(votes[own]) >= quorum)
}

// noteDifference keeps what is to be shown of nodes that differ.
func (s *Server) noteDifference(index uint64, own api.Hash, votes map[api.Hash][]string, confirmed bool) {
	text := ""
	for hash, names := range votes {
		if hash != own {
			text = fmt.Sprintf("the state of %s differs from that of %s at index %d", strings.Join(names, ", "), s.identity.Name, index)
			s.logger.Error("the state differs between nodes", "others", names, "index", index, "here", own, "there", hash)
		}
	}
	s.health.mu.Lock()
	defer s.health.mu.Unlock()
	if text != "" || confirmed {
		s.health.diverged, s.health.doubtful = text, text != "" && !confirmed
	}
}

// askHashes asks the other voters, and returns the names of those that answered
// by their hash.
func (s *Server) askHashes(ctx context.Context, index uint64) map[api.Hash][]string {
	ctx, cancel := context.WithTimeout(ctx, compareTimeout)
	defer cancel()
	var mu sync.Mutex // guards out
	out := map[api.Hash][]string{}
	var asks sync.WaitGroup
	for _, p := range s.others() {
		if vote, _ := s.votes(p.ID); !vote {
			continue
		}
		asks.Go(func() {
			client, err := s.peers.to(p.ID)
			if err != nil {
				return
			}
			answer, err := client.StateHash(ctx, &rpc.Index{Index: index})
			if err != nil || !answer.Known {
				return // it is down, behind, or far ahead: the next round will tell
			}
			mu.Lock()
			defer mu.Unlock()
			out[answer.Hash] = append(out[answer.Hash], p.Name)
		})
	}
	asks.Wait()
	return out
}

// StateHash implements rpc.NodeServer.
func (v service) StateHash(ctx context.Context, in *rpc.Index) (*rpc.StateHash, error) {
	if _, err := v.caller(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, compareWait)
	defer cancel()
	if v.s.state.Wait(ctx, in.Index) != nil {
		return &rpc.StateHash{Index: in.Index}, nil
	}
	hash, known := v.s.state.HashAt(in.Index)
	return &rpc.StateHash{Index: in.Index, Hash: hash, Known: known}, nil
}
