package plugins

import (
	"context"
	"sync"
)

// Hints holds what one caller of Events was not told yet. Hints about one
// domain are merged, so that a slow caller costs at most one entry a domain.
type Hints struct {
	mu      sync.Mutex // guards pending and order
	pending map[string]Event
	order   []string
	ready   chan struct{} // holds a token while something is pending
}

// NewHints makes an empty one.
func NewHints() *Hints {
	return &Hints{pending: map[string]Event{}, ready: make(chan struct{}, 1)}
}

// Add keeps the hint until the caller takes it. It never blocks.
func (h *Hints) Add(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, waiting := h.pending[e.ID]; !waiting {
		h.order = append(h.order, e.ID)
	}
	h.pending[e.ID] = e
	select {
	case h.ready <- struct{}{}:
	default:
	}
}

func (h *Hints) take() []Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []Event
	for _, id := range h.order {
		out = append(out, h.pending[id])
	}
	h.order = nil
	clear(h.pending)
	return out
}

// Deliver sends what was added, in the order of arrival, until ctx ends. It
// does not close out.
func (h *Hints) Deliver(ctx context.Context, out chan<- Event) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.ready:
		}
		for _, e := range h.take() {
			select {
			case out <- e:
			case <-ctx.Done():
				return
			}
		}
	}
}
