package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// driver is how this hypervisor names itself.
const driver = "sim"

// Hypervisor simulates guests. It implements plugins.Hypervisor; the other
// exported methods let a test play the guest, the operator or the disaster.
type Hypervisor struct {
	config  Config
	records *drawer

	mu       sync.Mutex // guards all below
	domains  map[string]*domain
	names    map[string]string // name to ID
	readers  map[*reader]struct{}
	broken   error
	arriving map[string]bool // guests that Receive waits for
	closed   bool
}

var _ plugins.Hypervisor = (*Hypervisor)(nil)

// OpenHypervisor opens the simulator on Config.Dir and finds the guests that
// ran there before: those that were running still are. A damaged record is an
// error that names its file.
func OpenHypervisor(config Config) (*Hypervisor, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	records, err := openDrawer(config.Dir, "domains")
	if err != nil {
		return nil, err
	}
	h := &Hypervisor{
		config: config, records: records,
		domains: map[string]*domain{}, names: map[string]string{}, readers: map[*reader]struct{}{},
	}
	ids, err := records.names()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		var r record
		if err := records.load(id, &r); err != nil {
			return nil, err
		}
		d := newDomain(id)
		d.record.Store(&r)
		h.domains[id], h.names[r.Spec.Name] = d, id
		h.wakeAtBoot(d, &r)
	}
	config.Logger.Info("simulated hypervisor opened", "dir", config.Dir, "guests", len(ids))
	return h, nil
}

// Probe implements plugins.Hypervisor.
func (h *Hypervisor) Probe(ctx context.Context) (plugins.Probe, error) {
	if err := h.usable(ctx); err != nil {
		return plugins.Probe{}, err
	}
	return plugins.Probe{
		Info:      api.HypervisorInfo{Driver: driver, Version: "simulated", Acceleration: "none", Simulated: true, Healthy: true, TPM: true},
		Capacity:  api.Capacity{CPUs: h.config.CPUs, MemoryBytes: h.config.MemoryBytes},
		CPUModels: api.CPULevels(),
	}, nil
}

// Domains implements plugins.Hypervisor.
func (h *Hypervisor) Domains(ctx context.Context) ([]plugins.Domain, error) {
	if err := h.usable(ctx); err != nil {
		return nil, err
	}
	h.mu.Lock()
	all := make([]*domain, 0, len(h.domains))
	for _, d := range h.domains {
		all = append(all, d)
	}
	h.mu.Unlock()
	out := make([]plugins.Domain, 0, len(all))
	for _, d := range all {
		if r := d.record.Load(); r != nil && r.Spec.ClusterID == h.config.ClusterID {
			out = append(out, r.domain(h.config.BootTime))
		}
	}
	slices.SortFunc(out, func(a, b plugins.Domain) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// Start implements plugins.Hypervisor.
func (h *Hypervisor) Start(ctx context.Context, spec plugins.DomainSpec) error {
	if err := h.usable(ctx); err != nil {
		return err
	}
	if err := h.check(spec); err != nil {
		return err
	}
	d := h.acquire(spec.ID, true)
	defer h.release(d)
	old := d.record.Load()
	if old != nil && old.executing() {
		if old.Spec.Gen == spec.Gen {
			return nil
		}
		return api.Errorf(api.CodeConflict, "the domain executes with gen %d, not %d", old.Spec.Gen, spec.Gen).
			On(api.KindVM, spec.Name).Do("stop it first")
	}
	if err := h.takeName(spec.Name, spec.ID); err != nil {
		return err
	}
	now := time.Now().UTC()
	r := &record{Spec: spec, State: api.InstanceRunning, Reason: "booted", StartedAt: now, Boot: spec.BootDisk()}
	if err := h.save(d, r, "started"); err != nil {
		if old == nil || old.Spec.Name != spec.Name {
			h.dropName(spec.Name)
		}
		return err
	}
	if old != nil && old.Spec.Name != spec.Name {
		h.dropName(old.Spec.Name)
	}
	h.wakeAtBoot(d, r)
	return nil
}

// Stop implements plugins.Hypervisor. A guest answers ACPI once it has booted.
func (h *Hypervisor) Stop(ctx context.Context, id string, grace time.Duration) error {
	if err := h.usable(ctx); err != nil {
		return err
	}
	d := h.find(id)
	if d == nil {
		return nil
	}
	r := d.record.Load()
	if r == nil || !r.executing() {
		return nil
	}
	reason := "destroyed"
	if grace > 0 && r.State == api.InstanceRunning {
		booting := time.Until(r.StartedAt.Add(h.config.BootTime))
		if booting <= grace {
			reason = "shutdown"
		}
		if err := d.waitChange(ctx, r, min(booting, grace)); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.record.Load()
	if now == nil || !now.executing() || now.Spec.Gen != r.Spec.Gen {
		return nil // it ended, or another gen took its place, while this call waited
	}
	return h.save(d, now.ended(api.InstanceStopped, reason), reason)
}

// Remove implements plugins.Hypervisor.
func (h *Hypervisor) Remove(ctx context.Context, id string) error {
	if err := h.usable(ctx); err != nil {
		return err
	}
	d := h.acquire(id, false)
	if d == nil {
		return nil
	}
	defer h.release(d)
	r := d.record.Load()
	if r == nil {
		return nil
	}
	if r.executing() {
		return api.Errorf(api.CodeConflict, "the domain executes").On(api.KindVM, r.Spec.Name).Do("stop it first")
	}
	if err := h.records.drop(id); err != nil {
		return err
	}
	d.change(nil)
	h.dropName(r.Spec.Name)
	h.announce(plugins.Event{ID: id, Change: "undefined"})
	return nil
}

// Close implements plugins.Hypervisor. Guests go on in their records.
func (h *Hypervisor) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for r := range h.readers {
		r.end()
	}
	for _, d := range h.domains {
		d.wake()
	}
	return nil
}

func (h *Hypervisor) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return api.Errorf(api.CodeUnavailable, "the simulated hypervisor is closed")
	}
	if h.broken != nil {
		return api.Errorf(api.CodeUnavailable, "the simulated hypervisor cannot be reached: %v", h.broken).
			Do("heal the simulated fault")
	}
	return nil
}

