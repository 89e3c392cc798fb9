package plugins_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/plugintest"
)

func TestInspectImageMeasures(t *testing.T) {
	t.Parallel()
	content := plugintest.QCOW2(uint64(3*api.GiB), nil)
	for name, test := range map[string]struct {
		content []byte
		format  string
		want    int64
	}{
		"qcow2":          {content, api.FormatQCOW2, 3 * api.GiB},
		"raw":            {make([]byte, 1024), api.FormatRaw, 1024},
		"raw, odd":       {make([]byte, 1025), api.FormatRaw, 1536},
		"raw, one byte":  {[]byte("x"), api.FormatRaw, 512},
		"kernel of text": {[]byte("MZ kernel"), api.FormatRaw, 512},
	} {
		got, err := plugins.InspectImage(bytes.NewReader(test.content), int64(len(test.content)), test.format)
		if err != nil || got != test.want {
			t.Errorf("%s: %d, %v, want %d", name, got, err, test.want)
		}
	}
}

// A terabyte whose every table is the same one must not keep the reader busy.
func TestInspectImageRefusesTablesUsedTwice(t *testing.T) {
	t.Parallel()
	const l1, entries = 3 << 16, 2000
	content := plugintest.QCOW2(uint64(api.TiB), func(b []byte) {
		for i := range entries {
			binary.BigEndian.PutUint64(b[l1+8*i:], 4<<16|1<<63)
		}
	})
	_, err := plugins.InspectImage(bytes.NewReader(content), int64(len(content)), api.FormatQCOW2)
	if api.CodeOf(err) != api.CodeInvalid || !strings.Contains(err.Error(), "tables") {
		t.Errorf("got %v, want CodeInvalid", err)
	}
}

type badDisk struct{}

func (badDisk) ReadAt([]byte, int64) (int, error) { return 0, errors.New("input/output error") }

func TestInspectImageTellsABadDiskFromABadImage(t *testing.T) {
	t.Parallel()
	_, err := plugins.InspectImage(badDisk{}, 1<<20, api.FormatQCOW2)
	if err == nil || api.CodeOf(err) == api.CodeInvalid {
		t.Errorf("got %v, want an error that does not blame the image", err)
	}
}

// FuzzInspectImage feeds bytes of strangers; whatever is accepted has a size.
func FuzzInspectImage(f *testing.F) {
	f.Add(plugintest.QCOW2(uint64(api.MiB), nil))
	f.Add([]byte("QFI\xfb"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, content []byte) {
		for _, format := range []string{api.FormatQCOW2, api.FormatRaw} {
			size, err := plugins.InspectImage(bytes.NewReader(content), int64(len(content)), format)
			if err == nil && size < 0 || err != nil && api.CodeOf(err) != api.CodeInvalid {
				t.Errorf("%s: size %d, error %v", format, size, err)
			}
		}
	})
}
