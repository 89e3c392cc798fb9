// Package plugintest checks that an adapter keeps the contract that package
// plugins states: one suite per contract, run by every adapter's tests.
package plugintest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// Patience of the suites. A guest in software emulation on a busy machine
// takes long to boot; a hint about a change must not.
const (
	bootTimeout  = 2 * time.Minute
	stateTimeout = 20 * time.Second
	eventTimeout = 5 * time.Second // the contract says a second; the machine may be busy
	pollEvery    = 20 * time.Millisecond
)

// Hypervisors is one adapter under test and the machine below it.
type Hypervisors struct {
	// Open opens the adapter on the machine. Each call opens it anew; guests
	// that others started are there.
	Open func(t testing.TB) plugins.Hypervisor
	// Spec describes a guest that boots and prints Ready on its console, obeys
	// ACPI from then on, and prints Answer when Line is typed.
	Spec func(t testing.TB) plugins.DomainSpec
	// Ready is what the guest prints when it has booted.
	Ready        string
	Line, Answer string
	// Kill ends the guest as a crash does, without the adapter.
	Kill func(t testing.TB, id string)
	// Tamper gives the guest or its definition other memory, without the adapter.
	Tamper func(t testing.TB, id string)
	// Break cuts every adapter that is open off from the machine; Heal ends that.
	// Guests go on.
	Break, Heal func(t testing.TB)
	// TakenUp waits until the machine below the adapter follows the guest again
	// after Heal, as far as that is later than listing it; nil: it is not.
	TakenUp func(t testing.TB, id string)
}

// Hypervisor checks one adapter. It uses one or two guests at a time. The
// tests run one after the other, because Break concerns all of them.
func Hypervisor(t *testing.T, m Hypervisors) {
	s := &hypervisorSuite{Hypervisors: m}
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"ProbeMeasuresTheMachine", s.probe},
		{"BadSpecsAreRefused", s.badSpecs},
		{"UnknownDomainsAreNoError", s.unknown},
		{"GuestLivesAsTold", s.life},
		{"StartsAreOneStart", s.parallelStarts},
		{"ConsoleShowsAndTypes", s.console},
		{"DeathIsNoticed", s.death},
		{"DriftIsNoticed", s.drift},
		{"GuestsSurviveTheAdapter", s.reopen},
		{"BrokenConnectionIsSaidAndHeals", s.broken},
		{"EndedContextsAreObeyed", s.contexts},
	} {
		t.Run(test.name, test.run)
	}
}

type hypervisorSuite struct{ Hypervisors }

func (s *hypervisorSuite) open(t testing.TB) plugins.Hypervisor {
	t.Helper()
	h := s.Open(t)
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return h
}

// start starts a guest that is removed with the test.
func (s *hypervisorSuite) start(t testing.TB, h plugins.Hypervisor) plugins.DomainSpec {
	t.Helper()
	spec := s.Spec(t)
	spec.Gen, spec.SpecRevision = 7, 42
	s.removeAtEnd(t, spec.ID)
	if err := h.Start(t.Context(), spec); err != nil {
		t.Fatalf("Start: %v", err)
	}
	return spec
}

func (s *hypervisorSuite) removeAtEnd(t testing.TB, id string) {
	t.Cleanup(func() {
		h := s.Open(t)
		defer func() { _ = h.Close() }()
		ctx := context.WithoutCancel(t.Context())
		if err := errors.Join(h.Stop(ctx, id, 0), h.Remove(ctx, id)); err != nil {
			t.Errorf("clean up %s: %v", id, err)
		}
	})
}

// find returns the domain, or nil.
func find(t testing.TB, h plugins.Hypervisor, id string) *plugins.Domain {
	t.Helper()
	all, err := h.Domains(t.Context())
	if err != nil {
		t.Fatalf("Domains: %v", err)
	}
	if !slices.IsSortedFunc(all, func(a, b plugins.Domain) int { return strings.Compare(a.ID, b.ID) }) {
		t.Errorf("Domains are not ordered by ID: %+v", all)
	}
	for _, d := range all {
		if d.ID == id {
			return &d
		}
	}
	return nil
}

