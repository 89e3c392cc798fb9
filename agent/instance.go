package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// memory is what the agent remembers of an instance between two steps. Losing
// it costs a listing, nothing else.
type memory struct {
	after    uint64    // number of the listing that shows what the last action did
	starts   int       // in a row, of guests that ended by themselves soon after
	startAt  time.Time // of the last start
	notUntil time.Time // pause before the next start
}

// memories are those of all instances.
type memories struct {
	mu   sync.Mutex // guards byID; each memory is its worker's alone
	byID map[string]*memory
}

func (m *memories) of(id string) *memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.byID == nil {
		m.byID = map[string]*memory{}
	}
	if m.byID[id] == nil {
		m.byID[id] = &memory{}
	}
	return m.byID[id]
}

func (m *memories) forget(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.byID, id)
}

// steadyRun is how long a guest must have run for its end to count as the
// first in a row.
const steadyRun = time.Minute

// step is one look at one instance: what the tables say, what the machine has.
type step struct {
	a        *Agent
	v        *fsm.View
	id       string
	memory   *memory
	instance *api.Instance // nil: the tables give this node nothing
	vm       *api.VM       // nil: deleted
	task     *api.Task     // that waits for this instance, or nil
	domain   plugins.Domain
	exists   bool
}

// reconcileInstance takes the next step for one guest.
func (a *Agent) reconcileInstance(ctx context.Context, id string) (again time.Duration, err error) {
	s := &step{a: a, v: a.view(), id: id, memory: a.memories.of(id)}
	if i := fsm.Instances.Get(s.v, id); i != nil && i.Owner == a.cfg.Name {
		s.instance = i
		for vm := range fsm.VMs.By(s.v, "id_of", id) {
			s.vm = vm
		}
	}
	var ok bool
	if s.domain, s.exists, ok = a.domains.get(id, s.memory.after); !ok {
		return 0, s.unreachable(ctx)
	}
	if s.instance == nil || s.vm == nil {
		return 0, s.clear(ctx)
	}
	s.task = s.findTask()
	if s.exists && s.executing() && s.domain.Gen != s.instance.Gen {
		a.log.Warn("a guest of a former assignment is ended", "vm", s.vm.Name, "gen", s.domain.Gen, "want", s.instance.Gen)
		return 0, s.act(a.cfg.Hypervisor.Stop(ctx, id, 0))
	}
	if s.task != nil {
		return 0, s.carryOut(ctx)
	}
	if !s.vm.On() {
		return 0, s.off(ctx)
	}
	return s.on(ctx)
}

func (s *step) executing() bool {
	return s.exists && (s.domain.State == api.InstanceRunning || s.domain.State == api.InstancePaused)
}

// act notes that the machine was changed: the next step waits for a listing
// that shows it, which marks the instance.
func (s *step) act(err error) error {
	s.memory.after = s.a.domains.want()
	if err != nil {
		s.a.stats.Failures.Add(1)
	}
	s.a.later(s.id)
	return err
}

// later marks an instance once more, for the case that the listing shows no
// difference.
func (a *Agent) later(id string) { a.domains.after(func() { a.queue.add(key{api.KindInstance, id}) }) }

// unreachable tells in the row that the hypervisor does not answer. What the
// guest did last stays as it was reported.
func (s *step) unreachable(ctx context.Context) error {
	err := s.a.domains.state()
	if err == nil {
		s.a.later(s.id) // a listing is on its way
		return nil
	}
	if s.instance == nil || s.vm == nil {
		return err
	}
	r := s.keep()
	r.Reason = reason(err)
	if e := s.report(ctx, r); e != nil {
		return e
	}
	return err
}

