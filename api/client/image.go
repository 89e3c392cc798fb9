package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/debvisor/debvisor/api"
)

// Limits of moving images.
const (
	transferTriesMax = 5           // in a row that move nothing
	transferPause    = time.Second // after such a try, as often as there were some
)

func imagePath(name, verb string) string {
	return "/v1/images/" + url.PathEscape(name) + "/" + verb
}

// UploadImage sends the bytes of an image that exists in the catalogue. An
// upload that breaks off goes on where it was, on the node that has the most of
// it, also when this is called again later. progress, when not nil, gets the
// number of bytes that have arrived. The cluster verifies size and checksum. It
// blocks until the last byte is stored, or ctx ends.
func (c *Client) UploadImage(ctx context.Context, tenant, name string, sizeBytes int64, file io.ReadSeeker, progress func(sentBytes int64)) (*api.Image, error) {
	var last error
	for failures, most := 0, int64(0); failures < transferTriesMax; failures++ {
		at, offset := c.furthest(ctx, tenant, name)
		if offset > most {
			failures, most = 0, offset
		}
		if offset >= sizeBytes {
			offset = 0 // it is there: nothing will be read
		}
		if _, err := file.Seek(offset, io.SeekStart); err != nil {
			return nil, fmt.Errorf("read image: %w", err)
		}
		body := &haltable{r: &counted{r: file, sent: offset, report: progress}}
		image, err := c.upload(ctx, c.addresses[at], tenant, name, offset, sizeBytes, body)
		body.halt() // the connection may still be at it
		if err == nil {
			c.last.Store(int64(at))
			return image, nil
		}
		// Another offset than was meant: somebody else is at it.
		if again := retryable(err) || api.CodeOf(err) == api.CodeConflict; !again || ctx.Err() != nil {
			return nil, err
		}
		last = err
		if !pause(ctx, time.Duration(failures)*transferPause) {
			break
		}
	}
	return nil, final(last, "", false)
}

// furthest is the address of the node that has the most of an image, and how
// much that is. Nodes that do not answer have nothing.
func (c *Client) furthest(ctx context.Context, tenant, name string) (at int, offset int64) {
	first := int(c.last.Load())
	at = first % len(c.addresses)
	for n := range c.addresses {
		i := (first + n) % len(c.addresses)
		var have api.Upload
		within, cancel := context.WithTimeout(ctx, attemptFirst)
		_, err := c.send(within, c.addresses[i], &call{method: http.MethodGet, path: imagePath(name, "upload"), query: tenantQuery(tenant), header: http.Header{}, out: &have}, nil)
		cancel()
		if err == nil && (have.OffsetBytes > offset || n == 0) {
			at, offset = i, have.OffsetBytes
		}
	}
	return at, offset
}

// haltable is a reader that can be ended under whoever reads it.
type haltable struct {
	mu     sync.Mutex // guards the rest
	r      io.Reader
	halted bool
}

// Read implements io.Reader.
func (h *haltable) Read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.halted {
		return 0, io.ErrClosedPipe
	}
	return h.r.Read(p)
}

func (h *haltable) halt() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.halted = true
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func (c *Client) upload(ctx context.Context, address, tenant, name string, offset, sizeBytes int64, body io.Reader) (*api.Image, error) {
	call := &call{method: http.MethodPut, path: imagePath(name, "content"), query: tenantQuery(tenant),
		header: http.Header{"Content-Type": {"application/octet-stream"}}}
	if offset > 0 {
		call.header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", offset, sizeBytes-1, sizeBytes))
	}
	req, err := c.request(ctx, address, call, io.NopCloser(body))
	if err != nil {
		return nil, err
	}
	req.ContentLength = sizeBytes - offset
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, &failure{err, address}
	}
	defer drain(resp.Body)
	if resp.StatusCode >= 400 {
		return nil, problem(resp, address)
	}
	image := &api.Image{}
	if err := json.NewDecoder(io.LimitReader(resp.Body, problemBytesMax)).Decode(image); err != nil {
		return nil, &failure{err, address}
	}
	return image, nil
}

