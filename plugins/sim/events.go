package sim

import (
	"context"

	"github.com/debvisor/debvisor/plugins"
)

// reader is one caller of Events.
type reader struct {
	*plugins.Hints
	end context.CancelFunc
}

// Events implements plugins.Hypervisor.
func (h *Hypervisor) Events(ctx context.Context) (<-chan plugins.Event, error) {
	if err := h.usable(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &reader{Hints: plugins.NewHints(), end: cancel}
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
		defer r.end()
		r.Deliver(ctx, out)
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
		r.Add(e)
	}
}
