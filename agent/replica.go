package agent

import (
	"context"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// waitForGuest is the pause while a guest may still use what is to be deleted.
const waitForGuest = 200 * time.Millisecond

// reconcileReplica makes or removes what one replica row asks of this node.
func (a *Agent) reconcileReplica(ctx context.Context, name string) (again time.Duration, err error) {
	v := a.view()
	r := fsm.Replicas.Get(v, name)
	if r == nil || r.Node != a.cfg.Name {
		return 0, nil
	}
	if r.Delete {
		return a.deleteReplica(ctx, v, r)
	}
	if r.State == api.ReplicaReady || r.State == api.ReplicaLost || r.Kind != api.KindVolume {
		return 0, nil
	}
	volume := fsm.Volumes.Get(v, r.Of)
	if volume == nil || volume.ID != r.OfID {
		return 0, nil // deleted meanwhile: the row says so next
	}
	stored, err := a.makeVolume(ctx, v, volume)
	report := fsm.ReplicaReport{Kind: r.Kind, OfID: r.OfID, Node: a.cfg.Name, Epoch: a.epoch.Load(), Pool: r.Pool, State: api.ReplicaReady,
		SizeBytes: stored.SizeBytes, UsedBytes: stored.UsedBytes}
	if err != nil {
		a.log.Warn("a volume could not be made", "volume", r.Of, "error", err)
		report.State, report.Reason = api.ReplicaFailed, reason(err)
	}
	if r.State != report.State || r.Reason != report.Reason {
		if _, e := a.propose(ctx, fsm.ReportReplica.Entry(report)); e != nil && !final(e) {
			return 0, e
		}
	}
	if err == nil {
		for vm := range fsm.VMs.By(a.view(), "volume", r.Of) {
			a.queue.add(key{api.KindInstance, vm.ID})
		}
	}
	return 0, err
}

func (a *Agent) makeVolume(ctx context.Context, v *fsm.View, volume *api.Volume) (plugins.Stored, error) {
	pool, storage, err := a.pool(v, volume.Pool)
	if err != nil {
		return plugins.Stored{}, err
	}
	spec := plugins.VolumeSpec{ID: volume.ID, SizeBytes: volume.SizeBytes, Format: volume.Format}
	if spec.Format == "" {
		spec.Format = api.FormatQCOW2
	}
	if volume.Image != "" {
		image := fsm.Images.Get(v, api.Key(volume.Tenant, volume.Image))
		if image == nil {
			return plugins.Stored{}, api.Errorf(api.CodeNotFound, "does not exist").On(api.KindImage, volume.Image)
		}
		if _, err := a.ensureImage(ctx, v, volume.Pool, image); err != nil {
			return plugins.Stored{}, err
		}
		spec.Image = image.ID
	}
	stored, err := storage.CreateVolume(ctx, pool, spec)
	if err == nil {
		a.sources.Store(volume.Pool+"/"+volume.ID, stored.Source)
	}
	return stored, err
}

// deleteReplica removes what is no longer wanted, once no guest can use it.
func (a *Agent) deleteReplica(ctx context.Context, v *fsm.View, r *api.Replica) (again time.Duration, err error) {
	if r.Kind == api.KindVolume && a.guestsLeaving(v) {
		return waitForGuest, nil
	}
	pool, storage, err := a.pool(v, r.Pool)
	if err != nil && api.CodeOf(err) != api.CodeNotFound {
		return 0, err
	}
	if err == nil {
		if r.Kind == api.KindVolume {
			err = storage.DeleteVolume(ctx, pool, r.OfID)
			a.sources.Delete(r.Pool + "/" + r.OfID)
		} else {
			err = storage.DeleteImage(ctx, pool, r.OfID)
		}
		if api.CodeOf(err) == api.CodeConflict {
			return waitForGuest, nil // its last clones are being removed
		}
		if err != nil {
			return 0, err
		}
	}
	_, err = a.propose(ctx, fsm.ForgetReplica.Entry(fsm.ReplicaEnd{OfID: r.OfID, Node: a.cfg.Name, Epoch: a.epoch.Load()}))
	if err != nil && final(err) {
		return 0, nil
	}
	return 0, err
}

// guestsLeaving reports whether a guest that the tables no longer want is
// still here, or whether that is not known.
func (a *Agent) guestsLeaving(v *fsm.View) bool {
	if a.domains.state() != nil {
		return true
	}
	for i := range fsm.Instances.By(v, "owner", a.cfg.Name) {
		if vm := fsm.VMs.Get(v, i.VM); vm == nil || vm.ID != i.Name {
			return true
		}
	}
	for _, id := range a.domains.ids() {
		if i := fsm.Instances.Get(v, id); i == nil || i.Owner != a.cfg.Name {
			return true
		}
	}
	return false
}
