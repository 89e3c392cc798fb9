package libvirt

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

var _ plugins.GuestAgent = (*Hypervisor)(nil)

// Times of the guard that thaws a guest.
const (
	guardWait     = 10 * time.Second // until a guard is ready
	guardTries    = 10 * time.Minute // how long a guard goes on trying to thaw
	guardTryEvery = 500 * time.Millisecond
	guardReady    = "ready"
	guardDone     = "done"
)

// onAgent finds an executing guest whose agent is there, and asks it.
func (h *Hypervisor) onAgent(ctx context.Context, id string, ask func(c *conn, f *found) error) error {
	if err := checkID(id); err != nil {
		return err
	}
	c, err := h.connect(ctx)
	if err != nil {
		return err
	}
	f, err := h.look(ctx, c, id)
	switch {
	case err != nil:
		return err
	case f == nil || !f.executing():
		return api.Errorf(api.CodeConflict, "the guest does not run").Do("start it first")
	case !f.xml.agentConnected():
		return api.Errorf(api.CodeUnavailable, "no agent answers in the guest").Do("install qemu-guest-agent in it and start it, or wait until it has booted")
	}
	return ask(c, f)
}

// GuestInfo implements plugins.GuestAgent.
func (h *Hypervisor) GuestInfo(ctx context.Context, id string) (info api.GuestInfo, err error) {
	err = h.onAgent(ctx, id, func(c *conn, f *found) error {
		var params []libvirt.TypedParam
		err := c.call(ctx, func(l *libvirt.Libvirt) (err error) {
			params, err = l.DomainGetGuestInfo(f.handle, 0, 0)
			return err
		})
		if err != nil {
			return err
		}
		info = guestInfo(params)
		info.Addresses = h.addresses(ctx, c, f)
		info.Frozen = h.guards.has(id)
		return c.call(ctx, func(l *libvirt.Libvirt) error {
			seconds, nanos, err := l.DomainGetTime(f.handle, 0)
			if err == nil {
				info.Time = time.Unix(seconds, int64(nanos)).UTC()
			}
			return nil //nolint:nilerr // an agent may not know the time
		})
	})
	return info, err
}

// guestInfo keeps what is known of what a guest says, and cleans it.
func guestInfo(params []libvirt.TypedParam) api.GuestInfo {
	said := map[string]any{}
	for _, p := range params {
		said[p.Field] = p.Value.I
	}
	text := func(name string) string {
		s, _ := said[name].(string)
		return api.CleanText(s, api.LabelValueLengthMax)
	}
	number := func(name string) int64 {
		n, _ := said[name].(uint64)
		return int64(min(n, 1<<62))
	}
	info := api.GuestInfo{Hostname: text("hostname"), OS: text("os.pretty-name"), Kernel: text("os.kernel-release")}
	for i := range api.GuestFilesystemsMax {
		at := "fs." + strconv.Itoa(i) + "."
		if _, ok := said[at+"mountpoint"]; !ok {
			break
		}
		info.Filesystems = append(info.Filesystems, api.GuestFilesystem{Mount: text(at + "mountpoint"), Device: text(at + "name"),
			Type: text(at + "fstype"), TotalBytes: number(at + "total-bytes"), UsedBytes: number(at + "used-bytes")})
	}
	slices.SortFunc(info.Filesystems, func(a, b api.GuestFilesystem) int { return strings.Compare(a.Mount, b.Mount) })
	return info
}

// FreezeGuest implements plugins.GuestAgent. A guard, a process of its own,
// thaws the guest when the limit is over or this process has ended.
func (h *Hypervisor) FreezeGuest(ctx context.Context, id string, limit time.Duration) (frozen int, err error) {
	if len(h.config.Guard) == 0 {
		return 0, api.Errorf(api.CodeConflict, "this node has no guard to thaw guests")
	}
	err = h.onAgent(ctx, id, func(c *conn, f *found) error {
		g, err := h.guards.add(id, func() (*guard, error) { return h.startGuard(ctx, id, limit) })
		if err != nil {
			return err
		}
		err = c.call(context.WithoutCancel(ctx), func(l *libvirt.Libvirt) error {
			n, err := l.DomainFsfreeze(f.handle, nil, 0)
			frozen = int(n)
			return err
		})
		if err != nil {
			_ = g.input.Close() // it thaws what may be frozen all the same
			h.guards.drop(id, g)
		}
		return err
	})
	return frozen, err
}

// ThawGuest implements plugins.GuestAgent.
func (h *Hypervisor) ThawGuest(ctx context.Context, id string) (thawed int, err error) {
	err = h.onAgent(ctx, id, func(c *conn, f *found) error {
		err := c.call(ctx, func(l *libvirt.Libvirt) error {
			n, err := l.DomainFsthaw(f.handle, nil, 0)
			thawed = int(n)
			return err
		})
		if err == nil {
			h.guards.dismiss(id)
		}
		return err
	})
	return thawed, err
}

