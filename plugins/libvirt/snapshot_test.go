package libvirt_test

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/dir"
	"github.com/debvisor/debvisor/plugins/libvirt"
	"github.com/debvisor/debvisor/plugins/plugintest"
)

// typed types a line of shell into the guest and returns what it printed.
func typed(t testing.TB, h plugins.Hypervisor, id, line string) string {
	t.Helper()
	c, err := h.Console(t.Context(), id, false)
	if err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(bootTimeout, func() { _ = c.Close() })
	defer timer.Stop()
	defer func() { _ = c.Close() }()
	tag := uuid.NewString()[:8]
	if _, err := fmt.Fprintf(c, "echo B-%s$(%s)E-%s\n", "'"+tag+"-'", line, "'"+tag+"'"); err != nil {
		t.Fatal(err)
	}
	answer := regexp.MustCompile(`(?s)B-` + tag + `-(.*?)E-` + tag)
	var seen strings.Builder
	p := make([]byte, 4096)
	for {
		n, err := c.Read(p)
		seen.Write(p[:n])
		if found := answer.FindStringSubmatch(seen.String()); found != nil {
			return strings.TrimSpace(found[1])
		}
		if err != nil {
			t.Fatalf("the console ended (%v) before the answer to %q: %q", err, line, seen.String())
		}
	}
}

// awaitTick waits until the guest ticks, which it does once it has booted. The
// log of the console has earlier starts in it.
func awaitTick(t testing.TB, h plugins.Hypervisor, id string) {
	t.Helper()
	c, err := h.Console(t.Context(), id, false)
	if err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(bootTimeout, func() { _ = c.Close() })
	defer timer.Stop()
	defer func() { _ = c.Close() }()
	var seen strings.Builder
	p := make([]byte, 4096)
	for !strings.Contains(seen.String(), "\ntick ") {
		n, err := c.Read(p)
		seen.Write(p[:n])
		if err != nil {
			t.Fatalf("the console ended (%v) before the guest ticked: %q", err, seen.String())
		}
	}
}

// blankDisks gives the guest so many qcow2 disks of its own.
func (m *machine) blankDisks(t testing.TB, spec *plugins.DomainSpec, names ...string) {
	t.Helper()
	store, err := dir.Open(dir.Config{})
	if err != nil {
		t.Fatal(err)
	}
	pool := plugins.PoolSpec{Name: "local", Path: filepath.Join(filepath.Dir(m.config.StateDir), "pool, of snapshots")}
	for _, name := range names {
		v, err := store.CreateVolume(t.Context(), pool, plugins.VolumeSpec{ID: uuid.NewString(), Format: api.FormatQCOW2, SizeBytes: 8 * api.MiB})
		if err != nil {
			t.Fatal(err)
		}
		spec.Disks = append(spec.Disks, plugins.DiskSpec{Name: name, Source: v.Source, Bus: "virtio", Cache: "writeback"})
	}
}

func device(disk int) string { return "/dev/vd" + string(rune('a'+disk)) }

func TestSnapshotterKeepsItsContract(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	plugintest.Snapshotter(t, plugintest.Snapshotters{
		Open: func(t testing.TB) (plugins.Hypervisor, plugins.Snapshotter) {
			h := m.open(t)
			return h, h.(*libvirt.Hypervisor)
		},
		Spec: func(t testing.TB) plugins.DomainSpec {
			spec := m.spec(t)
			m.blankDisks(t, &spec, "root", "data")
			return spec
		},
		Await: awaitTick,
		Write: func(t testing.TB, h plugins.Hypervisor, spec plugins.DomainSpec, disk int, text string) {
			typed(t, h, spec.ID, fmt.Sprintf("printf %s | dd of=%s conv=notrunc,fsync 2>/dev/null", text, device(disk)))
		},
		Read: func(t testing.TB, h plugins.Hypervisor, spec plugins.DomainSpec, disk int) string {
			return typed(t, h, spec.ID, fmt.Sprintf("echo 3 >/proc/sys/vm/drop_caches; head -c 8 %s", device(disk)))
		},
		Remember: func(t testing.TB, h plugins.Hypervisor, id, text string) {
			typed(t, h, id, "echo "+text+" >/tmp/thought")
		},
		Recall: func(t testing.TB, h plugins.Hypervisor, id string) string { return typed(t, h, id, "cat /tmp/thought") },
		Names: func(t testing.TB, disk plugins.DiskSpec) []string {
			raw, err := exec.CommandContext(t.Context(), "qemu-img", "info", "--output=json", disk.Source.Path).Output()
			if err != nil {
				t.Fatal(err)
			}
			var info struct {
				Snapshots []struct{ Name string } `json:"snapshots"`
			}
			if err := json.Unmarshal(raw, &info); err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, s := range info.Snapshots {
				names = append(names, s.Name)
			}
			return names
		},
	})
}
