package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// Bounds of work on snapshots.
const (
	memoryTimeout = 30 * time.Minute // to write or read a guest's memory
	freezeLimit   = 20 * time.Second // of a quiesced snapshot: then the guest thaws by itself
)

// onSnapshots is do where this node can keep snapshots.
func (a *Agent) onSnapshots(do do) do {
	return func(ctx context.Context, o *operation) error {
		if a.config.Snapshots == nil {
			return api.Errorf(api.CodeConflict, "the hypervisor of node %s keeps no snapshots", a.config.Name)
		}
		return do(ctx, o)
	}
}

// snapshotRow finds a snapshot of the operation's VM; nil: there is none.
func (o *operation) snapshotRow(own string) *api.Snapshot {
	s := fsm.Snapshots.Get(o.view, api.Key(o.vm.Tenant, api.SnapshotName(o.vm.Name, own)))
	if s == nil || s.VMID != o.id {
		return nil
	}
	return s
}

// snapshotSpec resolves the disks of a snapshot to their places on this node.
// Those whose volume is gone, or is another VM's by now, are an error, or left
// out where partly is set.
func (a *Agent) snapshotSpec(ctx context.Context, o *operation, s *api.Snapshot, partly bool) (plugins.SnapshotSpec, error) {
	spec := plugins.SnapshotSpec{ID: s.ID, DomainID: s.VMID, Memory: s.Memory, Machine: s.Machine}
	for _, d := range s.Disks {
		disk, err := a.snapshotDisk(ctx, o.view, s.VMID, d)
		if err != nil && partly && api.CodeOf(err) == api.CodeNotFound {
			continue
		}
		if err != nil {
			return spec, err
		}
		spec.Disks = append(spec.Disks, disk)
	}
	return spec, nil
}

// snapshotDisk finds the volume of a disk on this node.
func (a *Agent) snapshotDisk(ctx context.Context, view *fsm.View, vmID string, d api.SnapshotDisk) (plugins.DiskSpec, error) {
	var volume *api.Volume
	for v := range fsm.Volumes.By(view, "id_of", d.VolumeID) {
		volume = v
	}
	if volume == nil {
		return plugins.DiskSpec{}, api.Errorf(api.CodeNotFound, "disk %s (volume %s) was deleted", d.Name, d.Volume)
	}
	for vm := range fsm.VMs.By(view, "volume", api.Key(volume.Tenant, volume.Name)) {
		if vm.ID != vmID {
			return plugins.DiskSpec{}, api.Errorf(api.CodeNotFound, "disk %s (volume %s) belongs to vm %s by now", d.Name, d.Volume, vm.Name)
		}
	}
	source, err := a.volumeSource(ctx, view, volume)
	return plugins.DiskSpec{Name: d.Name, Source: source}, err
}

// takeSnapshot carries out api.TaskSnapshot.
func (a *Agent) takeSnapshot(ctx context.Context, o *operation) error {
	var args api.SnapshotArgs
	if err := o.args(&args); err != nil {
		return err
	}
	row := o.snapshotRow(args.Name)
	switch {
	case row == nil:
		return api.Errorf(api.CodeNotFound, "the snapshot %s was deleted meanwhile", args.Name)
	case row.State == api.SnapshotReady && row.Task == "":
		return nil // what was reported was accepted, and the answer lost
	}
	return a.keepState(ctx, o, row)
}

// keepState takes the snapshot of a row that is being created and reports it.
// After a failure that will not pass nothing of it is left.
func (a *Agent) keepState(ctx context.Context, o *operation, row *api.Snapshot) error {
	spec, err := a.snapshotSpec(ctx, o, row, false)
	if err != nil {
		return err
	}
	report := a.snapshotReport(o, row)
	report.Memory, report.Quiesced = row.Memory, row.Quiesced
	lenient := row.Why == api.SnapshotBySchedule
	if !o.executing() && (row.Memory || row.Quiesced) {
		if !lenient {
			return a.dropState(ctx, o, row, spec, api.Errorf(api.CodeConflict, "the guest does not run at the moment").Do("start it, or leave memory and quiesce out"))
		}
		report.Memory, report.Quiesced, report.Reason, spec.Memory = false, false, "the guest did not run", false
	}
	o.step(ctx, 10, "taking the snapshot")
	if report.Quiesced {
		err = a.quiesced(ctx, spec, &report, lenient)
	} else {
		err = a.snapshot(ctx, spec, &report)
	}
	if err != nil {
		return a.dropState(ctx, o, row, spec, err)
	}
	o.step(ctx, 90, "recording the snapshot")
	return a.proposeSnapshot(ctx, fsm.ReportSnapshot.Entry(report))
}

func (a *Agent) snapshotReport(o *operation, row *api.Snapshot) fsm.SnapshotReport {
	return fsm.SnapshotReport{Snapshot: api.Key(row.Tenant, row.Name), Task: o.task.Name, Node: o.task.Node, Epoch: o.task.Epoch, Gen: o.row.Gen}
}

