package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

const (
	listTimeout     = 15 * time.Second
	listEvery       = 30 * time.Second       // without a hint
	listPauseMax    = 500 * time.Millisecond // between listings: at most this, at least three times what one took
	reconnectMin    = 250 * time.Millisecond
	reconnectMax    = 5 * time.Second
	eventsMergeTime = 20 * time.Millisecond // hints that come together cause one listing
)

// domains is what the hypervisor listed last.
type domains struct {
	mu      sync.Mutex // guards all below but kick
	list    map[string]plugins.Domain
	probe   plugins.Probe
	lost    error     // why it cannot be reached; nil: it can
	lostAt  time.Time // since when
	begun   uint64    // listings begun
	ended   uint64    // number of the last listing that succeeded
	changed chan struct{}
	kick    chan struct{} // holds a token while somebody waits for a listing
}

func newDomains() *domains {
	return &domains{lost: errors.New("it was not asked yet"), changed: make(chan struct{}), kick: make(chan struct{}, 1)}
}

// find returns the domain as last listed; ok is false when there is none, err
// says that the hypervisor cannot be reached.
func (d *domains) find(id string) (found plugins.Domain, ok bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lost != nil {
		return found, false, d.lost
	}
	found, ok = d.list[id]
	return found, ok, nil
}

// all is every domain as last listed.
func (d *domains) all() ([]plugins.Domain, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lost != nil {
		return nil, d.lost
	}
	out := make([]plugins.Domain, 0, len(d.list))
	for _, found := range d.list {
		out = append(out, found)
	}
	return out, nil
}

// machine is what the hypervisor said of the machine, and why it cannot be
// reached since.
func (d *domains) machine() (plugins.Probe, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.probe, d.lost
}

// lostFor is how long the hypervisor cannot be reached; 0: it can, or was
// never asked.
func (d *domains) lostFor(now time.Time) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lost == nil || d.lostAt.IsZero() {
		return 0
	}
	return now.Sub(d.lostAt)
}

// want asks for a listing, without waiting.
func (d *domains) want() {
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

// listAgain lists when to list after a connection was made: a daemon that has
// just come back may find out later, and without a hint, that a guest ended.
func listAgain() []time.Duration {
	return []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second}
}

// fresh blocks until a listing that began after the call is there.
func (d *domains) fresh(ctx context.Context) error {
	d.mu.Lock()
	want := d.begun + 1
	d.mu.Unlock()
	for {
		d.want()
		d.mu.Lock()
		lost, done, changed := d.lost, d.ended >= want, d.changed
		d.mu.Unlock()
		if lost != nil {
			return lost
		}
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

func (d *domains) begin() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.begun++
	return d.begun
}

// end publishes a listing and returns the IDs of what changed. After an
// outage that is everything.
func (d *domains) end(number uint64, listed []plugins.Domain) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	old, back := d.list, d.lost != nil
	d.list = make(map[string]plugins.Domain, len(listed))
	var changed []string
	for _, now := range listed {
		d.list[now.ID] = now
		if before, ok := old[now.ID]; !ok || back || !sameDomain(before, now) {
			changed = append(changed, now.ID)
		}
		delete(old, now.ID)
	}
	for id := range old {
		changed = append(changed, id)
	}
	d.ended, d.lost, d.lostAt = number, nil, time.Time{}
	d.broadcast()
	return changed
}

func (d *domains) lose(err error, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lost == nil || d.lostAt.IsZero() {
		d.lostAt = now
	}
	d.lost = err
	d.broadcast()
}

func (d *domains) broadcast() {
	close(d.changed)
	d.changed = make(chan struct{})
}

func sameDomain(a, b plugins.Domain) bool {
	return a.Gen == b.Gen && a.SpecRevision == b.SpecRevision && a.State == b.State && a.Reason == b.Reason && a.Name == b.Name &&
		a.StartedAt.Equal(b.StartedAt) && a.Acceleration == b.Acceleration &&
		slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.Drift, b.Drift)
}

