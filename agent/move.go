package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// diskMove is what a record holds of the move of a disk under its guest.
//
// The copy is begun after the record names it. When it is complete, QEMU keeps
// both equal with every write, and Equal is recorded. Then the volume's row
// changes its pool, then the guest drops the former source, then that is removed.
// So at each step the pool that the row names has everything, and a record that
// is found later tells what is left to do: settleMove.
type diskMove struct {
	Task   string `json:"task"`
	Volume string `json:"volume"` // key
	ID     string `json:"id"`
	From   string `json:"from"` // pools
	To     string `json:"to"`
	Equal  bool   `json:"equal,omitzero"`
}

const (
	copyPoll    = 500 * time.Millisecond // between looks at a copy
	undoTimeout = time.Minute            // to give a copy up whose task was cancelled
)

// moving is one move being carried out.
type moving struct {
	a        *Agent
	o        *operation
	volume   *api.Volume
	args     api.VolumeMove
	from, to place
}

// place is a pool on this node.
type place struct {
	pool    string
	storage plugins.Storage
	volumes plugins.Volumes
	spec    plugins.PoolSpec
}

func (a *Agent) place(view *fsm.View, pool string) (place, error) {
	storage, spec, err := a.pool(view, pool)
	if err != nil {
		return place{}, err
	}
	volumes := a.config.Volumes[a.driver(view, pool)]
	if volumes == nil {
		return place{}, api.Errorf(api.CodeUnavailable, "its driver copies no volumes").On(api.KindPool, pool)
	}
	return place{pool, storage, volumes, spec}, nil
}

// reconcileVolumeTask carries out a task about a volume, or hands it to the job
// of the VM that uses the volume.
func (a *Agent) reconcileVolumeTask(ctx context.Context, view *fsm.View, t *api.Task) error {
	volume := fsm.Volumes.Get(view, t.Object)
	if volume == nil {
		return a.finish(ctx, t, api.TaskFailed, api.Errorf(api.CodeNotFound, "does not exist any more").On(api.KindVolume, t.Object))
	}
	for vm := range fsm.VMs.By(view, "volume", t.Object) {
		i := fsm.Instances.Get(view, vm.ID)
		switch {
		case i == nil || i.Owner == "":
		case i.Owner == a.config.Name:
			a.queue.touch(keyInstance + vm.ID)
			return nil
		default:
			return a.release(ctx, t, api.Errorf(api.CodeConflict, "is with node %s", i.Owner).On(api.KindVolume, t.Object))
		}
	}
	return a.operate(ctx, keyTask+t.Name, &operation{a: a, view: view, task: t}, a.moveVolume)
}

// moveVolume moves a volume to another pool. Without a VM, or while its guest is
// off, it is a copy between two files that nobody writes to.
func (a *Agent) moveVolume(ctx context.Context, o *operation) error {
	m := &moving{a: a, o: o}
	if err := o.args(&m.args); err != nil {
		return err
	}
	if o.sight != nil {
		one, _ := a.records.find(o.id)
		if one.Move != nil && (one.Move.Task != o.task.Name || !o.executing() || one.Move.Equal) {
			if err := a.settleMove(ctx, o.sight); err != nil {
				return err
			}
			return errAgain
		}
	}
	if m.volume = fsm.Volumes.Get(a.view(), o.task.Object); m.volume == nil {
		return api.Errorf(api.CodeNotFound, "does not exist any more")
	}
	var err error
	if m.from, err = a.place(o.view, m.args.From); err != nil {
		return err
	}
	if m.to, err = a.place(o.view, m.args.Pool); err != nil {
		return err
	}
	switch {
	case m.volume.Pool == m.args.Pool: // what is left to do
		return m.from.storage.DeleteVolume(ctx, m.from.spec, m.volume.ID)
	case m.volume.Pool != m.args.From:
		return api.Errorf(api.CodeConflict, "lies in pool %s by now", m.volume.Pool)
	}
	release, err := m.turn(ctx)
	if err != nil {
		return err
	}
	defer release()
	if o.sight == nil {
		release, err = a.claimIdle(ctx, m.volume, "it is being moved to pool "+m.args.Pool)
	} else {
		release, err = a.claimOwn(m.volume)
	}
	if err != nil {
		return err
	}
	defer release()
	if o.sight == nil || !o.executing() {
		return m.offline(ctx)
	}
	if a.config.Disks == nil {
		return api.Errorf(api.CodeConflict, "the hypervisor moves no disk of a running guest").Do("stop the VM first")
	}
	return m.online(ctx)
}

