package agent

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// seriesMax is of how many guests the last hour is remembered: some 20 KiB
// each. Of more than that, the present is known and not the past.
const seriesMax = 2048

// earlySamplePause is how long after a reading another one may be made ahead of
// its time, for somebody who waits for a guest that started just now.
const earlySamplePause = time.Second

// sampleAgeMax is how many intervals old a reading may be that is shown as the
// present.
const sampleAgeMax = 3

// stats is what this node and its guests used. It is in memory only.
type stats struct {
	mu     sync.Mutex // guards below
	at     time.Time  // of the last reading; zero: none
	took   time.Duration
	node   series[plugins.NodeCounters]
	guests map[string]*series[plugins.DomainCounters] // by VM ID
	taken  chan struct{}                              // closed by the next reading; nil while nobody waits

	early chan struct{} // holds a token when somebody waits for a reading
}

// next asks for a reading ahead of time, and returns a channel that closes
// when there is one.
func (s *stats) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken == nil {
		s.taken = make(chan struct{})
	}
	select {
	case s.early <- struct{}{}:
	default:
	}
	return s.taken
}

// series is the course of one machine or guest.
type series[C any] struct {
	counters C
	at       time.Time // of counters
	mark     C         // counters at the last remembered point
	markedAt time.Time
	now      point
	disks    []api.DiskUsage
	nics     []api.NICUsage
	past     ring
	forgets  bool // there is no room for its past
}

// take adds a reading. make computes a point of two readings.
func (s *series[C]) take(at time.Time, counters C, point func(at time.Time, now, before C, seconds float64) point) {
	if s.at.IsZero() {
		s.mark, s.markedAt = counters, at
		s.now = point(at, counters, counters, 0)
	} else {
		s.now = point(at, counters, s.counters, at.Sub(s.at).Seconds())
	}
	s.counters, s.at = counters, at
	if since := at.Sub(s.markedAt); since >= api.StatsResolution-api.StatsInterval/2 {
		if !s.forgets {
			s.past.add(point(at, counters, s.mark, since.Seconds()))
		}
		s.mark, s.markedAt = counters, at
	}
}

// meter reads the counters again and again until ctx ends.
func (a *Agent) meter(ctx context.Context) error {
	if a.config.Meter == nil {
		return nil
	}
	ticker := time.NewTicker(a.config.Timings.Sample)
	defer ticker.Stop()
	complaint := ""
	for {
		within, cancel := context.WithTimeout(ctx, 2*a.config.Timings.Sample)
		began := a.config.Clock()
		sample, err := a.config.Meter.Sample(within)
		cancel()
		switch {
		case err == nil:
			complaint = ""
			a.stats.take(began, a.config.Clock().Sub(began), sample)
		case ctx.Err() == nil && complaint != err.Error():
			complaint = err.Error()
			a.log.Warn("statistics not read", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-a.stats.early:
			if !wait(ctx, earlySamplePause-a.config.Clock().Sub(began)) {
				return nil
			}
		}
	}
}

// take adds one reading of everything.
func (s *stats) take(at time.Time, took time.Duration, sample plugins.Sample) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at, s.took = at, took
	if s.taken != nil {
		close(s.taken)
		s.taken = nil
	}
	s.node.take(at, sample.Node, nodePoint)
	if s.guests == nil {
		s.guests = map[string]*series[plugins.DomainCounters]{}
	}
	for _, d := range sample.Domains {
		g := s.guests[d.ID]
		if g == nil {
			g = &series[plugins.DomainCounters]{forgets: len(s.guests) >= seriesMax}
			s.guests[d.ID] = g
		}
		before, since := g.counters, at.Sub(g.at).Seconds()
		if g.at.IsZero() {
			before = d
		}
		g.take(at, d, domainPoint)
		g.disks, g.nics = devices(d, before, since)
	}
	// The past of a guest that ended, or left, stays as long as it would have.
	maps.DeleteFunc(s.guests, func(_ string, g *series[plugins.DomainCounters]) bool { return at.Sub(g.at) > api.StatsWindow })
}

// NodeStats is what this node's machine does, with the points of the query's
// window. CodeUnavailable until the first reading.
func (a *Agent) NodeStats(q api.StatsQuery) (*api.NodeStats, error) {
	s := &a.stats
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := a.readLately(); err != nil {
		return nil, err
	}
	out := &api.NodeStats{Node: a.config.Name, CPUs: s.node.counters.CPUs, MemoryBytes: s.node.counters.MemoryBytes, Now: s.node.now.node()}
	for _, g := range s.guests {
		if g.at.Equal(s.at) {
			out.VMs++
		}
	}
	if q.Window > 0 {
		out.StepSeconds, out.Points = int(q.Step/time.Second), []api.NodeUsage{}
		for _, p := range s.node.past.window(a.config.Clock(), q) {
			out.Points = append(out.Points, p.node())
		}
	}
	return out, nil
}

