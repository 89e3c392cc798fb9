package cluster

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

const (
	snapshotsKept    = 2
	sameInstallsMax  = 3 // of one snapshot in a row, before the process ends
	snapshotBytesMax = 64 << 20
)

// snapshots is the file snapshot store. It notices when the leader installs
// one snapshot again and again: Raft can wedge on a log that conflicts with a
// snapshot, and a restart heals what the running process does not.
type snapshots struct {
	*raft.FileSnapshotStore
	fatal func(Fatal)

	mu          sync.Mutex // guards what follows
	index, term uint64     // of the last finished snapshot
	repeats     int
}

func openSnapshots(d *dataDir, logger hclog.Logger, fatal func(Fatal)) (*snapshots, error) {
	files, err := raft.NewFileSnapshotStoreWithLogger(d.path, snapshotsKept, logger.Named("snapshot"))
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	s := &snapshots{FileSnapshotStore: files, fatal: fatal}
	if err := s.verify(d.file(dirSnapshots)); err != nil {
		return nil, damaged(d, err)
	}
	return s, nil
}

// verify reads the newest snapshot whole and the description of all: the store
// itself passes over what it cannot read, and falling back to an older one
// would lose what the log no longer holds.
func (s *snapshots) verify(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read snapshots: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() || strings.HasSuffix(e.Name(), ".tmp") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name(), "meta.json"))
		if err != nil {
			return fmt.Errorf("snapshot %s: %w", e.Name(), err)
		}
		if !json.Valid(text) {
			return fmt.Errorf("snapshot %s: its description is damaged", e.Name())
		}
	}
	list, err := s.List()
	if err != nil || len(list) == 0 {
		return err
	}
	_, content, err := s.Open(list[0].ID)
	if err != nil {
		return fmt.Errorf("snapshot %s: %w", list[0].ID, err)
	}
	return content.Close()
}

// latest is the index of the newest snapshot, or 0.
func (s *snapshots) latest() uint64 {
	list, err := s.List()
	if err != nil || len(list) == 0 {
		return 0
	}
	return list[0].Index
}

// Create implements raft.SnapshotStore.
func (s *snapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration, configurationIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.FileSnapshotStore.Create(version, index, term, configuration, configurationIndex, trans)
	if err != nil {
		return nil, err
	}
	return &countedSink{SnapshotSink: sink, done: func() { s.finished(index, term) }}, nil
}

// finished counts finished snapshots of one position. A snapshot of the
// node's own is never taken twice at the same place, so repeats are installs.
func (s *snapshots) finished(index, term uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if index != s.index || term != s.term {
		s.index, s.term, s.repeats = index, term, 0
	}
	s.repeats++
	if s.repeats == sameInstallsMax {
		s.fatal(Fatal{ExitStatus: ExitRestart, Err: fmt.Errorf("the snapshot at index %d was installed %d times in a row: a restart is needed to go on", index, s.repeats)})
	}
}

type countedSink struct {
	raft.SnapshotSink
	done func()
}

// Close implements io.Closer.
func (c *countedSink) Close() error {
	err := c.SnapshotSink.Close()
	if err == nil {
		c.done()
	}
	return err
}

// snapshotHead begins every snapshot, so that one of another cluster is
// recognized before a row of it is read.
func snapshotHead(clusterID string) string { return "debvisor cluster " + clusterID + "\n" }

func checkSnapshotHead(r io.Reader, clusterID string) error {
	want := snapshotHead(clusterID)
	have := make([]byte, len(want))
	if _, err := io.ReadFull(r, have); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if string(have) != want {
		return fmt.Errorf("the snapshot is not one of cluster %s", clusterID)
	}
	return nil
}
