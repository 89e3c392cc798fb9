package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

const (
	consoleEscape  = 0x1d     // Ctrl-]
	consoleHistory = 64 << 10 // bytes of output in which --until is looked for
)

// consoleOptions is how a console is used.
type consoleOptions struct {
	replay  bool
	noInput bool
	until   string
	timeout time.Duration
	vnc     bool
	listen  string // of the proxy for a VNC viewer
}

func consoleCommand(a *app) *cobra.Command {
	var o consoleOptions
	cmd := &cobra.Command{
		Use: "console NAME", Short: "Open the serial console of a VM, or its display",
		Long: `Opens the serial console of a VM. On a terminal, Ctrl-] leaves it. Elsewhere the
input is copied to the guest and its output here, until either ends. When the VM
moves to another node, the console is opened there again.

With --vnc it waits for VNC viewers on this machine, and joins each with the
VM's display, until it is told to stop. On a port, which other users of the
machine could reach too, it asks the viewer for the password that it prints; a
unix socket is yours alone.`,
		Example: "  debvisor vm console web\n  debvisor vm console web --replay --no-input --until 'login:' --timeout 2m\n" +
			"  debvisor vm console web --vnc\n  debvisor vm console web --vnc --listen unix:/run/user/1000/web.sock",
		Args: exactly("NAME"), ValidArgsFunction: a.completeNames(vms()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			if o.timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, o.timeout, errConsoleTimeout)
				defer cancel()
			}
			if o.vnc {
				return a.serveDisplay(ctx, c, args[0], o.listen)
			}
			conn, err := openMoving(ctx, a.notef, func(again bool) (io.ReadWriteCloser, error) {
				// The log of the other node begins with the guest's arrival there:
				// shown from its beginning, nothing is missed.
				return c.Console(ctx, a.tenantName(), args[0], o.replay || again)
			})
			if err != nil {
				return err
			}
			return a.console(ctx, conn, args[0], o)
		}),
	}
	f := cmd.Flags()
	f.BoolVar(&o.replay, "replay", false, "begin with what the log kept")
	f.BoolVar(&o.noInput, "no-input", false, "send nothing to the guest")
	f.StringVar(&o.until, "until", "", "leave when the guest has printed this text")
	f.BoolVar(&o.vnc, "vnc", false, "open the display, for a VNC viewer on this machine")
	f.StringVar(&o.listen, "listen", "127.0.0.1:0", "with --vnc: where the viewer connects to: a loopback HOST:PORT, or unix:PATH")
	f.DurationVar(&o.timeout, "timeout", 0, "leave after this time; with --until that is an error (default: never)")
	return cmd
}

var errConsoleTimeout = errors.New("the time is over")

// console copies both ways until the guest, the user, the text or the time
// ends it.
func (a *app) console(ctx context.Context, conn io.ReadWriteCloser, name string, o consoleOptions) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	interactive := a.asking && !o.noInput
	if interactive {
		restore, err := rawTerminal(a.in.(*os.File))
		if err != nil {
			return err
		}
		defer restore()
		a.notef("console of vm %s; Ctrl-] leaves it\r", clean(name))
	}
	left := make(chan error, 1)
	if !o.noInput {
		// This goroutine ends with the process: a read from a terminal cannot
		// be called off.
		go func() { left <- typeInto(conn, a.in, interactive) }()
	}
	seen := make(chan error, 1)
	go func() { seen <- a.copyConsole(conn, o.until) }()
	for {
		select {
		case err := <-left:
			if interactive || err != nil {
				return err
			}
			left = nil // the input ended; what the guest says still matters
		case err := <-seen:
			return a.consoleEnd(ctx, o, err)
		case <-ctx.Done():
			return a.consoleEnd(ctx, o, nil)
		}
	}
}

// errSeen says that the text of --until was printed.
var errSeen = errors.New("seen")

func (a *app) consoleEnd(ctx context.Context, o consoleOptions, err error) error {
	switch {
	case errors.Is(err, errSeen):
		return nil
	case o.until == "" && ctx.Err() != nil:
		return nil
	case o.until != "" && context.Cause(ctx) == errConsoleTimeout:
		return fmt.Errorf("the guest did not print %q within %v", o.until, o.timeout)
	case o.until != "":
		return fmt.Errorf("the console ended before the guest printed %q", o.until)
	case err != nil && !errors.Is(err, io.EOF):
		return api.Errorf(api.CodeUnavailable, "the console broke: %v", err).Do("open it again")
	}
	a.notef("\r\nthe console ended\r")
	return nil
}

// copyConsole writes the guest's output and looks for a text in it.
func (a *app) copyConsole(conn io.Reader, until string) error {
	buffer, history := make([]byte, 32<<10), []byte{}
	for {
		n, err := conn.Read(buffer)
		if n > 0 {
			if _, werr := a.out.Write(buffer[:n]); werr != nil {
				return werr
			}
		}
		if until != "" {
			history = append(history, buffer[:n]...)
			if bytes.Contains(history, []byte(until)) {
				if !bytes.HasSuffix(history, []byte("\n")) {
					_, _ = a.out.Write([]byte("\r\n")) // what follows begins on a line of its own
				}
				return errSeen
			}
			if extra := len(history) - consoleHistory; extra > 0 {
				history = history[extra:]
			}
		}
		if err != nil {
			return err
		}
	}
}

// typeInto copies the input to the guest; on a terminal up to the escape.
func typeInto(conn io.Writer, in io.Reader, interactive bool) error {
	buffer := make([]byte, 4096)
	for {
		n, err := in.Read(buffer)
		typed := buffer[:n]
		at := -1
		if interactive {
			at = bytes.IndexByte(typed, consoleEscape)
		}
		if at >= 0 {
			typed = typed[:at]
		}
		if len(typed) > 0 {
			if _, werr := conn.Write(typed); werr != nil {
				return nil // the reader says why the console ended
			}
		}
		if at >= 0 || errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read input: %w", err)
		}
	}
}

// rawTerminal hands every key to the guest until the returned function is
// called.
func rawTerminal(f *os.File) (restore func(), err error) {
	state, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("set up the terminal: %w", err)
	}
	return func() { _ = term.Restore(int(f.Fd()), state) }, nil
}