// DownloadImage appends the bytes of an image to file, after the bytes that it
// holds already, which must be its beginning. It goes on over broken connections
// and verifies the checksum of the whole: a file that is wrong is emptied, and
// the error is CodeInvalid. progress, when not nil, gets how much there is, and
// how much there will be.
func (c *Client) DownloadImage(ctx context.Context, image *api.Image, file io.ReadWriteSeeker, progress func(doneBytes, totalBytes int64)) error {
	sum := sha256.New()
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read what was downloaded: %w", err)
	}
	offset, err := io.Copy(sum, file)
	if err != nil {
		return fmt.Errorf("read what was downloaded: %w", err)
	}
	for failures := 0; ; {
		var n int64
		n, err = c.download(ctx, image, offset, io.MultiWriter(file, sum), func(done, total int64) {
			if progress != nil {
				progress(offset+done, total)
			}
		})
		offset += n
		if err == nil || ctx.Err() != nil || !retryable(err) {
			break
		}
		if failures++; n > 0 {
			failures = 0
		}
		if failures >= transferTriesMax || !pause(ctx, time.Duration(failures)*transferPause) {
			break
		}
	}
	if err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != image.SHA256 {
		return errWrongContent(got, image)
	}
	return nil
}

func errWrongContent(got string, image *api.Image) error {
	return api.Invalid("sha256", "the file has %s and was to have %s", got, image.SHA256).On(api.KindImage, api.Key(image.Tenant, image.Name)).Do("delete the file and repeat it")
}

// download appends what follows offset, and returns how much came.
func (c *Client) download(ctx context.Context, image *api.Image, offset int64, to io.Writer, progress func(done, total int64)) (int64, error) {
	call := &call{method: http.MethodGet, path: imagePath(image.Name, "content"), query: tenantQuery(image.Tenant), header: http.Header{}}
	if offset > 0 {
		call.header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
		call.header.Set("If-Range", `"`+image.SHA256+`"`)
	}
	at := int(c.last.Load()) % len(c.addresses)
	resp, err := c.open(ctx, c.addresses[at], call, nil)
	if err != nil {
		c.last.Store(int64(at + 1)) // the next one may answer
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	if offset > 0 && resp.StatusCode != http.StatusPartialContent {
		return 0, api.Errorf(api.CodeConflict, "holds something else than was begun").On(api.KindImage, api.Key(image.Tenant, image.Name)).Do("delete the file and repeat it")
	}
	total, done := offset+resp.ContentLength, int64(0)
	n, err := io.Copy(to, &counted{r: resp.Body, report: func(n int64) {
		done = n
		progress(done, total)
	}})
	if err != nil {
		if errors.Is(err, context.Canceled) {
			return n, err
		}
		return n, &failure{err, c.addresses[at]}
	}
	return n, nil
}

// FetchImage asks for the bytes of an image from its URL, by the task in the
// answer. An empty node leaves the choice to the cluster.
func (c *Client) FetchImage(ctx context.Context, tenant, name, node string, options ...Option) (*api.Task, error) {
	in := map[string]string{}
	if node != "" {
		in["node"] = node
	}
	return result[api.Task](ctx, c, &call{method: http.MethodPost, path: imagePath(name, "fetch"), query: tenantQuery(tenant), in: in}, options)
}

// TemplateVM makes an image of a disk of a VM, by the task in the answer.
func (c *Client) TemplateVM(ctx context.Context, tenant, vm string, args api.TemplateArgs, options ...Option) (*api.Task, error) {
	return result[api.Task](ctx, c, &call{method: http.MethodPost, path: "/v1/vms/" + url.PathEscape(vm) + "/template", query: tenantQuery(tenant), in: args}, options)
}

// counted reports what was read.
type counted struct {
	r      io.Reader
	sent   int64
	report func(int64)
}

// Read implements io.Reader.
func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.sent += int64(n); c.report != nil && n > 0 {
		c.report(c.sent)
	}
	return n, err
}
