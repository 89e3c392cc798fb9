package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// What instances say of themselves.
const (
	unreachablePrefix = "the hypervisor cannot be reached: "
	driftSelfOff      = "power: the guest shut itself down, wanted on; it stays off until it is started with: debvisor vm start"
	driftPaused       = "state: paused outside debvisor, wanted running; resume it there, or restart the VM"
	reasonShutdown    = "shutdown" // as every hypervisor names a guest's own end
)

// sight is one VM as it is at one look: the rows and the domain.
type sight struct {
	id     string
	view   *fsm.View
	row    *api.Instance
	vm     *api.VM
	domain plugins.Domain
	here   bool // there is a domain
	guest  *guest
}

func (s *sight) executing() bool { return s.here && executing(s.domain) }

// look reads the rows and the last listing. err says that the hypervisor
// cannot be reached.
func (a *Agent) look(id string) (*sight, error) {
	s := &sight{id: id, view: a.view()}
	s.row = fsm.Instances.Get(s.view, id)
	s.vm = vmByID(s.view, id)
	var err error
	s.domain, s.here, err = a.domains.find(id)
	return s, err
}

func vmByID(view *fsm.View, id string) *api.VM {
	for vm := range fsm.VMs.By(view, "id_of", id) {
		return vm
	}
	return nil
}

// reconcileInstance makes the guest of one VM what the tables say.
func (a *Agent) reconcileInstance(ctx context.Context, j job, id string) verdict {
	s, lost := a.look(id)
	if v, done := a.settleMigration(ctx, s, lost); done {
		return v
	}
	mine := s.row != nil && s.row.Owner == a.config.Name
	if lost != nil {
		if mine {
			return verdict{err: a.reportUnreachable(ctx, s.row, lost)}
		}
		return verdict{} // the first listing brings it back
	}
	if !mine {
		return verdict{err: a.evict(ctx, s)}
	}
	s.guest = a.guests.of(id)
	switch {
	case s.vm == nil:
		return verdict{err: a.endGuest(ctx, j, s)}
	case s.executing() && s.domain.Gen != s.row.Gen:
		return verdict{err: a.destroyOther(ctx, s)}
	}
	if a.leftMove(s) {
		if err := a.settleMove(ctx, s); err != nil {
			return verdict{err: err}
		}
	}
	if o, do := a.nextOperation(s); o != nil {
		return verdict{err: a.operate(ctx, j.key, o, do)}
	}
	var v verdict
	if s.vm.On() {
		v = a.runGuest(ctx, j, s)
	} else {
		v = verdict{err: a.haltGuest(ctx, j, s)}
	}
	if v.err == nil && ctx.Err() == nil {
		v.err = a.growDisks(ctx, s)
	}
	return v
}

// evict destroys and removes a domain that the tables do not give to this node.
func (a *Agent) evict(ctx context.Context, s *sight) error {
	if !s.here {
		if a.isSynced() {
			a.guests.forget(s.id)
			return a.dropRecord(s.id)
		}
		return nil
	}
	if !a.isSynced() {
		return nil // the replica may be older than the domain
	}
	if one, _ := a.records.find(s.id); one.Moving {
		a.log.Info("removing what a migrated guest left here", "id", s.id, "name", s.domain.Name, "gen", s.domain.Gen)
	} else {
		a.log.Warn("destroying a domain that the cluster does not give to this node", "id", s.id, "name", s.domain.Name, "gen", s.domain.Gen)
	}
	return a.removeDomain(ctx, s)
}

// removeDomain stops the guest by force and removes its definition.
func (a *Agent) removeDomain(ctx context.Context, s *sight) error {
	if err := a.stop(ctx, s.id, 0); err != nil {
		return err
	}
	within, cancel := context.WithTimeout(ctx, actTimeout)
	defer cancel()
	if err := a.config.Hypervisor.Remove(within, s.id); err != nil {
		return fmt.Errorf("remove domain %s: %w", s.id, err)
	}
	if err := a.fresh(ctx); err != nil {
		return err
	}
	return errAgain
}

