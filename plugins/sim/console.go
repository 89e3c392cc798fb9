package sim

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/debvisor/debvisor/api"
)

// What the console of a simulated guest keeps and shows.
const (
	tickEvery     = time.Second
	ticksReplayed = 20
	typedLinesMax = 256
	typedLineMax  = 1024 // bytes; a longer line is cut
)

// Console implements plugins.Hypervisor. The output is computed from the time
// of the start, so that it costs nothing while nobody looks.
func (h *Hypervisor) Console(ctx context.Context, id string, replay bool) (io.ReadWriteCloser, error) {
	if err := h.usable(ctx); err != nil {
		return nil, err
	}
	d := h.find(id)
	if d == nil {
		return nil, api.Errorf(api.CodeNotFound, "no domain %s", id)
	}
	r := d.record.Load()
	if r == nil || !r.executing() {
		return nil, api.Errorf(api.CodeConflict, "the domain does not execute").Do("start the VM, then open its console")
	}
	c := &console{hypervisor: h, domain: d, record: r, closed: make(chan struct{}), boot: bootText(r, h.config)}
	c.skip(time.Now(), replay)
	return c, nil
}

// console is one opened console. Read has one caller at a time.
type console struct {
	hypervisor *Hypervisor
	domain     *domain
	record     *record
	boot       []string
	bootAt     int // next boot line
	tickAt     int // next tick
	typedAt    int // next echoed line, counted from the start of the guest
	pending    []byte

	lineMu sync.Mutex // guards line
	line   []byte     // typed and not yet ended

	closeOnce sync.Once
	closed    chan struct{}
}

func bootText(r *record, config Config) []string {
	lines := []string{
		fmt.Sprintf("debvisor simulated guest %s: this text is made up, no machine runs", r.Spec.Name),
		"Linux version 6.1.0-simulated (debvisor) SMP PREEMPT_DYNAMIC",
		"Command line: console=ttyS0",
		fmt.Sprintf("smp: Brought up 1 node, %d CPUs", r.Spec.CPUs),
		fmt.Sprintf("Memory: %dK available", r.Spec.MemoryBytes/api.KiB),
	}
	for i, d := range r.Spec.Disks {
		lines = append(lines, fmt.Sprintf("virtio_blk virtio%d: disk %s (%s)", i, d.Name, d.Source.Format))
	}
	for i, n := range r.Spec.NICs {
		lines = append(lines, fmt.Sprintf("virtio_net eth%d: %s on %s", i, n.MAC, n.Bridge))
	}
	if r.Spec.Seed != nil {
		lines = append(lines, "cloud-init: seed "+r.Spec.SeedID)
	}
	for i := range lines {
		at := config.BootTime * time.Duration(i) / time.Duration(len(lines))
		lines[i] = fmt.Sprintf("[%12.6f] %s\r\n", at.Seconds(), lines[i])
	}
	return append(lines, fmt.Sprintf("\r\n%s login (simulated): GUEST-READY\r\n", r.Spec.Name))
}

// skip moves past what a caller does not want to see again.
func (c *console) skip(now time.Time, replay bool) {
	ticks := c.ticksBy(now)
	if replay {
		c.tickAt = max(0, ticks-ticksReplayed)
		return
	}
	c.bootAt, c.tickAt = c.bootLinesBy(now), ticks
	c.domain.outMu.Lock()
	defer c.domain.outMu.Unlock()
	c.typedAt = c.domain.dropped + len(c.domain.typed)
}

func (c *console) bootLinesBy(now time.Time) int {
	total, age := c.hypervisor.config.BootTime, now.Sub(c.record.StartedAt)
	if age >= total {
		return len(c.boot)
	}
	return min(len(c.boot)-1, int(age*time.Duration(len(c.boot))/total)+1)
}

func (c *console) ticksBy(now time.Time) int {
	return max(0, int(now.Sub(c.record.StartedAt.Add(c.hypervisor.config.BootTime))/tickEvery))
}

// Read blocks until the guest prints something. It returns io.EOF when the
// guest ended or the console was closed.
func (c *console) Read(p []byte) (int, error) {
	for {
		if len(c.pending) > 0 {
			n := copy(p, c.pending)
			c.pending = c.pending[n:]
			return n, nil
		}
		changed := c.domain.changes()
		if c.collect(time.Now()); len(c.pending) > 0 {
			continue
		}
		if !c.live() {
			return 0, io.EOF
		}
		timer := time.NewTimer(c.untilNext(time.Now()))
		select {
		case <-c.closed:
			timer.Stop()
			return 0, io.EOF
		case <-changed:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// live reports whether the guest of this console still executes: the same
// start, not a later one.
func (c *console) live() bool {
	select {
	case <-c.closed:
		return false
	default:
	}
	r := c.domain.record.Load()
	return r != nil && r.executing() && r.StartedAt.Equal(c.record.StartedAt) && c.hypervisor.open()
}

func (h *Hypervisor) open() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.closed
}

func (c *console) collect(now time.Time) {
	for until := c.bootLinesBy(now); c.bootAt < until; c.bootAt++ {
		c.pending = append(c.pending, c.boot[c.bootAt]...)
	}
	for until := c.ticksBy(now); c.tickAt < until; c.tickAt++ {
		c.pending = fmt.Appendf(c.pending, "tick %d (simulated)\r\n", c.tickAt+1)
	}
	c.domain.outMu.Lock()
	defer c.domain.outMu.Unlock()
	for _, line := range c.domain.typed[max(0, c.typedAt-c.domain.dropped):] {
		c.pending = append(c.pending, line...)
	}
	c.typedAt = c.domain.dropped + len(c.domain.typed)
}

func (c *console) untilNext(now time.Time) time.Duration {
	age := now.Sub(c.record.StartedAt)
	if total := c.hypervisor.config.BootTime; age < total {
		return min(total-age, total/time.Duration(len(c.boot)))
	}
	next := c.record.StartedAt.Add(c.hypervisor.config.BootTime + time.Duration(c.tickAt+1)*tickEvery)
	return max(time.Millisecond, next.Sub(now))
}

// Write types into the guest, which echoes each line with a note on what it
// is. Like a serial line it shows on every console of the guest.
func (c *console) Write(p []byte) (int, error) {
	if !c.live() {
		return 0, io.ErrClosedPipe
	}
	c.lineMu.Lock()
	defer c.lineMu.Unlock()
	for _, b := range p {
		switch {
		case b == '\r' || b == '\n':
			if len(c.line) > 0 {
				c.domain.echo(string(c.line))
			}
			c.line = c.line[:0]
		case len(c.line) < typedLineMax:
			c.line = append(c.line, b)
		}
	}
	return len(p), nil
}

func (d *domain) echo(line string) {
	printable := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, line)
	d.outMu.Lock()
	d.typed = append(d.typed, fmt.Sprintf("%s\r\nsimulated guest read: %s\r\n", printable, printable))
	if extra := len(d.typed) - typedLinesMax; extra > 0 {
		d.typed, d.dropped = d.typed[extra:], d.dropped+extra
	}
	d.outMu.Unlock()
	d.wake()
}

// Close ends the console; a Read that waits returns.
func (c *console) Close() error {
	c.closeOnce.Do(func() { close(c.closed) })
	return nil
}
