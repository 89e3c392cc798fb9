package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// The migration follows libvirt's protocol version 3 (src/libvirt-domain.c,
// virDomainMigrateVersion3Full), with its five calls made where they belong: Begin,
// Perform and Confirm here, Prepare and Finish by the adapter of the other
// machine. Between them stands nothing but the caller's streams: no daemon talks
// to another, and neither QEMU listens for anything but a private socket.

// The streams besides the control stream, and their socket files.
const (
	channelMemory = "memory"
	channelDisks  = "disks"

	socketPathMax = 107 // of a unix socket (unix(7))
	statsEvery    = time.Second
	abortWait     = 20 * time.Second // for a migration to end after it was asked to
)

var _ plugins.Migrator = (*Hypervisor)(nil)

// Describe implements plugins.Migrator.
func (h *Hypervisor) Describe(ctx context.Context, id string) (plugins.GuestUse, error) {
	_, f, text, err := h.leaving(ctx, id)
	if err != nil {
		return plugins.GuestUse{}, err
	}
	d, err := parseElement(text)
	if err != nil {
		return plugins.GuestUse{}, err
	}
	if found := immovable(d); len(found) > 0 {
		return plugins.GuestUse{}, api.Errorf(api.CodeConflict, "it has devices that cannot move: %s", strings.Join(found, ", ")).On(api.KindVM, f.xml.Name).
			Do("detach them first")
	}
	use := plugins.GuestUse{Gen: f.mark.Gen, SpecRevision: f.mark.Revision, Files: filesOf(d, h.guestDir(id))}
	for _, n := range f.xml.essentials().NICs {
		use.NICs = append(use.NICs, plugins.NICSpec{Bridge: n.Bridge, MAC: n.MAC})
	}
	return use, nil
}

func (h *Hypervisor) guestDir(id string) string { return filepath.Join(h.config.StateDir, id) }

// leaving finds a guest that runs, with its definition as it migrates.
func (h *Hypervisor) leaving(ctx context.Context, id string) (*conn, *found, string, error) {
	if err := checkID(id); err != nil {
		return nil, nil, "", err
	}
	c, err := h.connect(ctx)
	if err != nil {
		return nil, nil, "", err
	}
	f, err := h.look(ctx, c, id)
	if err != nil {
		return nil, nil, "", err
	}
	if f == nil || f.state != libvirt.DomainRunning && f.state != libvirt.DomainBlocked {
		return nil, nil, "", api.Errorf(api.CodeConflict, "the guest does not run, or is paused").On(api.KindVM, id).Do("start or resume it first")
	}
	text, err := definition(ctx, c, f.handle, libvirt.DomainXMLMigratable|libvirt.DomainXMLSecure)
	return c, f, text, err
}

func definition(ctx context.Context, c *conn, domain libvirt.Domain, flags libvirt.DomainXMLFlags) (text string, err error) {
	err = c.call(ctx, func(l *libvirt.Libvirt) error {
		text, err = l.DomainGetXMLDesc(domain, flags)
		return err
	})
	return text, err
}

// departure is one Send.
type departure struct {
	h       *Hypervisor
	out     plugins.Departure
	own     *conn // of this migration alone: its end gives the migration up
	shared  *conn
	domain  libvirt.Domain
	talk    *talk
	sockets *sockets
	flags   libvirt.DomainMigrateFlags
	params  []libvirt.TypedParam
	began   time.Time // of the guest's pause, as far as is known
}

// Send implements plugins.Migrator.
func (h *Hypervisor) Send(ctx context.Context, out plugins.Departure) error {
	shared, f, live, err := h.leaving(ctx, out.ID)
	if err != nil {
		return err
	}
	if f.mark.Gen != out.Gen {
		return api.Errorf(api.CodeConflict, "the guest executes with gen %d, not %d", f.mark.Gen, out.Gen).On(api.KindVM, f.xml.Name)
	}
	lasting, err := definition(ctx, shared, f.handle, libvirt.DomainXMLInactive|libvirt.DomainXMLSecure)
	if err != nil {
		return err
	}
	d, err := parseElement(live)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = out.Control.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	s := &departure{h: h, out: out, shared: shared, domain: f.handle, talk: newTalk(out.Control)}
	answer, err := s.talk.ask(message{Offer: &migrationOffer{Live: live, Lasting: lasting, Dir: h.guestDir(out.ID), Disks: targetsOf(d, out.Copy)}})
	if err != nil {
		return s.cutShort(ctx, err)
	}
	if answer.Accepted == nil {
		return unexpected()
	}
	if s.own, err = dial(ctx, h.config.Socket); err != nil {
		return err
	}
	defer s.own.close()
	if s.sockets, err = h.listen(ctx, out, shared); err != nil {
		return err
	}
	defer s.sockets.close()
	s.prepareParams(answer.Accepted, targetsOf(d, out.Copy))
	cookie, err := s.cross(ctx, answer.Accepted)
	if err != nil {
		return s.cutShort(ctx, err)
	}
	if !stop() {
		return s.confirm(cookie, ctx.Err())
	}
	err = out.Commit(ctx, func() time.Duration { return time.Since(s.began) })
	if errors.Is(err, plugins.ErrUndecided) {
		return err // the end of the connection leaves the guest paused
	}
	return s.confirm(cookie, err)
}