// tell records progress; it may be called beside the workers. That nobody hears
// it stops nothing.
func (m *moving) tell(ctx context.Context, percent int, text string) {
	r := m.a.taskReport(m.o.task)
	r.Percent, r.Step = percent, text
	if _, err := m.a.propose(ctx, fsm.ReportTask.Entry(r)); err != nil && ctx.Err() == nil {
		m.a.log.Debug("progress not recorded", "task", m.o.task.Name, "error", err)
	}
}

// turn waits for this copy's turn beside the workers.
func (m *moving) turn(ctx context.Context) (release func(), err error) {
	m.a.apart(func() {
		release, err = m.a.copies.take(ctx, m.args.Pool, m.volume.Tenant, m.a.copyLimits, func(why string) { m.tell(ctx, m.o.task.Percent, why) })
	})
	return release, err
}

// offline copies a volume that nobody writes to, and removes the former copy
// once the row names the new one.
func (m *moving) offline(ctx context.Context) error {
	a, id := m.a, m.volume.ID
	from, err := a.findIn(ctx, a.view(), m.volume, m.args.From)
	if err != nil {
		return err
	}
	// What an earlier try left may be older than the volume.
	if err := m.to.storage.DeleteVolume(ctx, m.to.spec, id); err != nil {
		return err
	}
	var to plugins.Stored
	last := -1
	a.apart(func() {
		spec := plugins.VolumeSpec{ID: id, SizeBytes: from.SizeBytes, Format: from.Source.Format}
		to, err = m.to.volumes.CopyVolume(ctx, m.to.spec, spec, from, func(percent int) {
			if percent/5 > last {
				last = percent / 5
				m.tell(ctx, min(percent, 99), "copying to pool "+m.args.Pool)
			}
		})
	})
	if err != nil {
		return err
	}
	moved := m.moved(to)
	moved.Task, moved.Attempt = m.o.task.Name, m.o.task.Attempt
	if err := m.commit(ctx, moved); err != nil {
		if !undecided(err) { // it is not ours any more
			_ = m.to.storage.DeleteVolume(context.WithoutCancel(ctx), m.to.spec, id)
		}
		return err
	}
	a.stored.put(id, to.Source)
	return m.from.storage.DeleteVolume(ctx, m.from.spec, id)
}

// claimOwn claims a volume in the job of the VM that uses it, whose guest is off.
func (a *Agent) claimOwn(volume *api.Volume) (release func(), err error) {
	release, holder := a.claims.take("it is being moved", volume.ID)
	if release == nil {
		return nil, api.Errorf(api.CodeUnavailable, "is in use: %s", holder)
	}
	return release, nil
}

func (m *moving) moved(to plugins.Stored) fsm.VolumeMoved {
	return fsm.VolumeMoved{Volume: m.o.task.Object, ID: m.volume.ID, From: m.args.From, To: m.args.Pool, SizeBytes: to.SizeBytes, UsedBytes: to.UsedBytes}
}

func (m *moving) commit(ctx context.Context, moved fsm.VolumeMoved) error {
	return m.a.commitVolume(ctx, moved)
}

// commitVolume writes which pool the volume lies in from now on. It is tried until
// there is an answer: the right pool must not depend on luck.
func (a *Agent) commitVolume(ctx context.Context, moved fsm.VolumeMoved) error {
	for failures := 1; ; failures++ {
		moved.Node, moved.Epoch = a.config.Name, a.epoch()
		err := error(errUnregistered)
		if moved.Epoch != 0 {
			a.apart(func() { _, err = a.propose(ctx, fsm.MoveVolume.Entry(moved)) })
			if !undecided(err) {
				return err
			}
		}
		if !wait(ctx, backoff(failures, proposeAgain)) {
			return err
		}
	}
}

// online moves the disk under its guest.
func (m *moving) online(ctx context.Context) error {
	a, o := m.a, m.o
	from, to, err := m.begin(ctx)
	if err == nil {
		a.apart(func() { err = m.follow(ctx, from, to) })
	}
	if err != nil {
		if ctx.Err() == nil || !a.wanted(o) {
			err = m.undo(ctx, err)
		}
		return err // else this agent ends, and the next one goes on
	}
	one, _ := a.records.find(o.id)
	equal := *one.Move
	equal.Equal = true
	one.Move = &equal
	if err := a.records.put(o.id, one); err != nil {
		return err
	}
	o.step(ctx, 99, "changing over to pool "+m.args.Pool)
	if err := a.settleMove(ctx, o.sight); err != nil {
		return err
	}
	if now := fsm.Volumes.Get(a.view(), o.task.Object); now == nil || now.Pool != m.args.Pool {
		return api.Errorf(api.CodeUnavailable, "the copy broke at the last moment")
	}
	return nil
}

