package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// Limits of the download of an image.
const (
	downloadTriesMax = 5                // in a row that bring nothing, before the task goes back
	downloadPause    = 2 * time.Second  // before the next try, as often as there were tries
	downloadSilence  = 30 * time.Second // after which a server that sends nothing is given up
	downloadPiece    = 1 << 20          // bytes of one write
	downloadShow     = 2 * time.Second  // at least, between two reports of progress
	etagLengthMax    = 256
)

// fetchImage carries out image.fetch: this node downloads the image into its
// default pool. What has arrived before an interruption is gone on from.
func (a *Agent) fetchImage(ctx context.Context, o *operation) error {
	image := fsm.Images.Get(o.view, o.task.Object)
	if image == nil {
		return api.Errorf(api.CodeNotFound, "does not exist any more").On(api.KindImage, o.task.Object)
	}
	last := time.Time{}
	show := func(done, total int64) {
		if now := a.config.Clock(); now.Sub(last) >= downloadShow {
			last = now
			o.tell(ctx, int(100*done/max(total, 1)), fmt.Sprintf("%s of %s", api.FormatSize(done), api.FormatSize(total)))
		}
	}
	var err error
	a.apart(func() { _, err = a.downloadOnce(ctx, image, fsm.DefaultPool, show) })
	return err
}

