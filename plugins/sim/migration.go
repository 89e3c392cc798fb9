package sim

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// What a simulated migration looks like on its streams.
const (
	memoryChannel = "memory"
	messageMax    = 1 << 20 // bytes of one line of the control stream
	pageBytes     = api.MiB // of the guest's memory, for each byte that is sent
	tellEvery     = time.Second
	pageTick      = 20 * time.Millisecond // between two lots of pages when the bandwidth is limited
)

var _ plugins.Migrator = (*Hypervisor)(nil)

// message is one line of the control stream.
type message struct {
	Guest   *record    `json:"guest,omitzero"`   // first: it is about to come; second: it has stopped, and is this
	Ready   bool       `json:"ready,omitzero"`   // the answer to the first
	Arrived bool       `json:"arrived,omitzero"` // the answer to the second
	Error   *api.Error `json:"error,omitzero"`   // instead of either
}

// Describe implements plugins.Migrator.
func (h *Hypervisor) Describe(ctx context.Context, id string) (plugins.GuestUse, error) {
	r, err := h.executingGuest(ctx, id)
	if err != nil {
		return plugins.GuestUse{}, err
	}
	if r.State != api.InstanceRunning {
		return plugins.GuestUse{}, api.Errorf(api.CodeConflict, "the guest is %s", r.State).On(api.KindVM, r.Spec.Name).Do("resume it first")
	}
	use := plugins.GuestUse{Gen: r.Spec.Gen, SpecRevision: r.Spec.SpecRevision, NICs: r.Spec.NICs}
	for _, d := range r.Spec.Disks {
		use.Files = append(use.Files, plugins.FileUse{Path: d.Source.Path, Writable: !d.ReadOnly})
	}
	for _, c := range r.Spec.CDROMs {
		if c.Source.Path != "" {
			use.Files = append(use.Files, plugins.FileUse{Path: c.Source.Path})
		}
	}
	if b := r.Spec.Boot; b != nil {
		use.Files = append(use.Files, plugins.FileUse{Path: b.Kernel})
		if b.Initrd != "" {
			use.Files = append(use.Files, plugins.FileUse{Path: b.Initrd})
		}
	}
	return use, nil
}

func (h *Hypervisor) executingGuest(ctx context.Context, id string) (*record, error) {
	if err := h.usable(ctx); err != nil {
		return nil, err
	}
	if d := h.find(id); d != nil {
		if r := d.record.Load(); r != nil && r.executing() {
			return r, nil
		}
	}
	return nil, api.Errorf(api.CodeConflict, "no simulated guest %s executes", id)
}