func (a *Agent) proposeSnapshot(ctx context.Context, e fsm.Entry) error {
	var err error
	a.apart(func() { _, err = a.propose(ctx, e) })
	return err
}

// snapshot lets the hypervisor take it. Writing memory takes long, and needs no
// worker.
func (a *Agent) snapshot(ctx context.Context, spec plugins.SnapshotSpec, report *fsm.SnapshotReport) error {
	limit := actTimeout
	if spec.Memory {
		limit = memoryTimeout
	}
	within, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var err error
	a.apart(func() {
		var taken plugins.SnapshotTaken
		taken, err = a.config.Snapshots.Snapshot(within, spec)
		report.SizeBytes, report.Machine = taken.MemoryBytes, taken.Machine
	})
	return err
}

// quiesced takes the snapshot while the guest's file systems are frozen. A
// lenient one is taken all the same where they cannot be.
func (a *Agent) quiesced(ctx context.Context, spec plugins.SnapshotSpec, report *fsm.SnapshotReport, lenient bool) error {
	if a.config.Guests == nil {
		return api.Errorf(api.CodeConflict, "this node cannot ask guests' agents")
	}
	frozen, err := a.config.Guests.FreezeGuest(ctx, spec.DomainID, freezeLimit)
	if err != nil && !lenient {
		return fmt.Errorf("freeze the guest: %w", err)
	}
	if err != nil {
		report.Quiesced, report.Reason = false, printable("not quiesced: "+err.Error())
		return a.snapshot(ctx, spec, report)
	}
	err = a.snapshot(ctx, spec, report)
	// Whatever became of the snapshot, the guest goes on.
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), freezeLimit)
	defer cancel()
	thawed, failed := a.config.Guests.ThawGuest(within, spec.DomainID)
	switch {
	case err != nil:
		return err
	case failed == nil && thawed >= frozen: // a guest may have none
		return nil
	case lenient:
		report.Quiesced, report.Reason = false, "not quiesced: the guest thawed before the snapshot was taken"
		return nil
	}
	return api.Errorf(api.CodeUnavailable, "the guest thawed before the snapshot was taken").Do("try again when the node has less to do")
}

// dropState removes what is left of a snapshot that was not taken, unless it
// will be tried again.
func (a *Agent) dropState(ctx context.Context, o *operation, row *api.Snapshot, spec plugins.SnapshotSpec, why error) error {
	if ctx.Err() == nil && mayPass(why) {
		return why
	}
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), actTimeout)
	defer cancel()
	if err := a.config.Snapshots.DeleteSnapshot(within, spec); err != nil {
		a.log.Warn("rest of a snapshot not removed", "snapshot", row.Name, "error", err)
		return why // its row stays, to be deleted
	}
	if err := a.proposeSnapshot(within, fsm.ForgetSnapshot.Entry(a.snapshotReport(o, row))); err != nil {
		a.log.Debug("snapshot not forgotten", "snapshot", row.Name, "error", err)
	}
	return why
}

// deleteSnapshot carries out api.TaskSnapshotDelete.
func (a *Agent) deleteSnapshot(ctx context.Context, o *operation) error {
	var args api.SnapshotDeleteArgs
	if err := o.args(&args); err != nil {
		return err
	}
	row := o.snapshotRow(args.Name)
	if row == nil || row.Task != o.task.Name {
		return nil // it was forgotten, and the answer lost
	}
	spec, err := a.snapshotSpec(ctx, o, row, true)
	if err != nil {
		return err
	}
	o.step(ctx, 10, "deleting the snapshot")
	if !o.executing() {
		if err := a.settleRevert(ctx, o.sight); err != nil {
			return err
		}
	}
	within, cancel := context.WithTimeout(ctx, memoryTimeout)
	defer cancel()
	a.apart(func() { err = a.config.Snapshots.DeleteSnapshot(within, spec) })
	if err != nil {
		return err
	}
	return a.proposeSnapshot(ctx, fsm.ForgetSnapshot.Entry(a.snapshotReport(o, row)))
}

// revertSnapshot carries out api.TaskSnapshotRevert, step by step: the guest is
// stopped, the disks are put back, the definition is; then the guest goes on
// from its memory, or is started as any other. Each step is safe to repeat, and
// until the task has ended nothing else starts the guest.
func (a *Agent) revertSnapshot(ctx context.Context, o *operation) error {
	var args api.SnapshotRevertArgs
	if err := o.args(&args); err != nil {
		return err
	}
	row := o.snapshotRow(args.Name)
	if row == nil {
		return api.Errorf(api.CodeNotFound, "the snapshot %s was deleted meanwhile", args.Name)
	}
	spec, err := a.snapshotSpec(ctx, o, row, false)
	if err != nil {
		return err
	}
	switch {
	case row.RestoredTask != o.task.Name:
		return a.putBack(ctx, o, row, spec, args.Safety)
	case row.Memory:
		return a.continueGuest(ctx, o, spec)
	}
	return nil
}

