package cluster

import (
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/rpc"
	"github.com/debvisor/debvisor/fsm"
)

// Names of the sealed secrets.
const (
	sealCA     = "ca"     // the CA's private key, PEM
	sealGossip = "gossip" // the keys of the gossip packets, JSON
)

const (
	gossipKeySize = 32
	sealsPoll     = 2 * time.Second
	sealKeysMax   = 16 // kept in the file; rotation makes one now and then
)

// sealKeys are the keys that open the cluster's sealed secrets. Voters hold
// them in a private file; other nodes hold none. The file also keeps the last
// sealed CA key, so that a voter can renew its certificate before it has a
// leader.
type sealKeys struct {
	dir       *dataDir
	clusterID string

	mu   sync.Mutex // guards file
	file sealFile
}

type sealFile struct {
	Keys []rpc.SealKey `json:"keys"` // the newest last
	CA   *api.Seal     `json:"ca,omitzero"`
}

func loadSealKeys(d *dataDir, clusterID string) (*sealKeys, error) {
	k := &sealKeys{dir: d, clusterID: clusterID}
	if err := d.readJSON(fileSeals, &k.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return k, nil
}

func newSealKey() (rpc.SealKey, error) {
	key := make([]byte, chacha20poly1305.KeySize)
	if _, err := rand.Read(key); err != nil {
		return rpc.SealKey{}, fmt.Errorf("make seal key: %w", err)
	}
	return rpc.SealKey{ID: sealKeyID(key), Key: key}, nil
}

// sealKeyID names a key without telling it.
func sealKeyID(key []byte) string {
	sum := sha256.Sum256(append([]byte("debvisor seal key\x00"), key...))
	return hex.EncodeToString(sum[:8])
}

// add stores a key on disk.
func (k *sealKeys) add(key rpc.SealKey) error {
	if len(key.Key) != chacha20poly1305.KeySize || key.ID != sealKeyID(key.Key) {
		return api.Invalid("key", "is no seal key")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, have := range k.file.Keys {
		if have.ID == key.ID {
			return nil
		}
	}
	next := k.file
	next.Keys = append(append([]rpc.SealKey(nil), k.file.Keys...), key)
	if over := len(next.Keys) - sealKeysMax; over > 0 {
		next.Keys = next.Keys[over:]
	}
	if err := k.dir.writeJSON(fileSeals, next); err != nil {
		return err
	}
	k.file = next
	return nil
}

// keepCA notes the sealed CA key, for a start without a leader.
func (k *sealKeys) keepCA(s *api.Seal) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.file.CA != nil && k.file.CA.Modified == s.Modified {
		return nil
	}
	next := k.file
	next.CA = s
	if err := k.dir.writeJSON(fileSeals, next); err != nil {
		return err
	}
	k.file = next
	return nil
}

// forget drops every key and secret: this node does not vote any more.
func (k *sealKeys) forget() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.file.Keys) == 0 && k.file.CA == nil {
		return nil
	}
	if err := k.dir.remove(fileSeals); err != nil {
		return err
	}
	k.file = sealFile{}
	return nil
}

func (k *sealKeys) find(id string) (rpc.SealKey, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, key := range k.file.Keys {
		if key.ID == id {
			return key, true
		}
	}
	return rpc.SealKey{}, false
}

// seal encrypts a secret for voters. Its name and the cluster are bound to it.
func (k *sealKeys) seal(name string, key rpc.SealKey, secret []byte) (api.Seal, error) {
	aead, err := sealCipher(key)
	if err != nil {
		return api.Seal{}, err
	}
	nonce := make([]byte, aead.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return api.Seal{}, fmt.Errorf("seal %s: %w", name, err)
	}
	return api.Seal{Meta: api.Meta{Name: name}, KeyID: key.ID, Ciphertext: aead.Seal(nonce, nonce, secret, []byte(k.clusterID+"/"+name))}, nil
}

// open decrypts a sealed secret. Without its key it is CodeUnavailable.
func (k *sealKeys) open(s *api.Seal) ([]byte, error) {
	key, ok := k.find(s.KeyID)
	if !ok {
		return nil, api.Errorf(api.CodeUnavailable, "this node does not hold the key of the sealed %s", s.Name).Do("ask a voter")
	}
	aead, err := sealCipher(key)
	if err != nil {
		return nil, err
	}
	if len(s.Ciphertext) < aead.NonceSize() {
		return nil, fmt.Errorf("the sealed %s is cut short", s.Name)
	}
	n := aead.NonceSize()
	secret, err := aead.Open(nil, s.Ciphertext[:n], s.Ciphertext[n:], []byte(k.clusterID+"/"+s.Name))
	if err != nil {
		return nil, fmt.Errorf("the sealed %s does not open with its key", s.Name)
	}
	return secret, nil
}

func sealCipher(key rpc.SealKey) (cipher.AEAD, error) {
	aead, err := chacha20poly1305.NewX(key.Key)
	if err != nil {
		return nil, fmt.Errorf("seal key: %w", err)
	}
	return aead, nil
}

