package plugins

import (
	"context"
	"io"
)

// Logs reads what guests printed.
type Logs interface {
	// ConsoleLog is what was kept of the output of a guest's serial console,
	// oldest first, also of a guest that has stopped. It ends where the log ends
	// now. An unknown domain, and one that never printed, is CodeNotFound. The
	// adapter bounds what it keeps.
	ConsoleLog(ctx context.Context, id string) (io.ReadCloser, error)
}