// await polls until the domain is as wanted; it fails with what it saw last.
func await(t testing.TB, h plugins.Hypervisor, id, what string, good func(*plugins.Domain) bool) *plugins.Domain {
	t.Helper()
	deadline := time.Now().Add(stateTimeout)
	for {
		d := find(t, h, id)
		if good(d) {
			return d
		}
		if time.Now().After(deadline) {
			t.Fatalf("domain %s is not %s: %+v", id, what, d)
		}
		<-time.After(pollEvery)
	}
}

func wantCode(t testing.TB, err error, code api.Code, what string) {
	t.Helper()
	if api.CodeOf(err) != code {
		t.Errorf("%s: got error %v (code %q), want code %q", what, err, api.CodeOf(err), code)
	}
}

func (s *hypervisorSuite) probe(t *testing.T) {
	p, err := s.open(t).Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !p.Info.Healthy || p.Info.Driver == "" || p.Info.Version == "" || p.Capacity.CPUs < 1 || p.Capacity.MemoryBytes < api.MiB {
		t.Errorf("Probe is incomplete: %+v", p)
	}
	if !slices.Contains([]string{"kvm", "tcg", "none"}, p.Info.Acceleration) {
		t.Errorf("acceleration %q is none of kvm, tcg, none", p.Info.Acceleration)
	}
	if p.Info.Acceleration == "tcg" && p.Info.Reason == "" {
		t.Error("software emulation is not explained")
	}
}

func (s *hypervisorSuite) badSpecs(t *testing.T) {
	h := s.open(t)
	for name, spoil := range map[string]func(*plugins.DomainSpec){
		"id is a path":        func(d *plugins.DomainSpec) { d.ID = "../../etc" },
		"another cluster":     func(d *plugins.DomainSpec) { d.ClusterID = uuid.NewString() },
		"no name":             func(d *plugins.DomainSpec) { d.Name = "" },
		"no CPUs":             func(d *plugins.DomainSpec) { d.CPUs = 0 },
		"negative memory":     func(d *plugins.DomainSpec) { d.MemoryBytes = -1 },
		"upper-case UUID":     func(d *plugins.DomainSpec) { d.ID = "AAAAAAAA-0000-4000-8000-000000000001" },
		"markup in cluster":   func(d *plugins.DomainSpec) { d.ClusterID += `"/><x>` },
		"empty specification": func(d *plugins.DomainSpec) { *d = plugins.DomainSpec{} },
	} {
		spec := s.Spec(t)
		spoil(&spec)
		wantCode(t, h.Start(t.Context(), spec), api.CodeInvalid, name)
	}
	spec := s.Spec(t)
	s.removeAtEnd(t, spec.ID)
	spec.Disks = []plugins.DiskSpec{{Name: "root", Source: plugins.Source{Path: "/nonexistent/disk.qcow2", Format: api.FormatQCOW2}}}
	wantCode(t, h.Start(t.Context(), spec), api.CodeNotFound, "a disk that is not there")
	if d := find(t, h, spec.ID); d != nil && d.State == api.InstanceRunning {
		t.Errorf("a guest without its disk runs: %+v", d)
	}
}

func (s *hypervisorSuite) unknown(t *testing.T) {
	h := s.open(t)
	id := uuid.NewString()
	if err := h.Stop(t.Context(), id, time.Second); err != nil {
		t.Errorf("Stop of an unknown domain: %v", err)
	}
	if err := h.Remove(t.Context(), id); err != nil {
		t.Errorf("Remove of an unknown domain: %v", err)
	}
	_, err := h.Console(t.Context(), id, true)
	wantCode(t, err, api.CodeNotFound, "Console of an unknown domain")
}

