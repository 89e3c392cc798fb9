package main

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

// Patience with a VM that moves.
const (
	moveTries = 20 // in a row, to open a console that moved
	movePause = 250 * time.Millisecond
)

// moving is a console that follows its VM to other nodes.
type moving struct {
	ctx   context.Context
	notef func(string, ...any)
	open  func(again bool) (io.ReadWriteCloser, error)

	mu     sync.Mutex // guards below
	conn   io.ReadWriteCloser
	closed bool
}

// openMoving opens a console; open is called again when the VM has moved.
func openMoving(ctx context.Context, notef func(string, ...any), open func(again bool) (io.ReadWriteCloser, error)) (io.ReadWriteCloser, error) {
	conn, err := open(false)
	if err != nil {
		return nil, err
	}
	return &moving{ctx: ctx, notef: notef, open: open, conn: conn}, nil
}

func (m *moving) current() io.ReadWriteCloser {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.conn
}

// Read implements io.Reader.
func (m *moving) Read(p []byte) (int, error) {
	for {
		n, err := m.current().Read(p)
		if n > 0 || !client.ConsoleMoved(err) {
			return n, err
		}
		if err := m.follow(); err != nil {
			return 0, err
		}
	}
}

// follow opens the console on the node where the VM is now. The node that is
// asked may learn of the move a moment later than the one that told us.
func (m *moving) follow() error {
	m.notef("\r\nthe VM moved to another node; the console follows\r")
	for try := 0; ; try++ {
		conn, err := m.open(true)
		if err == nil {
			return m.replace(conn)
		}
		if code := api.CodeOf(err); code == api.CodeForbidden || code == api.CodeUnauthenticated || try >= moveTries {
			return err
		}
		select {
		case <-time.After(movePause):
		case <-m.ctx.Done():
			return m.ctx.Err()
		}
	}
}

func (m *moving) replace(conn io.ReadWriteCloser) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errors.Join(io.EOF, conn.Close())
	}
	old := m.conn
	m.conn = conn
	_ = old.Close()
	return nil
}

// Write implements io.Writer. What is typed while the VM moves is lost, as on
// a line that is cut.
func (m *moving) Write(p []byte) (int, error) {
	if n, err := m.current().Write(p); err == nil {
		return n, nil
	}
	return len(p), nil // the reader says whether the console ended
}

// Close implements io.Closer.
func (m *moving) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return m.conn.Close()
}