// begin starts the copy, or finds the one that an earlier try of this task left.
func (m *moving) begin(ctx context.Context) (from, to plugins.Source, err error) {
	a, id := m.a, m.volume.ID
	here, err := a.findIn(ctx, a.view(), m.volume, m.args.From)
	if err != nil {
		return from, to, api.Errorf(api.CodeConflict, "cannot be found in pool %s: %v", m.args.From, err)
	}
	one, _ := a.records.find(m.o.id)
	if one.Move == nil {
		// The row names the other pool: what is here under this ID is a leftover.
		if err := m.to.storage.DeleteVolume(ctx, m.to.spec, id); err != nil {
			return from, to, err
		}
		one.Move = &diskMove{Task: m.o.task.Name, Volume: m.o.task.Object, ID: id, From: m.args.From, To: m.args.Pool}
		if err := a.records.put(m.o.id, one); err != nil {
			return from, to, err
		}
	}
	there, err := m.to.storage.CreateVolume(ctx, m.to.spec, plugins.VolumeSpec{ID: id, SizeBytes: here.SizeBytes, Format: here.Source.Format})
	if err != nil {
		return from, to, err
	}
	within, cancel := context.WithTimeout(ctx, actTimeout)
	defer cancel()
	err = a.config.Disks.CopyDisk(within, m.o.id, here.Source, there.Source)
	if api.CodeOf(err) == api.CodeNotFound && err != nil {
		err = api.Errorf(api.CodeUnavailable, "the guest started before the disk was attached: stop the VM, or restart it")
	}
	return here.Source, there.Source, err
}

// follow waits until the copy is complete. It gives up when the VM is to be
// stopped: then the volume is copied once the guest is off.
func (m *moving) follow(ctx context.Context, from, to plugins.Source) error {
	last := -1
	for {
		within, cancel := context.WithTimeout(ctx, actTimeout)
		c, err := m.a.config.Disks.DiskCopy(within, m.o.id, from, to)
		cancel()
		switch {
		case err != nil:
			return err
		case c.Complete || c.Pivoted:
			return nil
		case !c.Active:
			return api.Errorf(api.CodeUnavailable, "the copy broke: pool %s has a fault, or is full", m.args.Pool)
		case c.Percent/5 > last:
			last = c.Percent / 5
			m.tell(ctx, min(c.Percent, 98), "copying to pool "+m.args.Pool+" while the guest runs")
		}
		if vm := vmByID(m.a.view(), m.o.id); vm == nil || !vm.On() {
			return api.Errorf(api.CodeUnavailable, "the VM is to be stopped: it is moved when the guest is off")
		}
		if !wait(ctx, copyPoll) {
			return ctx.Err()
		}
	}
}

// undo gives a copy up that is not needed, and returns why.
func (m *moving) undo(ctx context.Context, why error) error {
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if err := m.a.settleMove(within, m.o.sight); err != nil {
		m.a.log.Warn("a copy is given up later", "volume", m.o.task.Object, "error", err)
	}
	return why
}

// settleMove ends the move that the record of a VM names, from wherever it was
// left: forward once the row names the new pool or both copies are equal,
// back otherwise.
func (a *Agent) settleMove(ctx context.Context, s *sight) error {
	one, _ := a.records.find(s.id)
	move := one.Move
	if move == nil {
		return nil
	}
	view := a.view()
	volume := fsm.Volumes.Get(view, move.Volume)
	if volume == nil || volume.ID != move.ID {
		return a.dropCopy(ctx, s, move.To) // the volume was deleted, and with it what its row named
	}
	from, to, err := a.sources(ctx, view, volume, move)
	if err != nil {
		return err
	}
	state, err := a.copyState(ctx, s, from, to)
	if err != nil {
		return err
	}
	// A guest that is off wrote to both until its end, if it ever did.
	equal := move.Equal && (state == nil || state.Complete || state.Pivoted)
	switch {
	case volume.Pool == move.To && equal:
	case volume.Pool == move.To: // the copy broke after the change over, and the guest went on with the former one
		if err := a.commitVolume(ctx, fsm.VolumeMoved{Volume: move.Volume, ID: move.ID, From: move.To, To: move.From, VM: s.id, Gen: s.row.Gen}); err != nil {
			return err
		}
		return a.dropCopy(ctx, s, move.To)
	case !equal:
		if state != nil && state.Active {
			if err := a.config.Disks.CancelCopy(ctx, s.id, from, to); err != nil && api.CodeOf(err) != api.CodeNotFound {
				return err
			}
		}
		return a.dropCopy(ctx, s, move.To)
	default:
		stored, err := a.findIn(ctx, view, volume, move.To)
		if err != nil {
			return err
		}
		if err := a.commitVolume(ctx, fsm.VolumeMoved{Volume: move.Volume, ID: move.ID, From: move.From, To: move.To, VM: s.id, Gen: s.row.Gen,
			SizeBytes: stored.SizeBytes, UsedBytes: stored.UsedBytes}); err != nil {
			return err
		}
	}
	a.stored.drop(move.ID)
	if state != nil {
		if err := a.config.Disks.PivotDisk(ctx, s.id, from, to); api.CodeOf(err) == api.CodeConflict || api.CodeOf(err) == api.CodeNotFound {
			return errAgain // it broke, or the guest ended: look again
		} else if err != nil {
			return fmt.Errorf("change disk of %s over: %w", move.Volume, err)
		}
	}
	return a.dropCopy(ctx, s, move.From)
}

