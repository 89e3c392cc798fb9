package cluster

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/rpc"
	"github.com/debvisor/debvisor/fsm"
)

// RotationDue reports whether somebody may know the secrets who should not: a
// node that was given the seal key and does not vote any more, or one that was
// removed since the secrets were made. It follows from the state, so that no
// change of the leader loses it. The answer of a node that does not lead may be
// of before: it hears later than the leader who votes.
func (s *Server) RotationDue() bool {
	if !s.rotating.TryLock() {
		return false // a node that is being promoted holds the key already
	}
	defer s.rotating.Unlock()
	view := s.state.Read()
	sealed := fsm.Seals.Get(view, sealCA)
	if sealed == nil {
		return false
	}
	for _, id := range sealed.Holders {
		if vote, _ := s.votes(id); !vote {
			return true
		}
	}
	for r := range fsm.RemovedNodes.All(view) {
		if r.Created > sealed.Covers {
			return true
		}
	}
	return false
}

// RotateSecrets makes a new seal key, hands it to the voters, and seals the CA
// key and a new gossip key with it. Only the leader may; it is done when a
// voter leaves, so that what it holds opens nothing that is sealed from then
// on. It fails, and changes nothing, unless a majority of the voters has the
// new key on disk.
func (s *Server) RotateSecrets(ctx context.Context) error {
	if !s.IsLeader() {
		return errNoLeader("this node does not lead")
	}
	s.rotating.Lock()
	defer s.rotating.Unlock()
	view := s.state.Read()
	sealed := fsm.Seals.Get(view, sealCA)
	if sealed == nil {
		return api.Errorf(api.CodeUnavailable, "there is no CA key yet")
	}
	caKey, err := s.seals.open(sealed)
	if err != nil {
		return err
	}
	gossip, err := s.nextGossipKeys()
	if err != nil {
		return err
	}
	key, err := newSealKey()
	if err != nil {
		return err
	}
	holders, err := s.distribute(ctx, key)
	if err != nil {
		return err
	}
	if err := s.putSeal(ctx, api.Seal{Meta: api.Meta{Name: sealGossip}}, key, gossip); err != nil {
		return err
	}
	// The CA comes last: until it is there, the rotation is still due.
	err = s.putSeal(ctx, api.Seal{Meta: api.Meta{Name: sealCA}, Holders: holders, Covers: view.Index()}, key, caKey)
	if err == nil {
		s.logger.Info("the cluster's secrets were changed", "holders", len(holders))
	}
	return err
}

// nextGossipKeys are the key in use and a new one. The new key is second first:
// packets sent with it can be read only by those who have it.
func (s *Server) nextGossipKeys() ([]byte, error) {
	old, err := s.gossipKeys()
	if err != nil {
		return nil, err
	}
	fresh := make([]byte, gossipKeySize)
	if _, err := rand.Read(fresh); err != nil {
		return nil, fmt.Errorf("make gossip key: %w", err)
	}
	return encodeGossipKeys([][]byte{old[0], fresh})
}

func encodeGossipKeys(keys [][]byte) ([]byte, error) {
	text, err := json.Marshal(rpc.GossipKeys{Keys: keys})
	if err != nil {
		return nil, fmt.Errorf("encode gossip keys: %w", err)
	}
	return text, nil
}

// Unpromoted is the revision of the gossip keys while the newest of them is
// not the one to encrypt with, and 0 otherwise or on a node that cannot tell.
func (s *Server) Unpromoted() uint64 {
	keys, err := s.gossipKeys()
	if sealed := fsm.Seals.Get(s.state.Read(), sealGossip); err == nil && sealed != nil && len(keys) > 1 {
		return sealed.Modified
	}
	return 0
}