// readLately refuses figures that are no longer the present.
func (a *Agent) readLately() error {
	if a.config.Witness || a.config.Meter == nil {
		return api.Errorf(api.CodeConflict, "node %s keeps no statistics", a.config.Name)
	}
	age := a.config.Clock().Sub(a.stats.at)
	if a.stats.at.IsZero() || age > sampleAgeMax*a.config.Timings.Sample {
		return api.Errorf(api.CodeUnavailable, "node %s has not read its counters lately", a.config.Name).Do("see whether its hypervisor works: debvisor node show %s", a.config.Name)
	}
	return nil
}

// VMStats is what each guest does that executes here and is owned, ordered by
// tenant and name. Errors as for NodeStats.
func (a *Agent) VMStats() ([]api.VMStats, error) {
	view := a.view()
	s := &a.stats
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := a.readLately(); err != nil {
		return nil, err
	}
	out := []api.VMStats{}
	for id, g := range s.guests {
		if !g.at.Equal(s.at) {
			continue
		}
		if v, ok := a.vmStats(view, id, g); ok {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b api.VMStats) int {
		return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Name, b.Name))
	})
	return out, nil
}

// VM is what the guest of a VM does that this node owns, with the points of
// the query's window; those of a guest that stopped are still there. For one
// that started just now it waits a moment. Errors as for NodeStats.
func (a *Agent) VM(ctx context.Context, vmID string, q api.StatsQuery) (*api.VMStats, error) {
	if err := a.runsHere(vmID); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, api.StatsNodeTimeout)
	defer cancel()
	for {
		v, known, err := a.guestStats(vmID, q)
		if known || err != nil {
			return v, err
		}
		if row := fsm.Instances.Get(a.view(), vmID); row == nil || row.State != api.InstanceRunning {
			return nil, api.Errorf(api.CodeConflict, "does not execute, and has not in the last hour").On(api.KindInstance, vmID).Do("start the VM")
		}
		select {
		case <-a.stats.next():
		case <-ctx.Done():
			return nil, api.Errorf(api.CodeUnavailable, "node %s has not read the guest's counters yet", a.config.Name).Do("try again")
		}
	}
}

// guestStats is VM without the wait; known is false when nothing was read of
// the guest.
func (a *Agent) guestStats(vmID string, q api.StatsQuery) (v *api.VMStats, known bool, err error) {
	view := a.view()
	s := &a.stats
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := a.readLately(); err != nil {
		return nil, false, err
	}
	g := s.guests[vmID]
	if g == nil {
		return nil, false, nil
	}
	out, ok := a.vmStats(view, vmID, g)
	if !ok {
		return nil, true, api.Errorf(api.CodeNotFound, "there is no such VM").On(api.KindInstance, vmID)
	}
	if !g.at.Equal(s.at) { // it stopped: that is what it does now
		out.Now, out.Disks, out.NICs = api.VMUsage{At: s.at.UTC().Truncate(time.Second)}, nil, nil
	}
	if q.Window > 0 {
		out.StepSeconds, out.Points = int(q.Step/time.Second), []api.VMUsage{}
		for _, p := range g.past.window(a.config.Clock(), q) {
			out.Points = append(out.Points, p.vm())
		}
	}
	return &out, true, nil
}

// vmStats names a guest. One that this node does not own, or whose VM was
// deleted, is nobody's to see.
func (a *Agent) vmStats(view *fsm.View, id string, g *series[plugins.DomainCounters]) (api.VMStats, bool) {
	row := fsm.Instances.Get(view, id)
	if row == nil || row.Owner != a.config.Name {
		return api.VMStats{}, false
	}
	tenant, name, _ := strings.Cut(row.VM, "/")
	v := api.VMStats{ID: id, Tenant: tenant, Name: name, Node: a.config.Name, Now: g.now.vm(), Disks: slices.Clone(g.disks), NICs: slices.Clone(g.nics)}
	if vm := fsm.VMs.Get(view, row.VM); vm != nil && vm.ID == id {
		v.CPUs = vm.CPUs
		return v, true
	}
	return v, false
}

// Counters is what each guest has counted that executes here and is owned, by
// the key of its VM, and how long the last reading took.
func (a *Agent) Counters() (map[string]plugins.DomainCounters, time.Duration) {
	view := a.view()
	s := &a.stats
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]plugins.DomainCounters{}
	for id, g := range s.guests {
		if v, ok := a.vmStats(view, id, g); ok && g.at.Equal(s.at) {
			out[api.Key(v.Tenant, v.Name)] = g.counters
		}
	}
	return out, s.took
}
