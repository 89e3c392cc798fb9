package libvirt_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/plugins/libvirt"
)

// TestTypingGoesOnWhenTheStreamDrops cuts the stream below an open console:
// what is typed while it is opened again reaches the guest.
func TestTypingGoesOnWhenTheStreamDrops(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	h := m.open(t)
	defer func() { _ = h.Close() }()
	spec := m.spec(t)
	if err := h.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	readUntil(t, h, spec.ID, "GUEST-READY")
	c, err := h.Console(t.Context(), spec.ID, false)
	if err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(bootTimeout, func() { _ = c.Close() })
	defer timer.Stop()
	for n := range 3 {
		h.(*libvirt.Hypervisor).CutConsole(spec.ID)
		// The first word may be lost with the stream; a line end begins anew.
		if _, err := fmt.Fprintf(c, "\n\necho answer-%d-$((40+2))\n", n); err != nil {
			t.Fatalf("typing after cut %d: %v", n, err)
		}
		want, p := fmt.Sprintf("answer-%d-42", n), make([]byte, 4096)
		var seen bytes.Buffer
		for !strings.Contains(seen.String(), want) {
			got, err := c.Read(p)
			seen.Write(p[:got])
			if err != nil {
				t.Fatalf("the console ended (%v) before %q: %q", err, want, seen.String())
			}
		}
	}
}