// dropRecord forgets a guest that is gone, and looks at the volumes and
// bridges that it held.
func (a *Agent) dropRecord(id string) error {
	one, ok := a.records.find(id)
	if !ok {
		return nil
	}
	if err := a.records.drop(id); err != nil {
		return err
	}
	for _, v := range one.Volumes {
		a.queue.add(keyReplica + api.ReplicaName(v, a.config.Name))
	}
	if len(one.Bridges) > 0 {
		a.queue.add(keyNetworks)
	}
	return nil
}

// destroyOther ends a guest of this VM that executes under another gen than
// the one that this node owns. Its definition is replaced by the next start.
func (a *Agent) destroyOther(ctx context.Context, s *sight) error {
	if !a.isSynced() {
		return nil
	}
	a.log.Warn("destroying a guest of another gen", "vm", s.row.VM, "id", s.id, "gen", s.domain.Gen, "owned_gen", s.row.Gen)
	if err := a.stop(ctx, s.id, 0); err != nil {
		return err
	}
	return a.settle(ctx)
}

// endGuest removes the guest of a deleted VM, and then its instance.
func (a *Agent) endGuest(ctx context.Context, j job, s *sight) error {
	if s.executing() {
		if err := a.askToStop(ctx, j, s, a.config.Timings.DeleteGrace); err != nil {
			return err
		}
		return a.settle(ctx)
	}
	if s.here {
		return a.removeDomain(ctx, s)
	}
	a.pruneVolumes(ctx, s)
	if err := a.dropRecord(s.id); err != nil {
		return err
	}
	epoch := a.epoch()
	if epoch == 0 {
		return errUnregistered
	}
	var err error
	a.apart(func() {
		_, err = a.propose(ctx, fsm.ForgetInstance.Entry(fsm.InstanceEnd{VM: s.id, Gen: s.row.Gen, Node: a.config.Name, Epoch: epoch}))
	})
	if err == nil || api.CodeOf(err) == api.CodeNotFound {
		a.guests.forget(s.id)
		return nil
	}
	return err
}

// haltGuest sees to it that a VM whose power is off does not execute.
func (a *Agent) haltGuest(ctx context.Context, j job, s *sight) error {
	stops := a.tasksFor(s, api.TaskStop)
	if s.executing() {
		grace := a.config.Timings.StopGrace
		if len(stops) > 0 {
			grace = 0
		}
		if err := a.askToStop(ctx, j, s, grace); err != nil {
			return err
		}
		return a.settle(ctx)
	}
	*s.guest = guest{}
	if err := a.report(ctx, s.row, reportOf(s.row, api.InstanceStopped, "")); err != nil {
		return err
	}
	for _, t := range stops {
		if err := a.finish(ctx, t, api.TaskDone, nil); err != nil {
			return err
		}
	}
	return a.finishRestarts(ctx, s)
}

// askToStop stops the guest: it is asked, and forced when grace is over, which
// counts from the first time that it was asked. The wait ends early when what
// is wanted may have changed.
func (a *Agent) askToStop(ctx context.Context, j job, s *sight, grace time.Duration) error {
	now := a.config.Clock()
	if s.guest.askedAt.IsZero() {
		s.guest.askedAt = now
	}
	left := max(0, grace-now.Sub(s.guest.askedAt))
	if !a.still(s) {
		return errAgain
	}
	a.log.Info("stopping guest", "vm", s.row.VM, "id", s.id, "grace", left)
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-j.touched:
			cancel()
		case <-done:
		}
	}()
	var err error
	act := func() { err = a.stop(within, s.id, left) }
	if left > 0 {
		a.apart(act)
	} else {
		act()
	}
	close(done)
	<-watched
	if err != nil && ctx.Err() == nil && within.Err() != nil {
		return errAgain
	}
	return err
}

func (a *Agent) stop(ctx context.Context, id string, grace time.Duration) error {
	within, cancel := context.WithTimeout(ctx, grace+actTimeout)
	defer cancel()
	if err := a.config.Hypervisor.Stop(within, id, grace); err != nil {
		return fmt.Errorf("stop guest %s: %w", id, err)
	}
	return nil
}