// downloadOnce downloads the image into a pool and reports the copy. Those who
// want the same one wait for the same download.
func (a *Agent) downloadOnce(ctx context.Context, image *api.Image, pool string, show func(done, total int64)) (plugins.Stored, error) {
	out, err, _ := a.imports.Do("url/"+pool+"/"+image.ID, func() (any, error) {
		select {
		case a.fetches <- struct{}{}:
			defer func() { <-a.fetches }()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		return a.download(ctx, image, pool, show)
	})
	if err != nil {
		return plugins.Stored{}, err
	}
	stored := out.(plugins.Stored)
	return stored, a.reportImage(ctx, image, pool, stored)
}

// download makes tries until the image is stored, as long as they bring
// anything.
func (a *Agent) download(ctx context.Context, image *api.Image, pool string, show func(done, total int64)) (plugins.Stored, error) {
	stage, err := a.stageImage(ctx, image, pool)
	if err != nil {
		return plugins.Stored{}, err
	}
	defer func() { _ = stage.Close() }() // what has arrived stays
	if have := stage.Stored(); have != nil {
		return *have, nil
	}
	d := &download{client: a.config.Outbound, image: image, stage: stage, show: show}
	for failures := 0; ; {
		before := stage.Offset()
		err := d.try(ctx)
		if err == nil {
			a.log.Info("image fetched", "image", api.Key(image.Tenant, image.Name), "from", d.from(), "pool", pool, "bytes", stage.Offset())
			return stage.Commit(ctx)
		}
		if !mayPass(err) || ctx.Err() != nil {
			return plugins.Stored{}, err
		}
		if failures++; stage.Offset() > before {
			failures = 0
		}
		a.log.Debug("download broke off", "image", image.ID, "offset", stage.Offset(), "error", err)
		if failures >= downloadTriesMax {
			return plugins.Stored{}, err
		}
		if !wait(ctx, time.Duration(failures)*downloadPause) {
			return plugins.Stored{}, ctx.Err()
		}
	}
}

// stageImage opens what has arrived of an image in a pool.
func (a *Agent) stageImage(ctx context.Context, image *api.Image, pool string) (plugins.Stage, error) {
	_, spec, err := a.pool(a.view(), pool)
	if err != nil {
		return nil, err
	}
	stager := a.config.Stagers[fsm.Pools.Get(a.view(), pool).Driver]
	if stager == nil {
		return nil, api.Errorf(api.CodeUnavailable, "takes no images in pieces").On(api.KindPool, pool)
	}
	return stager.StageImage(ctx, spec, imageSpec(image))
}

// download is one image on its way from its URL.
type download struct {
	client *http.Client
	image  *api.Image
	stage  plugins.Stage
	show   func(done, total int64)
}

// from is the URL without its query, which may hold what nobody should read.
func (d *download) from() string {
	u, err := url.Parse(d.image.URL)
	if err != nil {
		return ""
	}
	return u.Scheme + "://" + u.Host + u.EscapedPath()
}

// try asks for what is missing and appends what comes. CodeUnavailable and the
// like say that another try may bring more.
func (d *download) try(ctx context.Context) error {
	if d.client == nil {
		return api.Errorf(api.CodeConflict, "this node fetches nothing from outside").Do("upload the image")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := d.ask(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	total, err := d.begin(resp)
	if err != nil || total == d.stage.Offset() && total > 0 {
		return err
	}
	silence := time.AfterFunc(downloadSilence, cancel)
	defer silence.Stop()
	return d.receive(ctx, resp.Body, total, silence)
}

func (d *download) ask(ctx context.Context) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.image.URL, nil)
	if err != nil {
		return nil, api.Invalid("url", "is not one that can be fetched")
	}
	req.Header.Set("User-Agent", "debvisor")
	if tag := d.stage.Note(); d.stage.Offset() > 0 && tag != "" {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", d.stage.Offset()))
		req.Header.Set("If-Range", tag) // the whole file, if it is another one by now
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return nil, d.failure(err)
	}
	return resp, nil
}

// failure is what a person should know of an error of the client: not the URL
// with its query.
func (d *download) failure(err error) error {
	if refused, ok := errors.AsType[*api.Error](err); ok {
		return refused
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return api.Errorf(api.CodeUnavailable, "%s: %s", d.from(), printable(err.Error()))
}

// begin judges an answer's header, and returns how long the file is in all; 0:
// nobody knows. After it the stage is where the body begins.
func (d *download) begin(resp *http.Response) (int64, error) {
	total, at := resp.ContentLength, int64(0)
	switch {
	case resp.StatusCode == http.StatusPartialContent:
		var ok bool
		if at, total, ok = contentRange(resp.Header.Get("Content-Range")); !ok || at != d.stage.Offset() {
			return 0, errors.Join(d.stage.Reset(""), api.Errorf(api.CodeUnavailable, "%s sent another part than was asked for", d.from()))
		}
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return 0, errors.Join(d.stage.Reset(""), api.Errorf(api.CodeUnavailable, "%s has not as much as it had", d.from()))
	case resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= http.StatusInternalServerError:
		return 0, api.Errorf(api.CodeUnavailable, "%s answers %d", d.from(), resp.StatusCode)
	case resp.StatusCode != http.StatusOK:
		return 0, api.Invalid("url", "%s answers %d", d.from(), resp.StatusCode).Do("give the image a url that serves the file itself")
	}
	want := d.image.SizeBytes
	switch {
	case total < 0 && want == 0:
		return 0, api.Invalid("size_bytes", "is missing, and %s does not say how long the file is", d.from()).Do("create the image with its size")
	case total < 0:
		total = want
	case want > 0 && total != want || total == 0 || total > api.ImageSizeMax:
		return 0, api.Invalid("size_bytes", "%s sends %d bytes", d.from(), total).Allow("%d, as the catalogue says", want)
	}
	if at == 0 {
		tag := resp.Header.Get("ETag")
		if strings.HasPrefix(tag, "W/") || len(tag) > etagLengthMax {
			tag = "" // not good enough to go on from
		}
		if err := d.stage.Reset(tag); err != nil {
			return 0, err
		}
	}
	return total, d.stage.Reserve(total)
}

// contentRange reads "bytes 100-199/200".
func contentRange(s string) (at, total int64, ok bool) {
	span, length, found := strings.Cut(strings.TrimPrefix(s, "bytes "), "/")
	from, to, dash := strings.Cut(span, "-")
	at, errAt := strconv.ParseInt(from, 10, 64)
	end, errEnd := strconv.ParseInt(to, 10, 64)
	total, errTotal := strconv.ParseInt(length, 10, 64)
	ok = found && dash && strings.HasPrefix(s, "bytes ") && errAt == nil && errEnd == nil && errTotal == nil && at >= 0 && end == total-1 && at <= end
	return at, total, ok
}

// receive appends the body, up to the end of the file.
func (d *download) receive(ctx context.Context, body io.Reader, total int64, silence *time.Timer) error {
	buffer := make([]byte, downloadPiece)
	for {
		n, err := body.Read(buffer)
		silence.Reset(downloadSilence)
		if d.stage.Offset()+int64(n) > total {
			return errors.Join(d.stage.Reset(""), api.Invalid("size_bytes", "%s sends more than the %d bytes that it promised", d.from(), total))
		}
		if n > 0 {
			if _, err := d.stage.Write(buffer[:n]); err != nil {
				return err
			}
			d.show(d.stage.Offset(), total)
		}
		switch {
		case errors.Is(err, io.EOF) && d.stage.Offset() == total:
			return nil
		case err != nil:
			if ctx.Err() != nil {
				return api.Errorf(api.CodeUnavailable, "%s sent nothing for %v", d.from(), downloadSilence)
			}
			return api.Errorf(api.CodeUnavailable, "%s broke off after %d of %d bytes: %s", d.from(), d.stage.Offset(), total, printable(err.Error()))
		}
	}
}
