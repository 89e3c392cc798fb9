package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

// Widths of output, in columns.
const (
	widthDefault = 80 // where the output is no terminal
	widthMin     = 40
)

// Limits of a command that talks to a cluster.
const (
	requestTimeout    = 15 * time.Second // tries on every address included
	completionTimeout = 2 * time.Second  // a shell waits for it
	keyFileMax        = 4096             // bytes
)

// What a command takes where neither a flag nor the environment says.
const (
	addressDefault = "127.0.0.1:7443"
	dataDirDefault = "/var/lib/debvisor"
)

// app is what all commands share: the streams, the environment, and the flags
// of the root command.
type app struct {
	in     io.Reader
	out    io.Writer
	errOut io.Writer
	env    func(string) string
	now    func() time.Time

	width    int  // of a line on out
	terminal bool // out is a terminal: redraw, colour
	asking   bool // in and out are terminals: a person can answer

	format string // -o
	tenant string // --tenant
	addr   string // --addr
}

func newApp(in io.Reader, out, errOut io.Writer, env func(string) string) *app {
	a := &app{in: in, out: out, errOut: errOut, env: env, now: time.Now, width: widthDefault}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		a.terminal = true
		if w, _, err := term.GetSize(int(f.Fd())); err == nil {
			a.width = max(w, widthMin)
		}
		stdin, ok := in.(*os.File)
		a.asking = ok && term.IsTerminal(int(stdin.Fd()))
	}
	return a
}

// color reports whether text may be coloured (https://no-color.org).
func (a *app) color() bool {
	return a.terminal && a.env("NO_COLOR") == "" && a.env("TERM") != "dumb"
}

func (a *app) printf(format string, args ...any) { fmt.Fprintf(a.out, format, args...) }

// notef writes what is not the result: progress, hints, warnings.
func (a *app) notef(format string, args ...any) { fmt.Fprintf(a.errOut, format+"\n", args...) }

// client connects to the cluster that the flags and the environment name. It
// does not talk to it yet.
func (a *app) client() (*client.Client, error) {
	return a.clientWith(requestTimeout)
}

func (a *app) clientWith(timeout time.Duration) (*client.Client, error) {
	key, err := a.key()
	if err != nil {
		return nil, err
	}
	return client.New(client.Config{
		Addresses: a.addresses(),
		CAFile:    a.caFile(),
		Key:       key,
		Timeout:   timeout,
		Agent:     "debvisor/" + version,
	})
}

// addresses is --addr, else DEBVISOR_ADDR, else this machine.
func (a *app) addresses() []string {
	for _, list := range []string{a.addr, a.env("DEBVISOR_ADDR")} {
		var out []string
		for _, s := range strings.Split(list, ",") {
			if s = strings.TrimSpace(s); s != "" {
				out = append(out, s)
			}
		}
		if len(out) > 0 {
			return out
		}
	}
	return []string{addressDefault}
}

// caFile is DEBVISOR_CACERT, else the CA of the node on this machine, if there
// is one.
func (a *app) caFile() string {
	if f := a.env("DEBVISOR_CACERT"); f != "" {
		return f
	}
	if f := dataDirDefault + "/ca.pem"; fileExists(f) {
		return f
	}
	return ""
}

// key is DEBVISOR_KEY, else what the file DEBVISOR_KEY_FILE holds. It is never
// an argument: other users of a machine can see those.
func (a *app) key() (string, error) {
	if key := strings.TrimSpace(a.env("DEBVISOR_KEY")); key != "" {
		return key, nil
	}
	name := a.env("DEBVISOR_KEY_FILE")
	if name == "" {
		return "", nil
	}
	f, err := os.Open(name)
	if err != nil {
		return "", fmt.Errorf("open the file that DEBVISOR_KEY_FILE names: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, keyFileMax))
	if err != nil {
		return "", fmt.Errorf("read the file that DEBVISOR_KEY_FILE names: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}

func fileExists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// tenantName is the tenant that commands work on.
func (a *app) tenantName() string {
	if a.tenant != "" {
		return a.tenant
	}
	return api.DefaultTenant
}

// scope is the tenant for a request about this kind; empty where the kind
// belongs to none.
func (a *app) scope(kind api.Kind) string {
	if kind.TenantScope {
		return a.tenantName()
	}
	return ""
}

// confirm asks a question that "y" or "yes" answers with true. Where nobody
// can answer it returns otherwise.
func (a *app) confirm(question string, otherwise bool) (bool, error) {
	if !a.asking {
		return otherwise, nil
	}
	fmt.Fprintf(a.errOut, "%s [y/N] ", question)
	answer, err := readLine(a.in)
	if err != nil && err != io.EOF {
		return false, fmt.Errorf("read the answer: %w", err)
	}
	answer = strings.ToLower(strings.TrimSpace(answer))
	return answer == "y" || answer == "yes", nil
}

const answerMax = 1024 // bytes of a line that a person types

// readLine reads up to a newline, byte by byte, so that nothing behind it is
// swallowed.
func readLine(r io.Reader) (string, error) {
	var line []byte
	for one := make([]byte, 1); len(line) < answerMax; {
		n, err := r.Read(one)
		if n == 1 && one[0] == '\n' {
			return string(line), nil
		}
		line = append(line, one[:n]...)
		if err != nil {
			return string(line), err
		}
	}
	return string(line), nil
}

// runner is the body of a command that talks to a cluster.
type runner func(ctx context.Context, c *client.Client, args []string) error

// with makes a cobra body of one that needs a client.
func (a *app) with(f runner) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		return f(cmd.Context(), c, args)
	}
}