// fresh waits for a listing that shows what was done.
func (a *Agent) fresh(ctx context.Context) (err error) {
	a.apart(func() {
		within, cancel := context.WithTimeout(ctx, listTimeout)
		defer cancel()
		err = a.domains.fresh(within)
	})
	return err
}

// settle is fresh, and looks again.
func (a *Agent) settle(ctx context.Context) error {
	if err := a.fresh(ctx); err != nil {
		return err
	}
	return errAgain
}

// still reports whether the rows that s was made from say the same now.
func (a *Agent) still(s *sight) bool {
	view := a.view()
	row, vm := fsm.Instances.Get(view, s.id), vmByID(view, s.id)
	if row == nil || row.Gen != s.row.Gen || row.Owner != s.row.Owner {
		return false
	}
	if vm == nil || s.vm == nil {
		return vm == s.vm
	}
	return vm.Modified == s.vm.Modified
}

// runGuest sees to it that a VM whose power is on executes.
func (a *Agent) runGuest(ctx context.Context, j job, s *sight) verdict {
	for _, t := range a.tasksFor(s, api.TaskStop) { // started again since
		err := api.Errorf(api.CodeConflict, "was started again meanwhile").On(api.KindVM, s.row.VM)
		if err := a.finish(ctx, t, api.TaskCancelled, err); err != nil {
			return verdict{err: err}
		}
	}
	for _, t := range a.tasksFor(s, api.TaskRestart) {
		if busy, err := a.restart(ctx, j, s, t); busy || err != nil {
			return verdict{err: err}
		}
	}
	now := a.config.Clock()
	if s.executing() {
		s.guest.runs(s.domain.StartedAt, now)
		if v, busy := a.updateGuest(ctx, s); busy {
			return v
		}
		if err := a.report(ctx, s.row, a.runningReport(s)); err != nil || !waitsForSpace(s) {
			return verdict{err: err}
		}
		return verdict{err: a.resumeGuest(ctx, s), after: resumeAgain}
	}
	if a.shutItselfDown(s) {
		r := reportOf(s.row, api.InstanceStopped, "the guest shut itself down")
		r.Drift = []string{driftSelfOff}
		return verdict{err: a.report(ctx, s.row, r)}
	}
	if why, drift, ended := endOf(s); ended && !a.restarting(s) {
		s.guest.ended(s.row, s.vm, why, drift, now)
		if err := a.reportEnd(ctx, s); err != nil {
			a.log.Warn("the end of a guest is not reported", "vm", s.row.VM, "error", err)
		}
	}
	if left := s.guest.waitLeft(s.row, s.vm, now); left > 0 {
		return verdict{after: left}
	}
	return a.startGuest(ctx, s)
}

// shutItselfDown reports whether the guest ended from the inside and nobody
// has asked for anything since.
func (a *Agent) shutItselfDown(s *sight) bool {
	if !s.here || s.domain.State != api.InstanceStopped || s.domain.Reason != reasonShutdown ||
		s.domain.Gen != s.row.Gen || s.domain.SpecRevision != s.vm.Modified {
		return false
	}
	return !a.restarting(s)
}

// restarting reports whether this node was about to restart the guest: then
// its end was asked for.
func (a *Agent) restarting(s *sight) bool {
	one, _ := a.records.find(s.id)
	return one.Restart != "" && one.Restart != s.row.RestartedTask
}

// endOf tells how a guest ended that nobody asked to.
func endOf(s *sight) (why, drift string, ended bool) {
	if s.row.State != api.InstanceRunning && s.row.State != api.InstancePaused {
		return "", "", false
	}
	switch {
	case !s.here:
		if s.row.SpecRevision != s.vm.Modified {
			return "", "", false
		}
		return "its domain was removed outside debvisor", "domain: removed outside debvisor; it is defined and started again", true
	case s.domain.Gen != s.row.Gen || s.domain.SpecRevision != s.vm.Modified:
		return "", "", false
	case s.domain.State == api.InstanceFailed:
		return "it crashed", "state: crashed, wanted running; it is started again", true
	}
	return "it was ended from outside (" + s.domain.Reason + ")",
		"state: " + s.domain.Reason + " outside debvisor, wanted running; it is started again", true
}

