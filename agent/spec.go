package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// waitError is a start that has to wait for something that is being made.
type waitError struct{ error }

func waiting(err error) bool {
	_, ok := errors.AsType[waitError](err)
	return ok
}

// spec resolves everything that the VM names into files, bridges and numbers
// of this machine, making what is missing. Start may follow at once.
func (s *step) spec(ctx context.Context) (*plugins.DomainSpec, error) {
	vm, config := s.vm, fsm.Configs.Get(s.v, api.ConfigName)
	spec := &plugins.DomainSpec{ID: vm.ID, Name: vm.Tenant + "." + vm.Name, Gen: s.instance.Gen, SpecRevision: vm.Modified,
		CPUs: vm.CPUs, MemoryBytes: vm.MemoryBytes, Firmware: vm.Firmware, Seed: vm.CloudInit, SeedID: vm.ID}
	if config != nil {
		spec.ClusterID = config.ClusterID
	}
	if spec.Firmware == "" {
		spec.Firmware = "bios"
	}
	if seed := vm.CloudInit; seed != nil && seed.Hostname == "" {
		named := *seed
		named.Hostname = vm.Name
		spec.Seed = &named
	}
	if err := s.disks(ctx, spec); err != nil {
		return nil, err
	}
	if err := s.nics(ctx, spec); err != nil {
		return nil, err
	}
	return spec, s.boot(ctx, spec)
}

func (s *step) disks(ctx context.Context, spec *plugins.DomainSpec) error {
	for _, d := range s.vm.Disks {
		source, err := s.a.volumeSource(ctx, s.v, api.Key(s.vm.Tenant, d.Volume))
		if err != nil {
			return err
		}
		disk := plugins.DiskSpec{Name: d.Name, Source: source, Bus: d.Bus, Cache: d.Cache, ReadOnly: d.ReadOnly}
		if disk.Bus == "" {
			disk.Bus = "virtio"
		}
		if disk.Cache == "" {
			disk.Cache = "none"
		}
		spec.Disks = append(spec.Disks, disk)
	}
	return nil
}

func (s *step) nics(ctx context.Context, spec *plugins.DomainSpec) error {
	for _, n := range s.vm.NICs {
		network := fsm.Networks.Get(s.v, api.Key(s.vm.Tenant, n.Network))
		if network == nil {
			return api.Errorf(api.CodeNotFound, "does not exist").On(api.KindNetwork, n.Network)
		}
		if err := s.a.cfg.Network.Ensure(ctx, plugins.NetworkSpec{Bridge: network.Bridge}); err != nil {
			return fmt.Errorf("bridge %s: %w", network.Bridge, err)
		}
		spec.NICs = append(spec.NICs, plugins.NICSpec{Bridge: network.Bridge, MAC: n.MAC})
	}
	return nil
}

func (s *step) boot(ctx context.Context, spec *plugins.DomainSpec) error {
	b := s.vm.Boot
	if b == nil {
		return nil
	}
	spec.Boot = &plugins.BootSpec{Args: b.Args}
	for _, f := range []struct {
		image string
		path  *string
	}{{b.Kernel, &spec.Boot.Kernel}, {b.Initrd, &spec.Boot.Initrd}} {
		if f.image == "" {
			continue
		}
		image := fsm.Images.Get(s.v, api.Key(s.vm.Tenant, f.image))
		if image == nil {
			return api.Errorf(api.CodeNotFound, "does not exist").On(api.KindImage, f.image)
		}
		stored, err := s.a.ensureImage(ctx, s.v, fsm.DefaultPool, image)
		if err != nil {
			return err
		}
		*f.path = stored.Source.Path
	}
	return nil
}

// volumeSource is where a volume lies on this machine. It never makes one: a
// volume that was made and is missing is an error for people, not a reason for
// an empty disk.
func (a *Agent) volumeSource(ctx context.Context, v *fsm.View, name string) (plugins.Source, error) {
	volume := fsm.Volumes.Get(v, name)
	if volume == nil {
		return plugins.Source{}, api.Errorf(api.CodeNotFound, "does not exist").On(api.KindVolume, name)
	}
	var state, why string
	for r := range fsm.Replicas.By(v, "of_id", volume.ID) {
		if r.Delete {
			continue
		}
		state, why = r.State, r.Reason
	}
	if state != api.ReplicaReady {
		err := api.Errorf(api.CodeUnavailable, "is being made").On(api.KindVolume, name)
		if why != "" {
			err = api.Errorf(api.CodeUnavailable, "cannot be made: %s", why).On(api.KindVolume, name)
		}
		return plugins.Source{}, waitError{err}
	}
	at := volume.Pool + "/" + volume.ID
	if source, ok := a.sources.Load(at); ok {
		return source.(plugins.Source), nil
	}
	pool, storage, err := a.pool(v, volume.Pool)
	if err != nil {
		return plugins.Source{}, err
	}
	list, err := storage.List(ctx, pool)
	if err != nil {
		return plugins.Source{}, err
	}
	for _, stored := range list {
		if stored.Kind == api.KindVolume && stored.ID == volume.ID {
			a.sources.Store(at, stored.Source)
			return stored.Source, nil
		}
	}
	return plugins.Source{}, api.Errorf(api.CodeNotFound, "its file is missing in pool %s on this node", volume.Pool).
		On(api.KindVolume, name).Do("mount the pool again, or restore the file from a backup")
}
