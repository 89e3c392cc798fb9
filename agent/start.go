package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// waitingError says what a guest waits for before it can start. A change of
// that thing brings a new look.
type waitingError struct{ reason string }

// Error implements error.
func (w *waitingError) Error() string { return w.reason }

// waitingAgain is when to look again although nothing has changed.
const waitingAgain = 15 * time.Second

// startGuest starts the guest and looks again. A failure is reported, and
// tried again after a delay that grows.
func (a *Agent) startGuest(ctx context.Context, s *sight) verdict {
	err := a.settleRevert(ctx, s)
	if err == nil {
		err = a.tryStart(ctx, s, a.config.Hypervisor.Start)
	}
	if err == nil {
		return verdict{err: a.settle(ctx)}
	}
	if ctx.Err() != nil || errors.Is(err, errAgain) {
		return verdict{err: err}
	}
	if waiting, ok := errors.AsType[*waitingError](err); ok {
		r := reportOf(s.row, api.InstanceStarting, printable(waiting.reason))
		return verdict{err: a.report(ctx, s.row, r), after: waitingAgain}
	}
	now := a.config.Clock()
	s.guest.delay(s.row, s.vm, now)
	if s.guest.failure != err.Error() {
		s.guest.failure = err.Error()
		a.log.Error("guest not started", "vm", s.row.VM, "id", s.id, "error", err)
	}
	a.releaseRestarts(ctx, s, err)
	if reported := a.report(ctx, s.row, reportOf(s.row, api.InstanceFailed, printable(err.Error()))); reported != nil {
		return verdict{err: reported}
	}
	return verdict{after: max(time.Second, s.guest.waitLeft(s.row, s.vm, now))}
}

// tryStart resolves everything that the guest needs, writes down what it may
// touch, makes sure that the rows still say so, and starts it.
func (a *Agent) tryStart(ctx context.Context, s *sight, start func(context.Context, plugins.DomainSpec) error) error {
	if err := a.mayStart(ctx, s); err != nil {
		return err
	}
	spec, volumes, err := a.resolve(ctx, s)
	if err != nil {
		return err
	}
	release, holder := a.claims.take("vm "+s.row.VM+" starts", volumes...)
	if release == nil {
		return &waitingError{"a volume is in use: " + holder}
	}
	defer release()
	one, _ := a.records.find(s.id)
	next := record{Gen: s.row.Gen, Volumes: union(one.Volumes, volumes), Move: one.Move}
	next.Ports = portsOf(s.view, s.vm)
	for _, p := range next.Ports {
		next.Bridges = append(next.Bridges, p.Bridge)
	}
	if t := fsm.Tasks.Get(s.view, one.Restart); t != nil && !t.Ended() {
		next.Restart, next.RestartFrom = one.Restart, one.RestartFrom
	}
	if err := a.records.put(s.id, next); err != nil {
		return err
	}
	if !a.still(s) || !a.volumesKept(volumes) {
		return errAgain // the record stays until the domain is removed
	}
	if err := a.protect(ctx); err != nil {
		return err
	}
	a.log.Info("starting guest", "vm", s.row.VM, "id", s.id, "gen", s.row.Gen)
	within, cancel := context.WithTimeout(ctx, actTimeout)
	defer cancel()
	if err := start(within, spec); err != nil {
		return fmt.Errorf("start guest: %w", err)
	}
	// Volumes of an earlier start are free once the new guest runs without them.
	if next.Volumes = volumes; len(one.Volumes) > 0 && !slices.Equal(one.Volumes, volumes) {
		if err := a.records.put(s.id, next); err != nil {
			return err
		}
		for _, v := range one.Volumes {
			a.queue.add(keyReplica + api.ReplicaName(v, a.config.Name))
		}
	}
	return nil
}

// mayStart refuses what could make a guest run twice.
func (a *Agent) mayStart(ctx context.Context, s *sight) error {
	if one, ok := a.records.find(s.id); ok && one.Gen > s.row.Gen {
		// Only a replica that is behind, or a restored cluster, knows less than
		// this machine has seen.
		var err error
		a.apart(func() {
			within, cancel := context.WithTimeout(ctx, proposeTimeout)
			defer cancel()
			err = a.barrier(within)
		})
		if err != nil {
			return &waitingError{fmt.Sprintf("gen %d ran here, this node's copy of the cluster's state says %d: waiting for the leader", one.Gen, s.row.Gen)}
		}
		if !a.still(s) {
			return errAgain
		}
	}
	if ha := s.vm.HA; ha != "" && ha != api.HANone && !a.leased() {
		return &waitingError{"waits until this node's lease is renewed"}
	}
	return nil
}

// volumesKept reports whether none of the volumes is to be deleted. One that
// moved away from a node still has a copy there that is to go.
func (a *Agent) volumesKept(ids []string) bool {
	view := a.view()
	for _, id := range ids {
		gone, kept := false, false
		for r := range fsm.Replicas.By(view, "of_id", id) {
			gone, kept = gone || r.Delete, kept || !r.Delete
		}
		if gone && !kept {
			return false
		}
	}
	return true
}

