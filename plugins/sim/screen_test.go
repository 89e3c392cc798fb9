package sim_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"image/png"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/plugintest"
	"github.com/debvisor/debvisor/plugins/sim"
)

func TestScreensKeepTheirContract(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	plugintest.Screens(t, plugintest.Displays{Spec: m.spec, Open: func(t testing.TB) (plugins.Hypervisor, plugins.Screens) {
		h := m.open(t).(*sim.Hypervisor)
		return h, h
	}})
}

func TestTheDisplayShowsWhatTheScreenshotShows(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	h := m.open(t).(*sim.Hypervisor)
	spec := m.spec(t)
	spec.Graphics, spec.Video = api.GraphicsVNC, api.VideoVGA
	if err := h.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	display, err := h.OpenDisplay(t.Context(), spec.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer display.Close()
	viewer, err := plugintest.NewViewer(display)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := h.Screenshot(t.Context(), spec.ID)
	if err != nil {
		t.Fatal(err)
	}
	shot, err := png.Decode(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	frame, err := viewer.Frame()
	if err != nil {
		t.Fatal(err)
	}
	for y := 0; y < viewer.Height-16; y++ { // below is what moves
		for x := range viewer.Width {
			r, g, b, _ := shot.At(x, y).RGBA()
			if fr, fg, fb, _ := frame.At(x, y).RGBA(); r != fr || g != fg || b != fb {
				t.Fatalf("at %d, %d the display and the screenshot differ", x, y)
			}
		}
	}
}

func TestKeysOfTheDisplayReachTheGuest(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	h := m.open(t).(*sim.Hypervisor)
	spec := m.spec(t)
	spec.Graphics, spec.Video = api.GraphicsVNC, api.VideoVirtio
	if err := h.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	console, err := h.Console(t.Context(), spec.ID, false)
	if err != nil {
		t.Fatal(err)
	}
	stop := context.AfterFunc(t.Context(), func() { _ = console.Close() })
	defer stop()
	late := time.AfterFunc(20*time.Second, func() { _ = console.Close() })
	defer late.Stop()
	display, err := h.OpenDisplay(t.Context(), spec.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer display.Close()
	if _, err := plugintest.NewViewer(display); err != nil {
		t.Fatal(err)
	}
	for _, symbol := range []uint32{'h', 'i', 0xff0d} {
		if _, err := display.Write(binary.BigEndian.AppendUint32([]byte{4, 1, 0, 0}, symbol)); err != nil {
			t.Fatal(err)
		}
	}
	var seen strings.Builder
	for p := make([]byte, 512); !strings.Contains(seen.String(), "read: hi"); {
		n, err := console.Read(p)
		seen.Write(p[:n])
		if err != nil {
			t.Fatalf("the console ended (%v) after %q", err, seen.String())
		}
	}
}

func TestAHostileViewerIsLeft(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	h := m.open(t).(*sim.Hypervisor)
	spec := m.spec(t)
	spec.Graphics, spec.Video = api.GraphicsVNC, api.VideoVirtio
	if err := h.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	for name, message := range map[string][]byte{
		"unknown message": {99},
		"huge text":       {6, 0, 0, 0, 255, 255, 255, 255},
		"odd pixels":      {0, 0, 0, 0, 24, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0},
	} {
		display, err := h.OpenDisplay(t.Context(), spec.ID)
		if err != nil {
			t.Fatal(err)
		}
		late := time.AfterFunc(20*time.Second, func() { t.Errorf("%s: the viewer is still served", name); _ = display.Close() })
		if _, err := plugintest.NewViewer(display); err != nil {
			t.Fatal(err)
		}
		_, _ = display.Write(message)
		_, _ = io.Copy(io.Discard, display)
		late.Stop()
		_ = display.Close()
	}
}

func TestLogsKeepTheirContract(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	plugintest.Logs(t, plugintest.Transcripts{Spec: m.spec, Ready: "GUEST-READY", Open: func(t testing.TB) (plugins.Hypervisor, plugins.Logs) {
		h := m.open(t).(*sim.Hypervisor)
		return h, h
	}})
}