// prepareParams settles the flags and parameters of all five calls.
func (s *departure) prepareParams(a *migrationAccepted, disks []string) {
	s.flags = libvirt.MigrateLive | libvirt.MigratePersistDest | libvirt.MigratePaused | libvirt.MigrateChangeProtection |
		libvirt.MigrateUnsafe // a pool that is declared to be shared is
	if s.out.AutoConverge {
		s.flags |= libvirt.MigrateAutoConverge
	}
	text := func(name, value string) {
		s.params = append(s.params, libvirt.TypedParam{Field: name, Value: *libvirt.NewTypedParamValueString(value)})
	}
	text(libvirt.MigrateParamDestXML, a.Live)
	text(libvirt.MigrateParamPersistXML, a.Lasting)
	text(libvirt.MigrateParamURI, "unix://"+s.sockets.memory)
	if len(disks) > 0 {
		s.flags |= libvirt.MigrateNonSharedDisk
		text(libvirt.MigrateParamDisksURI, "unix://"+s.sockets.disks)
		for _, dev := range disks {
			text(libvirt.MigrateParamMigrateDisks, dev)
		}
	}
	if s.out.BandwidthMax > 0 {
		s.params = append(s.params, libvirt.TypedParam{Field: libvirt.MigrateParamBandwidth,
			Value: *libvirt.NewTypedParamValueUllong(uint64(max(1, s.out.BandwidthMax/api.MiB)))})
	}
}

// cross brings the guest to the other machine, where it is paused afterwards,
// as it is here. After an error the guest goes on here.
func (s *departure) cross(ctx context.Context, a *migrationAccepted) ([]byte, error) {
	var cookie []byte
	var dest string
	err := s.own.call(ctx, func(l *libvirt.Libvirt) (err error) {
		cookie, dest, err = l.DomainMigrateBegin3Params(s.domain, s.params, uint32(s.flags))
		return err
	})
	if err != nil {
		return nil, err
	}
	answer, err := s.talk.ask(message{Prepare: &migrationPrepare{Cookie: cookie, XML: dest, Flags: uint32(s.flags)}})
	if err != nil {
		return nil, err
	}
	if answer.Prepared == nil {
		return nil, unexpected()
	}
	for i := range s.params {
		if s.params[i].Field == libvirt.MigrateParamDestXML {
			s.params[i].Value = *libvirt.NewTypedParamValueString(dest)
		}
	}
	cookie, performed := s.perform(ctx, answer.Prepared.Cookie)
	answer, err = s.talk.ask(message{Finish: &migrationFinish{Cookie: cookie, Cancelled: performed != nil}})
	if err = errors.Join(performed, err); err == nil && answer.Arrived == nil {
		err = unexpected()
	}
	if err != nil {
		return nil, errors.Join(err, s.confirm(nil, nil, true))
	}
	return answer.Arrived.Cookie, nil
}

// perform blocks while the guest is copied.
func (s *departure) perform(ctx context.Context, cookie []byte) (out []byte, err error) {
	done := make(chan error, 1)
	go func() {
		raw, err := s.own.api.DomainMigratePerform3Params(s.domain, nil, s.params, cookie, s.flags)
		out = raw
		done <- err
	}()
	tick := time.NewTicker(statsEvery)
	defer tick.Stop()
	ended, limited := ctx.Done(), false
	var give <-chan time.Time
	for {
		select {
		case err := <-done:
			s.began = time.Now()
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return out, translate(err)
		case <-s.own.raw.dead:
			<-done
			return nil, lost(nil)
		case <-ended:
			ended = nil
			give = time.After(abortWait)
			s.abort()
		case <-give:
			s.own.close() // which gives it up as well
		case <-tick.C:
			s.look(ctx, &limited)
		}
	}
}

// abort asks libvirt to give the migration up.
func (s *departure) abort() {
	ctx, cancel := context.WithTimeout(context.Background(), abortWait)
	defer cancel()
	if err := s.shared.call(ctx, func(l *libvirt.Libvirt) error { return l.DomainAbortJob(s.domain) }); err != nil {
		s.h.config.Logger.Debug("migration not aborted", "id", s.out.ID, "error", err)
	}
}