// PromoteGossipKey makes the newest gossip key the one to encrypt with and
// drops the former, once every node had the time to learn it.
func (s *Server) PromoteGossipKey(ctx context.Context) error {
	s.rotating.Lock()
	defer s.rotating.Unlock()
	keys, err := s.gossipKeys()
	if err != nil || len(keys) < 2 {
		return err
	}
	key, ok := s.seals.find(fsm.Seals.Get(s.state.Read(), sealGossip).KeyID)
	if !ok {
		return api.Errorf(api.CodeUnavailable, "this node does not hold the seal key").Do("ask a voter")
	}
	gossip, err := encodeGossipKeys(keys[len(keys)-1:])
	if err != nil {
		return err
	}
	return s.putSeal(ctx, api.Seal{Meta: api.Meta{Name: sealGossip}}, key, gossip)
}

// putSeal seals a secret and stores it with what the seal says beside it.
func (s *Server) putSeal(ctx context.Context, head api.Seal, key rpc.SealKey, secret []byte) error {
	sealed, err := s.seals.seal(head.Name, key, secret)
	if err != nil {
		return err
	}
	sealed.Holders, sealed.Covers = head.Holders, head.Covers
	return s.storeSeal(ctx, sealed)
}

func (s *Server) storeSeal(ctx context.Context, sealed api.Seal) error {
	e := fsm.PutSeal.Entry(sealed)
	e.By = "node:" + s.identity.Name
	out, err := s.Propose(ctx, e)
	if err == nil && out.Err != nil {
		err = out.Err
	}
	return err
}

// giveSealKeys hands the keys of the present seals to a node that is about to
// vote. That it holds them is noted before. The caller holds rotating.
func (s *Server) giveSealKeys(ctx context.Context, p Peer) error {
	view := s.state.Read()
	sealed := fsm.Seals.Get(view, sealCA)
	if sealed == nil {
		return api.Errorf(api.CodeUnavailable, "the cluster has no CA key yet")
	}
	var keys []rpc.SealKey
	for sealed := range fsm.Seals.All(view) {
		key, ok := s.seals.find(sealed.KeyID)
		if !ok {
			return api.Errorf(api.CodeUnavailable, "this node does not hold the seal key yet").Do("try again in a moment")
		}
		keys = append(keys, key)
	}
	client, err := s.peers.to(p.ID)
	if err == nil {
		_, err = client.ConfirmTerm(ctx) // a node that cannot be reached is no holder
	}
	if err != nil {
		return fmt.Errorf("reach %s: %w", p.Name, err)
	}
	if !slices.Contains(sealed.Holders, p.ID) {
		noted := *sealed
		noted.Holders = append(slices.Clone(sealed.Holders), p.ID)
		if err := s.storeSeal(ctx, noted); err != nil {
			return err
		}
	}
	for _, key := range keys {
		if err := s.pushSealKey(ctx, p.ID, key); err != nil {
			return fmt.Errorf("give the seal key to %s: %w", p.Name, err)
		}
	}
	return nil
}

// distribute puts a key on this node's disk and on those of the other voters,
// and returns who may have it. A voter that was removed from the cluster does
// not count: it is on its way out of the configuration.
func (s *Server) distribute(ctx context.Context, key rpc.SealKey) ([]string, error) {
	if err := s.seals.add(key); err != nil {
		return nil, err
	}
	holders, have := []string{s.identity.NodeID}, 1
	for _, p := range s.others() {
		if vote, _ := s.votes(p.ID); !vote || s.admitNode(p.ID) != nil {
			continue
		}
		holders = append(holders, p.ID)
		if err := s.pushSealKey(ctx, p.ID, key); err != nil {
			s.logger.Warn("a voter did not take the new seal key", "node", p.Name, "error", err)
			continue
		}
		have++
	}
	if have <= len(holders)/2 {
		return nil, api.Errorf(api.CodeUnavailable, "%d of %d voters took the new seal key", have, len(holders)).Allow("more than half").Do("try again when they are back")
	}
	return holders, nil
}

func (s *Server) pushSealKey(ctx context.Context, id string, key rpc.SealKey) error {
	client, err := s.peers.to(id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, removalAnswer)
	defer cancel()
	return client.PutSealKey(ctx, &key)
}
