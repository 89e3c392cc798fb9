package sim

import (
	"bytes"
	"context"
	"io"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

var _ plugins.Logs = (*Hypervisor)(nil)

// ConsoleLog implements plugins.Logs. What a simulated guest printed is
// computed, and forgotten with its end.
func (h *Hypervisor) ConsoleLog(ctx context.Context, id string) (io.ReadCloser, error) {
	if err := h.usable(ctx); err != nil {
		return nil, err
	}
	d := h.find(id)
	if d == nil {
		return nil, api.Errorf(api.CodeNotFound, "no domain %s", id)
	}
	r := d.record.Load()
	if r == nil || !r.executing() {
		return nil, api.Errorf(api.CodeNotFound, "the simulated guest has no console log once it ended").Do("start the VM")
	}
	c := &console{hypervisor: h, domain: d, record: r, closed: make(chan struct{}), boot: bootText(r, h.config)}
	now := time.Now()
	c.skip(now, true)
	c.collect(now)
	return io.NopCloser(bytes.NewReader(c.pending)), nil
}