// look reads how far the migration is, and sets the limit of the downtime once
// it has begun.
func (s *departure) look(ctx context.Context, limited *bool) {
	within, cancel := context.WithTimeout(ctx, statsEvery)
	defer cancel()
	var stats []libvirt.TypedParam
	err := s.shared.call(within, func(l *libvirt.Libvirt) (err error) {
		if !*limited && s.out.DowntimeLimit > 0 {
			*limited = l.DomainMigrateSetMaxDowntime(s.domain, uint64(max(1, s.out.DowntimeLimit.Milliseconds())), 0) == nil
		}
		_, stats, err = l.DomainGetJobStats(s.domain, 0)
		return err
	})
	if err != nil {
		return
	}
	var p plugins.Progress
	for _, v := range stats {
		n, _ := v.Value.I.(uint64)
		switch v.Field {
		case "data_total":
			p.TotalBytes = int64(n)
		case "data_remaining":
			p.LeftBytes = int64(n)
		}
	}
	if p.TotalBytes > 0 {
		s.out.Tell(p)
	}
}

// confirm ends the migration here: with why the guest goes on executing, and
// without it the guest here is no more.
func (s *departure) confirm(cookie []byte, why error, cancelled ...bool) error {
	stays := int32(0)
	if why != nil || len(cancelled) > 0 {
		stays = 1
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	err := s.own.call(ctx, func(l *libvirt.Libvirt) error {
		return l.DomainMigrateConfirm3Params(s.domain, s.params, cookie, uint32(s.flags), stays)
	})
	if err != nil {
		s.h.config.Logger.Warn("end of a migration not confirmed", "id", s.out.ID, "stays", stays == 1, "error", err)
	}
	if why == nil && stays == 0 {
		return nil // it is the other machine's; what is left here is removed
	}
	return why
}

// cutShort prefers the reason for which a stream was closed.
func (s *departure) cutShort(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if _, ok := errors.AsType[*api.Error](err); ok {
		return err
	}
	return api.Errorf(api.CodeUnavailable, "the migration broke off: %v", err).Do("it is tried again")
}

// sockets are the private sockets of one migration, which the daemon and QEMU
// of this machine connect to.
type sockets struct {
	dir           string
	memory, disks string
	listeners     []net.Listener
	end           context.CancelFunc
}

// socketDir makes a directory that only root and QEMU's user get into.
func (h *Hypervisor) socketDir(ctx context.Context, c *conn, id string) (*sockets, error) {
	s := &sockets{dir: filepath.Join(h.config.StateDir, "m-"+id[:8])}
	s.memory, s.disks = filepath.Join(s.dir, channelMemory), filepath.Join(s.dir, channelDisks)
	if len(s.memory) > socketPathMax {
		return nil, api.Errorf(api.CodeLimit, "the path of a socket would have %d bytes", len(s.memory)).Allow("at most %d", socketPathMax).
			Do("give the node a data directory with a shorter path")
	}
	if err := os.RemoveAll(s.dir); err != nil {
		return nil, fmt.Errorf("clear the sockets' directory: %w", err)
	}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the sockets' directory: %w", err)
	}
	if uid, gid, ok := qemuUser(ctx, c); ok {
		if err := os.Chown(s.dir, uid, gid); err != nil {
			return nil, errors.Join(fmt.Errorf("give the sockets' directory to QEMU: %w", err), os.RemoveAll(s.dir))
		}
	}
	return s, nil
}

// listen makes the sockets here and carries what connects to the other end.
func (h *Hypervisor) listen(ctx context.Context, out plugins.Departure, c *conn) (*sockets, error) {
	s, err := h.socketDir(ctx, c, out.ID)
	if err != nil {
		return nil, err
	}
	carry, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.end = cancel
	uid, gid, owned := qemuUser(ctx, c)
	for channel, path := range map[string]string{channelMemory: s.memory, channelDisks: s.disks} {
		l, err := net.Listen("unix", path)
		if err == nil {
			s.listeners = append(s.listeners, l)
			if owned {
				err = os.Chown(path, uid, gid)
			}
		}
		if err != nil {
			s.close()
			return nil, fmt.Errorf("listen for QEMU: %w", err)
		}
		go h.carry(carry, l, func(ctx context.Context) (net.Conn, error) { return out.Dial(ctx, channel) })
	}
	return s, nil
}

// carry joins every connection of the listener with a stream to the other end,
// until the listener closes or ctx ends.
func (h *Hypervisor) carry(ctx context.Context, l net.Listener, dial func(context.Context) (net.Conn, error)) {
	for {
		local, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			remote, err := dial(ctx)
			if err != nil {
				h.config.Logger.Warn("stream of a migration not opened", "error", err)
				_ = local.Close()
				return
			}
			join(ctx, local, remote)
		}()
	}
}

func (s *sockets) close() {
	for _, l := range s.listeners {
		_ = l.Close()
	}
	if s.end != nil {
		s.end()
	}
	_ = os.RemoveAll(s.dir) // a leftover is removed by the next migration of the guest
}

// join copies both ways until both ends have said all, or ctx ends, and closes
// both.
func join(ctx context.Context, a, b net.Conn) {
	closeBoth := func() { _ = a.Close(); _ = b.Close() }
	stop := context.AfterFunc(ctx, closeBoth)
	defer stop()
	defer closeBoth()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(a, b)
		closeBoth()
	}()
	_, _ = io.Copy(b, a)
	closeBoth()
	<-done
}