// authority is the CA from the copy on disk.
func (k *sealKeys) authority(ca *x509.Certificate) (*authority, error) {
	k.mu.Lock()
	sealed := k.file.CA
	k.mu.Unlock()
	if sealed == nil {
		return nil, errors.New("no CA key on this node")
	}
	return k.authorityFrom(sealed, ca)
}

func (k *sealKeys) authorityFrom(sealed *api.Seal, ca *x509.Certificate) (*authority, error) {
	secret, err := k.open(sealed)
	if err != nil {
		return nil, err
	}
	key, err := decodeKey(secret)
	if err != nil {
		return nil, fmt.Errorf("CA key: %w", err)
	}
	return &authority{cert: ca, key: key}, nil
}

// authority is the CA with its key, on a voter.
func (s *Server) authority() (*authority, error) {
	sealed := fsm.Seals.Get(s.state.Read(), sealCA)
	if sealed == nil {
		return nil, api.Errorf(api.CodeUnavailable, "the CA key has not arrived yet").Do("try again in a moment")
	}
	return s.seals.authorityFrom(sealed, s.trust.ca)
}

// gossipKeys are the keys of the gossip packets from the state, on a voter.
func (s *Server) gossipKeys() ([][]byte, error) {
	sealed := fsm.Seals.Get(s.state.Read(), sealGossip)
	if sealed == nil {
		return nil, api.Errorf(api.CodeUnavailable, "the gossip keys have not arrived yet").Do("try again in a moment")
	}
	secret, err := s.seals.open(sealed)
	if err != nil {
		return nil, err
	}
	var keys rpc.GossipKeys
	if err := json.Unmarshal(secret, &keys); err != nil {
		return nil, fmt.Errorf("gossip keys: %w", err)
	}
	return keys.Keys, nil
}

// GossipKeys are the keys of the gossip packets, the one to encrypt with
// first. A node that does not vote asks the leader, and falls back to the keys
// it last knew.
func (s *Server) GossipKeys(ctx context.Context) ([][]byte, error) {
	keys, err := s.gossipKeys()
	if err != nil {
		keys, err = s.askGossipKeys(ctx)
	}
	var known rpc.GossipKeys
	unread := s.dir.readJSON(fileGossip, &known)
	switch {
	case err != nil && unread == nil && len(known.Keys) > 0:
		return known.Keys, nil
	case err != nil:
		return nil, err
	case unread == nil && slices.EqualFunc(keys, known.Keys, bytes.Equal):
		return keys, nil // it is asked every few seconds, and a write costs an fsync
	}
	return keys, s.dir.writeJSON(fileGossip, rpc.GossipKeys{Keys: keys})
}

func (s *Server) askGossipKeys(ctx context.Context) ([][]byte, error) {
	_, client, err := s.leaderClient(ctx)
	if err != nil {
		return nil, err
	}
	answer, err := client.GossipKeys(ctx)
	if err != nil {
		return nil, err
	}
	return answer.Keys, nil
}

// watchSeals keeps the private file of a voter in step with the state: it
// fetches a key that a rotation made, keeps the sealed CA key, and forgets all
// when the node does not vote any more.
func (s *Server) watchSeals(ctx context.Context) {
	voted := false
	for waitFor(ctx, sealsPoll) {
		sealed := fsm.Seals.Get(s.state.Read(), sealCA)
		vote, known := s.votes(s.identity.NodeID)
		if voted && known && !vote {
			if err := s.seals.forget(); err != nil {
				s.logger.Warn("forget the seal keys", "error", err)
				continue
			}
		}
		voted = vote
		if sealed == nil || !vote {
			continue
		}
		if err := s.fetchSealKeys(ctx); err != nil {
			s.logger.Warn("the seal key is not here yet", "error", err)
			continue
		}
		if err := s.seals.keepCA(sealed); err != nil {
			s.logger.Warn("keep the sealed CA key", "error", err)
		}
	}
}

// fetchSealKeys gets the keys of the present seals that are not here.
func (s *Server) fetchSealKeys(ctx context.Context) error {
	for sealed := range fsm.Seals.All(s.state.Read()) {
		if _, ok := s.seals.find(sealed.KeyID); ok {
			continue
		}
		if err := s.fetchSealKey(ctx, sealed.KeyID); err != nil {
			return err
		}
	}
	return nil
}

// fetchSealKey asks the other voters for a key.
func (s *Server) fetchSealKey(ctx context.Context, id string) error {
	err := errors.New("no other voter is known")
	for _, p := range s.others() {
		if vote, _ := s.votes(p.ID); !vote {
			continue
		}
		client, e := s.peers.to(p.ID)
		if e != nil {
			err = e
			continue
		}
		call, cancel := context.WithTimeout(ctx, removalAnswer)
		key, e := client.SealKey(call, &rpc.SealKey{ID: id})
		cancel()
		if e != nil {
			err = e
			continue
		}
		return s.seals.add(*key)
	}
	return err
}
