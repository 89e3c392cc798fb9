package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// updateDelays lists what passes between two updates of a guest that could not
// do all of the first.
func updateDelays() []time.Duration {
	return []time.Duration{2 * time.Second, 5 * time.Second, 15 * time.Second, time.Minute}
}

// updateGuest brings an executing guest in line with an edit of its VM. busy
// is false when there is nothing to do.
func (a *Agent) updateGuest(ctx context.Context, s *sight) (v verdict, busy bool) {
	current := s.domain.SpecRevision == s.vm.Modified
	if a.config.Updater == nil || current && !s.domain.Unsettled {
		s.guest.updates, s.guest.updateError = 0, ""
		return verdict{err: a.letVolumesGo(s, current)}, current && len(a.strayVolumes(s)) > 0
	}
	now := a.config.Clock()
	if left := s.guest.updateAfter.Sub(now); left > 0 && s.guest.updateOf == s.vm.Modified {
		return verdict{err: a.report(ctx, s.row, a.runningReport(s)), after: left}, true
	}
	if s.guest.updateOf != s.vm.Modified {
		s.guest.updates = 0
	}
	err := a.tryUpdate(ctx, s)
	if ctx.Err() != nil || errors.Is(err, errAgain) {
		return verdict{err: err}, true
	}
	delays := updateDelays()
	s.guest.updateOf, s.guest.updateAfter = s.vm.Modified, now.Add(delays[min(s.guest.updates, len(delays)-1)])
	s.guest.updates++
	if err == nil {
		s.guest.updateError = ""
		return verdict{err: a.settle(ctx)}, true
	}
	if s.guest.updateError != err.Error() {
		s.guest.updateError = err.Error()
		a.log.Warn("guest not updated", "vm", s.row.VM, "id", s.id, "error", err)
	}
	return verdict{err: a.report(ctx, s.row, a.runningReport(s)), after: max(time.Second, s.guest.updateAfter.Sub(now))}, true
}

// tryUpdate writes down what the guest may touch from now on beside what it
// has, makes sure that the rows still say so, and changes it.
func (a *Agent) tryUpdate(ctx context.Context, s *sight) error {
	if err := a.mayStart(ctx, s); err != nil { // a disk that is plugged in is written to
		return err
	}
	spec, volumes, err := a.resolve(ctx, s)
	if err != nil {
		return err
	}
	next, _ := a.records.find(s.id)
	next.Gen, next.Volumes = max(next.Gen, s.row.Gen), union(next.Volumes, volumes)
	for _, n := range spec.NICs {
		next.Bridges = union(next.Bridges, []string{n.Bridge})
	}
	next.Ports = joinPorts(next.Ports, portsOf(s.view, s.vm))
	if err := a.records.put(s.id, next); err != nil {
		return err
	}
	if !a.still(s) || !a.volumesKept(volumes) {
		return errAgain
	}
	if err := a.protect(ctx); err != nil {
		return err
	}
	a.log.Info("updating guest", "vm", s.row.VM, "id", s.id, "revision", s.vm.Modified)
	within, cancel := context.WithTimeout(ctx, actTimeout)
	defer cancel()
	if err := a.config.Updater.Update(within, spec); err != nil {
		return fmt.Errorf("update guest: %w", err)
	}
	return nil
}

// strayVolumes are those that the record still names although the guest has
// let go of them.
func (a *Agent) strayVolumes(s *sight) []string {
	one, ok := a.records.find(s.id)
	if !ok || s.domain.Holding {
		return nil
	}
	var out []string
	for _, v := range one.Volumes {
		if !slices.Contains(a.volumeIDs(s), v) {
			out = append(out, v)
		}
	}
	return out
}

// letVolumesGo forgets volumes that an updated guest no longer has, and looks
// at them: they may be deleted now.
func (a *Agent) letVolumesGo(s *sight, current bool) error {
	stray := a.strayVolumes(s)
	if !current || len(stray) == 0 {
		return nil
	}
	one, _ := a.records.find(s.id)
	one.Volumes = a.volumeIDs(s)
	if err := a.records.put(s.id, one); err != nil {
		return err
	}
	for _, v := range stray {
		a.queue.add(keyReplica + api.ReplicaName(v, a.config.Name))
	}
	return errAgain
}

// volumeIDs lists the volumes that the rows give to the VM.
func (a *Agent) volumeIDs(s *sight) []string {
	var out []string
	for _, d := range s.vm.Disks {
		if v := fsm.Volumes.Get(s.view, api.Key(s.vm.Tenant, d.Volume)); v != nil {
			out = append(out, v.ID)
		}
	}
	return out
}

// pendingOf is which edits of the VM the guest has not got.
func (a *Agent) pendingOf(s *sight) []string {
	var out []string
	for _, p := range s.domain.Pending {
		out = append(out, printable(p))
	}
	if s.domain.SpecRevision != s.vm.Modified {
		switch {
		case a.config.Updater == nil:
			out = append(out, "the VM was edited; at the next start")
		case s.guest.updateError != "":
			out = append(out, printable("the VM was edited: "+s.guest.updateError))
		}
	}
	return out[:min(len(out), api.PendingMax)]
}
