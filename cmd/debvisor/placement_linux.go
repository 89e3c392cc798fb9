package main

import (
	"sync"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster/control"
	"github.com/debvisor/debvisor/cluster/place"
	"github.com/debvisor/debvisor/fsm"
)

// placer lets the leader's loop and plans ask package place, which knows no
// tables.
type placer struct{}

// Begin implements control.Placer.
func (placer) Begin(view *fsm.View) control.Round { return &placementRound{place.New(pictureOf(view))} }

type placementRound struct{ cluster *place.Cluster }

// Decide implements control.Round.
func (r *placementRound) Decide(vm *api.VM, now time.Time) api.Decision {
	d := r.cluster.Decide(vm, now)
	if d.Node != "" {
		r.cluster.Place(vm, d.Node)
	}
	return d
}

// Move implements control.Round.
func (r *placementRound) Move(vm *api.VM, from string, args api.MigrateArgs, now time.Time) api.Decision {
	d := r.cluster.DecideMove(vm, place.Move{From: from, To: args.Node, CopyStorage: args.CopyStorage}, now)
	if d.Node != "" {
		r.cluster.Place(vm, d.Node)
	}
	return d
}

// pictureOf is what placement looks at.
func pictureOf(view *fsm.View) place.Input {
	in := place.Input{
		Config:   fsm.Settings(view),
		Pools:    map[string]*api.Pool{},
		Volumes:  map[string]*api.Volume{},
		Images:   map[string]*api.Image{},
		Networks: map[string]*api.Network{},
	}
	for n := range fsm.Nodes.All(view) {
		in.Nodes = append(in.Nodes, n)
	}
	for p := range fsm.Pools.All(view) {
		in.Pools[p.Name] = p
	}
	for v := range fsm.Volumes.All(view) {
		in.Volumes[api.Key(v.Tenant, v.Name)] = v
	}
	for i := range fsm.Images.All(view) {
		in.Images[api.Key(i.Tenant, i.Name)] = i
	}
	for n := range fsm.Networks.All(view) {
		in.Networks[api.Key(n.Tenant, n.Name)] = n
	}
	for r := range fsm.Replicas.All(view) {
		in.Replicas = append(in.Replicas, r)
	}
	for i := range fsm.Instances.All(view) {
		if i.Owner == "" {
			continue
		}
		for vm := range fsm.VMs.By(view, "id_of", i.Name) {
			in.VMs = append(in.VMs, place.Placed{VM: vm, Node: i.Owner})
		}
	}
	in.Arriving = arrivingIn(view)
	return in
}

// arrivingIn lists the VMs that migrate, from the moment on in which the leader
// said where to.
func arrivingIn(view *fsm.View) []place.Placed {
	var out []place.Placed
	for t := range fsm.Tasks.By(view, "state", api.TaskRunning) {
		if t.Verb != api.TaskMigrate || t.Decision == nil {
			continue
		}
		if vm := fsm.VMs.Get(view, t.Object); vm != nil {
			out = append(out, place.Placed{VM: vm, Node: t.Decision.Node})
		}
	}
	return out
}

// decidedMove tells where the running guest of a VM would migrate to.
func decidedMove(view *fsm.View, vm *api.VM, args api.MigrateArgs) api.Decision {
	from := ""
	if i := fsm.Instances.Get(view, vm.ID); i != nil {
		from = i.Owner
	}
	return placer{}.Begin(view).Move(vm, from, args, time.Now().UTC())
}

// proposedBalance proposes moves in the cluster as the view shows it.
func proposedBalance(view *fsm.View, now time.Time, movesMax int) api.Balance {
	return place.New(pictureOf(view)).Balance(now, movesMax)
}

// survival remembers what placement last said of losses, so that asking for the
// status often costs no more than asking once.
type survival struct {
	mu      sync.Mutex // guards below
	at      time.Time
	changed []<-chan struct{} // any closed: the answer is old
	answer  []api.Survival
}

// survivalPause is the least time between two computations.
const survivalPause = 2 * time.Second

// of tells what the loss of nodes would do in the state of the view.
func (s *survival) of(view *fsm.View) []api.Survival {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answer != nil && (time.Since(s.at) < survivalPause || !s.old()) {
		return s.answer
	}
	s.at = time.Now()
	s.changed = []<-chan struct{}{fsm.Nodes.Watch(view), fsm.VMs.Watch(view), fsm.Instances.Watch(view), fsm.Replicas.Watch(view),
		fsm.Volumes.Watch(view), fsm.Pools.Watch(view), fsm.Configs.Watch(view)}
	s.answer = place.New(pictureOf(view)).Survives()
	return s.answer
}

func (s *survival) old() bool {
	for _, ch := range s.changed {
		select {
		case <-ch:
			return true
		default:
		}
	}
	return false
}

// plannedPlacements tells where those of the VMs would run that have no place.
func plannedPlacements(view *fsm.View, vms []*api.VM) []api.PlannedPlacement {
	var out []api.PlannedPlacement
	var round control.Round
	for _, vm := range vms {
		if i := fsm.Instances.Get(view, vm.ID); !vm.On() || i != nil && i.Owner != "" {
			continue
		}
		if round == nil {
			round = placer{}.Begin(view)
		}
		out = append(out, api.PlannedPlacement{VM: api.Key(vm.Tenant, vm.Name), Decision: round.Decide(vm, time.Now().UTC())})
	}
	return out
}
