package libvirt_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/libvirt"
	"github.com/debvisor/debvisor/plugins/plugintest"
)

// source makes a disk of a MiB where QEMU can read it.
func (m *machine) source(t testing.TB, name string) plugins.Source {
	t.Helper()
	path := filepath.Join(filepath.Dir(m.config.StateDir), name)
	if err := os.WriteFile(path, make([]byte, api.MiB), 0o600); err != nil {
		t.Fatal(err)
	}
	return plugins.Source{Path: path, Format: api.FormatRaw}
}

// ask types a command into the guest until what it prints matches.
func ask(t testing.TB, h plugins.Hypervisor, id, command string, want *regexp.Regexp) string {
	t.Helper()
	c, err := h.Console(t.Context(), id, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	timer := time.AfterFunc(bootTimeout, func() { _ = c.Close() })
	defer timer.Stop()
	var seen strings.Builder
	p := make([]byte, 4096)
	for n := 0; ; n++ {
		// The end of the answer is not in what was typed.
		if _, err := fmt.Fprintf(c, "%s; echo answer-%d-$((40+2))\n", command, n); err != nil {
			t.Fatal(err)
		}
		end := fmt.Sprintf("answer-%d-42", n)
		seen.Reset()
		for !strings.Contains(seen.String(), end) {
			got, err := c.Read(p)
			seen.Write(p[:got])
			if err != nil && err != io.EOF {
				t.Fatalf("the console ended (%v) before %q showed %v: %q", err, command, want, seen.String())
			}
		}
		if want.MatchString(seen.String()) {
			return seen.String()
		}
	}
}

func TestUpdaterKeepsItsContract(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	makeBridge(t, m, "dvbr0")
	makeBridge(t, m, "dvbr1")
	plugintest.Updater(t, plugintest.Updates{
		Open: func(t testing.TB) (plugins.Hypervisor, plugins.Updater) {
			h := m.open(t)
			return h, h.(*libvirt.Hypervisor)
		},
		Spec: func(t testing.TB) plugins.DomainSpec {
			spec := m.spec(t)
			spec.MemoryBytes, spec.MemoryMaxBytes, spec.CPUsMax = 160*api.MiB, 256*api.MiB, 3
			spec.Disks = []plugins.DiskSpec{{Name: "root", Source: m.source(t, "root.raw")}}
			spec.CDROMs = []plugins.CDROMSpec{{Name: "cd", Bus: "scsi"}}
			return spec
		},
		Ready: "GUEST-READY", Source: m.source, Bridges: [2]string{"dvbr0", "dvbr1"},
		Seen: func(t testing.TB, h plugins.Hypervisor, id string, disks, nics int) {
			t.Helper()
			ask(t, h, id, "echo disks $(ls -d /sys/block/[sv]d* | wc -l) nics $(ls -d /sys/class/net/eth* 2>/dev/null | wc -l)",
				regexp.MustCompile(fmt.Sprintf(`\bdisks %d nics %d\b`, disks+1, nics)))
		},
	})
}
