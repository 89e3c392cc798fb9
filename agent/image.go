package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

const (
	fetchesMax   = 4                // images that this node fetches at a time
	fetchSilence = 30 * time.Second // after which a peer that sends nothing is given up
)

// ImportImage stores an uploaded image in this node's pool "local", verified
// against its catalogue entry, and tells the cluster. r is what follows offset;
// with another offset than has arrived it is CodeConflict, but for 0, which
// begins anew. What has arrived when r fails is kept for a day. An image that is
// there already is not read. It blocks until the bytes are durable; the error
// says what is wrong with the image, or that the cluster was not told yet.
func (a *Agent) ImportImage(ctx context.Context, image *api.Image, offset int64, r io.Reader) error {
	if a.config.Witness {
		return api.Errorf(api.CodeUnavailable, "a witness stores no images").Do("upload through another node")
	}
	stage, err := a.stageImage(ctx, image, fsm.DefaultPool)
	if err != nil {
		return fmt.Errorf("store image: %w", err)
	}
	defer func() { _ = stage.Close() }() // what has arrived stays
	stored, err := a.receiveImage(ctx, image, stage, offset, r)
	if err != nil {
		return fmt.Errorf("store image: %w", err)
	}
	if err := a.reportImage(ctx, image, fsm.DefaultPool, stored); err != nil {
		a.queue.add(keyPools) // which reports it later
		return err
	}
	return nil
}

func (a *Agent) receiveImage(ctx context.Context, image *api.Image, stage plugins.Stage, offset int64, r io.Reader) (plugins.Stored, error) {
	if have := stage.Stored(); have != nil {
		return *have, nil
	}
	key := api.Key(image.Tenant, image.Name)
	if offset == 0 {
		if err := stage.Reset(""); err != nil {
			return plugins.Stored{}, err
		}
	}
	if have := stage.Offset(); have != offset {
		return plugins.Stored{}, api.Errorf(api.CodeConflict, "%d bytes have arrived here, not %d", have, offset).On(api.KindImage, key).Do("go on from there, or begin anew")
	}
	for {
		if err := ctx.Err(); err != nil {
			return plugins.Stored{}, err
		}
		_, err := io.CopyN(stage, r, downloadPiece)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return plugins.Stored{}, err
		}
	}
	if image.SizeBytes > 0 && stage.Offset() < image.SizeBytes {
		return plugins.Stored{}, api.Invalid("size_bytes", "the file ended after %d of %d bytes", stage.Offset(), image.SizeBytes).On(api.KindImage, key).
			Do("upload the file whose checksum you gave, in full")
	}
	return stage.Commit(ctx)
}

// ArrivedImage tells how much of an image this node has, whole or in part.
func (a *Agent) ArrivedImage(ctx context.Context, image *api.Image) (int64, error) {
	if a.config.Witness {
		return 0, nil
	}
	_, spec, err := a.pool(a.view(), fsm.DefaultPool)
	if err != nil {
		return 0, err
	}
	stager := a.config.Stagers[fsm.Pools.Get(a.view(), fsm.DefaultPool).Driver]
	if stager == nil {
		return 0, nil
	}
	return stager.StagedBytes(ctx, spec, image.ID)
}

// OpenImageAt is OpenImage, from offset on, with the length of the whole.
func (a *Agent) OpenImageAt(ctx context.Context, imageID string, offset int64) (io.ReadCloser, int64, error) {
	r, err := a.OpenImage(ctx, imageID)
	if err != nil {
		return nil, 0, err
	}
	file, ok := r.(io.ReadSeekCloser)
	if !ok {
		_ = r.Close()
		return nil, 0, api.Errorf(api.CodeUnavailable, "the pool of image %s cannot read from the middle", imageID)
	}
	size, err := file.Seek(0, io.SeekEnd)
	if err == nil && offset > size {
		err = api.Invalid("offset", "is %d", offset).Allow("at most %d", size)
	}
	if err == nil {
		_, err = file.Seek(offset, io.SeekStart)
	}
	if err != nil {
		_ = r.Close()
		return nil, 0, fmt.Errorf("read image %s: %w", imageID, err)
	}
	return file, size, nil
}

