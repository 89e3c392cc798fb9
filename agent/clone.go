package agent

import (
	"context"
	"fmt"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// pendingClone is a clone of the volume that is to be made or is being made: no
// guest may write to the volume until that has ended one way or the other.
func pendingClone(view *fsm.View, volume *api.Volume) *api.Volume {
	for clone := range fsm.Volumes.By(view, "source", api.Key(volume.Tenant, volume.Name)) {
		for r := range fsm.Replicas.By(view, "of_id", clone.ID) {
			if r.State == api.ReplicaPending && !r.Delete {
				return clone
			}
		}
	}
	return nil
}

// retryClone makes a clone that failed pending again before it is tried again:
// while it was failed the source's guest could start.
func (a *Agent) retryClone(ctx context.Context, view *fsm.View, r *api.Replica) (again bool, err error) {
	if r.Kind != api.KindVolume || r.State != api.ReplicaFailed {
		return false, nil
	}
	volume := volumeByID(view, r.OfID)
	if volume == nil || volume.Source == "" {
		return false, nil
	}
	if source := fsm.Volumes.Get(view, api.Key(volume.Tenant, volume.Source)); source == nil || fsm.VolumeUser(view, source) != nil {
		return false, nil // it would fail again
	}
	report := fsm.ReplicaReport{Kind: r.Kind, OfID: r.OfID, Pool: r.Pool, State: api.ReplicaPending, Reason: "is tried again"}
	if err := a.reportReplica(ctx, r, report); err != nil {
		return false, err
	}
	return true, errAgain
}

func volumeByID(view *fsm.View, id string) *api.Volume {
	for v := range fsm.Volumes.By(view, "id_of", id) {
		return v
	}
	return nil
}

// cloneVolume makes a volume from another one that no guest writes to.
func (a *Agent) cloneVolume(ctx context.Context, view *fsm.View, r *api.Replica, volume *api.Volume, pool plugins.PoolSpec, spec plugins.VolumeSpec) (plugins.Stored, error) {
	var none plugins.Stored
	key := api.Key(volume.Tenant, volume.Source)
	source := fsm.Volumes.Get(view, key)
	if source == nil {
		return none, api.Errorf(api.CodeNotFound, "its source does not exist any more").On(api.KindVolume, key)
	}
	into := a.config.Volumes[a.driver(view, volume.Pool)]
	if into == nil {
		return none, api.Errorf(api.CodeUnavailable, "its driver clones no volumes").On(api.KindPool, volume.Pool)
	}
	if volume.Clone != api.CloneLinked {
		release, err := a.takeCopy(ctx, r, volume)
		if err != nil {
			return none, err
		}
		defer release()
	}
	var release func()
	var err error
	a.apart(func() { release, err = a.claims.share(ctx, "it is being cloned as "+volume.Name, source.ID) })
	if err != nil {
		return none, err
	}
	defer release()
	if err := a.checkIdle(ctx, source); err != nil {
		return none, api.AsError(err).OnMissing(api.KindVolume, key)
	}
	var stored plugins.Stored
	a.apart(func() {
		if volume.Clone == api.CloneLinked {
			stored, err = into.CloneVolume(ctx, pool, source.ID, spec)
			return
		}
		var from plugins.Stored
		if from, err = a.findStored(ctx, view, source); err == nil {
			stored, err = into.CopyVolume(ctx, pool, spec, from, a.copyProgress(ctx, r))
		}
	})
	if err != nil {
		return none, err
	}
	a.stored.drop(source.ID) // its file may be another one now
	a.stored.put(volume.ID, stored.Source)
	return stored, nil
}

func (a *Agent) driver(view *fsm.View, pool string) string {
	if p := fsm.Pools.Get(view, pool); p != nil {
		return p.Driver
	}
	return ""
}

// takeCopy waits for this copy's turn beside the workers. The replica says so.
func (a *Agent) takeCopy(ctx context.Context, r *api.Replica, volume *api.Volume) (release func(), err error) {
	a.apart(func() {
		release, err = a.copies.take(ctx, volume.Pool, volume.Tenant, a.copyLimits, func(why string) { a.tellReplica(ctx, r, why) })
	})
	return release, err
}

// copyProgress tells how far a copy is, ten times at most.
func (a *Agent) copyProgress(ctx context.Context, r *api.Replica) func(int) {
	last := -1
	return func(percent int) {
		if percent/10 > last {
			last = percent / 10
			a.tellReplica(ctx, r, fmt.Sprintf("is being copied: %d %%", percent))
		}
	}
}

// tellReplica says what a copy that is being made waits for, or how far it is.
// That nobody hears it stops nothing.
func (a *Agent) tellReplica(ctx context.Context, r *api.Replica, text string) {
	epoch := a.epoch()
	if now := fsm.Replicas.Get(a.view(), r.Name); now == nil || now.State != api.ReplicaPending || epoch == 0 {
		return
	}
	_, err := a.propose(ctx, fsm.ReportReplica.Entry(fsm.ReplicaReport{Kind: r.Kind, OfID: r.OfID, Node: a.config.Name, Epoch: epoch, Pool: r.Pool,
		State: api.ReplicaPending, Reason: text}))
	if err != nil && ctx.Err() == nil {
		a.log.Debug("progress not recorded", "replica", r.Name, "error", err)
	}
}

// claimIdle makes sure that no guest writes to the volume until release.
func (a *Agent) claimIdle(ctx context.Context, volume *api.Volume, why string) (release func(), err error) {
	key := api.Key(volume.Tenant, volume.Name)
	release, holder := a.claims.take(why, volume.ID)
	if release == nil {
		return nil, api.Errorf(api.CodeUnavailable, "is in use: %s", holder).On(api.KindVolume, key)
	}
	if err := a.checkIdle(ctx, volume); err != nil {
		release()
		return nil, api.AsError(err).OnMissing(api.KindVolume, key)
	}
	return release, nil
}

// checkIdle refuses a volume that a guest writes to, or may begin to write to
// on another node.
func (a *Agent) checkIdle(ctx context.Context, volume *api.Volume) error {
	view := a.view()
	if vm := fsm.VolumeUser(view, volume); vm != nil {
		return api.Errorf(api.CodeConflict, "is in use by vm %s, which is not off", vm.Name).Do("stop the VM: debvisor vm stop %s", vm.Name)
	}
	for vm := range fsm.VMs.By(view, "volume", api.Key(volume.Tenant, volume.Name)) {
		if i := fsm.Instances.Get(view, vm.ID); i != nil && i.Owner != "" && i.Owner != a.config.Name {
			return api.Errorf(api.CodeUnavailable, "vm %s is on node %s", vm.Name, i.Owner)
		}
	}
	users := a.records.users(volume.ID)
	if len(users) == 0 {
		return nil
	}
	if err := a.fresh(ctx); err != nil {
		return err
	}
	for _, id := range users {
		if d, here, err := a.domains.find(id); err != nil || here && executing(d) {
			return api.Errorf(api.CodeUnavailable, "a guest of this node may write to it")
		}
	}
	return nil
}

// findStored looks for the volume in its pool.
func (a *Agent) findStored(ctx context.Context, view *fsm.View, volume *api.Volume) (plugins.Stored, error) {
	return a.findIn(ctx, view, volume, volume.Pool)
}

func (a *Agent) findIn(ctx context.Context, view *fsm.View, volume *api.Volume, pool string) (plugins.Stored, error) {
	storage, spec, err := a.pool(view, pool)
	if err != nil {
		return plugins.Stored{}, err
	}
	listed, err := storage.List(ctx, spec)
	if err != nil {
		return plugins.Stored{}, fmt.Errorf("list pool %s: %w", pool, err)
	}
	for _, found := range listed {
		if found.Kind == api.KindVolume && found.ID == volume.ID {
			return found, nil
		}
	}
	return plugins.Stored{}, api.Errorf(api.CodeNotFound, "is missing in pool %s of node %s", pool, a.config.Name).
		On(api.KindVolume, api.Key(volume.Tenant, volume.Name))
}
