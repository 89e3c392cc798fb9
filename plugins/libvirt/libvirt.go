// Package libvirt runs guests with libvirt and QEMU. It implements
// plugins.Hypervisor over libvirt's own protocol on a unix socket.
//
// Only domains whose metadata carries debvisor's mark with this cluster's ID
// are seen or touched. What belongs to a guest beside its volumes (seed,
// firmware variables, console log) lies in Config.StateDir/ID.
package libvirt

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// DefaultSocket is where Debian's libvirtd listens.
const DefaultSocket = "/run/libvirt/libvirt-sock"

// How guests are to be executed.
const (
	AccelAuto = "auto" // kvm where it works, else tcg
	AccelKVM  = "kvm"  // kvm or not at all
	AccelTCG  = "tcg"  // software emulation
)

// Config says which daemon to use and how. ClusterID and StateDir are needed.
type Config struct {
	Socket      string   // path of the daemon's unix socket; empty: DefaultSocket
	ClusterID   string   // the mark of our domains
	StateDir    string   // absolute; made when missing; QEMU must be able to enter it
	Accel       string   // AccelAuto (or empty), AccelKVM or AccelTCG
	FirmwareDir string   // of UEFI; empty: where Debian's package ovmf puts it
	Guard       []string // program and first arguments that run Guard; nil: guests are not frozen
	Logger      hclog.Logger
}

// Hypervisor talks to one libvirt daemon and connects anew when the
// connection broke. It is safe for use from several goroutines.
type Hypervisor struct {
	config Config
	guards guards
	locks  locks // per domain: Start, Stop's end and Remove exclude each other

	mu       sync.Mutex // guards below
	conn     *conn
	dialed   chan struct{} // closed when a dial that is under way ends; nil: none is
	closed   bool
	arriving map[string]arriving // guests that Receive waits for
	accel    *acceleration
	ours     map[string]struct{}    // IDs of domains seen with our mark
	mute     map[string]muted       // guests whose agent did not answer lately
	lines    map[string]*serialLine // opened consoles
}

var _ plugins.Hypervisor = (*Hypervisor)(nil)

// Open checks the configuration. It does not connect: a daemon that is down
// now may come later, and Probe says what is wrong with it.
func Open(config Config) (*Hypervisor, error) {
	if config.Socket == "" {
		config.Socket = DefaultSocket
	}
	if config.Accel == "" {
		config.Accel = AccelAuto
	}
	if config.FirmwareDir == "" {
		config.FirmwareDir = defaultFirmwareDir
	}
	if config.Logger == nil {
		config.Logger = hclog.NewNullLogger()
	}
	switch {
	case config.Accel != AccelAuto && config.Accel != AccelKVM && config.Accel != AccelTCG:
		return nil, api.Invalid("accel", "is %q", config.Accel).Allow("auto, kvm, tcg")
	case config.ClusterID == "":
		return nil, api.Invalid("cluster_id", "is missing").Allow("the cluster's UUID")
	case !filepath.IsAbs(config.Socket):
		return nil, api.Invalid("socket", "is %q", config.Socket).Allow("an absolute path")
	case !filepath.IsAbs(config.StateDir):
		return nil, api.Invalid("state_dir", "is %q", config.StateDir).Allow("an absolute directory")
	}
	// QEMU runs as another user and has to reach the files by name; it cannot list them.
	if err := os.MkdirAll(config.StateDir, 0o711); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	return &Hypervisor{
		config: config, locks: locks{held: map[string]*lock{}},
		ours: map[string]struct{}{}, mute: map[string]muted{}, lines: map[string]*serialLine{},
	}, nil
}

// Close implements plugins.Hypervisor. Consoles and event channels end.
func (h *Hypervisor) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	if h.conn != nil {
		h.conn.close()
	}
	for _, l := range h.lines {
		l.conn.close()
	}
	return nil
}

// connect returns the living connection, or dials. One caller dials, the
// others wait for it.
func (h *Hypervisor) connect(ctx context.Context) (*conn, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h.mu.Lock()
		switch {
		case h.closed:
			h.mu.Unlock()
			return nil, api.Errorf(api.CodeUnavailable, "the hypervisor adapter is closed")
		case h.conn != nil && h.conn.alive():
			c := h.conn
			h.mu.Unlock()
			return c, nil
		case h.dialed == nil:
			h.dialed = make(chan struct{})
			h.mu.Unlock()
			return h.dial(ctx)
		}
		wait := h.dialed
		h.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (h *Hypervisor) dial(ctx context.Context) (*conn, error) {
	c, err := dial(ctx, h.config.Socket)
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.dialed)
	h.dialed = nil
	if err != nil {
		return nil, err
	}
	if h.closed {
		c.close()
		return nil, api.Errorf(api.CodeUnavailable, "the hypervisor adapter is closed")
	}
	h.config.Logger.Info("connected to libvirt", "socket", h.config.Socket)
	h.conn = c
	return c, nil
}

// locks hands out one lock per domain whose waiters can give up.
type locks struct {
	mu   sync.Mutex // guards held
	held map[string]*lock
}

type lock struct {
	token chan struct{}
	users int
}

// take blocks until nobody else holds id, or ctx ends.
func (l *locks) take(ctx context.Context, id string) (release func(), err error) {
	l.mu.Lock()
	k := l.held[id]
	if k == nil {
		k = &lock{token: make(chan struct{}, 1)}
		l.held[id] = k
	}
	k.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.held, id)
		}
	}
	select {
	case k.token <- struct{}{}:
		return func() { <-k.token; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// exclusive runs body while no other change of the domain runs. It returns
// early when ctx ends; body goes on to its next check of ctx and keeps the lock
// until then, so that a later change cannot overtake it.
func (h *Hypervisor) exclusive(ctx context.Context, id string, body func(context.Context) error) error {
	release, err := h.locks.take(ctx, id)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		defer release()
		done <- body(ctx)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
