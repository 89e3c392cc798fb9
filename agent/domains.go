package agent

import (
	"context"
	"sync"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// domains is the last listing of this node's guests. A listing is made when
// the hypervisor hints at a change and after every action, never by polling.
type domains struct {
	mu      sync.Mutex // guards all below
	byID    map[string]plugins.Domain
	seq     uint64        // number of the listing; 0: none yet
	asked   uint64        // a listing with at least this number is wanted
	listing bool          // one is under way
	err     error         // why the last attempt failed
	wanted  chan struct{} // of capacity 1
	probe   chan struct{} // of capacity 1: the hypervisor came or went
	call    []func()      // after the listing that is wanted
}

func newDomains() *domains {
	return &domains{byID: map[string]plugins.Domain{}, wanted: make(chan struct{}, 1), probe: make(chan struct{}, 1)}
}

// want asks for a listing that begins after now and returns its number.
func (d *domains) want() uint64 {
	d.mu.Lock()
	next := d.seq + 1
	if d.listing {
		next++ // the one under way began before now
	}
	d.asked = max(d.asked, next)
	seq := d.asked
	d.mu.Unlock()
	select {
	case d.wanted <- struct{}{}:
	default:
	}
	return seq
}

// after calls once the next wanted listing is there, or has failed.
func (d *domains) after(call func()) {
	d.mu.Lock()
	d.call = append(d.call, call)
	d.mu.Unlock()
	d.want()
}

// callbacks takes the calls that are due.
func (d *domains) callbacks() []func() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.seq < d.asked && d.err == nil {
		return nil
	}
	due := d.call
	d.call = nil
	return due
}

func (d *domains) reprobe() {
	select {
	case d.probe <- struct{}{}:
	default:
	}
}

// again repeats the request for a listing that is wanted already.
func (d *domains) again() {
	select {
	case d.wanted <- struct{}{}:
	default:
	}
}

// begin notes that a listing is under way.
func (d *domains) begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.listing = true
}

// get is the domain in the last listing. ok is false while there is none, or
// only one before the number after.
func (d *domains) get(id string, after uint64) (dom plugins.Domain, exists, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.seq == 0 || d.seq < after || d.err != nil {
		return plugins.Domain{}, false, false
	}
	dom, exists = d.byID[id]
	return dom, exists, true
}

// store takes a listing and returns the IDs of what differs from the one before.
func (d *domains) store(list []plugins.Domain) (changed []string, more bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	byID := make(map[string]plugins.Domain, len(list))
	for _, dom := range list {
		byID[dom.ID] = dom
		if old, ok := d.byID[dom.ID]; !ok || !sameDomain(old, dom) || d.err != nil {
			changed = append(changed, dom.ID)
		}
	}
	for id := range d.byID {
		if _, ok := byID[id]; !ok {
			changed = append(changed, id)
		}
	}
	d.byID, d.err, d.listing = byID, nil, false
	d.seq++
	return changed, d.seq < d.asked
}

func (d *domains) fail(err error) (first bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	first = d.err == nil
	d.err, d.listing = err, false
	return first
}

// state is the error of the last listing.
func (d *domains) state() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.seq == 0 && d.err == nil {
		return api.Errorf(api.CodeUnavailable, "the hypervisor has not answered yet")
	}
	return d.err
}

// ids are those of all domains of the last listing.
func (d *domains) ids() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]string, 0, len(d.byID))
	for id := range d.byID {
		out = append(out, id)
	}
	return out
}

func sameDomain(a, b plugins.Domain) bool {
	return a.Gen == b.Gen && a.SpecRevision == b.SpecRevision && a.State == b.State && a.Reason == b.Reason &&
		a.StartedAt.Equal(b.StartedAt) && a.Acceleration == b.Acceleration && equal(a.Addresses, b.Addresses) && equal(a.Drift, b.Drift)
}

func equal(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// listDomains makes the listings that are wanted and marks what changed.
func (a *Agent) listDomains(ctx context.Context) {
	a.domains.want()
	failures := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.domains.wanted:
		}
		a.domains.begin()
		list, err := a.cfg.Hypervisor.Domains(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			if a.domains.fail(err) {
				a.log.Warn("the hypervisor does not answer", "error", err)
				a.domains.reprobe()
				a.markAll()
			}
			failures++
			if wait(ctx, min(pause(failures), 5*time.Second)) != nil {
				return
			}
			a.domains.want()
			continue
		}
		if failures > 0 {
			a.log.Info("the hypervisor answers again")
			a.domains.reprobe()
			a.markAll()
		}
		failures = 0
		changed, more := a.domains.store(list)
		for _, id := range changed {
			a.queue.add(key{api.KindInstance, id})
		}
		for _, call := range a.domains.callbacks() {
			call()
		}
		if more {
			a.domains.again()
		}
		if wait(ctx, listInterval) != nil {
			return
		}
	}
}

// watchDomains turns the hypervisor's hints into listings, and connects again
// when the hints end.
func (a *Agent) watchDomains(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		events, err := a.cfg.Hypervisor.Events(ctx)
		if err == nil {
			failures = 0
			a.domains.want()
			again := a.listAgain()
			for range events {
				a.domains.want()
			}
			for _, t := range again {
				t.Stop()
			}
			a.domains.want()
		}
		failures++
		if wait(ctx, min(pause(failures), 5*time.Second)) != nil {
			return
		}
	}
}

// listAgain lists soon after a connection was made: a daemon that has just come
// back may find out later, and without a hint, that a guest has ended.
func (a *Agent) listAgain() (timers []*time.Timer) {
	for _, after := range []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second} {
		timers = append(timers, time.AfterFunc(after, func() { a.domains.want() }))
	}
	return timers
}
