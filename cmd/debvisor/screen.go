package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

const viewersMax = 8 // VNC viewers of one command at once

func screenshotCommand(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "screenshot NAME -f FILE.png", Short: "Save a picture of a VM's display",
		Example: "  debvisor vm screenshot web -f web.png\n  debvisor vm screenshot web -f - | display",
		Args:    exactly("NAME"), ValidArgsFunction: a.completeNames(vms()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			picture, err := c.Screenshot(ctx, a.tenantName(), args[0])
			if err != nil {
				return err
			}
			if file == "-" {
				_, err := a.out.Write(picture)
				return err
			}
			if err := os.WriteFile(file, picture, 0o600); err != nil {
				return fmt.Errorf("save the picture: %w", err)
			}
			a.notef("%s: %s", clean(file), api.FormatSize(int64(len(picture))))
			return nil
		}),
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "file to write; - for the output")
	_ = cmd.MarkFlagRequired("file")
	_ = cmd.MarkFlagFilename("file", "png")
	return cmd
}

func logCommand(a *app) *cobra.Command {
	var q api.LogQuery
	cmd := &cobra.Command{
		Use: "log NAME", Short: "Search what a VM's serial console has printed",
		Long: `Shows the last lines that the log of a VM's serial console has kept, also of a
VM that has stopped. With --grep only lines that match; the pattern is RE2. The
node keeps the last MiB of each guest's output.`,
		Example: "  debvisor vm log web --tail 20\n  debvisor vm log web --grep '(?i)error|panic'",
		Args:    exactly("NAME"), ValidArgsFunction: a.completeNames(vms()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			log, err := c.ConsoleLog(ctx, a.tenantName(), args[0], q)
			if err != nil {
				return err
			}
			if a.structured() {
				return a.emit(log)
			}
			for _, line := range log.Lines {
				if a.terminal { // what a guest prints must not steer the terminal
					line = clean(line)
				}
				a.printf("%s\n", line)
			}
			if log.Truncated {
				a.notef("older lines match too: see more with --tail (at most %d)", api.LogLinesMax)
			}
			return nil
		}),
	}
	cmd.Flags().IntVar(&q.Tail, "tail", api.LogLinesDefault, "lines to show at most, the last ones")
	cmd.Flags().StringVar(&q.Grep, "grep", "", "show lines that match this pattern only")
	return cmd
}

// serveDisplay joins VNC viewers of this machine with the display of a VM until
// ctx ends.
func (a *app) serveDisplay(ctx context.Context, c *client.Client, name, listen string) error {
	first, err := c.Display(ctx, a.tenantName(), name) // says now what would fail later
	if err != nil {
		return err
	}
	_ = first.Close()
	listener, err := listenForViewers(ctx, listen)
	if err != nil {
		return err
	}
	proxy := &displayProxy{open: func() (io.ReadWriteCloser, error) { return c.Display(ctx, a.tenantName(), name) }, notef: a.notef}
	address := listener.Addr().String()
	if listener.Addr().Network() == "tcp" {
		proxy.password = newViewerPassword()
		a.printf("%s\npassword: %s\n", "vnc://"+address, proxy.password)
	} else {
		a.printf("unix:%s\n", clean(address))
	}
	a.notef("display of vm %s; Ctrl-C ends it", clean(name))
	return proxy.serve(ctx, listener)
}

// listenForViewers listens where nobody outside this machine can connect to.
func listenForViewers(ctx context.Context, listen string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(listen, "unix:"); ok {
		return listenPrivate(ctx, path)
	}
	wrong := func() error {
		return api.Invalid("listen", "is %.128q", listen).Allow("a loopback address as 127.0.0.1:5901, or unix:PATH").
			Do("viewers on other machines: log in here with ssh -L")
	}
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, wrong()
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, wrong()
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if err != nil {
		return nil, fmt.Errorf("listen for viewers: %w", err)
	}
	return listener, nil
}

// listenPrivate makes a socket that only this user can connect to: it is made
// in a directory of its own, and moved into place when its mode is right.
func listenPrivate(ctx context.Context, path string) (net.Listener, error) {
	if _, err := os.Lstat(path); err == nil {
		return nil, api.Invalid("listen", "%s exists", clean(path)).Do("remove it, or name another path")
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".debvisor")
	if err != nil {
		return nil, fmt.Errorf("listen for viewers: %w", err)
	}
	defer os.Remove(dir)
	hidden := filepath.Join(dir, "s")
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", hidden)
	if err != nil {
		return nil, fmt.Errorf("listen for viewers: %w", err)
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false) // it would look under the old name
	if err := errors.Join(os.Chmod(hidden, 0o600), os.Rename(hidden, path)); err != nil {
		return nil, errors.Join(fmt.Errorf("listen for viewers: %w", err), listener.Close(), os.Remove(hidden))
	}
	return &privateListener{Listener: listener, path: path}, nil
}

// privateListener takes its file away.
type privateListener struct {
	net.Listener
	path string
}

// Addr implements net.Listener.
func (p *privateListener) Addr() net.Addr { return &net.UnixAddr{Name: p.path, Net: "unix"} }

// Close implements net.Listener.
func (p *privateListener) Close() error {
	return errors.Join(p.Listener.Close(), os.Remove(p.path))
}

// displayProxy joins viewers with a display.
type displayProxy struct {
	open     func() (io.ReadWriteCloser, error)
	password string // that a viewer must know; empty: none is asked for
	notef    func(string, ...any)

	mu    sync.Mutex // guards wrong
	wrong int        // passwords
}

// passwordTries ends the proxy: the password is short, because VNC's are.
const passwordTries = 5

var errPasswordTries = errors.New("too many wrong passwords: somebody else on this machine may be trying; start again with --listen unix:PATH")

func (p *displayProxy) serve(ctx context.Context, listener net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	slots := make(chan struct{}, viewersMax)
	var viewers sync.WaitGroup
	defer viewers.Wait()
	for {
		conn, err := listener.Accept()
		if err != nil {
			if errors.Is(context.Cause(ctx), errPasswordTries) {
				return api.Errorf(api.CodeForbidden, "%v", errPasswordTries)
			}
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("wait for viewers: %w", err)
		}
		select {
		case slots <- struct{}{}:
		default:
			_ = conn.Close()
			continue
		}
		viewers.Go(func() {
			defer func() { <-slots }()
			if err := p.join(ctx, conn); errors.Is(err, errWrongPassword) {
				p.mu.Lock()
				defer p.mu.Unlock()
				if p.wrong++; p.wrong >= passwordTries {
					cancel(errPasswordTries)
				}
			} else if err != nil && ctx.Err() == nil {
				p.notef("viewer: %v", err)
			}
		})
	}
}
