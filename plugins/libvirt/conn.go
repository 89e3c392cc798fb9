package libvirt

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/debvisor/debvisor/api"
)

// Limits of a connection.
const (
	dialTimeout = 15 * time.Second // to connect and open; a fresh daemon probes QEMU first
	callTimeout = 60 * time.Second // of one call; a daemon that takes longer hangs and is dropped
	callsMax    = 64               // at once
)

// conn is one connection to the daemon. It is never reused once it broke.
type conn struct {
	api   *libvirt.Libvirt
	raw   *watchedConn
	calls chan struct{} // one token per running call

	patience time.Duration // with a call; 0: callTimeout
}

// watchedConn tells when its connection is gone. The library learns it too,
// but only tells those that were connected already.
type watchedConn struct {
	net.Conn
	once sync.Once
	dead chan struct{}
}

func (w *watchedConn) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err != nil {
		w.once.Do(func() { close(w.dead) })
	}
	return n, err
}

func (w *watchedConn) Close() error {
	w.once.Do(func() { close(w.dead) })
	return w.Conn.Close()
}

// Dial hands the connection to the library, once.
func (w *watchedConn) Dial() (net.Conn, error) { return w, nil }

// dial connects to the daemon behind socket and opens its system driver.
func dial(ctx context.Context, socket string) (*conn, error) {
	return dialWith(ctx, socket, func(plain net.Conn) net.Conn { return plain })
}

// dialWith lets the caller see what goes over the connection.
func dialWith(ctx context.Context, socket string, wrap func(net.Conn) net.Conn) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	plain, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, unreachable(socket, err)
	}
	raw := &watchedConn{Conn: wrap(plain), dead: make(chan struct{})}
	c := &conn{api: libvirt.NewWithDialer(raw), raw: raw, calls: make(chan struct{}, callsMax)}
	// The library knows no context: closing the connection ends its wait.
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	err = c.api.Connect()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = raw.Close()
		return nil, unreachable(socket, err)
	}
	return c, nil
}

func unreachable(socket string, err error) error {
	e := api.Errorf(api.CodeUnavailable, "libvirt cannot be reached at %s: %v", socket, err)
	switch {
	case errors.Is(err, syscall.ENOENT):
		return e.Do("install and start libvirt: apt install libvirt-daemon-system qemu-system-x86; systemctl start libvirtd")
	case errors.Is(err, syscall.ECONNREFUSED):
		return e.Do("start libvirt: systemctl start libvirtd")
	case errors.Is(err, syscall.EACCES):
		return e.Do("run the agent as root, or as a member of the group libvirt")
	}
	return e.Do("look at: systemctl status libvirtd; journalctl -u libvirtd")
}

func (c *conn) alive() bool {
	select {
	case <-c.raw.dead:
		return false
	default:
		return true
	}
}

// close ends the connection at once; calls that wait return an error.
func (c *conn) close() { _ = c.raw.Close() }

// call runs fn, which makes one call of the library. It returns early when ctx
// ends; the call then ends by itself, or with the connection.
func (c *conn) call(ctx context.Context, fn func(*libvirt.Libvirt) error) error {
	select {
	case c.calls <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-c.raw.dead:
		return lost(nil)
	}
	done := make(chan error, 1)
	hung := time.AfterFunc(cmp.Or(c.patience, callTimeout), c.close)
	go func() {
		defer func() { hung.Stop(); <-c.calls }()
		done <- fn(c.api)
	}()
	select {
	case err := <-done:
		return translate(err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func lost(err error) error {
	text := "the connection to libvirt broke"
	if err != nil {
		text = fmt.Sprintf("%s: %v", text, err)
	}
	return api.Errorf(api.CodeUnavailable, "%s", text).Do("it is opened again by itself; look at: systemctl status libvirtd")
}

// translate turns what the library returns into an error of the API.
func translate(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[libvirt.Error](err); ok {
		switch libvirt.ErrorNumber(e.Code) {
		case libvirt.ErrNoDomain:
			return api.Errorf(api.CodeNotFound, "no such domain")
		case libvirt.ErrDomExist:
			return api.Errorf(api.CodeConflict, "libvirt: %s", e.Message)
		case libvirt.ErrOperationInvalid:
			return api.Errorf(api.CodeConflict, "libvirt: %s", e.Message)
		}
		return api.Errorf(api.CodeUnavailable, "libvirt: %s", e.Message)
	}
	if _, ok := errors.AsType[*api.Error](err); ok {
		return err
	}
	return lost(err)
}
