package libvirt_test

import (
	"bytes"
	"image/png"
	"testing"

	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/libvirt"
	"github.com/debvisor/debvisor/plugins/plugintest"
)

func TestScreensKeepTheirContract(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	plugintest.Screens(t, plugintest.Displays{Spec: m.spec, Open: func(t testing.TB) (plugins.Hypervisor, plugins.Screens) {
		h := m.open(t).(*libvirt.Hypervisor)
		return h, h
	}})
}

func TestPicturesBecomePNG(t *testing.T) {
	t.Parallel()
	ppm := []byte("P6\n2 1\n255\n\xff\x00\x00\x00\x00\xff")
	raw, err := libvirt.ToPNG(ppm)
	if err != nil {
		t.Fatal(err)
	}
	picture, err := png.Decode(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	if r, _, b, _ := picture.At(1, 0).RGBA(); r != 0 || b != 0xffff {
		t.Errorf("the second pixel has red %x and blue %x", r, b)
	}
	if again, err := libvirt.ToPNG(raw); err != nil || !bytes.Equal(again, raw) {
		t.Errorf("a PNG does not stay as it is: %v", err)
	}
	for name, bad := range map[string][]byte{
		"empty": nil, "cut PPM": ppm[:len(ppm)-1], "cut PNG": raw[:len(raw)-20], "huge": []byte("P6\n99999999 99999999\n255\n"),
		"negative": []byte("P6\n-1 5\n255\n"), "deep": []byte("P6\n1 1\n65535\n......"), "other": []byte("GIF89a"),
	} {
		if _, err := libvirt.ToPNG(bad); err == nil {
			t.Errorf("%s is taken for a picture", name)
		}
	}
}

func FuzzPicturesOfTheDaemon(f *testing.F) {
	f.Add([]byte("P6\n2 1\n255\n\xff\x00\x00\x00\x00\xff"))
	f.Add([]byte("\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		out, err := libvirt.ToPNG(raw)
		if err != nil {
			return
		}
		if _, err := png.Decode(bytes.NewReader(out)); err != nil {
			t.Errorf("%q became something that is no PNG: %v", raw, err)
		}
	})
}

func TestLogsKeepTheirContract(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	plugintest.Logs(t, plugintest.Transcripts{Spec: m.spec, Ready: "GUEST-READY", Open: func(t testing.TB) (plugins.Hypervisor, plugins.Logs) {
		h := m.open(t).(*libvirt.Hypervisor)
		return h, h
	}})
}
