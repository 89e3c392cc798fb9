package plugins

import (
	"context"
	"io"
)

// ScreenshotBytesMax is the longest picture of a display.
const ScreenshotBytesMax = 32 << 20

// Screens shows the displays of guests. Both methods are CodeNotFound for an
// unknown domain and CodeConflict for one that does not execute or has no
// display.
type Screens interface {
	// OpenDisplay connects to the display of an executing guest. What is read
	// and written is the RFB protocol (RFC 6143), the reader being the client,
	// with no authentication asked for: whoever calls has been let in. Several
	// may look at once. It ends when the guest does, and with Close.
	OpenDisplay(ctx context.Context, id string) (io.ReadWriteCloser, error)

	// Screenshot is what the display shows, as a PNG file of at most
	// ScreenshotBytesMax bytes.
	Screenshot(ctx context.Context, id string) ([]byte, error)
}