// executing reports whether the guest of the domain may write to its disks.
func executing(d plugins.Domain) bool {
	return d.State == api.InstanceRunning || d.State == api.InstancePaused
}

// watchDomains keeps the list of domains as new as the hypervisor's hints, and
// connects again when the connection breaks. Guests are not touched by that.
func (a *Agent) watchDomains(ctx context.Context) error {
	pause := reconnectMin
	for ctx.Err() == nil {
		began := a.config.Clock()
		err := a.listDomains(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if _, before := a.domains.machine(); before == nil || before.Error() != err.Error() {
			a.log.Warn("hypervisor cannot be reached", "error", err)
		}
		a.domains.lose(err, a.config.Clock())
		a.remeasure()
		if a.config.Clock().Sub(began) > reconnectMax {
			pause = reconnectMin
		}
		if left := a.config.Timings.Unreachable - a.domains.lostFor(a.config.Clock()); left > 0 {
			pause = min(pause, left)
		} else {
			a.addOwned(a.view())
		}
		if !wait(ctx, pause) {
			return nil
		}
		pause = min(2*pause, reconnectMax)
	}
	return nil
}

// wait blocks for the duration and reports whether ctx goes on.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// listDomains lists until the connection breaks, and returns why.
func (a *Agent) listDomains(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := a.probe(ctx); err != nil {
		return err
	}
	events, err := a.config.Hypervisor.Events(ctx)
	if err != nil {
		return fmt.Errorf("follow the hypervisor's events: %w", err)
	}
	defer func() {
		cancel()
		for range events { // until the adapter's goroutine has ended
		}
	}()
	ticker := time.NewTicker(listEvery)
	defer ticker.Stop()
	for _, after := range listAgain() {
		defer time.AfterFunc(after, a.domains.want).Stop()
	}
	for first := true; ; first = false {
		took, err := a.list(ctx, first)
		if err != nil {
			return err
		}
		if !wait(ctx, min(3*took, listPauseMax)) {
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case _, ok := <-events:
			if !ok {
				return api.Errorf(api.CodeUnavailable, "the connection to the hypervisor broke")
			}
			wait(ctx, eventsMergeTime)
			drain(events)
		case <-a.domains.kick:
		case <-ticker.C:
			if err := a.probe(ctx); err != nil {
				return err
			}
		}
	}
}

// drain takes the hints that have come already. What comes later causes
// another listing.
func drain(events <-chan plugins.Event) {
	for range eventsDrainMax {
		select {
		case _, ok := <-events:
			if !ok {
				return
			}
		default:
			return
		}
	}
}

const eventsDrainMax = 4096

func (a *Agent) probe(ctx context.Context) error {
	within, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	probe, err := a.config.Hypervisor.Probe(within)
	if err != nil {
		return fmt.Errorf("ask the hypervisor: %w", err)
	}
	a.domains.mu.Lock()
	a.domains.probe = probe
	a.domains.mu.Unlock()
	return nil
}

func (a *Agent) list(ctx context.Context, first bool) (time.Duration, error) {
	began, number := a.config.Clock(), a.domains.begin()
	within, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	listed, err := a.config.Hypervisor.Domains(within)
	if err != nil {
		return 0, fmt.Errorf("list domains: %w", err)
	}
	a.addLeases(within, listed)
	for _, id := range a.domains.end(number, listed) {
		a.queue.add(keyInstance + id)
	}
	if first {
		a.log.Info("hypervisor reached", "domains", len(listed))
		a.remeasure()
		a.addOwned(a.view())
	}
	return a.config.Clock().Sub(began), nil
}

// addOwned asks for a look at every instance of this node.
func (a *Agent) addOwned(view *fsm.View) {
	for i := range fsm.Instances.By(view, "owner", a.config.Name) {
		a.queue.add(keyInstance + i.Name)
	}
}