// check refuses what a real hypervisor would refuse.
func (h *Hypervisor) check(spec plugins.DomainSpec) error {
	if id, err := uuid.Parse(spec.ID); err != nil || id.String() != spec.ID {
		return api.Invalid("id", "is %q", spec.ID).Allow("a UUID in lower case")
	}
	if spec.ClusterID != h.config.ClusterID {
		return api.Invalid("cluster_id", "is %q", spec.ClusterID).Allow("%s", h.config.ClusterID)
	}
	if spec.Name == "" {
		return api.Invalid("name", "is missing").Allow("a name that is unique on the machine")
	}
	if spec.CPUs < 1 {
		return api.Invalid("cpus", "is %d", spec.CPUs).Allow("1 or more")
	}
	if spec.MemoryBytes < 1 {
		return api.Invalid("memory_bytes", "is %d", spec.MemoryBytes).Allow("more than 0")
	}
	files := []string{}
	for _, d := range spec.Disks {
		files = append(files, d.Source.Path)
	}
	for _, d := range spec.CDROMs {
		if d.Source.Path != "" {
			files = append(files, d.Source.Path)
		}
	}
	if spec.Boot != nil {
		files = append(files, spec.Boot.Kernel)
		if spec.Boot.Initrd != "" {
			files = append(files, spec.Boot.Initrd)
		}
	}
	for _, path := range files {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return api.Errorf(api.CodeNotFound, "a file of the guest is missing: %s", path).On(api.KindVM, spec.Name)
		} else if err != nil {
			return fmt.Errorf("look for %s: %w", path, err)
		}
	}
	return nil
}

func (h *Hypervisor) find(id string) *domain {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.domains[id]
}

// acquire returns the domain locked. Unless create is set it may be nil.
func (h *Hypervisor) acquire(id string, create bool) *domain {
	for {
		h.mu.Lock()
		d := h.domains[id]
		if d == nil && create {
			d = newDomain(id)
			h.domains[id] = d
		}
		h.mu.Unlock()
		if d == nil {
			return nil
		}
		d.mu.Lock()
		if !d.gone {
			return d
		}
		d.mu.Unlock() // it was removed while we waited for it
	}
}

// release unlocks the domain and forgets it when it has no record (any more).
func (h *Hypervisor) release(d *domain) {
	if d.record.Load() == nil {
		d.gone = true
		h.mu.Lock()
		delete(h.domains, d.id)
		h.mu.Unlock()
	}
	d.mu.Unlock()
}

func (h *Hypervisor) takeName(name, id string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if other, taken := h.names[name]; taken && other != id {
		return api.Errorf(api.CodeConflict, "the name belongs to domain %s", other).On(api.KindVM, name).Do("remove that domain first")
	}
	h.names[name] = id
	return nil
}

func (h *Hypervisor) dropName(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.names, name)
}

// save makes the record durable, then visible, then known. The caller holds d.mu.
func (h *Hypervisor) save(d *domain, r *record, change string) error {
	if err := h.records.put(d.id, r); err != nil {
		return err
	}
	d.change(r)
	h.config.Logger.Debug("simulated guest changed", "id", d.id, "name", r.Spec.Name, "change", change)
	h.announce(plugins.Event{ID: d.id, Change: change})
	return nil
}

// wakeAtBoot tells readers when the guest has booted and thus got addresses.
func (h *Hypervisor) wakeAtBoot(d *domain, r *record) {
	if wait := time.Until(r.StartedAt.Add(h.config.BootTime)); r.executing() && h.config.BootTime > 0 && wait > 0 {
		time.AfterFunc(wait, func() {
			if d.record.Load() == r {
				h.announce(plugins.Event{ID: d.id, Change: "addresses"})
			}
		})
	}
}

// domain is one guest. Its record is replaced, never written into.
type domain struct {
	id     string
	record atomic.Pointer[record]

	mu   sync.Mutex // serializes changes; guards gone
	gone bool

	outMu   sync.Mutex // guards below
	changed chan struct{}
	typed   []string // what the guest echoed, oldest first
	dropped int      // lines that fell out of typed
}

func newDomain(id string) *domain { return &domain{id: id, changed: make(chan struct{})} }

// change replaces the record and wakes whoever waits for the guest.
func (d *domain) change(r *record) {
	d.record.Store(r)
	d.wake()
}

func (d *domain) wake() {
	d.outMu.Lock()
	defer d.outMu.Unlock()
	close(d.changed)
	d.changed = make(chan struct{})
}

func (d *domain) changes() <-chan struct{} {
	d.outMu.Lock()
	defer d.outMu.Unlock()
	return d.changed
}

// waitChange blocks for the duration, or until the record is no longer r.
func (d *domain) waitChange(ctx context.Context, r *record, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		changed := d.changes()
		if d.record.Load() != r {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return nil
		case <-changed:
		}
	}
}