// SetGuestPassword implements plugins.GuestAgent.
func (h *Hypervisor) SetGuestPassword(ctx context.Context, id string, set api.GuestPasswordSet) error {
	if err := set.Validate(); err != nil {
		return err
	}
	return h.onAgent(ctx, id, func(c *conn, f *found) error {
		err := c.call(ctx, func(l *libvirt.Libvirt) error {
			return l.DomainSetUserPassword(f.handle, libvirt.OptString{set.Account}, libvirt.OptString{set.Password}, 0)
		})
		if err == nil || ctx.Err() != nil {
			return err
		}
		// What libvirt says may hold what it sent: it is not passed on.
		return api.Invalid("account", "the guest refuses to set the password of %q", set.Account).Do("see whether the account exists in the guest")
	})
}

// SetGuestTime implements plugins.GuestAgent.
func (h *Hypervisor) SetGuestTime(ctx context.Context, id string) error {
	return h.onAgent(ctx, id, func(c *conn, f *found) error {
		return c.call(ctx, func(l *libvirt.Libvirt) error {
			now := time.Now()
			return l.DomainSetTime(f.handle, now.Unix(), uint32(now.Nanosecond()), 0)
		})
	})
}

// guard is the process that thaws one guest.
type guard struct {
	input io.WriteCloser // its end is ours
	ended chan struct{}
}

// startGuard starts the guard of a guest and waits until it is ready: a guest
// is frozen only when there is somebody to thaw it.
func (h *Hypervisor) startGuard(ctx context.Context, id string, limit time.Duration) (*guard, error) {
	args := append(slices.Clone(h.config.Guard[1:]), h.config.Socket, id, limit.String())
	cmd := exec.Command(h.config.Guard[0], args...) //nolint:gosec // our own program
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	input, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	g := &guard{input: input, ended: make(chan struct{})}
	ready := make(chan string, 1)
	go func() {
		defer close(g.ended)
		lines := bufio.NewScanner(io.LimitReader(output, 4096))
		lines.Scan()
		ready <- lines.Text()
		_ = cmd.Wait()
		h.guards.drop(id, g)
	}()
	timer := time.NewTimer(guardWait)
	defer timer.Stop()
	said := ""
	select {
	case said = <-ready:
	case <-timer.C:
	case <-ctx.Done():
	}
	if said != guardReady {
		_ = input.Close()
		return nil, api.Errorf(api.CodeUnavailable, "the guard that is to thaw the guest did not start: %s", api.CleanText(said, api.NameLengthMax)).Do("try again")
	}
	return g, nil
}

// Guard is the life of a guard: it says that it is ready, and thaws the guest
// when the limit is over, or when input ends without the word that the guest was
// thawed.
func Guard(ctx context.Context, input io.Reader, output io.Writer, socket, id string, limit time.Duration) error {
	if err := checkID(id); err != nil {
		return err
	}
	c, err := dial(ctx, socket)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(output, guardReady); err != nil {
		return fmt.Errorf("report to the agent: %w", err)
	}
	word := make(chan string, 1)
	go func() {
		raw, _ := io.ReadAll(io.LimitReader(input, 64))
		word <- strings.TrimSpace(string(raw))
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case said := <-word:
		if said == guardDone {
			c.close()
			return nil
		}
	case <-timer.C:
	case <-ctx.Done():
	}
	return thaw(c, socket, id)
}

// thaw goes on until the guest is thawed, or is gone.
func thaw(c *conn, socket, id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), guardTries)
	defer cancel()
	for {
		var err error
		if !c.alive() {
			var fresh *conn
			if fresh, err = dial(ctx, socket); err == nil {
				c = fresh
			}
		}
		if err == nil {
			err = c.call(ctx, func(l *libvirt.Libvirt) error {
				domain, err := l.DomainLookupByUUID(libvirt.UUID(uuid.MustParse(id)))
				if err != nil {
					return err
				}
				_, err = l.DomainFsthaw(domain, nil, 0)
				return err
			})
		}
		if code := api.CodeOf(err); err == nil || code == api.CodeNotFound || code == api.CodeConflict {
			c.close()
			return nil // thawed, or it does not execute
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(guardTryEvery):
		}
	}
}

// GuardProgram is the guard as a command of this very program; nil where its
// file is not known.
func GuardProgram(words ...string) []string {
	self, err := os.Executable()
	if err != nil {
		return nil
	}
	return append([]string{self}, words...)
}
