package dir

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"time"

	"github.com/debvisor/debvisor/api"
)

// Bounds of one run of qemu-img.
const (
	makeTimeout    = 30 * time.Minute // a copy of a large image
	copyTimeout    = api.TaskDeadlineMax
	inspectTimeout = 30 * time.Second
	inspectMemory  = "--as=2147483648" // bytes of address space
	inspectCPU     = "--cpu=20"        // seconds
	killDelay      = 2 * time.Second
	outputMax      = 1 << 20 // bytes that are kept
)

// run executes qemu-img with these arguments.
func (s *Storage) run(ctx context.Context, args ...string) error {
	return s.runFor(ctx, makeTimeout, nil, args...)
}

// runFor is run with a limit of its own. progress, unless nil, hears the percents that
// qemu-img prints.
func (s *Storage) runFor(ctx context.Context, limit time.Duration, progress func(int), args ...string) error {
	_, err := execute(ctx, limit, progress, s.qemuImg, args...)
	return err
}

// inspect lets qemu-img read the header of a foreign file, within limits of
// memory and time, in case the file was made to exhaust it.
func (s *Storage) inspect(ctx context.Context, path string) ([]byte, error) {
	return execute(ctx, inspectTimeout, nil, "prlimit", inspectMemory, inspectCPU, "--", s.qemuImg, "info", "--output=json", "-f", api.FormatQCOW2, path)
}

func execute(ctx context.Context, timeout time.Duration, progress func(int), program string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.WaitDelay = killDelay
	var out, complaint capped
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if progress != nil {
		cmd.Stdout = &percents{tell: progress, last: -1}
	}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("qemu-img: %w: %s", err, bytes.TrimSpace(complaint.Bytes()))
	}
	return out.Bytes(), nil
}

// capped keeps the beginning of what a program prints.
type capped struct{ bytes.Buffer }

func (c *capped) Write(p []byte) (int, error) {
	if room := outputMax - c.Len(); room > 0 {
		c.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// percents hears progress as qemu-img prints it: "    (12.34/100%)\r".
type percents struct {
	tell func(int)
	last int
}

// Write implements io.Writer.
func (p *percents) Write(b []byte) (int, error) {
	_, rest, _ := bytes.Cut(b, []byte("("))
	whole, _, _ := bytes.Cut(rest, []byte("."))
	if n, err := strconv.Atoi(string(whole)); err == nil && n != p.last && n >= 0 && n <= 100 {
		p.last = n
		p.tell(n)
	}
	return len(b), nil
}
