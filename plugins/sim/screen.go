package sim

import (
	"bytes"
	"context"
	"crypto/sha256"
	"image"
	"image/color"
	"image/png"
	"io"
	"net"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// The display of a simulated guest.
const (
	screenWidth  = 320
	screenHeight = 200
	screenBars   = 8
)

var _ plugins.Screens = (*Hypervisor)(nil)

// OpenDisplay implements plugins.Screens. Keys that are typed reach the guest
// as if they came over its serial line.
func (h *Hypervisor) OpenDisplay(ctx context.Context, id string) (io.ReadWriteCloser, error) {
	d, r, err := h.screenOf(ctx, id, func(s plugins.DomainSpec) bool { return s.Graphics == api.GraphicsVNC })
	if err != nil {
		return nil, err
	}
	near, far := net.Pipe()
	s := &screen{hypervisor: h, domain: d, record: r, conn: far}
	go s.serve()
	return near, nil
}

// Screenshot implements plugins.Screens.
func (h *Hypervisor) Screenshot(ctx context.Context, id string) ([]byte, error) {
	_, r, err := h.screenOf(ctx, id, func(s plugins.DomainSpec) bool { return s.Video != "" && s.Video != api.VideoNone })
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = png.Encode(&out, picture(r, secondsSince(r, time.Now())))
	return out.Bytes(), err
}

func (h *Hypervisor) screenOf(ctx context.Context, id string, shows func(plugins.DomainSpec) bool) (*domain, *record, error) {
	if err := h.usable(ctx); err != nil {
		return nil, nil, err
	}
	d := h.find(id)
	if d == nil {
		return nil, nil, api.Errorf(api.CodeNotFound, "no domain %s", id)
	}
	r := d.record.Load()
	switch {
	case r == nil || !r.executing():
		return nil, nil, api.Errorf(api.CodeConflict, "the domain does not execute").Do("start the VM, then look at its display")
	case !shows(r.Spec):
		return nil, nil, api.Errorf(api.CodeConflict, "the guest runs without a display").On(api.KindVM, r.Spec.Name).
			Do(`set graphics = "vnc", then stop and start the VM; its serial console is there`)
	}
	return d, r, nil
}

// live reports whether the guest of r still executes: the same start.
func (h *Hypervisor) live(d *domain, r *record) bool {
	now := d.record.Load()
	return now != nil && now.executing() && now.StartedAt.Equal(r.StartedAt) && h.open()
}

func secondsSince(r *record, now time.Time) int { return max(0, int(now.Sub(r.StartedAt)/time.Second)) }

// picture is what a guest shows: bars of colour, a frame in the colour of the
// guest, and a block that moves one step a second.
func picture(r *record, second int) *image.RGBA {
	bars := [screenBars]color.RGBA{{255, 255, 255, 255}, {255, 255, 0, 255}, {0, 255, 255, 255}, {0, 255, 0, 255},
		{255, 0, 255, 255}, {255, 0, 0, 255}, {0, 0, 255, 255}, {0, 0, 0, 255}}
	sum := sha256.Sum256([]byte(r.Spec.ID))
	own := color.RGBA{sum[0], sum[1], sum[2], 255}
	const frame, step = 16, 8
	at := second % (screenWidth / step) * step
	out := image.NewRGBA(image.Rect(0, 0, screenWidth, screenHeight))
	for y := range screenHeight {
		for x := range screenWidth {
			c := bars[x*screenBars/screenWidth]
			switch {
			case x < frame || y < frame || x >= screenWidth-frame:
				c = own
			case y >= screenHeight-frame:
				c = own
				if x >= at && x < at+step {
					c = bars[0]
				}
			}
			out.SetRGBA(x, y, c)
		}
	}
	return out
}
