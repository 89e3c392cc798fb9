package agent

import (
	"context"
	"fmt"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// reconcileReplica makes or removes one copy of a volume or image.
func (a *Agent) reconcileReplica(ctx context.Context, name string) error {
	view := a.view()
	r := fsm.Replicas.Get(view, name)
	switch {
	case r == nil || r.Node != a.config.Name:
		return nil
	case r.Delete:
		return a.deleteReplica(ctx, view, r)
	case r.State == api.ReplicaReady:
		return a.growReplica(ctx, view, r)
	case r.State == api.ReplicaLost:
		return nil
	}
	if again, err := a.retryClone(ctx, view, r); again || err != nil {
		return err
	}
	var stored plugins.Stored
	var err error
	if r.Kind == api.KindImage {
		stored, err = a.makeImage(ctx, view, r)
	} else {
		stored, err = a.makeVolume(ctx, view, r)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if now := fsm.Replicas.Get(a.view(), name); now == nil || now.Delete {
		return errAgain // it was to be removed meanwhile
	}
	report := fsm.ReplicaReport{Kind: r.Kind, OfID: r.OfID, Pool: r.Pool, State: api.ReplicaReady,
		SizeBytes: stored.SizeBytes, UsedBytes: stored.UsedBytes, FileBytes: stored.FileBytes}
	if err != nil {
		report.State, report.Reason = api.ReplicaFailed, printable(err.Error())
	}
	if reported := a.reportReplica(ctx, r, report); reported != nil {
		return reported
	}
	return err
}

// reportReplica proposes what is stored, if the row says otherwise.
func (a *Agent) reportReplica(ctx context.Context, r *api.Replica, report fsm.ReplicaReport) error {
	if now := fsm.Replicas.Get(a.view(), r.Name); now != nil {
		r = now
	}
	if r.State == report.State && r.Reason == report.Reason {
		return nil
	}
	report.Node, report.Epoch = a.config.Name, a.epoch()
	if report.Epoch == 0 {
		return errUnregistered
	}
	var err error
	a.apart(func() { _, err = a.propose(ctx, fsm.ReportReplica.Entry(report)) })
	return err
}

func (a *Agent) makeImage(ctx context.Context, view *fsm.View, r *api.Replica) (plugins.Stored, error) {
	for image := range fsm.Images.By(view, "id_of", r.OfID) {
		return a.ensureImage(ctx, image, r.Pool)
	}
	return plugins.Stored{}, api.Errorf(api.CodeNotFound, "does not exist").On(api.KindImage, r.Of)
}

// makeVolume makes the volume, after its image.
func (a *Agent) makeVolume(ctx context.Context, view *fsm.View, r *api.Replica) (plugins.Stored, error) {
	var volume *api.Volume
	for v := range fsm.Volumes.By(view, "id_of", r.OfID) {
		volume = v
	}
	if volume == nil {
		return plugins.Stored{}, api.Errorf(api.CodeNotFound, "does not exist").On(api.KindVolume, r.Of)
	}
	storage, pool, err := a.pool(view, volume.Pool)
	if err != nil {
		return plugins.Stored{}, err
	}
	spec := plugins.VolumeSpec{ID: volume.ID, SizeBytes: volume.SizeBytes, Format: orElse(volume.Format, api.FormatQCOW2)}
	if r.From != "" { // a migration fills it, from the first byte to the last
		spec.SizeBytes = r.SizeBytes
	}
	if volume.Source != "" && r.From == "" {
		return a.cloneVolume(ctx, view, r, volume, pool, spec)
	}
	if volume.Image != "" && r.From == "" {
		key := api.Key(volume.Tenant, volume.Image)
		image := fsm.Images.Get(view, key)
		if image == nil {
			return plugins.Stored{}, api.Errorf(api.CodeNotFound, "does not exist").On(api.KindImage, key)
		}
		if _, err := a.ensureImage(ctx, image, volume.Pool); err != nil {
			return plugins.Stored{}, err
		}
		spec.Image = image.ID
	}
	if spec.Image != "" && spec.Format == api.FormatRaw { // a copy
		release, err := a.takeCopy(ctx, r, volume)
		if err != nil {
			return plugins.Stored{}, err
		}
		defer release()
	}
	stored, err := storage.CreateVolume(ctx, pool, spec)
	if err != nil {
		return stored, err
	}
	a.stored.put(volume.ID, stored.Source)
	return stored, nil
}

// deleteReplica removes a copy once no guest of this machine can write to it.
func (a *Agent) deleteReplica(ctx context.Context, view *fsm.View, r *api.Replica) error {
	if !a.isSynced() {
		return nil // resync comes by when that has changed
	}
	var err error
	if r.Kind == api.KindImage {
		err = a.deleteImage(ctx, view, r)
	} else {
		if users := a.records.users(r.OfID); len(users) > 0 {
			a.log.Debug("volume is kept until its guest is gone", "volume", r.Of, "guests", users)
			return nil // dropRecord comes by
		}
		if err := a.unrecorded(view); err != nil {
			return err
		}
		err = a.deleteVolume(ctx, view, r)
	}
	if err != nil {
		return fmt.Errorf("remove %s %s: %w", r.Kind, r.Of, err)
	}
	epoch := a.epoch()
	if epoch == 0 {
		return errUnregistered
	}
	a.apart(func() {
		_, err = a.propose(ctx, fsm.ForgetReplica.Entry(fsm.ReplicaEnd{OfID: r.OfID, Node: a.config.Name, Epoch: epoch}))
	})
	if err == nil && r.Kind == api.KindVolume {
		a.addDeletedImages()
	}
	return err
}

// unrecorded is an error while a guest executes whose volumes are not known:
// this machine's record of it was lost, and its VM has changed since it
// started.
func (a *Agent) unrecorded(view *fsm.View) error {
	found, err := a.domains.all()
	if err != nil {
		return fmt.Errorf("nothing is deleted while the hypervisor cannot be reached: %w", err)
	}
	for _, d := range found {
		if _, ok := a.records.find(d.ID); ok || !executing(d) {
			continue
		}
		if vm := vmByID(view, d.ID); vm == nil || vm.Modified != d.SpecRevision {
			return api.Errorf(api.CodeConflict, "nothing is deleted until guest %s, whose record is lost, has stopped", d.Name)
		}
	}
	return nil
}

func (a *Agent) deleteVolume(ctx context.Context, view *fsm.View, r *api.Replica) error {
	storage, pool, err := a.pool(view, r.Pool)
	if err != nil {
		return err
	}
	a.stored.drop(r.OfID)
	return storage.DeleteVolume(ctx, pool, r.OfID)
}

// deleteImage removes the copies in every pool: one row stands for all.
func (a *Agent) deleteImage(ctx context.Context, view *fsm.View, r *api.Replica) error {
	for p := range fsm.Pools.All(view) {
		if !p.On(a.config.Name) {
			continue
		}
		storage, pool, err := a.pool(view, p.Name)
		if err != nil {
			return err
		}
		if err := storage.DeleteImage(ctx, pool, r.OfID); err != nil {
			return err
		}
	}
	return nil
}

// addDeletedImages looks again at images that may have waited for the removal
// of their last clone.
func (a *Agent) addDeletedImages() {
	for r := range fsm.Replicas.By(a.view(), "node", a.config.Name) {
		if r.Kind == api.KindImage && r.Delete {
			a.queue.add(keyReplica + r.Name)
		}
	}
}
