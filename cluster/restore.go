package cluster

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster/journal"
	"github.com/debvisor/debvisor/fsm"
)

// RestoreOptions is what a restored cluster needs to know.
type RestoreOptions struct {
	Name    string // of its first node, a DNS label
	Zone    string
	Witness bool
	Reason  string // shown where the former nodes are missing; may be empty
}

// RestoreBackup makes an empty data directory the first node of a new cluster
// with the state, the CA and the journal of a backup. Open then starts it, and
// others join it with tokens. The nodes of the former cluster are removed from
// the state, and their processes are refused: they must not run any more. The
// cluster keeps its identity and CA, so clients go on trusting it.
//
// Nothing in the directory counts as a node until the whole backup was read
// and verified.
func RestoreBackup(ctx context.Context, cfg Config, r io.Reader, passphrase string, o RestoreOptions) (BackupInfo, error) {
	if err := apiError(api.CheckName("name", o.Name)); err != nil {
		return BackupInfo{}, err
	}
	if o.Reason == "" {
		o.Reason = "the cluster was restored from a backup"
	}
	d, form, err := prepareDir(cfg)
	if err != nil {
		return BackupInfo{}, err
	}
	defer d.close()
	m := &restoring{ctx: ctx, cfg: cfg, dir: d, nodeID: uuid.NewString()}
	err = m.read(r, passphrase)
	if err == nil {
		err = m.finish(form, o)
	}
	if err != nil {
		return BackupInfo{}, errors.Join(err, m.undo())
	}
	return m.info, nil
}

// restoring is one backup being read into a data directory.
type restoring struct {
	ctx    context.Context
	cfg    Config
	dir    *dataDir
	nodeID string

	info  BackupInfo
	ca    *authority
	chain api.Hash
	book  *journal.Journal
	page  []journal.Raw
}

func (m *restoring) read(r io.Reader, passphrase string) error {
	return readBackup(r, passphrase, backupSink{
		info: func(i BackupInfo) error { m.info = i; return nil },
		authority: func(text []byte) (err error) {
			m.ca, err = parseAuthority(text)
			return err
		},
		snapshot: m.snapshot,
		record: func(index uint64, hash api.Hash, canonical []byte) error {
			m.page = append(m.page, journal.Raw{Index: index, Hash: hash, Canonical: canonical})
			m.info.Records++
			if len(m.page) < journalPage {
				return nil
			}
			return m.flush()
		},
	})
}

func parseAuthority(text []byte) (*authority, error) {
	block, rest := pem.Decode(text)
	if block == nil {
		return nil, errors.New("it holds no CA certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	key, err := decodeKey(rest)
	if err != nil {
		return nil, fmt.Errorf("CA key: %w", err)
	}
	return &authority{cert: cert, key: key}, nil
}

// snapshot stores the state as a Raft snapshot whose only member is the new
// node, and begins the journal that leads to it.
func (m *restoring) snapshot(r io.Reader) error {
	if err := checkSnapshotHead(r, m.info.ClusterID); err != nil {
		return err
	}
	logger := hclog.NewNullLogger()
	store, err := raft.NewFileSnapshotStoreWithLogger(m.dir.path, snapshotsKept, logger)
	if err != nil {
		return fmt.Errorf("store snapshot: %w", err)
	}
	state := fsm.New()
	spool, err := os.CreateTemp(m.dir.path, "restore-*")
	if err != nil {
		return fmt.Errorf("store snapshot: %w", err)
	}
	defer func() { _ = errors.Join(spool.Close(), os.Remove(spool.Name())) }() // a temporary copy
	if err := state.Restore(io.TeeReader(r, spool)); err != nil {
		return err
	}
	view := state.Read()
	m.info.Index, m.info.StateHash, m.chain = view.Index(), view.StateHash(), view.Chain()
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("store snapshot: %w", err)
	}
	only := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(m.nodeID), Address: raft.ServerAddress(m.cfg.advertised())}}}
	_, memory := raft.NewInmemTransport("")
	sink, err := store.Create(raft.SnapshotVersionMax, view.Index(), 1, only, view.Index(), memory)
	if err != nil {
		return fmt.Errorf("store snapshot: %w", err)
	}
	if _, err = io.Copy(sink, io.MultiReader(bytes.NewReader([]byte(snapshotHead(m.info.ClusterID))), spool)); err != nil {
		return errors.Join(fmt.Errorf("store snapshot: %w", err), sink.Cancel())
	}
	if err := sink.Close(); err != nil {
		return fmt.Errorf("store snapshot: %w", err)
	}
	if m.book, err = journal.Open(journal.Config{Path: m.dir.file(fileJournal)}); err != nil {
		return err
	}
	if err := m.book.Expect(m.ctx, view.Index(), view.Chain()); err != nil {
		return err
	}
	return m.book.StartAt(m.info.JournalFloor, m.info.FloorHash)
}

func (m *restoring) flush() error {
	_, err := m.book.Fill(m.ctx, m.page)
	m.page = nil
	return err
}

// finish completes the journal and writes the identity.
func (m *restoring) finish(form string, o RestoreOptions) error {
	if err := m.flush(); err != nil {
		return err
	}
	if _, _, missing := m.book.Gap(); missing {
		return badBackup("its journal does not end where its state is")
	}
	if err := m.book.Close(); err != nil {
		return err
	}
	seals, err := newSecrets(m.dir, m.info.ClusterID, m.nodeID, m.ca)
	if err != nil {
		return err
	}
	p := pending{RequestID: "rehome-" + m.nodeID, Rehome: &fsm.ClusterRehome{Reason: o.Reason, Seals: seals,
		Node: fsm.NodeJoin{ID: m.nodeID, Name: o.Name, Zone: o.Zone, Witness: o.Witness}}}
	return found(m.cfg, m.dir, m.ca, p, Identity{ClusterID: m.info.ClusterID, NodeID: m.nodeID, Name: o.Name, LogStore: form, Restored: true})
}

// undo empties the directory of what an unusable backup left there.
func (m *restoring) undo() error {
	var errs []error
	if m.book != nil {
		errs = append(errs, m.book.Close())
	}
	for _, name := range []string{dirSnapshots, fileJournal, fileSeals, filePending} {
		errs = append(errs, os.RemoveAll(filepath.Join(m.dir.path, name)))
	}
	return errors.Join(errs...)
}
