package libvirt

import (
	"bufio"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// message is one line of the control stream; one field is set.
type message struct {
	Offer    *migrationOffer    `json:"offer,omitzero"`
	Accepted *migrationAccepted `json:"accepted,omitzero"`
	Prepare  *migrationPrepare  `json:"prepare,omitzero"`
	Prepared *migrationCookie   `json:"prepared,omitzero"`
	Finish   *migrationFinish   `json:"finish,omitzero"`
	Arrived  *migrationCookie   `json:"arrived,omitzero"`
	Error    *api.Error         `json:"error,omitzero"`
}

// migrationOffer is the guest as it is at the source.
type migrationOffer struct {
	Live    string   `json:"live"`    // its definition as it migrates
	Lasting string   `json:"lasting"` // its definition for the next start
	Dir     string   `json:"dir"`     // of its own files
	Disks   []string `json:"disks,omitzero"`
}

// migrationAccepted is the same as it will be at the destination.
type migrationAccepted struct {
	Live    string `json:"live"`
	Lasting string `json:"lasting"`
}

type migrationPrepare struct {
	Cookie []byte `json:"cookie"`
	XML    string `json:"xml"`
	Flags  uint32 `json:"flags"`
}

type migrationCookie struct {
	Cookie []byte `json:"cookie"`
}

type migrationFinish struct {
	Cookie    []byte `json:"cookie"`
	Cancelled bool   `json:"cancelled,omitzero"`
}

const (
	messageMax = 8 << 20 // bytes of all lines of one control stream in one direction
	finishWait = callTimeout
)

// talk is the control stream as messages.
type talk struct {
	conn net.Conn
	in   *bufio.Reader
}

func newTalk(conn net.Conn) *talk {
	return &talk{conn: conn, in: bufio.NewReader(io.LimitReader(conn, messageMax))}
}

func (t *talk) say(m message) error {
	raw, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	_, err = t.conn.Write(append(raw, '\n'))
	return err
}

func (t *talk) hear() (message, error) {
	var m message
	line, err := t.in.ReadBytes('\n') // bounded by the reader below
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return m, api.Errorf(api.CodeInvalid, "the other machine sent no message: %v", err)
	}
	if m.Error != nil {
		return m, m.Error
	}
	return m, nil
}

func (t *talk) ask(m message) (message, error) {
	if err := t.say(m); err != nil {
		return message{}, err
	}
	return t.hear()
}

func unexpected() error {
	return api.Errorf(api.CodeInvalid, "the other machine said something else than was expected").Do("upgrade both nodes to the same version")
}

// arriving is a guest that Receive waits for.
type arriving struct{ sockets *sockets }

