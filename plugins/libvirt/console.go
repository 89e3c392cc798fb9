package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"

	"github.com/debvisor/debvisor/api"
)

// Bounds of consoles.
const (
	consoleLogMax  = 4 << 20 // bytes; a longer log is cut
	consoleLogKeep = 1 << 20 // bytes that are left of it
	drainTimeout   = 500 * time.Millisecond
	reopenTries    = 5 // in a row, of a stream that ends while the guest goes on
	reopenPause    = 300 * time.Millisecond
	reopenTimeout  = 5 * time.Second // of one try
)

// Console implements plugins.Hypervisor. Output is read from the log that QEMU
// writes, so that every viewer sees all of it and replay leaves no gap; input
// goes through libvirt's console stream, which the viewers of a guest share.
func (h *Hypervisor) Console(ctx context.Context, id string, replay bool) (io.ReadWriteCloser, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	c, err := h.connect(ctx)
	if err != nil {
		return nil, err
	}
	f, err := h.look(ctx, c, id)
	if err != nil {
		return nil, err
	}
	if f == nil {
		return nil, api.Errorf(api.CodeNotFound, "no domain %s", id)
	}
	if !f.executing() {
		return nil, api.Errorf(api.CodeConflict, "the domain does not execute").On(api.KindVM, f.xml.Name).Do("start the VM, then open its console")
	}
	tail, err := openTail(filepath.Join(h.config.StateDir, id, consoleFile), replay)
	if err != nil {
		return nil, err
	}
	line, err := h.takeLine(ctx, f)
	if err != nil {
		tail.close()
		return nil, err
	}
	k := &console{hypervisor: h, id: id, line: line, tail: tail, closed: make(chan struct{}), over: make(chan struct{}), moved: make(chan struct{})}
	go k.watch()
	return k, nil
}

// console is one viewer. Read has one caller at a time.
type console struct {
	hypervisor *Hypervisor
	id         string
	tail       *tail
	once       sync.Once
	closed     chan struct{} // by Close
	over       chan struct{} // closed when no line is opened any more

	mu    sync.Mutex // guards below
	line  *serialLine
	moved chan struct{} // closed when another line has taken its place
}

// watch ends the reading when the guest does, once its last words are read. A
// stream that ends while the guest goes on is opened again: the daemon may drop
// one for reasons of its own.
func (k *console) watch() {
	defer k.tail.finish()
	defer close(k.over)
	for tries := 0; tries < reopenTries; tries++ {
		line, _ := k.current()
		opened := time.Now()
		select {
		case <-k.closed:
			return
		case <-line.done:
		}
		if time.Since(opened) > reopenTimeout {
			tries = 0
		}
		if !k.reopen(line) {
			return
		}
	}
}

// current is the line in use, and a channel that closes when it was replaced.
func (k *console) current() (*serialLine, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.line, k.moved
}

// reopen replaces a line that ended. It reports whether the console goes on.
func (k *console) reopen(ended *serialLine) bool {
	select {
	case <-k.closed:
		return false
	case <-time.After(reopenPause):
	}
	ctx, cancel := context.WithTimeout(context.Background(), reopenTimeout)
	defer cancel()
	c, err := k.hypervisor.connect(ctx)
	if err != nil {
		return false
	}
	f, err := k.hypervisor.look(ctx, c, k.id)
	if err != nil || f == nil || !f.executing() {
		return false
	}
	line, err := k.hypervisor.takeLine(ctx, f)
	if err != nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	select {
	case <-k.closed: // Close has let go of the old line, and nobody would of this one
		k.hypervisor.dropLine(k.id, line)
		return false
	default:
	}
	k.line = line
	close(k.moved)
	k.moved = make(chan struct{})
	k.hypervisor.dropLine(k.id, ended)
	return true
}

// Read blocks until the guest prints. It returns io.EOF when the guest ended,
// the connection broke or the console was closed.
func (k *console) Read(p []byte) (int, error) {
	select {
	case <-k.closed:
		k.tail.close()
		return 0, io.EOF
	default:
		return k.tail.read(p)
	}
}

// Write types into the guest. While the stream is being opened again it waits.
func (k *console) Write(p []byte) (written int, err error) {
	for {
		select {
		case <-k.closed:
			return written, io.ErrClosedPipe
		default:
		}
		line, moved := k.current()
		n := 0
		n, err = line.input.Write(p[written:])
		if written += n; err == nil {
			return written, nil
		}
		select {
		case <-k.closed:
			return written, io.ErrClosedPipe
		case <-k.over:
			return written, err
		case <-moved:
		}
	}
}

// Close ends the console; a Read that waits returns.
func (k *console) Close() error {
	k.once.Do(func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		close(k.closed)
		k.hypervisor.dropLine(k.id, k.line)
	})
	return nil
}

// serialLine is the open stream to one guest's serial port, on a connection of
// its own, because the library delivers a connection's packets in order and a
// slow stream would hold up all else.
type serialLine struct {
	conn  *conn
	input *io.PipeWriter
	done  chan struct{} // closed when the stream ended
	users int           // guarded by Hypervisor.mu
}

