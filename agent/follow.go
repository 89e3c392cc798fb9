package agent

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// The kinds of key in the queue.
const (
	keyInstance = "instance/" // + ID of the VM
	keyReplica  = "replica/"  // + name of the replica
	keyTask     = "task/"     // + name of the task
	keyNetworks = "networks"
	keyPools    = "pools"
)

const (
	recordsPage  = 1024
	poolsEvery   = 10 * time.Minute // between looks for what no row mentions
	proposeAgain = 3 * time.Second  // most between two tries of the same proposal: the brake makes them cheap
)

// follow turns what the log changed into keys. It looks at the changes, not at
// the tables, so that its cost does not grow with the cluster.
func (a *Agent) follow(ctx context.Context) error {
	state := a.config.Cluster.State()
	index := state.Index()
	a.addAll()
	for {
		advanced := state.Advanced()
		for {
			records, ok := state.Recent(index, recordsPage)
			if !ok { // restored from a snapshot, or far behind
				index = state.Index()
				a.addAll()
				break
			}
			if len(records) == 0 {
				break
			}
			for _, r := range records {
				a.addChanges(r.Changes)
				index = r.Index
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-advanced:
		}
		a.queue.committed()
	}
}

func (a *Agent) addChanges(changes []api.Change) {
	var view *fsm.View
	for i := range changes {
		c := &changes[i]
		switch c.Kind {
		case api.KindInstance:
			a.addInstance(c.Key)
		case api.KindVM:
			if view == nil {
				view = a.view()
			}
			for row := range fsm.Instances.By(view, "vm", c.Key) {
				a.addInstance(row.Name)
			}
			vm := fsm.VMs.Get(view, c.Key)
			if vm != nil { // renamed since its instance was written
				a.addInstance(vm.ID)
			}
			if vm == nil || filtered(vm) {
				a.queue.add(keyNetworks) // rules and address servers follow it
			}
		case api.KindReplica:
			a.addReplica(c.Key)
		case api.KindVolume:
			a.addVolume(c.Key)
		case api.KindTask:
			a.queue.add(keyTask + c.Key)
		case api.KindNode:
			if c.Key == a.config.Name {
				a.kickLease()
			}
			a.addArriving(a.view())
		case api.KindNetwork, api.KindFirewall:
			a.queue.add(keyNetworks)
		case api.KindPool:
			a.queue.add(keyPools)
			a.remeasure()
		}
	}
}

// addInstance asks for a look at an instance that is or was this node's.
func (a *Agent) addInstance(id string) {
	row := fsm.Instances.Get(a.view(), id)
	if _, recorded := a.records.find(id); recorded || row != nil && row.Owner == a.config.Name || movesTo(row, a.config.Name) {
		a.queue.touch(keyInstance + id)
		return
	}
	if _, here, err := a.domains.find(id); here || err != nil || a.guests.known(id) {
		a.queue.touch(keyInstance + id)
	}
}

// addArriving asks for a look at the guests that migrate to this node.
func (a *Agent) addArriving(view *fsm.View) {
	for i := range fsm.Instances.By(view, "arriving", a.config.Name) {
		a.queue.add(keyInstance + i.Name)
	}
}

// addReplica looks at a replica of this node, and at the VM that waits for a
// replica of another one in a pool that both see.
func (a *Agent) addReplica(name string) {
	ofID, node, _ := strings.Cut(name, ".")
	if node == a.config.Name {
		a.queue.add(keyReplica + name)
	}
	if r := fsm.Replicas.Get(a.view(), name); r != nil && r.Kind == api.KindImage && r.State == api.ReplicaReady && node != a.config.Name {
		a.addWaiting() // for an image of another node
	}
	for _, id := range a.guests.waiting(ofID) {
		a.queue.add(keyInstance + id)
	}
}

// addWaiting looks again at what this node has to make and has not.
func (a *Agent) addWaiting() {
	for r := range fsm.Replicas.By(a.view(), "node", a.config.Name) {
		if !r.Delete && (r.State == api.ReplicaPending || r.State == api.ReplicaFailed) {
			a.queue.add(keyReplica + r.Name)
		}
	}
}

// addVolume looks at the copies of a volume, which may have to grow, and at the
// VM here that uses it.
func (a *Agent) addVolume(key string) {
	view := a.view()
	volume := fsm.Volumes.Get(view, key)
	if volume == nil {
		return
	}
	for r := range fsm.Replicas.By(view, "of_id", volume.ID) {
		if r.State != api.ReplicaReady || a.mustGrow(volume, r) {
			a.addReplica(r.Name)
			a.addUser(view, volume)
		}
	}
}

// addUser looks at the VM of this node that uses the volume.
func (a *Agent) addUser(view *fsm.View, volume *api.Volume) {
	for vm := range fsm.VMs.By(view, "volume", api.Key(volume.Tenant, volume.Name)) {
		a.addInstance(vm.ID)
	}
}

// addAll asks for a look at everything that is this node's.
func (a *Agent) addAll() {
	view := a.view()
	a.addOwned(view)
	a.addArriving(view)
	for _, id := range a.records.ids() { // of guests that may be gone, and nobody's any more
		a.queue.add(keyInstance + id)
	}
	if found, err := a.domains.all(); err == nil {
		for _, d := range found {
			a.queue.add(keyInstance + d.ID)
		}
	}
	for r := range fsm.Replicas.By(view, "node", a.config.Name) {
		if r.Delete || r.State != api.ReplicaReady && r.State != api.ReplicaLost || a.growing(view, r) {
			a.queue.add(keyReplica + r.Name)
		}
	}
	for t := range fsm.Tasks.By(view, "node", a.config.Name) {
		if t.State == api.TaskRunning {
			a.queue.add(keyTask + t.Name)
		}
	}
	a.queue.add(keyNetworks)
}

// resync looks at everything from time to time, in case a hint was lost.
func (a *Agent) resync(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-a.synced:
	}
	a.queue.add(keyPools)
	ticker := time.NewTicker(a.config.Timings.Resync)
	defer ticker.Stop()
	pools := a.config.Clock()
	for {
		a.addAll()
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if now := a.config.Clock(); now.Sub(pools) >= poolsEvery {
			pools = now
			a.queue.add(keyPools)
		}
	}
}

