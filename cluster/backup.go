package cluster

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"filippo.io/age"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// A backup is an age file (passphrase, scrypt) of frames: a type byte, a
// length (uint32, big endian), that many bytes. The frames come in the order of
// these constants; the last one is the SHA-256 of everything before it.
const (
	backupMagic = "debvisor backup 1\n"

	frameInfo      = 'i' // BackupInfo, JSON
	frameAuthority = 'c' // CA certificate and key, PEM
	frameSnapshot  = 's' // a piece of the Raft snapshot
	frameJournal   = 'j' // index, hash, canonical record
	frameEnd       = 'e' // SHA-256

	backupFrameMax  = 16 << 20
	backupPiece     = 1 << 20
	passphraseMin   = 12 // characters
	scryptWork      = 16 // log2; about a tenth of a second
	scryptWorkLimit = 20 // of a file to be read
)

// BackupInfo is what a backup says about itself.
type BackupInfo struct {
	ClusterID    string    `json:"cluster_id"`
	Node         string    `json:"node"`             // that made it
	Version      string    `json:"version,omitzero"` // of its binary
	Created      time.Time `json:"created"`
	JournalFloor uint64    `json:"journal_floor"` // the journal begins after this index
	FloorHash    api.Hash  `json:"floor_hash"`

	// What follows is found while the backup is read.
	Index     uint64   `json:"-"` // log index of the state
	StateHash api.Hash `json:"-"`
	Records   uint64   `json:"-"` // of the journal
}

// Backup writes the whole replicated state, the CA and the journal to w,
// encrypted with a passphrase. It holds everything that was acknowledged before
// the call. Only a voter can, since the CA key is in it.
func (s *Server) Backup(ctx context.Context, w io.Writer, passphrase string) error {
	if len(passphrase) < passphraseMin {
		return api.Invalid("passphrase", "has %d characters", len(passphrase)).Allow("at least %d", passphraseMin)
	}
	if _, err := s.ReadIndex(ctx); err != nil {
		return err
	}
	a, err := s.authority()
	if err != nil {
		return err
	}
	caKey, err := encodeKey(a.key)
	if err != nil {
		return err
	}
	sealed, err := encrypt(w, passphrase)
	if err != nil {
		return err
	}
	out := &backupWriter{w: bufio.NewWriterSize(sealed, backupPiece), sum: sha256.New()}
	out.raw([]byte(backupMagic))
	floor, hash := s.journal.FloorHash()
	out.json(frameInfo, BackupInfo{ClusterID: s.identity.ClusterID, Node: s.identity.Name, Version: s.cfg.Version, Created: time.Now().UTC(), JournalFloor: floor, FloorHash: hash})
	out.frame(frameAuthority, append(encodeCertificate(a.cert.Raw), caKey...))
	index, err := s.backupState(ctx, out)
	if err != nil {
		return err
	}
	if err := s.backupJournal(ctx, out, floor, index); err != nil {
		return err
	}
	out.frame(frameEnd, out.sum.Sum(nil))
	if out.err == nil {
		out.err = out.w.Flush()
	}
	if err := errors.Join(out.err, sealed.Close()); err != nil {
		return fmt.Errorf("write backup: %w", err)
	}
	return nil
}

func encrypt(w io.Writer, passphrase string) (io.WriteCloser, error) {
	recipient, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return nil, fmt.Errorf("passphrase: %w", err)
	}
	recipient.SetWorkFactor(scryptWork)
	sealed, err := age.Encrypt(w, recipient)
	if err != nil {
		return nil, fmt.Errorf("write backup: %w", err)
	}
	return sealed, nil
}

