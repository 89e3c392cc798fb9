package agent

import (
	"context"
	"errors"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// mustGrow reports whether a volume is smaller on disk than its row asks for.
func (a *Agent) mustGrow(volume *api.Volume, r *api.Replica) bool {
	return r.Kind == api.KindVolume && r.State == api.ReplicaReady && !r.Delete && r.From == "" && r.SizeBytes > 0 && volume.SizeBytes > r.SizeBytes
}

// growing is mustGrow for a replica alone.
func (a *Agent) growing(view *fsm.View, r *api.Replica) bool {
	if r.Kind != api.KindVolume || r.State != api.ReplicaReady {
		return false
	}
	volume := volumeByID(view, r.OfID)
	return volume != nil && a.mustGrow(volume, r)
}

// growReplica makes a volume of this node larger that no VM with an owner uses.
// Any other is grown in the job of its VM, which knows its guest.
func (a *Agent) growReplica(ctx context.Context, view *fsm.View, r *api.Replica) error {
	if !a.growing(view, r) {
		return nil
	}
	volume := volumeByID(view, r.OfID)
	for vm := range fsm.VMs.By(view, "volume", api.Key(volume.Tenant, volume.Name)) {
		if i := fsm.Instances.Get(view, vm.ID); i != nil && i.Owner != "" {
			a.addInstance(vm.ID)
			return nil
		}
	}
	release, err := a.claimIdle(ctx, volume, "it is being made larger")
	if err != nil {
		return err
	}
	defer release()
	return a.growOffline(ctx, view, volume, r)
}

// growDisks makes the volumes of a VM as large as their rows ask for, and tells
// the guest if it executes. What goes wrong is shown with the replica.
func (a *Agent) growDisks(ctx context.Context, s *sight) error {
	var all []error
	for _, d := range s.vm.Disks {
		volume := fsm.Volumes.Get(s.view, api.Key(s.vm.Tenant, d.Volume))
		if volume == nil {
			continue
		}
		r := madeReplica(s.view, volume)
		if r == nil || !a.mustGrow(volume, r) {
			continue
		}
		if s.executing() {
			all = append(all, a.growOnline(ctx, s, volume, r))
			continue
		}
		release, holder := a.claims.take("vm "+s.row.VM+" grows it", volume.ID)
		if release == nil {
			all = append(all, api.Errorf(api.CodeUnavailable, "is in use: %s", holder).On(api.KindVolume, r.Of))
			continue
		}
		all = append(all, a.growOffline(ctx, s.view, volume, r))
		release()
	}
	return errors.Join(all...)
}

func madeReplica(view *fsm.View, volume *api.Volume) *api.Replica {
	for r := range fsm.Replicas.By(view, "of_id", volume.ID) {
		if r.State == api.ReplicaReady && !r.Delete && r.From == "" {
			return r
		}
	}
	return nil
}

func (a *Agent) growOffline(ctx context.Context, view *fsm.View, volume *api.Volume, r *api.Replica) error {
	_, pool, err := a.pool(view, volume.Pool)
	var stored plugins.Stored
	if err == nil {
		if store := a.config.Volumes[a.driver(view, volume.Pool)]; store != nil {
			stored, err = store.GrowVolume(ctx, pool, volume.ID, volume.SizeBytes)
		} else {
			err = api.Errorf(api.CodeUnavailable, "its driver grows no volumes").On(api.KindPool, volume.Pool)
		}
	}
	return a.reportSize(ctx, r, stored, err)
}

func (a *Agent) growOnline(ctx context.Context, s *sight, volume *api.Volume, r *api.Replica) error {
	source, err := a.volumeSource(ctx, s.view, volume)
	switch {
	case err != nil:
	case a.config.Disks == nil:
		err = api.Errorf(api.CodeUnavailable, "the hypervisor changes no disk of a running guest: it grows when the VM is off")
	default:
		within, cancel := context.WithTimeout(ctx, actTimeout)
		defer cancel()
		err = a.config.Disks.GrowDisk(within, s.id, source, volume.SizeBytes)
		if api.CodeOf(err) == api.CodeNotFound {
			// The guest started without the disk: the volume grows by itself.
			return a.growOffline(ctx, s.view, volume, r)
		}
	}
	var stored plugins.Stored
	if err == nil {
		stored, err = a.findStored(ctx, s.view, volume)
	}
	return a.reportSize(ctx, r, stored, err)
}

// reportSize proposes what size a volume has reached, or why it has not.
func (a *Agent) reportSize(ctx context.Context, r *api.Replica, stored plugins.Stored, failed error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	epoch := a.epoch()
	if epoch == 0 {
		return errUnregistered
	}
	report := fsm.ReplicaSize{Replica: r.Name, Node: a.config.Name, Epoch: epoch, SizeBytes: stored.SizeBytes, UsedBytes: stored.UsedBytes}
	if failed != nil {
		report.Reason = printable("it cannot be made larger: " + failed.Error())
		if r.Reason == report.Reason {
			return failed
		}
	}
	var err error
	a.apart(func() { _, err = a.propose(ctx, fsm.SizeReplica.Entry(report)) })
	return errors.Join(failed, err)
}