// sources finds the sources of both copies; one that is gone has none.
func (a *Agent) sources(ctx context.Context, view *fsm.View, volume *api.Volume, move *diskMove) (from, to plugins.Source, err error) {
	for pool, source := range map[string]*plugins.Source{move.From: &from, move.To: &to} {
		found, err := a.findIn(ctx, view, volume, pool)
		if err != nil && api.CodeOf(err) != api.CodeNotFound {
			return from, to, err
		}
		*source = found.Source
	}
	return from, to, nil
}

// copyState asks the hypervisor for the copy; nil: the guest does not execute
// with the disk.
func (a *Agent) copyState(ctx context.Context, s *sight, from, to plugins.Source) (*plugins.DiskCopy, error) {
	if err := a.fresh(ctx); err != nil {
		return nil, err
	}
	if d, here, err := a.domains.find(s.id); err != nil {
		return nil, err
	} else if !here || !executing(d) {
		return nil, nil
	}
	state, err := a.config.Disks.DiskCopy(ctx, s.id, from, to)
	if api.CodeOf(err) == api.CodeNotFound && err != nil {
		return nil, nil
	}
	return &state, err
}

// dropCopy removes the copy in a pool that is not the volume's, and forgets the
// move.
func (a *Agent) dropCopy(ctx context.Context, s *sight, pool string) error {
	one, _ := a.records.find(s.id)
	storage, spec, err := a.pool(a.view(), pool)
	if err == nil {
		err = storage.DeleteVolume(ctx, spec, one.Move.ID)
	}
	if err != nil && api.CodeOf(err) != api.CodeNotFound { // a pool that is gone holds nothing of ours
		return err
	}
	one.Move = nil
	return a.records.put(s.id, one)
}

// leftMove reports whether the record names a move that no task of this node
// carries out.
func (a *Agent) leftMove(s *sight) bool {
	one, _ := a.records.find(s.id)
	if one.Move == nil {
		return false
	}
	t := fsm.Tasks.Get(s.view, one.Move.Task)
	return t == nil || t.Ended()
}

// dropLeftover removes what a move left under a volume's ID in another pool than
// its row names, once nobody moves the volume.
func (a *Agent) dropLeftover(ctx context.Context, pool string, found plugins.Stored) (gone bool, err error) {
	if found.Kind != api.KindVolume {
		return false, nil
	}
	release, _ := a.claims.take("a leftover of it is removed", found.ID)
	if release == nil {
		return false, nil
	}
	defer release()
	view := a.view()
	volume := volumeByID(view, found.ID)
	if volume == nil || !a.isLeftover(view, pool, volume) {
		return false, nil
	}
	storage, spec, err := a.pool(view, pool)
	if err != nil {
		return false, err
	}
	a.log.Info("removing what a move left behind", "pool", pool, "volume", api.Key(volume.Tenant, volume.Name))
	return true, storage.DeleteVolume(ctx, spec, found.ID)
}

func (a *Agent) isLeftover(view *fsm.View, pool string, volume *api.Volume) bool {
	made := madeReplica(view, volume)
	if volume.Pool == pool || made == nil || made.Node != a.config.Name || made.Pool != volume.Pool {
		return false
	}
	for t := range fsm.Tasks.By(view, "object", api.KindVolume+"/"+api.Key(volume.Tenant, volume.Name)) {
		if t.Verb == api.TaskMoveVolume && !t.Ended() {
			return false
		}
	}
	return !a.records.moves(volume.ID)
}