func (s *hypervisorSuite) life(t *testing.T) {
	h := s.open(t)
	before := time.Now()
	spec := s.start(t, h)
	d := await(t, h, spec.ID, "running", func(d *plugins.Domain) bool { return d != nil && d.State == api.InstanceRunning })
	if d.Name != spec.Name || d.Gen != 7 || d.SpecRevision != 42 || d.Acceleration == "" || len(d.Drift) > 0 {
		t.Errorf("the domain is %+v, started from %+v", d, spec)
	}
	if d.StartedAt.Before(before.Add(-time.Second)) || d.StartedAt.After(time.Now().Add(time.Second)) {
		t.Errorf("StartedAt is %v, started after %v", d.StartedAt, before)
	}
	if err := h.Start(t.Context(), spec); err != nil {
		t.Errorf("Start with the same gen: %v", err)
	}
	if again := find(t, h, spec.ID); again == nil || !again.StartedAt.Equal(d.StartedAt) {
		t.Errorf("the second Start did not leave the guest alone: %+v, was %+v", again, d)
	}
	newer := spec
	newer.Gen = 8
	wantCode(t, h.Start(t.Context(), newer), api.CodeConflict, "Start with another gen")
	wantCode(t, h.Remove(t.Context(), spec.ID), api.CodeConflict, "Remove of an executing domain")
	twin := s.Spec(t)
	twin.Name = spec.Name
	s.removeAtEnd(t, twin.ID)
	wantCode(t, h.Start(t.Context(), twin), api.CodeConflict, "Start under a name that is taken")

	s.awaitReady(t, h, spec.ID)
	asked := time.Now()
	if err := h.Stop(t.Context(), spec.ID, time.Minute); err != nil {
		t.Fatalf("Stop: %v", err)
	}
	d = find(t, h, spec.ID)
	if d == nil || d.State != api.InstanceStopped || d.Reason != "shutdown" || !d.StartedAt.IsZero() {
		t.Errorf("after a polite Stop of %v the domain is %+v", time.Since(asked), d)
	}
	if err := h.Stop(t.Context(), spec.ID, time.Minute); err != nil {
		t.Errorf("Stop of a stopped domain: %v", err)
	}
	_, err := h.Console(t.Context(), spec.ID, true)
	wantCode(t, err, api.CodeConflict, "Console of a stopped domain")

	newer.MemoryBytes += 16 * api.MiB
	newer.Name += "-renamed"
	newer.SpecRevision = 43
	if err := h.Start(t.Context(), newer); err != nil {
		t.Fatalf("Start anew with another gen, name and memory: %v", err)
	}
	if d := find(t, h, spec.ID); d == nil || d.Gen != 8 || d.Name != newer.Name || d.SpecRevision != 43 || len(d.Drift) > 0 {
		t.Errorf("the definition was not replaced: %+v", d)
	}
	if err := h.Stop(t.Context(), spec.ID, 0); err != nil {
		t.Fatalf("Stop by force: %v", err)
	}
	if d := find(t, h, spec.ID); d == nil || d.State != api.InstanceStopped || d.Reason != "destroyed" {
		t.Errorf("after a forced Stop the domain is %+v", d)
	}
	if err := h.Remove(t.Context(), spec.ID); err != nil {
		t.Fatalf("Remove: %v", err)
	}
	if d := find(t, h, spec.ID); d != nil {
		t.Errorf("the removed domain is listed: %+v", d)
	}
}

func (s *hypervisorSuite) parallelStarts(t *testing.T) {
	h := s.open(t)
	spec := s.Spec(t)
	s.removeAtEnd(t, spec.ID)
	const starters = 6
	var wg sync.WaitGroup
	var mu sync.Mutex
	outcomes := map[api.Code]int{}
	for i := range starters {
		wg.Go(func() {
			mine := spec
			mine.Gen = uint64(1 + i%2)
			err := h.Start(t.Context(), mine)
			mu.Lock()
			defer mu.Unlock()
			outcomes[api.CodeOf(err)]++
		})
	}
	wg.Wait()
	if outcomes[""] != starters/2 || outcomes[api.CodeConflict] != starters/2 {
		t.Errorf("%d starts with two gens ended with %v, want one gen to win", starters, outcomes)
	}
	if d := find(t, h, spec.ID); d == nil || d.State != api.InstanceRunning {
		t.Errorf("the domain is %+v", d)
	}
}

// awaitReady waits on the console until the guest has booted.
func (s *hypervisorSuite) awaitReady(t testing.TB, h plugins.Hypervisor, id string) {
	t.Helper()
	c, err := h.Console(t.Context(), id, true)
	if err != nil {
		t.Fatalf("Console: %v", err)
	}
	defer func() { _ = c.Close() }()
	readUntil(t, c, s.Ready, bootTimeout)
}

