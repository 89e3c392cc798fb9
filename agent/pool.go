package agent

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// pool resolves a pool on this machine.
func (a *Agent) pool(view *fsm.View, name string) (plugins.Storage, plugins.PoolSpec, error) {
	p := fsm.Pools.Get(view, name)
	if p == nil {
		return nil, plugins.PoolSpec{}, api.Errorf(api.CodeNotFound, "does not exist").On(api.KindPool, name)
	}
	if !p.On(a.config.Name) {
		return nil, plugins.PoolSpec{}, api.Errorf(api.CodeConflict, "is not on node %s", a.config.Name).On(api.KindPool, name).
			Do("add the node to the pool")
	}
	storage := a.config.Storage[p.Driver]
	if storage == nil {
		return nil, plugins.PoolSpec{}, api.Errorf(api.CodeUnavailable, "node %s has no driver %q", a.config.Name, p.Driver).On(api.KindPool, name)
	}
	spec := plugins.PoolSpec{Name: name, Path: p.Path, Shared: p.Shared, ReserveBytes: p.ReserveBytes}
	if spec.Path == "" {
		spec.Path = filepath.Join(a.config.DataDir, "pools", name)
	}
	return storage, spec, nil
}

// storedVolumes remembers where volumes are, so that a start needs no listing.
type storedVolumes struct {
	mu     sync.Mutex // guards sources
	source map[string]plugins.Source
}

func (s *storedVolumes) find(id string) (plugins.Source, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found, ok := s.source[id]
	return found, ok
}

func (s *storedVolumes) put(id string, source plugins.Source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.source == nil {
		s.source = map[string]plugins.Source{}
	}
	s.source[id] = source
}

func (s *storedVolumes) drop(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.source, id)
}

// volumeSource finds the file of a volume that is ready. One that is gone is
// an error: it is never made again, since it would be empty.
func (a *Agent) volumeSource(ctx context.Context, view *fsm.View, volume *api.Volume) (plugins.Source, error) {
	if source, ok := a.stored.find(volume.ID); ok {
		return source, nil
	}
	storage, spec, err := a.pool(view, volume.Pool)
	if err != nil {
		return plugins.Source{}, err
	}
	listed, err := storage.List(ctx, spec)
	if err != nil {
		return plugins.Source{}, fmt.Errorf("list pool %s: %w", volume.Pool, err)
	}
	for _, found := range listed {
		switch {
		case found.Kind != api.KindVolume:
		case found.Damage == "":
			a.stored.put(found.ID, found.Source)
		case found.ID == volume.ID:
			return plugins.Source{}, api.Errorf(api.CodeUnavailable, "its file %s is damaged: %s", found.Source.Path, found.Damage).
				On(api.KindVolume, api.Key(volume.Tenant, volume.Name)).Do("bring the file back from a backup, or delete the volume")
		}
	}
	if source, ok := a.stored.find(volume.ID); ok {
		return source, nil
	}
	return plugins.Source{}, api.Errorf(api.CodeNotFound, "its file is missing in pool %s of node %s", volume.Pool, a.config.Name).
		On(api.KindVolume, api.Key(volume.Tenant, volume.Name)).Do("bring the file back, or delete the volume")
}

// leftovers are stored things that no row mentions; each is logged once.
type leftovers struct {
	mu   sync.Mutex // guards seen
	seen map[string]bool
}

func (l *leftovers) first(thing string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen[thing] {
		return false
	}
	if l.seen == nil {
		l.seen = map[string]bool{}
	}
	l.seen[thing] = true
	return true
}

// reconcilePools compares what is stored with the rows: an image that the
// cluster does not know to be here is reported, anything that no row mentions
// is logged and left alone.
func (a *Agent) reconcilePools(ctx context.Context) error {
	if !a.isSynced() {
		return nil
	}
	view := a.view()
	for p := range fsm.Pools.All(view) {
		if !p.On(a.config.Name) {
			continue
		}
		storage, spec, err := a.pool(view, p.Name)
		if err != nil {
			return err
		}
		listed, err := storage.List(ctx, spec)
		if err != nil {
			return fmt.Errorf("list pool %s: %w", p.Name, err)
		}
		for _, found := range listed {
			if err := a.reconcileStored(ctx, p, found); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *Agent) reconcileStored(ctx context.Context, p *api.Pool, found plugins.Stored) error {
	if found.Damage != "" {
		if a.seen.first("damaged/" + p.Name + "/" + found.Kind + "/" + found.ID) {
			a.log.Error("a file in a pool is damaged", "pool", p.Name, "kind", found.Kind, "id", found.ID, "path", found.Source.Path, "error", found.Damage)
		}
		return nil
	}
	if gone, err := a.dropLeftover(ctx, p.Name, found); gone || err != nil {
		return err
	}
	view := a.view()
	for r := range fsm.Replicas.By(view, "of_id", found.ID) {
		if r.Node == a.config.Name || p.Shared {
			return nil
		}
	}
	if found.Kind == api.KindImage {
		for image := range fsm.Images.By(view, "id_of", found.ID) {
			return a.reportImage(ctx, image, p.Name, found)
		}
	}
	if a.seen.first(p.Name + "/" + found.Kind + "/" + found.ID) {
		a.log.Warn("found in a pool and mentioned by no row: left alone", "pool", p.Name, "kind", found.Kind, "id", found.ID, "path", found.Source.Path)
	}
	return nil
}