// job is the work on one key.
type job struct {
	key     string
	touched <-chan struct{} // closes when what is wanted may have changed
}

// work hands out keys until ctx ends, and waits for the jobs.
func (a *Agent) work(ctx context.Context) error {
	defer a.queue.close()
	select { // what the replica says may be old: give the leader a chance first
	case <-ctx.Done():
		return nil
	case <-a.synced:
	case <-time.After(a.config.Timings.SyncWait):
		a.log.Warn("no leader was found: working with what this node knows")
	}
	var jobs sync.WaitGroup
	defer jobs.Wait()
	for {
		key, touched, ok := a.queue.next(ctx)
		if !ok {
			return nil
		}
		a.slots <- struct{}{}
		jobs.Go(func() {
			defer func() { <-a.slots }()
			v := a.handle(ctx, job{key: key, touched: touched})
			if news := a.queue.done(key, v); news && ctx.Err() == nil {
				a.log.Warn("will be tried again", "key", key, "error", v.err)
			}
		})
	}
}

// errAgain ends a job that wants to look again at once.
var errAgain = errors.New("look again")

// handle does the work on one key.
func (a *Agent) handle(ctx context.Context, j job) verdict {
	if ctx.Err() != nil {
		return verdict{}
	}
	var v verdict
	switch kind, name, _ := strings.Cut(j.key, "/"); kind + "/" {
	case keyInstance:
		v = a.reconcileInstance(ctx, j, name)
	case keyReplica:
		v.err = a.reconcileReplica(ctx, name)
	case keyTask:
		v.err = a.reconcileTask(ctx, name)
	case keyNetworks + "/":
		v.err = a.reconcileNetworks(ctx)
	case keyPools + "/":
		v.err = a.reconcilePools(ctx)
	}
	if _, ok := errors.AsType[*proposeError](v.err); ok || errors.Is(v.err, errUnregistered) {
		v.max, v.deaf = proposeAgain, undecided(v.err)
	}
	if errors.Is(v.err, errAgain) {
		return verdict{after: time.Millisecond}
	}
	return v
}