// Receive implements plugins.Migrator.
func (h *Hypervisor) Receive(ctx context.Context, in plugins.Arrival, control net.Conn) (err error) {
	if err := checkID(in.ID); err != nil {
		return err
	}
	if in.ClusterID != h.config.ClusterID {
		return api.Invalid("cluster_id", "is %q", in.ClusterID).Allow("%s", h.config.ClusterID)
	}
	stop := context.AfterFunc(ctx, func() { _ = control.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	t := newTalk(control)
	defer func() {
		if err != nil {
			_ = t.say(message{Error: api.AsError(err)}) // the source may be gone
			h.forgetArrival(in.ID)
		}
	}()
	own, err := dial(ctx, h.config.Socket) // its end ends what has not arrived
	if err != nil {
		return err
	}
	defer own.close()
	offer, err := t.hear()
	if err != nil {
		return cutShort(ctx, err)
	}
	if offer.Offer == nil {
		return unexpected()
	}
	accepted, err := h.accept(ctx, own, in, offer.Offer)
	if err != nil {
		return err
	}
	s, err := h.socketDir(ctx, own, in.ID)
	if err != nil {
		return err
	}
	defer s.close()
	leave, err := h.expect(in.ID, s)
	if err != nil {
		return err
	}
	defer leave()
	answer, err := t.ask(message{Accepted: accepted})
	if err != nil {
		return cutShort(ctx, err)
	}
	if answer.Prepare == nil {
		return unexpected()
	}
	return h.takeIn(ctx, own, in, t, s, offer.Offer, answer.Prepare)
}

func cutShort(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if _, ok := errors.AsType[*api.Error](err); ok {
		return err
	}
	return api.Errorf(api.CodeUnavailable, "the control stream of the migration broke: %v", err)
}

// accept makes the guest's own files here, and its definitions those of this
// machine.
func (h *Hypervisor) accept(ctx context.Context, c *conn, in plugins.Arrival, o *migrationOffer) (*migrationAccepted, error) {
	if old, err := h.look(ctx, c, in.ID); err != nil {
		return nil, err
	} else if old != nil && old.executing() {
		return nil, api.Errorf(api.CodeConflict, "this machine executes a guest of that ID already: two nodes must not share one libvirt daemon").On(api.KindVM, in.Name)
	}
	accel, err := h.acceleration(ctx, c)
	if err != nil {
		return nil, err
	}
	if !filepath.IsAbs(o.Dir) {
		return nil, api.Invalid("dir", "is %q", o.Dir).Allow("an absolute path")
	}
	turn := here{in: in, theirDir: filepath.Clean(o.Dir), dir: h.guestDir(in.ID), emulator: accel.emulator, virtType: accel.virtType}
	live, err := turn.rewrite(o.Live)
	if err != nil {
		return nil, err
	}
	lasting, err := turn.rewrite(o.Lasting)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(turn.dir, 0o711); err != nil {
		return nil, fmt.Errorf("make the guest's directory: %w", err)
	}
	if strings.Contains(o.Live, filepath.Join(turn.theirDir, seedFile)) {
		seed := in.Seed
		if seed == nil {
			seed = &api.CloudInit{} // it has the drive, and nothing wants it filled any more
		}
		raw, err := buildSeed(seed, in.SeedID, in.Name)
		if err != nil {
			return nil, err
		}
		if err := writeFile(filepath.Join(turn.dir, seedFile), raw); err != nil {
			return nil, err
		}
	}
	return &migrationAccepted{Live: live, Lasting: lasting}, nil
}

// prepareFlags are those that a source may ask for.
const prepareFlags = libvirt.MigrateLive | libvirt.MigratePersistDest | libvirt.MigratePaused | libvirt.MigrateChangeProtection |
	libvirt.MigrateUnsafe | libvirt.MigrateNonSharedDisk | libvirt.MigrateAutoConverge

// takeIn makes the destination's two calls.
func (h *Hypervisor) takeIn(ctx context.Context, own *conn, in plugins.Arrival, t *talk, s *sockets, o *migrationOffer, p *migrationPrepare) error {
	flags := libvirt.DomainMigrateFlags(p.Flags)
	if flags&^prepareFlags != 0 || flags&libvirt.MigratePaused == 0 {
		return api.Invalid("flags", "are %#x", p.Flags).Allow("those of a guest that arrives paused")
	}
	if err := h.checkPrepared(in, p.XML); err != nil {
		return err
	}
	flags &^= libvirt.MigrateAutoConverge | libvirt.MigrateAbortOnError // of the source only
	text := func(name, value string) libvirt.TypedParam {
		return libvirt.TypedParam{Field: name, Value: *libvirt.NewTypedParamValueString(value)}
	}
	params := []libvirt.TypedParam{text(libvirt.MigrateParamDestXML, p.XML), text(libvirt.MigrateParamURI, "unix://"+s.memory)}
	if len(o.Disks) > 0 {
		params = append(params, text(libvirt.MigrateParamDisksURI, "unix://"+s.disks))
		for _, dev := range o.Disks {
			params = append(params, text(libvirt.MigrateParamMigrateDisks, dev))
		}
	}
	h.remember(in.ID)
	var cookie []byte
	err := own.call(ctx, func(l *libvirt.Libvirt) (err error) {
		cookie, _, err = l.DomainMigratePrepare3Params(params, p.Cookie, uint32(flags))
		return err
	})
	if err != nil {
		return err
	}
	end, err := t.ask(message{Prepared: &migrationCookie{Cookie: cookie}})
	if err == nil && end.Finish == nil {
		err = unexpected()
	}
	if err != nil {
		return errors.Join(cutShort(ctx, err), h.finishArrival(own, in, flags, nil, true, nil))
	}
	var last []byte
	if err := h.finishArrival(own, in, flags, end.Finish.Cookie, end.Finish.Cancelled, &last); err != nil {
		return err
	}
	if end.Finish.Cancelled {
		return api.Errorf(api.CodeUnavailable, "the source gave the migration up").On(api.KindVM, in.Name)
	}
	// From here on the guest may be handed on, whether this is heard or not.
	_ = t.say(message{Arrived: &migrationCookie{Cookie: last}})
	return nil
}

// checkPrepared makes sure that what the source's daemon made of the accepted
// definition names nothing else of this machine.
func (h *Hypervisor) checkPrepared(in plugins.Arrival, text string) error {
	d, err := parseElement(text)
	if err != nil {
		return err
	}
	typed, err := decodeDomain(text)
	if err != nil {
		return err
	}
	ours := typed.markOf(in.ClusterID)
	if typed.UUID != in.ID || ours == nil || ours.Gen != in.Gen || len(immovable(d)) > 0 {
		return api.Errorf(api.CodeConflict, "another guest was sent").On(api.KindVM, in.Name)
	}
	known := map[string]bool{}
	for _, f := range in.Files {
		known[f.Path] = true
	}
	for _, f := range filesOf(d, h.guestDir(in.ID)) {
		if !known[f.Path] {
			return api.Errorf(api.CodeConflict, "the guest uses a file that was not announced").On(api.KindVM, in.Name)
		}
	}
	return nil
}

// finishArrival is the last call here: the guest is paused afterwards, or gone.
func (h *Hypervisor) finishArrival(own *conn, in plugins.Arrival, flags libvirt.DomainMigrateFlags, cookie []byte, cancelled bool, last *[]byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), finishWait)
	defer cancel()
	gone := int32(0)
	if cancelled {
		gone = 1
	}
	name, err := h.nameOf(ctx, own, in.ID)
	if err != nil {
		return err
	}
	params := []libvirt.TypedParam{{Field: libvirt.MigrateParamDestName, Value: *libvirt.NewTypedParamValueString(name)}}
	err = own.call(ctx, func(l *libvirt.Libvirt) error {
		_, out, err := l.DomainMigrateFinish3Params(params, cookie, uint32(flags), gone)
		if last != nil {
			*last = out
		}
		return err
	})
	if cancelled && api.CodeOf(err) != api.CodeInternal {
		return nil // it answers with the failure of the migration
	}
	return err
}

