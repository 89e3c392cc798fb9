// Package sim implements the contracts of package plugins without a machine
// below: a hypervisor whose guests are records, a storage whose volumes are
// small files, a network whose bridges are names. It says that it is simulated
// wherever a user could take it for real.
//
// What it was told survives a restart of the process: each guest, volume and
// bridge is one small file, written before the call returns. A guest costs a
// record and a file, no goroutine and no polling.
package sim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/api"
)

// What a simulated machine has when its Config does not say.
const (
	defaultCPUs        = 16
	defaultMemoryBytes = 64 * api.GiB
)

// Config describes the simulated machine. Only Dir and ClusterID are needed.
type Config struct {
	Dir         string        // absolute; made when missing; the three simulators of one machine share it
	ClusterID   string        // the mark; a guest of another cluster is refused
	CPUs        int           // of the machine; 0 means 16
	MemoryBytes int64         // of the machine; 0 means 64 GiB
	BootTime    time.Duration // from start until the guest answers and has addresses; 0 means at once
	CopyTime    time.Duration // that the copy of a disk under a guest takes; 0 means no time
	Logger      hclog.Logger  // nil: silent
}

func (c Config) withDefaults() (Config, error) {
	if !filepath.IsAbs(c.Dir) {
		return c, api.Invalid("dir", "is %q", c.Dir).Allow("an absolute directory")
	}
	if c.CPUs == 0 {
		c.CPUs = defaultCPUs
	}
	if c.MemoryBytes == 0 {
		c.MemoryBytes = defaultMemoryBytes
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	return c, nil
}

// drawer is a directory of small JSON files, one a record. Writes are durable
// when they return. Callers serialize writes of the same name.
type drawer struct{ root *os.Root }

const (
	recordSuffix = ".json"
	tempPrefix   = ".new-"
)

func openDrawer(dir, name string) (*drawer, error) {
	full := filepath.Join(dir, name)
	if err := os.MkdirAll(full, 0o700); err != nil {
		return nil, fmt.Errorf("make %s: %w", full, err)
	}
	root, err := os.OpenRoot(full)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", full, err)
	}
	d := &drawer{root: root}
	// A handle that nobody closed must not outlive its owner's last use.
	runtime.AddCleanup(d, func(r *os.Root) { _ = r.Close() }, root)
	return d, nil
}

// put writes a record: temporary file, fsync, rename, fsync of the directory.
func (d *drawer) put(name string, record any) error {
	raw, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	temp := tempPrefix + name
	if err := writeSynced(d.root, temp, raw); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := d.root.Rename(temp, name+recordSuffix); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return syncDir(d.root, ".")
}

// drop removes a record; one that is not there is no error.
func (d *drawer) drop(name string) error {
	err := d.root.Remove(name + recordSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return syncDir(d.root, ".")
}

// names lists the records. Leftovers of an interrupted put are not records.
func (d *drawer) names() ([]string, error) {
	entries, err := fs.ReadDir(d.root.FS(), ".")
	if err != nil {
		return nil, fmt.Errorf("list records: %w", err)
	}
	var out []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), recordSuffix); ok && !strings.HasPrefix(name, tempPrefix) {
			out = append(out, name)
		}
	}
	return out, nil
}

// load decodes one record into to.
func (d *drawer) load(name string, to any) error {
	raw, err := d.root.ReadFile(name + recordSuffix)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if err := json.Unmarshal(raw, to); err != nil {
		return fmt.Errorf("record %s%s of the simulator is damaged: %w", name, recordSuffix, err)
	}
	return nil
}

func writeSynced(root *os.Root, name string, raw []byte) (err error) {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(root *os.Root, name string) error {
	f, err := root.Open(name)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return errors.Join(f.Sync(), f.Close())
}