// clear removes a guest that the tables do not give to this node.
func (s *step) clear(ctx context.Context) error {
	if s.exists {
		if s.executing() {
			grace := time.Duration(0)
			if s.instance != nil && s.instance.Gen == s.domain.Gen {
				s.a.log.Info("the guest of a deleted VM is ended", "vm", s.instance.VM)
			} else {
				s.a.log.Warn("a guest that the tables do not give to this node is ended", "domain", s.domain.Name, "gen", s.domain.Gen)
			}
			return s.act(s.a.cfg.Hypervisor.Stop(ctx, s.id, grace))
		}
		return s.act(s.a.cfg.Hypervisor.Remove(ctx, s.id))
	}
	if s.instance == nil {
		s.a.memories.forget(s.id)
		return nil
	}
	_, err := s.a.propose(ctx, fsm.ForgetInstance.Entry(fsm.InstanceEnd{VM: s.id, Gen: s.instance.Gen, Node: s.a.cfg.Name, Epoch: s.a.epoch.Load()}))
	if err != nil && final(err) {
		return nil
	}
	return err
}

// off ends the guest of a VM whose power is off and reports it.
func (s *step) off(ctx context.Context) error {
	if !s.executing() {
		r := s.keep()
		r.State, r.Reason, r.StartedAt, r.Addresses, r.Drift = api.InstanceStopped, "", time.Time{}, nil, nil
		return s.report(ctx, r)
	}
	r := s.observed()
	r.Reason = "asked to shut down"
	if err := s.report(ctx, r); err != nil {
		return err
	}
	s.a.stats.Stops.Add(1)
	return s.act(s.a.cfg.Hypervisor.Stop(ctx, s.id, s.a.grace(s.domain)))
}

func (a *Agent) grace(d plugins.Domain) time.Duration {
	if d.Acceleration == "none" {
		return stopGraceSim
	}
	return stopGrace
}

// on keeps the guest running.
func (s *step) on(ctx context.Context) (again time.Duration, err error) {
	if s.executing() {
		if s.memory.starts > 0 && time.Since(s.memory.startAt) > steadyRun {
			s.memory.starts = 0
		}
		return 0, s.report(ctx, s.observed())
	}
	if s.shutItselfDown() {
		return 0, s.stayOff(ctx)
	}
	if s.exists && s.domain.Gen == s.instance.Gen && ranBefore(s.instance) {
		if err := s.noteEnd(ctx); err != nil {
			return 0, err
		}
	}
	if left := time.Until(s.memory.notUntil); left > 0 {
		return left, nil
	}
	return 0, s.start(ctx, "")
}

// reasonShutdown is how a hypervisor names the end of a guest that powered
// itself off.
const reasonShutdown = "shutdown"

// shutItselfDown reports whether the guest powered itself off and nobody has
// touched the VM since: the guest carries the revision that it was started from.
func (s *step) shutItselfDown() bool {
	return (ranBefore(s.instance) || s.instance.State == api.InstanceStopped) && s.exists && s.domain.Gen == s.instance.Gen && s.domain.Reason == reasonShutdown && s.domain.SpecRevision == s.vm.Modified
}

// stayOff leaves a guest off that powered itself off, and says so.
func (s *step) stayOff(ctx context.Context) error {
	r := s.keep()
	r.State, r.StartedAt, r.Addresses = api.InstanceStopped, time.Time{}, nil
	r.Reason = "the guest shut itself down; start it with: debvisor vm start " + s.vm.Name
	r.Drift = []string{"power: guest is off (" + reasonShutdown + "), wanted on"}
	return s.report(ctx, r)
}

// ranBefore reports whether the row says that the guest ran at this gen.
func ranBefore(i *api.Instance) bool {
	return i.State == api.InstanceRunning || i.State == api.InstancePaused
}

// restartPauses is the wait before a guest that ended by itself is started
// again: at once the first time, ever longer while it does not stay up.
func restartPause(starts int) time.Duration {
	pauses := []time.Duration{0, time.Second, 5 * time.Second, 30 * time.Second, time.Minute}
	return pauses[min(starts, len(pauses)-1)]
}

// noteEnd records that the guest ended although its power is on.
func (s *step) noteEnd(ctx context.Context) error {
	m := s.memory
	if time.Since(m.startAt) > steadyRun {
		m.starts = 0
	}
	m.notUntil = time.Now().Add(restartPause(m.starts))
	m.starts++
	s.a.log.Warn("a guest ended by itself", "vm", s.vm.Name, "reason", s.domain.Reason)
	r := s.keep()
	r.State, r.StartedAt, r.Addresses = api.InstanceStarting, time.Time{}, nil
	r.Reason = fmt.Sprintf("the guest ended by itself (%s) and is started again", s.domain.Reason)
	r.Drift = []string{"power: guest is off (" + s.domain.Reason + "), wanted on"}
	r.Restarts++
	return s.report(ctx, r)
}