// OpenImage reads an image that this node has, from whichever pool. It is
// CodeNotFound when there is none. The caller closes it.
func (a *Agent) OpenImage(ctx context.Context, imageID string) (io.ReadCloser, error) {
	view := a.view()
	missing := api.Errorf(api.CodeNotFound, "is not on node %s", a.config.Name).On(api.KindImage, imageID)
	for p := range fsm.Pools.All(view) {
		storage, spec, err := a.pool(view, p.Name)
		if err != nil {
			continue
		}
		r, err := storage.OpenImage(ctx, spec, imageID)
		if err == nil || api.CodeOf(err) != api.CodeNotFound {
			return r, err
		}
	}
	return nil, missing
}

func imageSpec(image *api.Image) plugins.ImageSpec {
	return plugins.ImageSpec{ID: image.ID, Format: image.Format, SHA256: image.SHA256, SizeBytes: image.SizeBytes}
}

// reportImage tells the cluster that this node has a copy, unless it knows.
func (a *Agent) reportImage(ctx context.Context, image *api.Image, pool string, stored plugins.Stored) error {
	have := fsm.Replicas.Get(a.view(), api.ReplicaName(image.ID, a.config.Name))
	if have != nil && (have.State == api.ReplicaReady || have.Delete) {
		return nil
	}
	epoch := a.epoch()
	if epoch == 0 {
		return errUnregistered
	}
	_, err := a.propose(ctx, fsm.ReportReplica.Entry(fsm.ReplicaReport{
		Kind: api.KindImage, OfID: image.ID, Node: a.config.Name, Epoch: epoch, Pool: pool,
		State: api.ReplicaReady, SizeBytes: stored.SizeBytes, UsedBytes: stored.UsedBytes, FileBytes: stored.FileBytes,
	}))
	return err
}

// ensureImage brings the image into the pool, from this node's other pools or
// from a peer. Jobs that want the same one wait for the same import. Only a
// job calls it; it waits beside the workers.
func (a *Agent) ensureImage(ctx context.Context, image *api.Image, pool string) (plugins.Stored, error) {
	var stored plugins.Stored
	var err error
	a.apart(func() {
		var out any
		out, err, _ = a.imports.Do(pool+"/"+image.ID, func() (any, error) { return a.importImage(ctx, image, pool) })
		if err == nil {
			stored = out.(plugins.Stored)
		}
	})
	return stored, err
}

func (a *Agent) importImage(ctx context.Context, image *api.Image, pool string) (plugins.Stored, error) {
	storage, spec, err := a.pool(a.view(), pool)
	if err != nil {
		return plugins.Stored{}, err
	}
	select {
	case a.fetches <- struct{}{}:
		defer func() { <-a.fetches }()
	case <-ctx.Done():
		return plugins.Stored{}, ctx.Err()
	}
	none := api.Errorf(api.CodeUnavailable, "no node that is up has a copy").On(api.KindImage, api.Key(image.Tenant, image.Name)).
		Do("upload it, or bring a node back that has it")
	var failed error = none
	for _, source := range a.imageSources(image.ID) {
		lazy := &lazyReader{open: func() (io.ReadCloser, error) { return source.open(ctx) }}
		stored, err := storage.ImportImage(ctx, spec, imageSpec(image), lazy)
		lazy.close()
		if err == nil {
			return stored, a.imported(ctx, image, pool, stored, lazy.opened, source.name)
		}
		if ctx.Err() != nil {
			return plugins.Stored{}, ctx.Err()
		}
		if source.name != a.config.Name || api.CodeOf(err) != api.CodeNotFound {
			failed = fmt.Errorf("image from %s: %w", source.name, err)
		}
		a.log.Debug("image not fetched", "image", image.ID, "from", source.name, "error", err)
	}
	if failed == error(none) && image.URL != "" {
		return a.importFromURL(ctx, image, pool)
	}
	return plugins.Stored{}, failed
}

