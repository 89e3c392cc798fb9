package agent

import (
	"context"
	"errors"
	"io"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// ImportImage stores the bytes of a catalogued image on this node, verified,
// and makes the copy known. It blocks until r is read.
func (a *Agent) ImportImage(ctx context.Context, image *api.Image, r io.Reader) error {
	if a.cfg.Witness {
		return api.Errorf(api.CodeUnavailable, "a witness stores no images").Do("use another node")
	}
	v := a.view()
	pool, storage, err := a.pool(v, fsm.DefaultPool)
	if err != nil {
		return err
	}
	stored, err := storage.ImportImage(ctx, pool, imageSpec(image), r)
	if err != nil {
		return err
	}
	return a.reportImage(ctx, image, pool.Name, stored)
}

func imageSpec(image *api.Image) plugins.ImageSpec {
	return plugins.ImageSpec{ID: image.ID, Format: image.Format, SHA256: image.SHA256, SizeBytes: image.SizeBytes}
}

func (a *Agent) reportImage(ctx context.Context, image *api.Image, pool string, stored plugins.Stored) error {
	have := fsm.Replicas.Get(a.view(), api.ReplicaName(image.ID, a.cfg.Name))
	if have != nil && have.State == api.ReplicaReady {
		return nil
	}
	_, err := a.propose(ctx, fsm.ReportReplica.Entry(fsm.ReplicaReport{Kind: api.KindImage, OfID: image.ID, Node: a.cfg.Name, Epoch: a.epoch.Load(),
		Pool: pool, State: api.ReplicaReady, SizeBytes: stored.SizeBytes, UsedBytes: stored.UsedBytes}))
	return err
}

// OpenImage reads a copy of an image that this node has, for a peer.
func (a *Agent) OpenImage(ctx context.Context, imageID string) (io.ReadCloser, error) {
	v := a.view()
	r := fsm.Replicas.Get(v, api.ReplicaName(imageID, a.cfg.Name))
	if r == nil || r.Kind != api.KindImage || r.State != api.ReplicaReady {
		return nil, api.Errorf(api.CodeNotFound, "is not on node %s", a.cfg.Name).On(api.KindImage, imageID)
	}
	pool, storage, err := a.pool(v, r.Pool)
	if err != nil {
		return nil, err
	}
	return storage.OpenImage(ctx, pool, imageID)
}

// ensureImage brings the image into the pool on this machine: from another
// pool of this node, else from a peer, once however many ask at the same time.
func (a *Agent) ensureImage(ctx context.Context, v *fsm.View, poolName string, image *api.Image) (plugins.Stored, error) {
	pool, storage, err := a.pool(v, poolName)
	if err != nil {
		return plugins.Stored{}, err
	}
	got, err, _ := a.images.Do(poolName+"/"+image.ID, func() (any, error) {
		list, err := storage.List(ctx, pool)
		if err != nil {
			return plugins.Stored{}, err
		}
		for _, s := range list {
			if s.Kind == api.KindImage && s.ID == image.ID {
				return s, nil
			}
		}
		return a.copyImage(ctx, v, pool, storage, image)
	})
	stored, _ := got.(plugins.Stored)
	return stored, err
}

// copyImage tries every copy that is known, this node's own first.
func (a *Agent) copyImage(ctx context.Context, v *fsm.View, pool plugins.PoolSpec, storage plugins.Storage, image *api.Image) (plugins.Stored, error) {
	var nodes []string
	for r := range fsm.Replicas.By(v, "of_id", image.ID) {
		if r.State != api.ReplicaReady {
			continue
		}
		if r.Node == a.cfg.Name {
			nodes = append([]string{r.Node}, nodes...)
		} else {
			nodes = append(nodes, r.Node)
		}
	}
	key := api.Key(image.Tenant, image.Name)
	if len(nodes) == 0 {
		return plugins.Stored{}, api.Errorf(api.CodeUnavailable, "no node has its content yet").On(api.KindImage, key).
			Do("upload it with: debvisor image create %s --file FILE", image.Name)
	}
	var failed error
	for _, node := range nodes {
		stored, err := a.copyFrom(ctx, node, pool, storage, image)
		if err == nil {
			a.log.Info("image copied", "image", key, "from", node)
			return stored, a.reportImage(ctx, image, pool.Name, stored)
		}
		failed = errors.Join(failed, err)
	}
	return plugins.Stored{}, failed
}

func (a *Agent) copyFrom(ctx context.Context, node string, pool plugins.PoolSpec, storage plugins.Storage, image *api.Image) (plugins.Stored, error) {
	open := func() (io.ReadCloser, error) { return a.cfg.Fetch(ctx, node, image.ID) }
	if node == a.cfg.Name {
		open = func() (io.ReadCloser, error) { return a.OpenImage(ctx, image.ID) }
	}
	r, err := open()
	if err != nil {
		return plugins.Stored{}, err
	}
	defer r.Close()
	return storage.ImportImage(ctx, pool, imageSpec(image), r)
}
