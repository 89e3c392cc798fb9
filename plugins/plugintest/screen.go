package plugintest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"image"
	"image/png"
	"io"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// Displays is one adapter that shows displays, and the machine below it.
type Displays struct {
	// Open opens the adapter anew: both faces of it.
	Open func(t testing.TB) (plugins.Hypervisor, plugins.Screens)
	// Spec describes a guest that can be started.
	Spec func(t testing.TB) plugins.DomainSpec
}

// Screens checks one adapter.
func Screens(t *testing.T, m Displays) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Displays)
	}{
		{"DisplaySpeaksRFB", displaySpeaks},
		{"GuestsWithoutADisplaySaySo", displayMissing},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, m) })
	}
}

// startWith starts a guest that is removed with the test.
func (m Displays) startWith(t *testing.T, change func(*plugins.DomainSpec)) (plugins.Hypervisor, plugins.Screens, plugins.DomainSpec) {
	t.Helper()
	h, screens := m.Open(t)
	t.Cleanup(func() { _ = h.Close() })
	s := &hypervisorSuite{Hypervisors{Open: func(t testing.TB) plugins.Hypervisor { h, _ := m.Open(t); return h }}}
	spec := m.Spec(t)
	change(&spec)
	s.removeAtEnd(t, spec.ID)
	if err := h.Start(t.Context(), spec); err != nil {
		t.Fatalf("Start: %v", err)
	}
	return h, screens, spec
}

func displaySpeaks(t *testing.T, m Displays) {
	h, screens, spec := m.startWith(t, func(s *plugins.DomainSpec) { s.Graphics, s.Video = api.GraphicsVNC, api.VideoVirtio })
	var viewers []*Viewer
	for range 2 { // both look at once
		display, err := screens.OpenDisplay(t.Context(), spec.ID)
		if err != nil {
			t.Fatalf("OpenDisplay: %v", err)
		}
		stop := time.AfterFunc(stateTimeout, func() { _ = display.Close() })
		defer stop.Stop()
		defer func() { _ = display.Close() }()
		v, err := NewViewer(display)
		if err != nil {
			t.Fatalf("RFB handshake: %v", err)
		}
		viewers = append(viewers, v)
	}
	for i, v := range viewers {
		if v.Width < 16 || v.Height < 16 {
			t.Errorf("viewer %d: a display of %d x %d", i, v.Width, v.Height)
		}
		if _, err := v.Frame(); err != nil {
			t.Errorf("viewer %d: %v", i, err)
		}
	}
	picture, err := screens.Screenshot(t.Context(), spec.ID)
	if err != nil {
		t.Fatalf("Screenshot: %v", err)
	}
	shot, err := png.Decode(bytes.NewReader(picture))
	if err != nil {
		t.Fatalf("the screenshot is no PNG: %v", err)
	}
	if b := shot.Bounds(); b.Dx() < 16 || b.Dy() < 16 {
		t.Errorf("a screenshot of %v", b)
	}
	if err := h.Stop(t.Context(), spec.ID, 0); err != nil {
		t.Fatal(err)
	}
	for i, v := range viewers { // the display ends with the guest
		if _, err := io.Copy(io.Discard, v.conn); err != nil && viewers[i].late() {
			t.Errorf("viewer %d: %v", i, err)
		}
	}
	if _, err := screens.OpenDisplay(t.Context(), spec.ID); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("the display of a stopped guest: %v, want CodeConflict", err)
	}
}

func displayMissing(t *testing.T, m Displays) {
	_, screens, spec := m.startWith(t, func(s *plugins.DomainSpec) { s.Graphics, s.Video = "", "" })
	const unknown = "00000000-0000-4000-8000-00000000dead"
	for id, want := range map[string]api.Code{spec.ID: api.CodeConflict, unknown: api.CodeNotFound} {
		_, err := screens.OpenDisplay(t.Context(), id)
		wantCode(t, err, want, "OpenDisplay")
		_, err = screens.Screenshot(t.Context(), id)
		wantCode(t, err, want, "Screenshot")
	}
}

// Viewer is as much of a VNC client as tests need (RFC 6143): 32 bits a
// pixel, raw rectangles.
type Viewer struct {
	Width, Height int
	Name          string
	conn          io.ReadWriter
	began         time.Time
}