func (h *Hypervisor) nameOf(ctx context.Context, c *conn, id string) (string, error) {
	var d libvirt.Domain
	err := c.call(ctx, func(l *libvirt.Libvirt) (err error) {
		d, err = l.DomainLookupByUUID(libvirt.UUID(uuid.MustParse(id)))
		return err
	})
	return d.Name, err
}

// forgetArrival removes the files of a guest that did not arrive.
func (h *Hypervisor) forgetArrival(id string) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	c, err := h.connect(ctx)
	if err != nil {
		return // the agent removes them
	}
	if f, err := h.look(ctx, c, id); err == nil && f == nil {
		_ = os.RemoveAll(h.guestDir(id)) // made anew by the next arrival or start
	}
}

// expect notes that the guest is being received, until leave is called.
func (h *Hypervisor) expect(id string, s *sockets) (leave func(), err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, busy := h.arriving[id]; busy {
		return nil, api.Errorf(api.CodeConflict, "guest %s is being received already", id)
	}
	if h.arriving == nil {
		h.arriving = map[string]arriving{}
	}
	h.arriving[id] = arriving{sockets: s}
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.arriving, id)
	}, nil
}

// Join implements plugins.Migrator.
func (h *Hypervisor) Join(ctx context.Context, id, channel string, conn net.Conn) error {
	h.mu.Lock()
	a, expected := h.arriving[id]
	h.mu.Unlock()
	path := ""
	if expected {
		path = map[string]string{channelMemory: a.sockets.memory, channelDisks: a.sockets.disks}[channel]
	}
	if path == "" {
		_ = conn.Close()
		return api.Errorf(api.CodeConflict, "nobody waits for stream %q of guest %s", channel, id)
	}
	local, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		_ = conn.Close()
		return fmt.Errorf("reach QEMU: %w", err)
	}
	join(ctx, local, conn)
	return nil
}

// Continue implements plugins.Migrator.
func (h *Hypervisor) Continue(ctx context.Context, id string, gen uint64) error {
	if err := checkID(id); err != nil {
		return err
	}
	return h.exclusive(ctx, id, func(ctx context.Context) error {
		c, err := h.connect(ctx)
		if err != nil {
			return err
		}
		f, err := h.look(ctx, c, id)
		if err != nil {
			return err
		}
		if f == nil || !f.executing() || f.mark.Gen != gen {
			return api.Errorf(api.CodeConflict, "guest %s does not execute with gen %d", id, gen)
		}
		if f.state != libvirt.DomainPaused {
			return nil
		}
		return c.call(context.WithoutCancel(ctx), func(l *libvirt.Libvirt) error { return l.DomainResume(f.handle) })
	})
}

// qemuUser is the user that QEMU runs as, as libvirt's capabilities tell.
func qemuUser(ctx context.Context, c *conn) (uid, gid int, ok bool) {
	var text string
	err := c.call(ctx, func(l *libvirt.Libvirt) error {
		raw, err := l.ConnectGetCapabilities()
		text = string(raw)
		return err
	})
	var caps struct {
		Models []struct {
			Model  string   `xml:"model"`
			Labels []string `xml:"baselabel"`
		} `xml:"host>secmodel"`
	}
	if err != nil || xml.Unmarshal([]byte(text), &caps) != nil {
		return 0, 0, false
	}
	for _, m := range caps.Models {
		if m.Model != "dac" || len(m.Labels) == 0 {
			continue
		}
		u, g, found := strings.Cut(strings.TrimPrefix(m.Labels[0], "+"), ":+")
		uid, err1 := strconv.Atoi(u)
		gid, err2 := strconv.Atoi(g)
		if found && err1 == nil && err2 == nil {
			return uid, gid, true
		}
	}
	return 0, 0, false
}