func (h *Hypervisor) takeLine(ctx context.Context, f *found) (*serialLine, error) {
	release, err := h.locks.take(ctx, "console "+f.xml.UUID)
	if err != nil {
		return nil, err
	}
	defer release()
	h.mu.Lock()
	l := h.lines[f.xml.UUID]
	if l != nil && l.open() {
		l.users++
		h.mu.Unlock()
		return l, nil
	}
	h.mu.Unlock()
	own, err := dial(ctx, h.config.Socket)
	if err != nil {
		return nil, err
	}
	in, input := io.Pipe()
	l = &serialLine{conn: own, input: input, done: make(chan struct{}), users: 1}
	h.mu.Lock()
	h.lines[f.xml.UUID] = l
	h.mu.Unlock()
	go func() {
		defer close(l.done)
		// Forced: a viewer that another program left behind must not lock us out.
		err := own.api.DomainOpenConsoleBidirectional(f.handle, nil, in, io.Discard, uint32(libvirt.DomainConsoleForce))
		_ = in.CloseWithError(io.ErrClosedPipe)
		own.close()
		h.config.Logger.Debug("console stream ended", "id", f.xml.UUID, "error", err)
	}()
	return l, nil
}

func (l *serialLine) open() bool {
	select {
	case <-l.done:
		return false
	default:
		return true
	}
}

func (h *Hypervisor) dropLine(id string, l *serialLine) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if l.users--; l.users > 0 {
		return
	}
	if h.lines[id] == l {
		delete(h.lines, id)
	}
	l.conn.close()
	_ = l.input.Close()
}

// tail follows a log file as it grows, is cut or is replaced by a new one.
type tail struct {
	path   string
	file   *os.File
	notify *os.File // inotify on the directory
	mu     sync.Mutex
	ended  bool
}

func openTail(path string, replay bool) (*tail, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watch console log: %w", err)
	}
	t := &tail{path: path, notify: os.NewFile(uintptr(fd), "inotify")}
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		t.close()
		return nil, fmt.Errorf("watch console log: %w", err)
	}
	if t.file, err = os.Open(path); err != nil {
		t.close()
		if errors.Is(err, os.ErrNotExist) {
			return nil, api.Errorf(api.CodeUnavailable, "the guest has no console log on this node").Do("stop and start the VM")
		}
		return nil, fmt.Errorf("open console log: %w", err)
	}
	if !replay {
		if _, err := t.file.Seek(0, io.SeekEnd); err != nil {
			t.close()
			return nil, fmt.Errorf("open console log: %w", err)
		}
	}
	return t, nil
}

func (t *tail) close() {
	_ = t.notify.Close()
	if t.file != nil {
		_ = t.file.Close()
	}
}

// finish lets read return what is in the log already and then io.EOF.
func (t *tail) finish() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	_ = t.notify.SetReadDeadline(time.Now().Add(drainTimeout))
}

func (t *tail) read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	events := make([]byte, 4096)
	for {
		n, err := t.file.Read(p)
		if n > 0 {
			return n, nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("read console log: %w", err)
		}
		if again, err := t.follow(); err != nil || again {
			if err != nil {
				return 0, err
			}
			continue
		}
		if _, err := t.notify.Read(events); err != nil {
			t.mu.Lock()
			ended := t.ended
			t.mu.Unlock()
			if ended {
				t.close()
				return 0, io.EOF
			}
			return 0, fmt.Errorf("watch console log: %w", err)
		}
	}
}

// follow notices at the end of the file that it was cut or replaced.
func (t *tail) follow() (again bool, err error) {
	now, err := os.Stat(t.path)
	if err != nil {
		return false, nil // between the old file and the new one, or removed
	}
	mine, err := t.file.Stat()
	if err != nil {
		return false, fmt.Errorf("read console log: %w", err)
	}
	if !os.SameFile(now, mine) {
		next, err := os.Open(t.path)
		if err != nil {
			return false, nil
		}
		_ = t.file.Close()
		t.file = next
		return true, nil
	}
	at, err := t.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return false, fmt.Errorf("read console log: %w", err)
	}
	if mine.Size() < at {
		_, err = t.file.Seek(0, io.SeekEnd)
	}
	return false, err
}

// trimLog keeps the end of a log that grew too long. QEMU appends to it, so
// cutting it in place is safe.
func trimLog(path string) error {
	stat, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && stat.Size() <= consoleLogMax {
		return nil
	}
	if err != nil {
		return fmt.Errorf("trim console log: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return fmt.Errorf("trim console log: %w", err)
	}
	defer func() { _ = f.Close() }()
	kept := make([]byte, consoleLogKeep)
	n, err := f.ReadAt(kept, stat.Size()-consoleLogKeep)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("trim console log: %w", err)
	}
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("trim console log: %w", err)
	}
	if _, err := f.Write(kept[:n]); err != nil {
		return fmt.Errorf("trim console log: %w", err)
	}
	return nil
}
