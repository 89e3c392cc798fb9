package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/debvisor/debvisor/plugins"
)

// record is what this machine must not forget about a guest: it is written
// and synced before the guest starts and dropped after its domain is removed.
type record struct {
	Gen     uint64   `json:"gen"`              // highest that was accepted here
	Volumes []string `json:"volumes,omitzero"` // IDs that the guest may write to
	Bridges []string `json:"bridges,omitzero"`
	Moving  bool     `json:"moving,omitzero"` // a migration has begun, and may have paused the guest

	Ports []plugins.Port `json:"ports,omitzero"` // of the guest, as it was started

	// Restart is the task that stops the guest which started at RestartFrom.
	// A later start is the outcome of that task.
	Restart     string    `json:"restart,omitzero"`
	RestartFrom time.Time `json:"restart_from,omitzero"`

	// Move is a copy of one of the guest's disks in another pool: it goes on by
	// itself while the guest executes, and is brought to an end whatever becomes of
	// the task that asked for it.
	Move *diskMove `json:"move,omitzero"`
}

// records are kept in memory and in one file each, named ID.json.
type records struct {
	root *os.Root

	mu    sync.Mutex // guards the map; a record is replaced, never written into
	known map[string]record
}

const (
	recordSuffix = ".json"
	recordTemp   = ".new"
)

func openRecords(dir string) (*records, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the agent's records: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the agent's records: %w", err)
	}
	r := &records{root: root, known: map[string]record{}}
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return nil, fmt.Errorf("list the agent's records: %w", err)
	}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), recordSuffix)
		if !ok {
			continue // cut off while it was written; the one before counts
		}
		raw, err := root.ReadFile(e.Name())
		var one record
		if err == nil {
			err = json.Unmarshal(raw, &one)
		}
		if err != nil {
			return nil, fmt.Errorf("record %s of the agent is damaged: %w; delete the file once its guest is known to be off",
				filepath.Join(dir, e.Name()), err)
		}
		r.known[id] = one
	}
	return r, nil
}

func (r *records) find(id string) (record, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	one, ok := r.known[id]
	return one, ok
}

// put makes the record durable. Calls for the same ID are serialized by the
// queue.
func (r *records) put(id string, one record) error {
	raw, err := json.Marshal(one)
	if err != nil {
		return fmt.Errorf("encode record of guest %s: %w", id, err)
	}
	if err := r.write(id, raw); err != nil {
		return fmt.Errorf("write record of guest %s: %w", id, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known[id] = one
	return nil
}

func (r *records) write(id string, raw []byte) (err error) {
	temp := id + recordTemp
	f, err := r.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := r.root.Rename(temp, id+recordSuffix); err != nil {
		return err
	}
	return r.sync()
}

func (r *records) drop(id string) error {
	if _, ok := r.find(id); !ok {
		return nil
	}
	if err := r.root.Remove(id + recordSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record of guest %s: %w", id, err)
	}
	if err := r.sync(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.known, id)
	return nil
}

func (r *records) sync() error {
	dir, err := r.root.Open(".")
	if err != nil {
		return fmt.Errorf("sync the agent's records: %w", err)
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// ids lists the guests that there are records of.
func (r *records) ids() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.known))
}

// users lists the guests that may write to the volume.
func (r *records) users(volume string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for id, one := range r.known {
		if slices.Contains(one.Volumes, volume) {
			out = append(out, id)
		}
	}
	return out
}

// moves reports whether a guest's disk is being moved.
func (r *records) moves(volume string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, one := range r.known {
		if one.Move != nil && one.Move.ID == volume {
			return true
		}
	}
	return false
}

// bridges lists what guests of this machine plug into.
func (r *records) bridges() map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]bool{}
	for one := range maps.Values(r.known) {
		for _, b := range one.Bridges {
			out[b] = true
		}
	}
	return out
}

// ports is the ports of every guest, by its ID.
func (r *records) ports() map[string][]plugins.Port {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string][]plugins.Port{}
	for id, one := range r.known {
		if len(one.Ports) > 0 {
			out[id] = one.Ports
		}
	}
	return out
}

// macs finds the guest that has a MAC.
func (r *records) macs() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]string{}
	for id, one := range r.known {
		for _, p := range one.Ports {
			out[p.MAC] = id
		}
	}
	return out
}