func union(a, b []string) []string {
	out := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// resolve turns the rows of a VM into what the hypervisor is told, and makes
// sure that everything named in it exists. It returns the IDs of the volumes.
func (a *Agent) resolve(ctx context.Context, s *sight) (plugins.DomainSpec, []string, error) {
	vm := s.vm
	spec := plugins.DomainSpec{
		ID: vm.ID, Name: vm.Tenant + "." + vm.Name, Gen: s.row.Gen, SpecRevision: vm.Modified,
		CPUs: vm.CPUs, CPUsMax: vm.CPUsMax, CPU: plugins.CPUSpec{Model: vm.GuestCPU(a.baseline(s.view))}, Topology: vm.CPUTopology,
		MemoryBytes: vm.MemoryBytes, MemoryMaxBytes: vm.MemoryMax, Machine: vm.Machine, TPM: vm.TPM, NoRNG: vm.RNG == api.Off,
		Firmware: orElse(vm.Firmware, "bios"), SeedID: vm.ID,
	}
	spec.Graphics, spec.Video = vm.Screen()
	if c := fsm.Configs.Get(s.view, api.ConfigName); c != nil {
		spec.ClusterID = c.ClusterID
	}
	var volumes []string
	for _, d := range vm.Disks {
		source, id, err := a.diskSource(ctx, s, d)
		if err != nil {
			return spec, nil, err
		}
		volumes = append(volumes, id)
		spec.Disks = append(spec.Disks, plugins.DiskSpec{Name: d.Name, Source: source, Bus: orElse(d.Bus, "virtio"),
			Cache: orElse(d.Cache, "none"), Discard: d.Discard, Serial: d.Serial, BootOrder: d.BootOrder, ReadOnly: d.ReadOnly, Limits: d.IOLimits})
	}
	for _, d := range vm.CDROMs {
		drive := plugins.CDROMSpec{Name: d.Name, Bus: d.Bus, BootOrder: d.BootOrder}
		if d.Image != "" {
			stored, err := a.bringImage(ctx, s, d.Image)
			if err != nil {
				return spec, nil, err
			}
			drive.Source = stored.Source
		}
		spec.CDROMs = append(spec.CDROMs, drive)
	}
	nics, err := a.plugIn(ctx, s.view, vm)
	if err != nil {
		return spec, nil, err
	}
	spec.NICs = nics
	if vm.CloudInit != nil {
		seed := *vm.CloudInit
		seed.Hostname = orElse(seed.Hostname, vm.Name)
		spec.Seed = &seed
	}
	if vm.Boot != nil {
		boot, err := a.bootSpec(ctx, s)
		if err != nil {
			return spec, nil, err
		}
		spec.Boot = boot
	}
	return spec, volumes, nil
}

func orElse(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

// diskSource finds the volume of a disk on this node.
func (a *Agent) diskSource(ctx context.Context, s *sight, d api.Disk) (plugins.Source, string, error) {
	key := api.Key(s.vm.Tenant, d.Volume)
	volume := fsm.Volumes.Get(s.view, key)
	if volume == nil {
		return plugins.Source{}, "", &waitingError{fmt.Sprintf("volume %s does not exist", key)}
	}
	a.guests.wait(s.id, volume.ID)
	pool := fsm.Pools.Get(s.view, volume.Pool)
	var here *api.Replica
	for r := range fsm.Replicas.By(s.view, "of_id", volume.ID) {
		if !r.Delete && r.From == "" && (r.Node == a.config.Name || pool != nil && pool.Shared) {
			here = r
		}
	}
	switch {
	case here == nil:
		return plugins.Source{}, "", &waitingError{fmt.Sprintf("volume %s has no copy on this node", key)}
	case here.State == api.ReplicaFailed:
		return plugins.Source{}, "", &waitingError{fmt.Sprintf("volume %s could not be made: %s", key, here.Reason)}
	case here.State == api.ReplicaLost:
		return plugins.Source{}, "", api.Errorf(api.CodeNotFound, "is lost: %s", here.Reason).On(api.KindVolume, key).
			Do("take the disk off the VM, or delete the VM")
	case here.State != api.ReplicaReady:
		return plugins.Source{}, "", &waitingError{fmt.Sprintf("volume %s is being made", key)}
	}
	if clone := pendingClone(s.view, volume); clone != nil {
		a.guests.wait(s.id, clone.ID)
		return plugins.Source{}, "", &waitingError{fmt.Sprintf("volume %s is being cloned as %s", key, clone.Name)}
	}
	source, err := a.volumeSource(ctx, s.view, volume)
	return source, volume.ID, err
}

// bootSpec brings kernel and initial RAM disk to this node.
func (a *Agent) bootSpec(ctx context.Context, s *sight) (*plugins.BootSpec, error) {
	boot := &plugins.BootSpec{Args: s.vm.Boot.Args}
	for _, f := range []struct {
		image string
		path  *string
	}{{s.vm.Boot.Kernel, &boot.Kernel}, {s.vm.Boot.Initrd, &boot.Initrd}} {
		if f.image == "" {
			continue
		}
		stored, err := a.bringImage(ctx, s, f.image)
		if err != nil {
			return nil, err
		}
		*f.path = stored.Source.Path
	}
	return boot, nil
}

// bringImage brings an image of the VM's tenant to this node.
func (a *Agent) bringImage(ctx context.Context, s *sight, name string) (plugins.Stored, error) {
	key := api.Key(s.vm.Tenant, name)
	image := fsm.Images.Get(s.view, key)
	if image == nil {
		return plugins.Stored{}, &waitingError{fmt.Sprintf("image %s does not exist", key)}
	}
	stored, err := a.ensureImage(ctx, image, fsm.DefaultPool)
	if err != nil {
		return stored, fmt.Errorf("bring image %s: %w", key, err)
	}
	return stored, nil
}

// baseline is the CPU of guests whose VM names none.
func (a *Agent) baseline(view *fsm.View) string {
	var nodes []*api.Node
	for n := range fsm.Nodes.All(view) {
		nodes = append(nodes, n)
	}
	return api.CPUBaseline(fsm.Configs.Get(view, api.ConfigName), nodes)
}