func (a *Agent) reportEnd(ctx context.Context, s *sight) error {
	state := api.InstanceStopped
	if s.here && s.domain.State == api.InstanceFailed {
		state = api.InstanceFailed
	}
	r := reportOf(s.row, state, s.guest.why)
	r.Drift = []string{printable(s.guest.drift)}
	return a.report(ctx, s.row, r)
}

// runningReport is what an executing guest shows.
func (a *Agent) runningReport(s *sight) fsm.InstanceReport {
	d := s.domain
	r := reportOf(s.row, d.State, s.guest.reason)
	if s.guest.reason == "" && s.row.StartedAt.Equal(d.StartedAt) && s.row.State == d.State && !strings.HasPrefix(s.row.Reason, unreachablePrefix) {
		r.Reason = s.row.Reason // of this start, from before this agent's own
	}
	probe, _ := a.domains.machine()
	r.StartedAt, r.Acceleration, r.Simulated, r.SpecRevision = d.StartedAt, d.Acceleration, probe.Info.Simulated, d.SpecRevision
	r.Restarts = max(r.Restarts, s.guest.restarts)
	for _, address := range d.Addresses {
		r.Addresses = append(r.Addresses, printable(address))
	}
	for _, drift := range d.Drift {
		r.Drift = append(r.Drift, printable(drift))
	}
	r.Pending = a.pendingOf(s)
	if d.State == api.InstancePaused {
		r.Reason = printable(d.Reason)
		if waitsForSpace(s) {
			r.Reason += ": " + pausedForSpace
		} else {
			r.Drift = append(r.Drift, driftPaused)
		}
	}
	r.Addresses = r.Addresses[:min(len(r.Addresses), api.AddressesMax)]
	r.Drift = r.Drift[:min(len(r.Drift), api.AddressesMax)]
	return r
}

// reportUnreachable keeps what is known of an instance, with a reason.
func (a *Agent) reportUnreachable(ctx context.Context, row *api.Instance, lost error) error {
	if a.domains.lostFor(a.config.Clock()) < a.config.Timings.Unreachable || strings.HasPrefix(row.Reason, unreachablePrefix) {
		return nil
	}
	r := reportOf(row, row.State, printable(unreachablePrefix+lost.Error()))
	r.StartedAt, r.Addresses, r.Acceleration, r.SpecRevision, r.Drift = row.StartedAt, row.Addresses, row.Acceleration, row.SpecRevision, row.Drift
	r.Pending = row.Pending
	return a.report(ctx, row, r)
}

// report proposes what the owner sees, if the row says otherwise.
func (a *Agent) report(ctx context.Context, row *api.Instance, r fsm.InstanceReport) error {
	if sameReport(row, r) {
		return nil
	}
	r.Node, r.Epoch = a.config.Name, a.epoch()
	if r.Epoch == 0 {
		return errUnregistered
	}
	var err error
	a.apart(func() { _, err = a.propose(ctx, fsm.ReportInstance.Entry(r)) })
	if errors.Is(err, &api.Error{Code: api.CodeConflict}) && !a.owns(row) {
		return nil // it is another's now: the change has brought a new look
	}
	return err
}

func (a *Agent) owns(row *api.Instance) bool {
	now := fsm.Instances.Get(a.view(), row.Name)
	return now != nil && now.Owner == a.config.Name && now.Gen == row.Gen
}

func sameReport(row *api.Instance, r fsm.InstanceReport) bool {
	return row.State == r.State && row.Reason == r.Reason && row.StartedAt.Equal(r.StartedAt) &&
		slices.Equal(row.Addresses, r.Addresses) && row.Acceleration == r.Acceleration && row.Simulated == r.Simulated &&
		row.SpecRevision == r.SpecRevision && slices.Equal(row.Drift, r.Drift) && slices.Equal(row.Pending, r.Pending) && row.Restarts >= r.Restarts && row.RestartedTask == r.RestartedTask
}