// Send implements plugins.Migrator.
func (h *Hypervisor) Send(ctx context.Context, out plugins.Departure) error {
	r, err := h.executingGuest(ctx, out.ID)
	if err != nil {
		return err
	}
	if r.Spec.Gen != out.Gen {
		return api.Errorf(api.CodeConflict, "the guest executes with gen %d, not %d", r.Spec.Gen, out.Gen).On(api.KindVM, r.Spec.Name)
	}
	stop := context.AfterFunc(ctx, func() { _ = out.Control.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	control := newTalk(out.Control)
	if err := control.ask(message{Guest: r}, func(m message) bool { return m.Ready }); err != nil {
		return cutShort(ctx, err)
	}
	if err := sendMemory(ctx, r, out); err != nil {
		return cutShort(ctx, err)
	}
	began := time.Now()
	paused, err := h.swap(out.ID, out.Gen, func(r *record) *record { return r.with(api.InstancePaused, "migration") })
	if err != nil {
		return err
	}
	err = control.ask(message{Guest: paused}, func(m message) bool { return m.Arrived })
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err == nil {
		err = out.Commit(ctx, func() time.Duration { return time.Since(began) })
	}
	switch {
	case errors.Is(err, plugins.ErrUndecided):
		return err
	case err != nil:
		_, resumed := h.swap(out.ID, out.Gen, func(r *record) *record { return r.with(api.InstanceRunning, "migration cancelled") })
		return cutShort(ctx, errors.Join(err, resumed))
	}
	_, err = h.swap(out.ID, out.Gen, func(r *record) *record { return r.ended(api.InstanceStopped, "migrated") })
	return err
}

// cutShort prefers the reason for which a stream was closed.
func cutShort(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if _, ok := errors.AsType[*api.Error](err); ok || errors.Is(err, plugins.ErrUndecided) {
		return err
	}
	return api.Errorf(api.CodeUnavailable, "the stream of the migration broke: %v", err).Do("it is tried again")
}

// sendMemory sends a byte for each MiB of the guest, as fast as it may.
func sendMemory(ctx context.Context, r *record, out plugins.Departure) error {
	conn, err := out.Dial(ctx, memoryChannel)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	total := r.Spec.MemoryBytes
	began, told := time.Now(), time.Time{}
	for sent := int64(0); sent < total; {
		lot := total - sent
		if out.BandwidthMax > 0 {
			lot = min(lot, int64(time.Since(began).Seconds()*float64(out.BandwidthMax))-sent)
		}
		if lot > 0 {
			if _, err := io.CopyN(conn, zeroes{}, lot/pageBytes+1); err != nil {
				return err
			}
			sent += lot
		}
		if time.Since(told) >= tellEvery {
			told = time.Now()
			out.Tell(plugins.Progress{TotalBytes: total, LeftBytes: total - sent})
		}
		if sent < total {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(pageTick):
			}
		}
	}
	return nil
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// swap replaces the record of a guest that executes with that gen.
func (h *Hypervisor) swap(id string, gen uint64, with func(*record) *record) (*record, error) {
	d := h.find(id)
	if d == nil {
		return nil, api.Errorf(api.CodeConflict, "simulated guest %s is gone", id)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.record.Load()
	if r == nil || !r.executing() || r.Spec.Gen != gen {
		return nil, api.Errorf(api.CodeConflict, "simulated guest %s does not execute with gen %d", id, gen)
	}
	next := with(r)
	return next, h.save(d, next, next.Reason)
}

// Receive implements plugins.Migrator.
func (h *Hypervisor) Receive(ctx context.Context, in plugins.Arrival, conn net.Conn) error {
	if err := h.usable(ctx); err != nil {
		return err
	}
	leave, err := h.expect(in.ID)
	if err != nil {
		return err
	}
	defer leave()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	control := newTalk(conn)
	first, err := control.hear()
	if err != nil {
		return cutShort(ctx, err)
	}
	if err := h.checkArrival(in, first.Guest); err != nil {
		_ = control.say(message{Error: api.AsError(err)})
		return err
	}
	if err := control.say(message{Ready: true}); err != nil {
		return cutShort(ctx, err)
	}
	last, err := control.hear()
	if err != nil {
		return cutShort(ctx, err)
	}
	if err := h.arrive(ctx, in, last.Guest); err != nil {
		_ = control.say(message{Error: api.AsError(err)})
		return err
	}
	// From here on the guest may be handed on, whether this is heard or not.
	_ = control.say(message{Arrived: true})
	return nil
}

// checkArrival refuses a guest that could not be here.
func (h *Hypervisor) checkArrival(in plugins.Arrival, guest *record) error {
	if guest == nil || guest.Spec.ID != in.ID {
		return api.Errorf(api.CodeInvalid, "another guest was sent").On(api.KindVM, in.Name)
	}
	if d := h.find(in.ID); d != nil {
		if r := d.record.Load(); r != nil && r.executing() {
			return api.Errorf(api.CodeConflict, "the machine executes a guest of this ID already").On(api.KindVM, in.Name)
		}
	}
	_, err := arrived(in, guest)
	return err
}

// arrived is the guest as it is on this machine: paused, with its files where
// they are here.
func arrived(in plugins.Arrival, guest *record) (*record, error) {
	r := guest.with(api.InstancePaused, "migration")
	r.Spec.Gen, r.Spec.ClusterID, r.Spec.Name = in.Gen, in.ClusterID, in.Name
	r.Spec.Disks = append([]plugins.DiskSpec(nil), guest.Spec.Disks...)
	here := func(path string) (plugins.Source, error) {
		source, ok := in.Files[path]
		if !ok {
			return source, api.Errorf(api.CodeInvalid, "the guest uses a file that was not announced").On(api.KindVM, in.Name)
		}
		return source, nil
	}
	for i := range r.Spec.Disks {
		source, err := here(r.Spec.Disks[i].Source.Path)
		if err != nil {
			return nil, err
		}
		r.Spec.Disks[i].Source = source
	}
	r.Spec.CDROMs = append([]plugins.CDROMSpec(nil), guest.Spec.CDROMs...)
	for i := range r.Spec.CDROMs {
		if path := r.Spec.CDROMs[i].Source.Path; path != "" {
			source, err := here(path)
			if err != nil {
				return nil, err
			}
			r.Spec.CDROMs[i].Source = source
		}
	}
	if b := guest.Spec.Boot; b != nil {
		boot := *b
		for _, path := range []*string{&boot.Kernel, &boot.Initrd} {
			if *path == "" {
				continue
			}
			source, err := here(*path)
			if err != nil {
				return nil, err
			}
			*path = source.Path
		}
		r.Spec.Boot = &boot
	}
	return r, nil
}

// arrive stores the guest, paused.
func (h *Hypervisor) arrive(ctx context.Context, in plugins.Arrival, guest *record) error {
	if guest == nil {
		return api.Errorf(api.CodeInvalid, "no guest was sent").On(api.KindVM, in.Name)
	}
	if err := h.usable(ctx); err != nil {
		return err
	}
	r, err := arrived(in, guest)
	if err != nil {
		return err
	}
	if err := h.check(r.Spec); err != nil {
		return err
	}
	d := h.acquire(in.ID, true)
	defer h.release(d)
	if old := d.record.Load(); old != nil && old.executing() {
		return api.Errorf(api.CodeConflict, "the machine executes a guest of this ID already").On(api.KindVM, in.Name)
	}
	if err := h.takeName(r.Spec.Name, in.ID); err != nil {
		return err
	}
	return h.save(d, r, "arrived")
}

// expect notes that the guest is being received, until leave is called.
func (h *Hypervisor) expect(id string) (leave func(), err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.arriving[id] {
		return nil, api.Errorf(api.CodeConflict, "simulated guest %s is being received already", id)
	}
	if h.arriving == nil {
		h.arriving = map[string]bool{}
	}
	h.arriving[id] = true
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.arriving, id)
	}, nil
}

// Join implements plugins.Migrator.
func (h *Hypervisor) Join(ctx context.Context, id, channel string, conn net.Conn) error {
	defer func() { _ = conn.Close() }()
	h.mu.Lock()
	expected := h.arriving[id]
	h.mu.Unlock()
	if !expected || channel != memoryChannel {
		return api.Errorf(api.CodeConflict, "nobody waits for stream %q of simulated guest %s", channel, id)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	_, err := io.Copy(io.Discard, conn)
	return err
}

// Continue implements plugins.Migrator.
func (h *Hypervisor) Continue(ctx context.Context, id string, gen uint64) error {
	if err := h.usable(ctx); err != nil {
		return err
	}
	_, err := h.swap(id, gen, func(r *record) *record {
		if r.State == api.InstanceRunning {
			return r
		}
		return r.with(api.InstanceRunning, "migrated")
	})
	return err
}

// talk is the control stream as messages.
type talk struct {
	conn net.Conn
	in   *bufio.Reader
}

func newTalk(conn net.Conn) *talk {
	return &talk{conn: conn, in: bufio.NewReader(io.LimitReader(conn, 4*messageMax))}
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

// ask says something and waits for the right answer.
func (t *talk) ask(m message, right func(message) bool) error {
	if err := t.say(m); err != nil {
		return err
	}
	answer, err := t.hear()
	if err == nil && !right(answer) {
		err = api.Errorf(api.CodeInvalid, "the other machine gave another answer than expected")
	}
	return err
}