// readUntil reads until the text appears and returns all it read.
func readUntil(t testing.TB, c io.ReadCloser, text string, timeout time.Duration) string {
	t.Helper()
	timer := time.AfterFunc(timeout, func() { _ = c.Close() })
	defer timer.Stop()
	var seen bytes.Buffer
	p := make([]byte, 4096)
	for {
		n, err := c.Read(p)
		seen.Write(p[:n])
		if strings.Contains(seen.String(), text) {
			return seen.String()
		}
		if err != nil {
			t.Fatalf("the console ended (%v) before %q; it showed: %q", err, text, seen.String())
		}
	}
}

func (s *hypervisorSuite) console(t *testing.T) {
	h := s.open(t)
	spec := s.start(t, h)
	s.awaitReady(t, h, spec.ID)

	first, err := h.Console(t.Context(), spec.ID, false)
	if err != nil {
		t.Fatal(err)
	}
	second, err := h.Console(t.Context(), spec.ID, true)
	if err != nil {
		t.Fatal(err)
	}
	if text := readUntil(t, second, s.Ready, stateTimeout); text == "" {
		t.Error("replay shows nothing of the past")
	}
	if _, err := io.WriteString(first, s.Line+"\n"); err != nil {
		t.Fatalf("type: %v", err)
	}
	text := readUntil(t, first, s.Answer, stateTimeout)
	if strings.Contains(text, s.Ready) {
		t.Errorf("without replay the console shows the past: %q", text)
	}
	readUntil(t, second, s.Answer, stateTimeout) // every viewer sees it

	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, first)
		done <- err
	}()
	if err := first.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	wait(t, done, "a waiting Read to return after Close")
	if _, err := first.Write([]byte("x")); err == nil {
		t.Error("a closed console takes input")
	}
	go func() {
		_, err := io.Copy(io.Discard, second)
		done <- err
	}()
	if err := h.Stop(t.Context(), spec.ID, 0); err != nil {
		t.Fatal(err)
	}
	if err := wait(t, done, "the console to end with the guest"); err != nil {
		t.Errorf("the console ended with %v, want io.EOF", err)
	}
	_ = second.Close()
}

func wait[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(stateTimeout):
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}

// awaitEvent reads hints until one is about id.
func awaitEvent(t testing.TB, events <-chan plugins.Event, id string) {
	t.Helper()
	timeout := time.After(eventTimeout)
	for {
		select {
		case e, open := <-events:
			if !open {
				t.Fatal("the channel of events closed")
			}
			if e.ID == id {
				return
			}
		case <-timeout:
			t.Fatalf("no hint about domain %s within %v", id, eventTimeout)
		}
	}
}

// drain reads what is left until the channel is quiet or closed.
func awaitClosed(t testing.TB, events <-chan plugins.Event, what string) {
	t.Helper()
	timeout := time.After(stateTimeout)
	for {
		select {
		case _, open := <-events:
			if !open {
				return
			}
		case <-timeout:
			t.Fatalf("the channel of events is open after %s", what)
		}
	}
}