// putBack takes the next step of a revert up to the VM's definition.
func (a *Agent) putBack(ctx context.Context, o *operation, row *api.Snapshot, spec plugins.SnapshotSpec, safety string) error {
	if o.executing() {
		o.step(ctx, 10, "stopping the guest")
		if err := a.stop(ctx, o.id, 0); err != nil {
			return err
		}
		return a.settle(ctx)
	}
	if safety != "" {
		switch before := o.snapshotRow(safety); {
		case before == nil:
			return api.Errorf(api.CodeConflict, "the snapshot %s, to be taken before, was deleted", safety)
		case before.State == api.SnapshotCreating:
			if err := a.keepState(ctx, o, before); err != nil {
				return fmt.Errorf("take the snapshot before: %w", err)
			}
			return errAgain
		}
	}
	o.step(ctx, 40, "putting the disks back")
	// Not broken off: disks at different times are no use to anybody.
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), actTimeout)
	defer cancel()
	if err := a.config.Snapshots.RevertSnapshot(within, spec); err != nil {
		return err
	}
	o.step(ctx, 70, "restoring the definition")
	if err := a.proposeSnapshot(within, fsm.RestoreSnapshot.Entry(a.snapshotReport(o, row))); err != nil {
		return err
	}
	return errAgain
}

// continueGuest starts the guest where it was.
func (a *Agent) continueGuest(ctx context.Context, o *operation, spec plugins.SnapshotSpec) error {
	if o.executing() && o.domain.State == api.InstanceRunning && o.domain.Gen == o.row.Gen && o.domain.SpecRevision == o.vm.Modified {
		return nil
	}
	if !o.vm.On() {
		return nil // stopped by force meanwhile
	}
	o.step(ctx, 80, "restoring the guest's memory")
	within, cancel := context.WithTimeout(ctx, memoryTimeout)
	defer cancel()
	err := a.tryStart(within, o.sight, func(_ context.Context, domain plugins.DomainSpec) (err error) {
		a.apart(func() { err = a.config.Snapshots.StartSnapshot(within, domain, spec) })
		return err
	})
	if waits, ok := err.(*waitingError); ok { //nolint:errorlint // tryStart wraps none
		return api.Errorf(api.CodeUnavailable, "%s", waits.reason)
	}
	if err != nil {
		return err
	}
	return a.fresh(ctx)
}

// settleRevert refuses a start while the VM is being reverted, and makes whole
// what a revert left that was given up.
func (a *Agent) settleRevert(ctx context.Context, s *sight) error {
	if t := fsm.Reverting(s.view, api.Key(s.vm.Tenant, s.vm.Name)); t != nil && !t.StartedAt.IsZero() {
		return &waitingError{"is being reverted to a snapshot, by task " + t.Name}
	}
	if a.config.Snapshots == nil {
		return nil
	}
	for t := range fsm.Tasks.By(s.view, "object", api.KindVM+"/"+api.Key(s.vm.Tenant, s.vm.Name)) {
		if t.Verb != api.TaskSnapshotRevert || t.State == api.TaskDone || t.StartedAt.IsZero() {
			continue
		}
		if err := a.abortRevert(ctx, &operation{a: a, view: s.view, task: t, sight: s}); err != nil {
			return err
		}
	}
	return nil
}

// abortRevert makes the disks whole that a task left which was given up.
func (a *Agent) abortRevert(ctx context.Context, o *operation) error {
	var args api.SnapshotRevertArgs
	if err := o.args(&args); err != nil {
		return nil //nolint:nilerr // it was never begun
	}
	row := o.snapshotRow(args.Name)
	if row == nil {
		return nil
	}
	spec, err := a.snapshotSpec(ctx, o, row, true)
	if err != nil {
		return err
	}
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), actTimeout)
	defer cancel()
	return a.config.Snapshots.AbortRevert(within, spec)
}

// pruneVolumes removes the snapshots of a deleted VM from volumes that outlive
// it. What does not succeed costs space and nothing else.
func (a *Agent) pruneVolumes(ctx context.Context, s *sight) {
	if a.config.Snapshots == nil {
		return
	}
	one, _ := a.records.find(s.id)
	for _, id := range one.Volumes {
		disk, err := a.snapshotDisk(ctx, s.view, s.id, api.SnapshotDisk{Name: id, VolumeID: id})
		if err != nil || disk.Source.Format != api.FormatQCOW2 {
			continue
		}
		within, cancel := context.WithTimeout(ctx, actTimeout)
		err = a.config.Snapshots.PruneSnapshots(within, []plugins.DiskSpec{disk}, keptIn(s.view, id))
		cancel()
		if err != nil {
			a.log.Warn("snapshots of a deleted VM are left in a volume", "volume", id, "error", err)
		}
	}
}

// keptIn is the IDs of the snapshots that hold the volume.
func keptIn(view *fsm.View, volumeID string) []string {
	var out []string
	for s := range fsm.Snapshots.All(view) {
		for _, d := range s.Disks {
			if d.VolumeID == volumeID {
				out = append(out, s.ID)
			}
		}
	}
	return out
}
