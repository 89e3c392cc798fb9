package cluster

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/debvisor/debvisor/api"
)

// The files of a data directory.
const (
	fileLock     = "lock"
	fileIdentity = "identity.json" // who this node is; written last by init and join
	fileCA       = "ca.pem"        // the cluster's CA certificate
	fileCert     = "node.pem"
	fileKey      = "node-key.pem"
	fileSeals    = "seal-keys.json" // keys that open the sealed secrets; voters only
	filePending  = "pending.json"   // the first entry of a new or restored cluster, until it is committed
	fileJoining  = "joining.json"   // a join that was begun; gone when it is done
	fileGossip   = "gossip.json"    // the last known keys of the gossip packets
	fileStable   = "raft-stable.db" // votes and terms
	fileLogBolt  = "raft-log.db"
	dirLogWAL    = "raft-wal"
	dirSnapshots = "snapshots"
	fileJournal  = "journal.db"

	privateMode = 0o600
	dirMode     = 0o700
)

// Identity is who a node is, as its data directory says.
type Identity struct {
	ClusterID string   `json:"cluster_id"`
	NodeID    string   `json:"node_id"`
	Name      string   `json:"name"`
	LogStore  string   `json:"log_store"`         // wal or boltdb; fixed, since a log cannot change its form
	Members   []Member `json:"members,omitzero"`  // whom it knew when it joined; until the log says who is there
	Restored  bool     `json:"restored,omitzero"` // its state came from a backup
}

// Member is a node and where it listens.
type Member struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Address string `json:"address"` // host:port
}

// dataDir is a locked data directory.
type dataDir struct {
	path string
	lock *os.File
}

// openDir makes the directory if need be and takes its lock, so that two
// processes never share it.
func openDir(path string) (*dataDir, error) {
	if path == "" {
		return nil, api.Invalid("data_dir", "is missing").Allow("a directory")
	}
	if err := os.MkdirAll(path, dirMode); err != nil {
		return nil, &api.Error{Code: api.CodeUnavailable, Field: "data_dir", Message: err.Error(), Next: "choose a directory that this user may write"}
	}
	f, err := os.OpenFile(filepath.Join(path, fileLock), os.O_CREATE|os.O_RDWR, privateMode)
	if err != nil {
		return nil, &api.Error{Code: api.CodeUnavailable, Field: "data_dir", Message: err.Error(), Next: "choose a directory that this user may write"}
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, api.Errorf(api.CodeConflict, "the data directory %s is in use by another process", path).Do("stop that process first")
	}
	return &dataDir{path: path, lock: f}, nil
}

func (d *dataDir) close() { _ = d.lock.Close() }

func (d *dataDir) file(name string) string { return filepath.Join(d.path, name) }

func (d *dataDir) exists(name string) bool {
	_, err := os.Lstat(d.file(name))
	return err == nil
}

// write replaces a file so that after a crash either the old or the new
// content is there, whole.
func (d *dataDir) write(name string, content []byte) error {
	temporary, err := os.CreateTemp(d.path, name+".new-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = temporary.Write(content)
	err = errors.Join(err, temporary.Sync(), temporary.Close())
	if err == nil {
		err = os.Rename(temporary.Name(), d.file(name))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", name, err), os.Remove(temporary.Name()))
	}
	return d.sync()
}

// sync makes the directory's entries durable.
func (d *dataDir) sync() error {
	f, err := os.Open(d.path)
	if err != nil {
		return fmt.Errorf("sync data directory: %w", err)
	}
	return errors.Join(f.Sync(), f.Close())
}

func (d *dataDir) remove(name string) error {
	if err := os.Remove(d.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return d.sync()
}

func (d *dataDir) writeJSON(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return d.write(name, append(b, '\n'))
}

// readJSON reads a file into v. An absent file is fs.ErrNotExist.
func (d *dataDir) readJSON(name string, v any) error {
	b, err := os.ReadFile(d.file(name))
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	decoder := json.NewDecoder(bytes.NewReader(b))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(v); err != nil {
		return &api.Error{Code: api.CodeUnavailable, Message: fmt.Sprintf("%s is damaged: %v", d.file(name), err),
			Next: "restore the file, or empty the data directory and join again"}
	}
	return nil
}

// identity reads who this node is. A directory without one is CodeNotFound.
func (d *dataDir) identity() (Identity, error) {
	var id Identity
	err := d.readJSON(fileIdentity, &id)
	if errors.Is(err, fs.ErrNotExist) {
		return id, api.Errorf(api.CodeNotFound, "the data directory %s belongs to no cluster", d.path).
			Do("make a cluster with: debvisor init, or enter one with: debvisor join TOKEN@HOST")
	}
	return id, err
}

// vacant refuses a directory in which a cluster lives or lived already.
func (d *dataDir) vacant() error {
	for _, name := range []string{fileIdentity, fileStable, fileLogBolt, dirLogWAL, dirSnapshots, fileJournal} {
		if d.exists(name) {
			return api.Errorf(api.CodeConflict, "the data directory %s holds a node already (%s)", d.path, name).
				Do("start it with: debvisor agent, or choose an empty directory")
		}
	}
	return nil
}

// credentials reads the CA certificate, the node's certificate and its key.
func (d *dataDir) credentials() (*x509.Certificate, *tls.Certificate, error) {
	fail := func(name string, err error) (*x509.Certificate, *tls.Certificate, error) {
		return nil, nil, &api.Error{Code: api.CodeUnavailable, Message: fmt.Sprintf("%s: %v", d.file(name), err),
			Next: "restore the file, or empty the data directory and join again"}
	}
	text, err := os.ReadFile(d.file(fileCA))
	if err != nil {
		return fail(fileCA, err)
	}
	ca, err := decodeCertificate(text)
	if err != nil {
		return fail(fileCA, err)
	}
	key, leaf, err := d.keyPair()
	if err != nil {
		return fail(fileKey, err)
	}
	cert, err := certificateOf(leaf.Raw, key, ca)
	if err != nil {
		return fail(fileKey, err)
	}
	return ca, cert, nil
}

// keyPair reads the node's key and certificate, which are in one file so that
// a crash cannot leave one without the other.
func (d *dataDir) keyPair() (crypto.Signer, *x509.Certificate, error) {
	text, err := os.ReadFile(d.file(fileKey))
	if err != nil {
		return nil, nil, err
	}
	key, err := decodeKey(text)
	if err != nil {
		return nil, nil, err
	}
	_, rest := pem.Decode(text)
	leaf, err := decodeCertificate(rest)
	return key, leaf, err
}

// writeKeyPair stores the node's key and certificate, and the certificate
// alone for people to look at.
func (d *dataDir) writeKeyPair(key crypto.Signer, der []byte) error {
	text, err := encodeKey(key)
	if err != nil {
		return err
	}
	if err := d.write(fileKey, append(text, encodeCertificate(der)...)); err != nil {
		return err
	}
	return d.write(fileCert, encodeCertificate(der))
}

// ReadIdentity reads who a node is without opening it. The directory may be in
// use. A directory without a node is CodeNotFound.
func ReadIdentity(dir string) (Identity, error) {
	return (&dataDir{path: dir}).identity()
}

// CAFile is where a data directory keeps the CA certificate, for clients.
func CAFile(dir string) string { return filepath.Join(dir, fileCA) }
