package control

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// Times of the schedules of snapshots.
const (
	snapshotsPause    = 5 * time.Second // between looks at the schedules
	snapshotRetryMin  = time.Minute     // after a refusal, doubled with each in a row
	snapshotRetryMax  = time.Hour
	snapshotPrunesMax = 64 // deletions asked for in one look
)

// snapshots is the memory of the loop that fires schedules: only who was
// refused lately, and is left alone for a while.
type snapshots struct {
	c       *Control
	refused map[string]*refusedSnapshot // by what was refused
}

type refusedSnapshot struct {
	count int
	until time.Time
}

// runSnapshots takes the snapshots that are due, and deletes those that no
// rule of retention keeps.
func (c *Control) runSnapshots(ctx context.Context) error {
	s := &snapshots{c: c, refused: map[string]*refusedSnapshot{}}
	for {
		s.look(ctx)
		if !wait(ctx, snapshotsPause, nil) {
			return nil
		}
	}
}

func (s *snapshots) look(ctx context.Context) {
	view := s.c.cluster.State().Read()
	now := s.c.now(view)
	for vm := range fsm.VMs.By(view, "scheduled", fsm.Scheduled) {
		if ctx.Err() != nil {
			return
		}
		s.fire(ctx, view, vm, now)
		s.prune(ctx, view, vm, now)
	}
	for what, r := range s.refused {
		if now.Sub(r.until) > snapshotRetryMax {
			delete(s.refused, what)
		}
	}
}

// fire asks for the snapshot of the last slot that has come. Those before it
// that were missed are not made up for. A schedule begins with its first slot
// after it was seen.
func (s *snapshots) fire(ctx context.Context, view *fsm.View, vm *api.VM, now time.Time) {
	i := fsm.Instances.Get(view, vm.ID)
	slot := vm.Snapshots.Last(now)
	if i == nil || i.Owner == "" || slot.IsZero() || !slot.After(i.SnapshotSlot) {
		return
	}
	in := fsm.SnapshotDue{VM: vm.ID, Slot: slot}
	if !i.SnapshotSlot.IsZero() {
		in.Task, in.Name = fmt.Sprintf("snapshot-%s-%d", vm.ID[:8], slot.Unix()), api.SlotName(slot)
	}
	s.propose(ctx, "due "+vm.ID, now, fsm.DueSnapshot.Entry(in))
}

// prune asks for the end of what no rule keeps: of what the schedule took, and
// of what it failed to take.
func (s *snapshots) prune(ctx context.Context, view *fsm.View, vm *api.VM, now time.Time) {
	names := map[int64]string{}
	var slots []time.Time
	var surplus []string
	for snap := range fsm.Snapshots.By(view, "vm_id", vm.ID) {
		switch {
		case snap.Why != api.SnapshotBySchedule:
		case snap.State == api.SnapshotFailed:
			surplus = append(surplus, snap.OwnName())
		case snap.State == api.SnapshotReady:
			slots = append(slots, snap.Slot)
			names[snap.Slot.Unix()] = snap.OwnName()
		}
	}
	for _, slot := range vm.Snapshots.Surplus(slots) {
		surplus = append(surplus, names[slot.Unix()])
	}
	for _, own := range surplus[:min(len(surplus), snapshotPrunesMax)] {
		args, err := json.Marshal(api.SnapshotDeleteArgs{Name: own})
		if err != nil {
			return
		}
		s.propose(ctx, "prune "+vm.ID+" "+own, now, fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: fmt.Sprintf("prune-%s-%s-%d", vm.ID[:8], own, now.Unix()),
			Verb: api.TaskSnapshotDelete, Kind: api.KindVM, Object: api.Key(vm.Tenant, vm.Name), Args: args}))
	}
}

// propose proposes the entry unless it was refused lately.
func (s *snapshots) propose(ctx context.Context, what string, now time.Time, e fsm.Entry) {
	if r := s.refused[what]; r != nil && now.Before(r.until) {
		return
	}
	out, err := s.c.propose(ctx, e)
	switch {
	case err == nil:
		delete(s.refused, what)
	case refused(out, err):
		r := s.refused[what]
		if r == nil {
			r = &refusedSnapshot{}
			s.refused[what] = r
		}
		r.until = now.Add(min(snapshotRetryMin<<min(r.count, 10), snapshotRetryMax))
		r.count++
		s.c.log.Warn("a scheduled snapshot is refused", "what", what, "error", err)
	case ctx.Err() == nil:
		s.c.log.Debug("schedule not proposed", "what", what, "error", err)
	}
}
