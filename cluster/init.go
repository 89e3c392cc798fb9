package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// InitOptions is what a new cluster needs to know.
type InitOptions struct {
	Name    string        // of the node, a DNS label
	Region  string        // of the cluster, a DNS label
	Zone    string        // failure zone of the node; may be empty
	Witness bool          // the node votes and runs no guests
	Key     fsm.KeyCreate // the first admin key
}

// Founded is the identity of a new cluster and its first node.
type Founded struct {
	ClusterID string
	NodeID    string
}

// pending is the entry that makes a data directory's state a cluster of one
// node. It waits in a file until it is committed, so that init may be
// interrupted anywhere.
type pending struct {
	RequestID string             `json:"request_id"`
	Init      *fsm.ClusterInit   `json:"init,omitzero"`
	Rehome    *fsm.ClusterRehome `json:"rehome,omitzero"`
}

// Init makes a data directory the first node of a new cluster: its CA, its
// certificate, its secrets. Open then starts it and commits the first entry.
// It refuses a directory that holds or held a node.
func Init(cfg Config, o InitOptions) (Founded, error) {
	if err := errors.Join(apiError(api.CheckName("name", o.Name)), apiError(api.CheckName("region", o.Region))); err != nil {
		return Founded{}, err
	}
	d, form, err := prepareDir(cfg)
	if err != nil {
		return Founded{}, err
	}
	defer d.close()
	f := Founded{ClusterID: uuid.NewString(), NodeID: uuid.NewString()}
	a, err := newAuthority(f.ClusterID, time.Now())
	if err != nil {
		return Founded{}, err
	}
	seals, err := newSecrets(d, f.ClusterID, f.NodeID, a)
	if err != nil {
		return Founded{}, err
	}
	p := pending{RequestID: "init-" + f.ClusterID, Init: &fsm.ClusterInit{
		ClusterID: f.ClusterID, Region: o.Region, Version: fsm.VersionMax, Key: o.Key, Seals: seals,
		Node: fsm.NodeJoin{ID: f.NodeID, Name: o.Name, Zone: o.Zone, Witness: o.Witness},
	}}
	return f, found(cfg, d, a, p, Identity{ClusterID: f.ClusterID, NodeID: f.NodeID, Name: o.Name, LogStore: form})
}

// apiError keeps a nil *api.Error from becoming an error that is not nil.
func apiError(e *api.Error) error {
	if e == nil {
		return nil
	}
	return e
}

// prepareDir locks an empty data directory for a new node.
func prepareDir(cfg Config) (*dataDir, string, error) {
	form := cfg.LogStore
	if form == "" {
		form = LogStoreWAL
	}
	if form != LogStoreWAL && form != LogStoreBolt {
		return nil, "", api.Invalid("log_store", "is %q", form).Allow("%s or %s", LogStoreWAL, LogStoreBolt)
	}
	d, err := openDir(cfg.DataDir)
	if err != nil {
		return nil, "", err
	}
	if err := d.vacant(); err != nil {
		d.close()
		return nil, "", err
	}
	return d, form, nil
}

// newSecrets makes a seal key and seals the CA key and a first gossip key.
func newSecrets(d *dataDir, clusterID, nodeID string, a *authority) ([]api.Seal, error) {
	_ = os.Remove(d.file(fileSeals)) // of an attempt that was interrupted
	keys := &sealKeys{dir: d, clusterID: clusterID}
	key, err := newSealKey()
	if err != nil {
		return nil, err
	}
	if err := keys.add(key); err != nil {
		return nil, err
	}
	caKey, err := encodeKey(a.key)
	if err != nil {
		return nil, err
	}
	fresh := make([]byte, gossipKeySize)
	if _, err := rand.Read(fresh); err != nil {
		return nil, fmt.Errorf("make gossip key: %w", err)
	}
	gossip, err := encodeGossipKeys([][]byte{fresh})
	if err != nil {
		return nil, err
	}
	ca, err := keys.seal(sealCA, key, caKey)
	if err != nil {
		return nil, err
	}
	ca.Holders = []string{nodeID}
	sealedGossip, err := keys.seal(sealGossip, key, gossip)
	return []api.Seal{ca, sealedGossip}, err
}

// found writes the files of a cluster's only node, the identity last.
func found(cfg Config, d *dataDir, a *authority, p pending, id Identity) error {
	key, request, err := newRequest()
	if err != nil {
		return err
	}
	life := cfg.withDefaults().CertificateLife
	der, err := a.sign(request, nodeName{clusterID: id.ClusterID, nodeID: id.NodeID, name: id.Name, addresses: hostsOf(cfg.advertised())}, time.Now(), life)
	if err != nil {
		return err
	}
	if err := d.write(fileCA, encodeCertificate(a.cert.Raw)); err != nil {
		return err
	}
	if err := d.writeKeyPair(key, der); err != nil {
		return err
	}
	if err := d.writeJSON(filePending, p); err != nil {
		return err
	}
	return d.writeJSON(fileIdentity, id)
}

// advertised is the address that other nodes will dial, before the port is
// bound.
func (c Config) advertised() string {
	switch {
	case c.Advertise != "":
		return c.Advertise
	case c.Listener != nil:
		return c.Listener.Addr().String()
	}
	return c.Listen
}

// bootstrap gives the first node of a cluster its Raft configuration, unless
// its log has one already.
func (s *Server) bootstrap(config *raft.Config) error {
	if s.cfg.LogStore != "" && s.cfg.LogStore != s.identity.LogStore {
		return api.Invalid("log_store", "is %q", s.cfg.LogStore).Allow("%s, which the data directory was made with", s.identity.LogStore)
	}
	exists, err := raft.HasExistingState(s.stores.log, s.stores.stable, s.snaps)
	if err != nil {
		return damaged(s.dir, err)
	}
	if !s.dir.exists(filePending) {
		if !exists && len(s.identity.Members) == 0 {
			return damaged(s.dir, errors.New("the log is gone"))
		}
		return nil
	}
	if exists {
		return nil
	}
	only := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: config.LocalID, Address: raft.ServerAddress(s.self)}}}
	if err := raft.BootstrapCluster(config, s.stores.log, s.stores.stable, s.snaps, s.trans, only); err != nil {
		return fmt.Errorf("begin the log: %w", err)
	}
	return nil
}

// commitPending commits the first entry of a new or restored cluster. It
// reports whether the node may go on as leader.
func (s *Server) commitPending(ctx context.Context) bool {
	var p pending
	if err := s.dir.readJSON(filePending, &p); errors.Is(err, fs.ErrNotExist) {
		return true
	} else if err != nil {
		s.end(Fatal{Err: err, ExitStatus: ExitError})
		return false
	}
	e := fsm.Entry{}
	switch {
	case p.Init != nil:
		p.Init.Node.Address = s.self
		e = fsm.InitCluster.Entry(*p.Init)
	case p.Rehome != nil:
		p.Rehome.Node.Address = s.self
		e = fsm.RehomeCluster.Entry(*p.Rehome)
	}
	e.RequestID, e.By = p.RequestID, "node:"+s.identity.Name
	out, err := s.Propose(ctx, e)
	if err != nil {
		s.logger.Warn("the first entry is not committed yet", "error", err)
		return false
	}
	if out.Err != nil && nodeRow(s.state.Read(), s.identity.NodeID) == nil {
		s.end(Fatal{Err: fmt.Errorf("the first entry was refused: %w", out.Err), ExitStatus: ExitError})
		return false
	}
	if err := s.dir.remove(filePending); err != nil {
		s.logger.Warn("remove the pending entry", "error", err)
	}
	s.founding.Store(false)
	return true
}
