package libvirt_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/dir"
	"github.com/debvisor/debvisor/plugins/plugintest"
)

// tell types a line at the guest's shell and blocks until it has printed an
// answer. What is typed comes back too, so the answer must not stand in it.
func tell(t testing.TB, h plugins.Hypervisor, id, line, answer string) {
	t.Helper()
	c, err := h.Console(t.Context(), id, false)
	if err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(bootTimeout, func() { _ = c.Close() })
	defer timer.Stop()
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, "\n"+line+"\n"); err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	p := make([]byte, 4096)
	for !strings.Contains(seen.String(), answer) {
		n, err := c.Read(p)
		seen.Write(p[:n])
		if err != nil {
			t.Fatalf("the console ended (%v) before %q: %q", err, answer, seen.String())
		}
	}
}

func TestDisksKeepTheirContract(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	h := m.open(t)
	defer func() { _ = h.Close() }()
	store, err := dir.Open(dir.Config{})
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Dir(m.config.StateDir)
	count := 0
	plugintest.Disks(t, plugintest.DiskMachine{
		Hypervisor: h, Disks: h.(plugins.Disks), Store: store,
		Here:   plugins.PoolSpec{Name: "here", Path: filepath.Join(base, "here")},
		There:  plugins.PoolSpec{Name: "there", Path: filepath.Join(base, "there")},
		Spec:   m.spec(t),
		Booted: func(t testing.TB, id string) { readUntil(t, h, id, "GUEST-READY") },
		Grown: func(t testing.TB, id string, bytes int64) {
			tell(t, h, id, "echo sectors=$(cat /sys/block/vda/size)", fmt.Sprintf("sectors=%d", bytes/512))
		},
		Writes: func(t testing.TB, id, text string) {
			count++
			tell(t, h, id, "echo "+text+" | dd of=/dev/vda conv=sync,fsync bs=512 && echo wrote=$(("+fmt.Sprint(count)+"*1000))", fmt.Sprintf("wrote=%d", count*1000))
		},
		Reads: func(t testing.TB, at plugins.Source) string {
			raw := filepath.Join(t.TempDir(), "disk.raw")
			out, err := exec.Command("qemu-img", "dd", "-f", at.Format, "-O", "raw", "bs=512", "count=1", "if="+at.Path, "of="+raw).CombinedOutput()
			if err != nil {
				t.Fatalf("read %s: %v: %s", at.Path, err, out)
			}
			content, err := os.ReadFile(raw)
			if err != nil {
				t.Fatal(err)
			}
			return string(content)
		},
	})
}
