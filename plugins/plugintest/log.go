package plugintest

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// Transcripts is one adapter that keeps what guests print.
type Transcripts struct {
	Open  func(t testing.TB) (plugins.Hypervisor, plugins.Logs)
	Spec  func(t testing.TB) plugins.DomainSpec
	Ready string // what the guest prints when it has booted
}

// Logs checks one adapter.
func Logs(t *testing.T, m Transcripts) {
	h, logs := m.Open(t)
	t.Cleanup(func() { _ = h.Close() })
	s := &hypervisorSuite{Hypervisors{Open: func(t testing.TB) plugins.Hypervisor { h, _ := m.Open(t); return h }}}
	spec := m.Spec(t)
	if _, err := logs.ConsoleLog(t.Context(), spec.ID); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("the log of an unknown guest: %v, want CodeNotFound", err)
	}
	s.removeAtEnd(t, spec.ID)
	if err := h.Start(t.Context(), spec); err != nil {
		t.Fatalf("Start: %v", err)
	}
	for deadline := time.Now().Add(bootTimeout); ; {
		text := readLog(t, logs, spec.ID)
		if strings.Contains(text, m.Ready) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the log lacks %q: %q", m.Ready, text)
		}
		<-time.After(pollEvery)
	}
	// What was printed before stays, and the reader ends where the log ends.
	if again := readLog(t, logs, spec.ID); strings.Count(again, m.Ready) != 1 {
		t.Errorf("the log holds %q %d times", m.Ready, strings.Count(again, m.Ready))
	}
}

func readLog(t testing.TB, logs plugins.Logs, id string) string {
	t.Helper()
	r, err := logs.ConsoleLog(t.Context(), id)
	if err != nil {
		t.Fatalf("ConsoleLog: %v", err)
	}
	defer func() { _ = r.Close() }()
	raw, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("read the log: %v", err)
	}
	return string(raw)
}
