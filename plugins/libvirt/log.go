package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

var (
	_ plugins.Screens = (*Hypervisor)(nil)
	_ plugins.Logs    = (*Hypervisor)(nil)
)

// ConsoleLog implements plugins.Logs: the file that QEMU appends to and
// trimLog keeps short. The daemon is not asked.
func (h *Hypervisor) ConsoleLog(ctx context.Context, id string) (io.ReadCloser, error) {
	if err := errors.Join(ctx.Err(), checkID(id)); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(h.config.StateDir)
	if err != nil {
		return nil, fmt.Errorf("open state directory: %w", err)
	}
	defer root.Close()
	file, err := root.Open(id + "/" + consoleFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, api.Errorf(api.CodeNotFound, "the guest has no console log on this node").Do("start the VM")
	}
	if err != nil {
		return nil, fmt.Errorf("open console log: %w", err)
	}
	stat, err := file.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open console log: %w", err), file.Close())
	}
	// Between two looks at a guest its log may grow beyond what is kept.
	from := max(0, stat.Size()-consoleLogMax)
	if _, err := file.Seek(from, io.SeekStart); err != nil {
		return nil, errors.Join(fmt.Errorf("open console log: %w", err), file.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(file, stat.Size()-from), file}, nil
}