// backupState copies a fresh Raft snapshot, and returns the index of the state
// in it.
func (s *Server) backupState(ctx context.Context, out *backupWriter) (uint64, error) {
	if err := s.Snapshot(ctx); err != nil {
		return 0, err
	}
	list, err := s.snaps.List()
	if err != nil || len(list) == 0 {
		return 0, errors.Join(err, errors.New("no snapshot is there to be copied"))
	}
	_, content, err := s.snaps.Open(list[0].ID)
	if err != nil {
		return 0, fmt.Errorf("open snapshot: %w", err)
	}
	defer func() { _ = content.Close() }() // it is only read
	piece := make([]byte, backupPiece)
	for {
		n, err := io.ReadFull(content, piece)
		if n > 0 {
			out.frame(frameSnapshot, piece[:n])
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return list[0].Index, out.err
		}
		if err != nil {
			return 0, fmt.Errorf("read snapshot: %w", err)
		}
	}
}

func (s *Server) backupJournal(ctx context.Context, out *backupWriter, after, through uint64) error {
	if err := s.journal.Sync(ctx, through); err != nil {
		return err
	}
	if _, _, missing := s.journal.Gap(); missing {
		return api.Errorf(api.CodeUnavailable, "the journal of this node is being completed from its peers").Do("back up another node, or try again in a moment")
	}
	for {
		raw, more, err := s.journal.Raw(ctx, after, through, journalPage)
		if err != nil {
			return err
		}
		for _, r := range raw {
			body := binary.BigEndian.AppendUint64(nil, r.Index)
			out.frame(frameJournal, append(append(body, r.Hash[:]...), r.Canonical...))
			after = r.Index
		}
		if out.err != nil || !more {
			return out.err
		}
	}
}

type backupWriter struct {
	w   *bufio.Writer
	sum hash.Hash
	err error
}

func (b *backupWriter) raw(p []byte) {
	if b.err != nil {
		return
	}
	b.sum.Write(p)
	_, b.err = b.w.Write(p)
}

func (b *backupWriter) frame(kind byte, body []byte) {
	head := [5]byte{kind}
	binary.BigEndian.PutUint32(head[1:], uint32(len(body)))
	b.raw(head[:])
	b.raw(body)
}

func (b *backupWriter) json(kind byte, v any) {
	body, err := json.Marshal(v)
	if err != nil && b.err == nil {
		b.err = fmt.Errorf("encode backup: %w", err)
	}
	b.frame(kind, body)
}

// backupSink receives the parts of a backup in order.
type backupSink struct {
	info      func(BackupInfo) error
	authority func(pem []byte) error
	snapshot  func(io.Reader) error // must read to the end
	record    func(index uint64, hash api.Hash, canonical []byte) error
}

// VerifyBackup reads a backup whole and checks everything in it: the
// passphrase, the checksum, the state's own checksum, and that the journal is
// one chain that ends where the state is.
func VerifyBackup(r io.Reader, passphrase string) (BackupInfo, error) {
	var info BackupInfo
	var chain, head api.Hash
	err := readBackup(r, passphrase, backupSink{
		info: func(i BackupInfo) error { info, head = i, i.FloorHash; return nil },
		authority: func(text []byte) error {
			_, err := parseAuthority(text)
			return err
		},
		snapshot: func(r io.Reader) error {
			if err := checkSnapshotHead(r, info.ClusterID); err != nil {
				return err
			}
			found, err := fsm.VerifySnapshot(r)
			info.Index, info.StateHash, chain = found.Index, found.StateHash, found.Chain
			return err
		},
		record: func(index uint64, hash api.Hash, canonical []byte) error {
			if api.ChainHash(head, canonical) != hash {
				return fmt.Errorf("the journal record at index %d does not follow from the one before it", index)
			}
			head, info.Records = hash, info.Records+1
			return nil
		},
	})
	if err == nil && head != chain {
		err = badBackup("its journal does not end where its state is")
	}
	return info, err
}

func badBackup(format string, args ...any) *api.Error {
	return api.Errorf(api.CodeInvalid, "the backup cannot be used: "+format, args...).Do("use another copy of the file")
}