// importFromURL gets an image that no node has, unless a task is at it, or was
// in vain: whoever wants it tried again says so.
func (a *Agent) importFromURL(ctx context.Context, image *api.Image, pool string) (plugins.Stored, error) {
	key := api.Key(image.Tenant, image.Name)
	var last *api.Task
	for t := range fsm.Tasks.By(a.view(), "object", api.KindImage+"/"+key) {
		if t.Verb == api.TaskFetch && (last == nil || t.Created > last.Created) {
			last = t
		}
	}
	switch {
	case last == nil || last.State == api.TaskDone: // and lost since
	case !last.Ended():
		return plugins.Stored{}, api.Errorf(api.CodeUnavailable, "is being fetched from its url by task %s", last.Name).On(api.KindImage, key)
	default:
		why := "was cancelled"
		if last.Error != nil {
			why = last.Error.Error()
		}
		return plugins.Stored{}, api.Errorf(api.CodeUnavailable, "could not be fetched from its url: %s", why).On(api.KindImage, key).Do("try again: debvisor image fetch %s", image.Name)
	}
	stored, err := a.download(ctx, image, pool, func(int64, int64) {})
	if err != nil {
		return stored, err
	}
	return stored, a.imported(ctx, image, pool, stored, false, "")
}

func (a *Agent) imported(ctx context.Context, image *api.Image, pool string, stored plugins.Stored, fetched bool, from string) error {
	if fetched {
		a.log.Info("image fetched", "image", api.Key(image.Tenant, image.Name), "from", from, "pool", pool, "bytes", image.SizeBytes)
	}
	if err := a.reportImage(ctx, image, pool, stored); err != nil && ctx.Err() == nil {
		a.queue.add(keyPools) // which reports it later
	}
	return nil
}

type imageSource struct {
	name string
	open func(ctx context.Context) (io.ReadCloser, error)
}

// imageSources lists where the image can be read: here first, then on live
// peers, beginning with a different one on each node.
func (a *Agent) imageSources(id string) []imageSource {
	view := a.view()
	var before, after []imageSource
	for r := range fsm.Replicas.By(view, "of_id", id) {
		peer := fsm.Nodes.Get(view, r.Node)
		if r.Node == a.config.Name || r.Delete || r.State != api.ReplicaReady || peer == nil || peer.Lease != api.NodeLive {
			continue
		}
		node := r.Node
		source := imageSource{name: node, open: func(ctx context.Context) (io.ReadCloser, error) { return a.config.Fetch(ctx, node, id) }}
		if node < a.config.Name {
			before = append(before, source)
		} else {
			after = append(after, source)
		}
	}
	here := imageSource{name: a.config.Name, open: func(ctx context.Context) (io.ReadCloser, error) { return a.OpenImage(ctx, id) }}
	return append(append([]imageSource{here}, after...), before...)
}

// lazyReader opens its source at the first Read, and gives it up when it is
// silent for long.
type lazyReader struct {
	open   func() (io.ReadCloser, error)
	opened bool
	source io.ReadCloser
	err    error
	once   sync.Once
}

// Read implements io.Reader.
func (l *lazyReader) Read(p []byte) (int, error) {
	if !l.opened {
		l.opened = true
		l.source, l.err = l.open()
	}
	if l.err != nil {
		return 0, l.err
	}
	silent := time.AfterFunc(fetchSilence, l.close)
	n, err := l.source.Read(p)
	if !silent.Stop() && err != nil && !errors.Is(err, io.EOF) {
		err = api.Errorf(api.CodeUnavailable, "the peer sent nothing for %v", fetchSilence)
	}
	return n, err
}

func (l *lazyReader) close() {
	if l.source != nil {
		l.once.Do(func() { _ = l.source.Close() }) // it was only read
	}
}