func (v *Viewer) late() bool { return time.Since(v.began) >= stateTimeout }

// NewViewer makes the handshake without authentication.
func NewViewer(conn io.ReadWriter) (*Viewer, error) {
	v := &Viewer{conn: conn, began: time.Now()}
	version := make([]byte, 12)
	if _, err := io.ReadFull(conn, version); err != nil {
		return nil, fmt.Errorf("read version: %w", err)
	}
	if string(version) != "RFB 003.008\n" {
		return nil, fmt.Errorf("the display speaks %q", version)
	}
	if _, err := conn.Write(version); err != nil {
		return nil, err
	}
	kinds, err := v.take(1)
	if err != nil {
		return nil, fmt.Errorf("read security types: %w", err)
	}
	if kinds, err = v.take(int(kinds[0])); err != nil || !bytes.Contains(kinds, []byte{1}) {
		return nil, fmt.Errorf("the display offers security %v: %w", kinds, err)
	}
	if _, err := conn.Write([]byte{1}); err != nil { // none
		return nil, err
	}
	if result, err := v.take(4); err != nil || !bytes.Equal(result, make([]byte, 4)) {
		return nil, fmt.Errorf("the display refuses: %v: %w", result, err)
	}
	if _, err := conn.Write([]byte{1}); err != nil { // shared
		return nil, err
	}
	head, err := v.take(24)
	if err != nil {
		return nil, fmt.Errorf("read server init: %w", err)
	}
	v.Width, v.Height = int(binary.BigEndian.Uint16(head)), int(binary.BigEndian.Uint16(head[2:]))
	name, err := v.take(int(binary.BigEndian.Uint32(head[20:])))
	v.Name = string(name)
	return v, err
}

func (v *Viewer) take(n int) ([]byte, error) {
	p := make([]byte, n)
	_, err := io.ReadFull(v.conn, p)
	return p, err
}

// Frame asks for the whole picture and reads one update of it. Pixels that it
// does not cover stay black.
func (v *Viewer) Frame() (*image.RGBA, error) {
	// Pixel format: 32 bits, depth 24, little endian, true colour, 8 bits each.
	_, err := v.conn.Write([]byte{0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0})
	if err != nil {
		return nil, err
	}
	if _, err := v.conn.Write([]byte{2, 0, 0, 1, 0, 0, 0, 0}); err != nil { // raw only
		return nil, err
	}
	ask := []byte{3, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(ask[6:], uint16(v.Width))
	binary.BigEndian.PutUint16(ask[8:], uint16(v.Height))
	if _, err := v.conn.Write(ask); err != nil {
		return nil, err
	}
	head, err := v.take(4)
	if err != nil {
		return nil, fmt.Errorf("read update: %w", err)
	}
	if head[0] != 0 {
		return nil, fmt.Errorf("message %d instead of an update", head[0])
	}
	picture := image.NewRGBA(image.Rect(0, 0, v.Width, v.Height))
	for range binary.BigEndian.Uint16(head[2:]) {
		if err := v.rectangle(picture); err != nil {
			return nil, err
		}
	}
	return picture, nil
}

func (v *Viewer) rectangle(picture *image.RGBA) error {
	head, err := v.take(12)
	if err != nil {
		return fmt.Errorf("read rectangle: %w", err)
	}
	at := func(i int) int { return int(binary.BigEndian.Uint16(head[i:])) }
	if encoding := binary.BigEndian.Uint32(head[8:]); encoding != 0 {
		return fmt.Errorf("rectangle in encoding %d", encoding)
	}
	pixels, err := v.take(4 * at(4) * at(6))
	if err != nil {
		return fmt.Errorf("read pixels: %w", err)
	}
	for i := 0; i+3 < len(pixels); i += 4 {
		x, y := at(0)+i/4%at(4), at(2)+i/4/at(4)
		if !(image.Point{X: x, Y: y}).In(picture.Rect) {
			return fmt.Errorf("a pixel at %d, %d", x, y)
		}
		o := picture.PixOffset(x, y)
		picture.Pix[o], picture.Pix[o+1], picture.Pix[o+2], picture.Pix[o+3] = pixels[i+2], pixels[i+1], pixels[i], 255
	}
	return nil
}