// start brings everything that the guest needs and starts it.
func (s *step) start(ctx context.Context, task string) error {
	if err := s.current(); err != nil {
		return nil // the tables moved on: the change marks the instance again
	}
	spec, err := s.spec(ctx)
	if err == nil {
		err = s.a.cfg.Hypervisor.Start(ctx, *spec)
	}
	if err != nil {
		s.a.stats.Failures.Add(1)
		r := s.keep()
		r.State, r.Reason, r.StartedAt = api.InstanceFailed, reason(err), time.Time{}
		if waiting(err) {
			r.State = api.InstanceStarting
		}
		if e := s.report(ctx, r); e != nil {
			return e
		}
		return err
	}
	s.a.stats.Starts.Add(1)
	s.memory.startAt = time.Now()
	s.a.log.Info("guest started", "vm", s.vm.Name, "gen", s.instance.Gen, "task", task)
	return s.act(nil)
}

// current looks once more whether the tables still give the instance to this
// node at the same gen, just before something is done about it.
func (s *step) current() error {
	i := fsm.Instances.Get(s.a.view(), s.id)
	if i == nil || i.Owner != s.a.cfg.Name || i.Gen != s.instance.Gen || s.a.epoch.Load() == 0 {
		return api.Errorf(api.CodeConflict, "moved meanwhile").On(api.KindInstance, s.id)
	}
	return nil
}

// keep is a report that repeats what the row says.
func (s *step) keep() fsm.InstanceReport {
	i := s.instance
	return fsm.InstanceReport{VM: s.id, Gen: i.Gen, Node: s.a.cfg.Name, State: i.State, Reason: i.Reason, StartedAt: i.StartedAt,
		Addresses: i.Addresses, Acceleration: i.Acceleration, Simulated: i.Simulated, SpecRevision: i.SpecRevision, Drift: i.Drift,
		Restarts: i.Restarts, RestartedTask: i.RestartedTask}
}

// observed is a report of what the hypervisor shows of an executing guest.
func (s *step) observed() fsm.InstanceReport {
	r, d := s.keep(), s.domain
	r.State, r.Reason, r.StartedAt, r.Addresses = d.State, "", d.StartedAt.UTC().Round(0), d.Addresses
	if d.State == api.InstancePaused {
		r.Reason = d.Reason
	}
	r.Acceleration, r.Simulated, r.SpecRevision, r.Drift = d.Acceleration, d.Acceleration == "none", d.SpecRevision, d.Drift
	if len(r.Addresses) > api.AddressesMax {
		r.Addresses = r.Addresses[:api.AddressesMax]
	}
	return r
}

// report proposes the report unless the row says the same already.
func (s *step) report(ctx context.Context, r fsm.InstanceReport) error {
	i := s.instance
	same := i.State == r.State && i.Reason == r.Reason && i.StartedAt.Equal(r.StartedAt) && equal(i.Addresses, r.Addresses) &&
		i.Acceleration == r.Acceleration && i.Simulated == r.Simulated && i.SpecRevision == r.SpecRevision && equal(i.Drift, r.Drift) &&
		i.Restarts == r.Restarts && i.RestartedTask == r.RestartedTask && i.OwnerEpoch == s.a.epoch.Load()
	if same {
		return nil
	}
	r.Epoch = s.a.epoch.Load()
	_, err := s.a.propose(ctx, fsm.ReportInstance.Entry(r))
	if err == nil {
		s.v = s.a.view()
		if i := fsm.Instances.Get(s.v, s.id); i != nil {
			s.instance = i
		}
		return nil
	}
	if final(err) {
		s.a.log.Debug("a report came too late", "instance", s.id, "error", err)
		return nil
	}
	return err
}