// readBackup decrypts a backup and hands out its parts. Nothing may be relied
// on before it returns nil: the checksum comes last.
func readBackup(r io.Reader, passphrase string, sink backupSink) error {
	identity, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return api.Invalid("passphrase", "is missing")
	}
	identity.SetMaxWorkFactor(scryptWorkLimit)
	plain, err := age.Decrypt(r, identity)
	if err != nil {
		if _, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
			return api.Invalid("passphrase", "does not open this backup").Do("use the passphrase that the backup was made with")
		}
		return badBackup("%v", err)
	}
	in := &backupReader{r: bufio.NewReaderSize(plain, backupPiece), sum: sha256.New()}
	if magic := in.raw(len(backupMagic)); string(magic) != backupMagic {
		return badBackup("it does not begin as one")
	}
	if err := in.parts(sink); err != nil {
		if _, ok := errors.AsType[*api.Error](err); ok {
			return err
		}
		return badBackup("%v", err)
	}
	return nil
}

type backupReader struct {
	r   *bufio.Reader
	sum hash.Hash
	err error

	kind   byte // of the next frame
	body   []byte
	before []byte // checksum of all before that frame
}

func (b *backupReader) raw(n int) []byte {
	p := make([]byte, n)
	if b.err == nil {
		_, b.err = io.ReadFull(b.r, p)
	}
	b.sum.Write(p)
	return p
}

// advance reads the next frame.
func (b *backupReader) advance() error {
	b.before = b.sum.Sum(nil)
	head := b.raw(5)
	size := binary.BigEndian.Uint32(head[1:])
	if b.err == nil && size > backupFrameMax {
		b.err = fmt.Errorf("a frame of %d bytes", size)
	}
	if b.err != nil {
		return fmt.Errorf("it is cut short or damaged: %w", b.err)
	}
	b.kind, b.body = head[0], b.raw(int(size))
	if b.err != nil {
		return fmt.Errorf("it is cut short or damaged: %w", b.err)
	}
	return nil
}

func (b *backupReader) parts(sink backupSink) error {
	if err := b.advance(); err != nil {
		return err
	}
	var info BackupInfo
	if b.kind != frameInfo || json.Unmarshal(b.body, &info) != nil {
		return errors.New("it does not say what it is")
	}
	if err := errors.Join(sink.info(info), b.advance()); err != nil {
		return err
	}
	if b.kind != frameAuthority {
		return errors.New("it holds no CA")
	}
	if err := errors.Join(sink.authority(b.body), b.advance()); err != nil {
		return err
	}
	if b.kind != frameSnapshot {
		return errors.New("it holds no state")
	}
	if err := sink.snapshot(&pieces{b: b}); err != nil {
		return err
	}
	for b.kind == frameSnapshot { // what the reader of the state left
		if err := b.advance(); err != nil {
			return err
		}
	}
	for ; b.kind == frameJournal; b.err = b.advance() {
		if b.err != nil {
			return b.err
		}
		var h api.Hash
		if len(b.body) < 8+len(h) {
			return errors.New("a journal record is cut short")
		}
		copy(h[:], b.body[8:])
		if err := sink.record(binary.BigEndian.Uint64(b.body), h, b.body[8+len(h):]); err != nil {
			return err
		}
	}
	if b.err != nil {
		return b.err
	}
	if b.kind != frameEnd || string(b.body) != string(b.before) {
		return errors.New("its checksum does not match")
	}
	return nil
}

// pieces is the snapshot inside a backup, as a stream.
type pieces struct {
	b    *backupReader
	left []byte
	open bool
}

// Read implements io.Reader.
func (p *pieces) Read(out []byte) (int, error) {
	for len(p.left) == 0 {
		if p.open {
			if err := p.b.advance(); err != nil {
				return 0, err
			}
		}
		if p.b.kind != frameSnapshot {
			return 0, io.EOF
		}
		p.left, p.open = p.b.body, true
	}
	n := copy(out, p.left)
	p.left = p.left[n:]
	return n, nil
}
