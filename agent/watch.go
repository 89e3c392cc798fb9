package agent

import (
	"context"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// seen is what the tables said of each object when it was marked last.
type seen map[key]signature

// signature changes whenever the object has to be looked at again.
type signature struct{ a, b, c, d uint64 }

// watchTables marks the objects of this node whose rows changed, and all of
// them every resyncInterval.
func (a *Agent) watchTables(ctx context.Context) {
	before := seen{}
	resync := time.NewTicker(resyncInterval)
	defer resync.Stop()
	for {
		v := a.view()
		instances, vms := fsm.Instances.Watch(v), fsm.VMs.Watch(v)
		replicas, tasks := fsm.Replicas.Watch(v), fsm.Tasks.Watch(v)
		networks, pools := fsm.Networks.Watch(v), fsm.Pools.Watch(v)
		images := fsm.Images.Watch(v)
		now := a.duties(v)
		for k, s := range now {
			if old, ok := before[k]; !ok || old != s {
				a.queue.add(k)
			}
		}
		for k := range before {
			if _, ok := now[k]; !ok {
				a.queue.add(k)
			}
		}
		before = now
		select {
		case <-ctx.Done():
			return
		case <-instances:
		case <-vms:
		case <-replicas:
		case <-tasks:
		case <-networks:
		case <-pools:
			a.domains.reprobe()
		case <-images:
		case <-resync.C:
			a.domains.want()
			a.markAll()
		}
		if wait(ctx, watchInterval) != nil {
			return
		}
	}
}

// duties is everything that the tables give to this node.
func (a *Agent) duties(v *fsm.View) seen {
	out := seen{}
	node := a.cfg.Name
	for i := range fsm.Instances.By(v, "owner", node) {
		s := signature{a: i.Gen, b: 1}
		if vm := fsm.VMs.Get(v, i.VM); vm != nil && vm.ID == i.Name {
			s.c = vm.Modified
		}
		out[key{api.KindInstance, i.Name}] = s
	}
	for r := range fsm.Replicas.By(v, "node", node) {
		if r.State == api.ReplicaReady {
			continue
		}
		s := signature{a: r.Created, b: 1}
		if r.Delete {
			s.b = 2
		}
		if image := r.Of; r.Kind == api.KindVolume && image != "" {
			s.c = a.copies(v, r)
		}
		out[key{api.KindReplica, r.Name}] = s
	}
	for t := range fsm.Tasks.By(v, "node", node) {
		if t.State != api.TaskRunning || t.Epoch != a.epoch.Load() {
			continue
		}
		k := key{api.KindTask, t.Name}
		if t.Kind == api.KindVM {
			if vm := fsm.VMs.Get(v, t.Object); vm != nil {
				if i := fsm.Instances.Get(v, vm.ID); i != nil && i.Owner == node {
					k = key{api.KindInstance, vm.ID}
					s := out[k]
					s.d = t.Modified
					out[k] = s
					continue
				}
			}
		}
		out[k] = signature{a: t.Modified}
	}
	s := signature{}
	for n := range fsm.Networks.All(v) {
		s.a = max(s.a, n.Modified)
		s.b++
	}
	out[key{api.KindNetwork, ""}] = s
	return out
}

// copies counts the copies of the image that a volume to be made is a clone
// of, so that a new copy lets it be tried at once.
func (a *Agent) copies(v *fsm.View, r *api.Replica) (n uint64) {
	volume := fsm.Volumes.Get(v, r.Of)
	if volume == nil || volume.Image == "" {
		return 0
	}
	image := fsm.Images.Get(v, api.Key(volume.Tenant, volume.Image))
	if image == nil {
		return 0
	}
	for c := range fsm.Replicas.By(v, "of_id", image.ID) {
		if c.State == api.ReplicaReady {
			n++
		}
	}
	return n
}

// markAll marks every object of this node, and every guest that it has.
func (a *Agent) markAll() {
	if a.cfg.Witness {
		return
	}
	for k := range a.duties(a.view()) {
		a.queue.add(k)
	}
	for _, id := range a.domains.ids() {
		a.queue.add(key{api.KindInstance, id})
	}
}
