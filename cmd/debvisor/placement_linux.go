package main

import (
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

// pictureOf is what placement looks at.
func pictureOf(view *fsm.View) place.Input {
	in := place.Input{
		Config:  fsm.Settings(view),
		Pools:   map[string]*api.Pool{},
		Volumes: map[string]*api.Volume{},
		Images:  map[string]*api.Image{},
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
	return in
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
