package sim

import (
	"context"
	"sync"

	"github.com/debvisor/debvisor/plugins"
)

// reader is one caller of Events. Hints wait in a map keyed by domain, so a
// slow caller costs at most one entry per guest.
type reader struct {
	mu      sync.Mutex // guards pending and order
	pending map[string]plugins.Event
	order   []string
	ready   chan struct{} // holds one token while something is pending
	gone    chan struct{}
	endOnce sync.Once
}

// Events implements plugins.Hypervisor.
func (h *Hypervisor) Events(ctx context.Context) (<-chan plugins.Event, error) {
	if err := h.usable(ctx); err != nil {
		return nil, err
	}
	r := &reader{pending: map[string]plugins.Event{}, ready: make(chan struct{}, 1), gone: make(chan struct{})}
	h.mu.Lock()
	h.readers[r] = struct{}{}
	if h.closed || h.broken != nil { // since usable looked
		r.end()
	}
	h.mu.Unlock()
	out := make(chan plugins.Event)
	go func() {
		defer close(out)
		defer h.forget(r)
		r.deliver(ctx, out)
	}()
	return out, nil
}

func (h *Hypervisor) forget(r *reader) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.readers, r)
}

func (h *Hypervisor) announce(e plugins.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for r := range h.readers {
		r.add(e)
	}
}

func (r *reader) end() { r.endOnce.Do(func() { close(r.gone) }) }

func (r *reader) add(e plugins.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, waiting := r.pending[e.ID]; !waiting {
		r.order = append(r.order, e.ID)
	}
	r.pending[e.ID] = e
	select {
	case r.ready <- struct{}{}:
	default:
	}
}

func (r *reader) take() []plugins.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []plugins.Event
	for _, id := range r.order {
		out = append(out, r.pending[id])
	}
	r.order = nil
	clear(r.pending)
	return out
}

func (r *reader) deliver(ctx context.Context, out chan<- plugins.Event) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.gone:
			return
		case <-r.ready:
		}
		for _, e := range r.take() {
			select {
			case out <- e:
			case <-ctx.Done():
				return
			case <-r.gone:
				return
			}
		}
	}
}