func (s *hypervisorSuite) death(t *testing.T) {
	h := s.open(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, err := h.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	spec := s.start(t, h)
	awaitEvent(t, events, spec.ID)
	s.Kill(t, spec.ID)
	awaitEvent(t, events, spec.ID)
	d := await(t, h, spec.ID, "failed", func(d *plugins.Domain) bool { return d != nil && d.State == api.InstanceFailed })
	if d.Reason != "crashed" {
		t.Errorf("the reason is %q, want crashed", d.Reason)
	}
	if err := h.Start(t.Context(), spec); err != nil {
		t.Errorf("Start after a crash with the same gen: %v", err)
	}
	await(t, h, spec.ID, "running again", func(d *plugins.Domain) bool { return d != nil && d.State == api.InstanceRunning })
	cancel()
	awaitClosed(t, events, "the end of its context")
}

func (s *hypervisorSuite) drift(t *testing.T) {
	h := s.open(t)
	spec := s.start(t, h)
	events, err := h.Events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.Tamper(t, spec.ID)
	awaitEvent(t, events, spec.ID)
	d := await(t, h, spec.ID, "drifted", func(d *plugins.Domain) bool { return d != nil && len(d.Drift) > 0 })
	if !strings.Contains(d.Drift[0], "memory_bytes") || !strings.Contains(d.Drift[0], "wanted") {
		t.Errorf("drift does not say what and what was wanted: %q", d.Drift)
	}
	if err := h.Stop(t.Context(), spec.ID, 0); err != nil {
		t.Fatal(err)
	}
	if err := h.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	if d := find(t, h, spec.ID); d == nil || len(d.Drift) > 0 {
		t.Errorf("a new start does not end the drift: %+v", d)
	}
}

func (s *hypervisorSuite) reopen(t *testing.T) {
	first := s.Open(t)
	spec := s.Spec(t)
	spec.Gen = 3
	s.removeAtEnd(t, spec.ID)
	if err := first.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	s.awaitReady(t, first, spec.ID)
	was := find(t, first, spec.ID)
	events, err := first.Events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	awaitClosed(t, events, "Close")
	_, err = first.Domains(t.Context())
	wantCode(t, err, api.CodeUnavailable, "Domains of a closed adapter")

	second := s.open(t)
	now := find(t, second, spec.ID)
	if now == nil || now.State != api.InstanceRunning || now.Gen != 3 || !now.StartedAt.Equal(was.StartedAt) {
		t.Errorf("after reopening the guest is %+v, was %+v", now, was)
	}
	s.awaitReady(t, second, spec.ID) // the log of its console is kept
	if err := second.Start(t.Context(), spec); err != nil {
		t.Errorf("Start of an adopted guest: %v", err)
	}
}

func (s *hypervisorSuite) broken(t *testing.T) {
	h := s.open(t)
	spec := s.start(t, h)
	events, err := h.Events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.Break(t)
	awaitClosed(t, events, "the connection broke")
	for what, call := range map[string]func() error{
		"Probe":   func() error { _, err := h.Probe(t.Context()); return err },
		"Domains": func() error { _, err := h.Domains(t.Context()); return err },
		"Start":   func() error { return h.Start(t.Context(), spec) },
		"Stop":    func() error { return h.Stop(t.Context(), spec.ID, 0) },
		"Remove":  func() error { return h.Remove(t.Context(), spec.ID) },
		"Events":  func() error { _, err := h.Events(t.Context()); return err },
		"Console": func() error { _, err := h.Console(t.Context(), spec.ID, true); return err },
	} {
		err := call()
		wantCode(t, err, api.CodeUnavailable, what+" while the hypervisor is away")
		if e := api.AsError(err); e == nil || e.Next == "" {
			t.Errorf("%s names no next step: %v", what, err)
		}
	}
	s.Heal(t)
	await(t, h, spec.ID, "running after the connection healed", func(d *plugins.Domain) bool {
		return d != nil && d.State == api.InstanceRunning
	})
	events, err = h.Events(t.Context())
	if err != nil {
		t.Fatalf("Events after the connection healed: %v", err)
	}
	if s.TakenUp != nil {
		s.TakenUp(t, spec.ID)
	}
	if err := h.Stop(t.Context(), spec.ID, 0); err != nil {
		t.Fatal(err)
	}
	awaitEvent(t, events, spec.ID)
	if err := h.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	awaitEvent(t, events, spec.ID)
	s.diedUnseen(t, h, spec.ID)
}

// diedUnseen ends the guest while the hypervisor is away. Nothing tells of it;
// every listing shows it.
func (s *hypervisorSuite) diedUnseen(t *testing.T, h plugins.Hypervisor, id string) {
	s.Break(t)
	s.Kill(t, id)
	s.Heal(t)
	d := await(t, h, id, "failed after it died unseen", func(d *plugins.Domain) bool {
		return d != nil && d.State != api.InstanceRunning
	})
	if d.State != api.InstanceFailed || d.Reason != "crashed" {
		t.Errorf("a guest that died unseen is %+v, want failed because it crashed", d)
	}
}

func (s *hypervisorSuite) contexts(t *testing.T) {
	h := s.open(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	spec := s.Spec(t)
	s.removeAtEnd(t, spec.ID)
	if err := h.Start(ended, spec); !errors.Is(err, context.Canceled) {
		t.Errorf("Start with an ended context: %v", err)
	}
	if _, err := h.Domains(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("Domains with an ended context: %v", err)
	}
	if d := find(t, h, spec.ID); d != nil {
		t.Errorf("a start that was given up left %+v", d)
	}
}
