package agent_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/debvisor/debvisor/agent"
	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// mirror serves one file, and may be told to behave badly.
type mirror struct {
	*httptest.Server
	content []byte
	tag     string

	mu     sync.Mutex // guards below
	ranges []string
	serve  func(w http.ResponseWriter, r *http.Request) bool // true: it has answered
}

func newMirror(t testing.TB, content []byte) *mirror {
	m := &mirror{content: content, tag: `"one"`}
	m.Server = httptest.NewServer(m)
	t.Cleanup(m.Close)
	return m
}

// ServeHTTP implements http.Handler.
func (m *mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	m.ranges = append(m.ranges, r.Header.Get("Range"))
	serve := m.serve
	m.mu.Unlock()
	if serve != nil && serve(w, r) {
		return
	}
	w.Header().Set("ETag", m.tag)
	http.ServeContent(w, r, "image", time.Time{}, bytes.NewReader(m.content))
}

func (m *mirror) asked() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.ranges...)
}

// cut sends the first n bytes of what was asked for and breaks the connection.
func (m *mirror) cut(w http.ResponseWriter, n int) {
	w.Header().Set("ETag", m.tag)
	w.Header().Set("Content-Length", fmt.Sprint(len(m.content)))
	_, _ = w.Write(m.content[:n])
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// download is a host that may fetch from the mirror.
func downloader(t testing.TB) *host {
	return one(t, func(h *host) {
		h.change = func(c *agent.Config) { c.Outbound = http.DefaultClient }
	})
}

// fromURL makes the catalogue entry and gives its fetch to the host.
func (h *host) fromURL(name string, image api.Image) (*api.Image, string) {
	h.t.Helper()
	image.Name, image.Tenant = name, api.DefaultTenant
	put(h, fsm.Images.Put, image)
	key := api.Key(api.DefaultTenant, name)
	for task := range fsm.Tasks.By(h.log.f.Read(), "object", api.KindImage+"/"+key) {
		h.dispatch(task.Name)
		return fsm.Images.Get(h.log.f.Read(), key), task.Name
	}
	h.t.Fatal("nobody was asked to fetch the image")
	return nil, ""
}

func rawImage(url string, content []byte, sized bool) api.Image {
	sum := sha256.Sum256(content)
	image := api.Image{Format: api.FormatRaw, SHA256: hex.EncodeToString(sum[:]), URL: url}
	if sized {
		image.SizeBytes = int64(len(content))
	}
	return image
}

func (h *host) wantImage(image *api.Image, content []byte) {
	h.t.Helper()
	r, err := h.agent.OpenImage(h.t.Context(), image.ID)
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
		h.t.Fatalf("the image has %d bytes, want %d: %v", len(got), len(content), err)
	}
	replica := fsm.Replicas.Get(h.log.f.Read(), api.ReplicaName(image.ID, h.name))
	if replica == nil || replica.State != api.ReplicaReady || replica.FileBytes != int64(len(content)) {
		h.t.Fatalf("the copy is reported as %+v", replica)
	}
}

func TestAnImageIsFetchedFromItsURL(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("debvisor"), 1<<17)
	for _, sized := range []bool{true, false} {
		h, m := downloader(t), newMirror(t, content)
		image, task := h.fromURL("tiny", rawImage(m.URL, content, sized))
		h.untilTask(task, api.TaskDone)
		h.wantImage(image, content)
	}
}

func TestADownloadGoesOnWhereItBrokeOff(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("debvisor"), 1<<17)
	h, m := downloader(t), newMirror(t, content)
	m.serve = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Range") == "" {
			m.cut(w, len(content)/2)
		}
		return false
	}
	image, task := h.fromURL("tiny", rawImage(m.URL, content, true))
	h.untilTask(task, api.TaskDone)
	h.wantImage(image, content)
	asked := m.asked()
	if len(asked) != 2 || asked[0] != "" || !strings.HasPrefix(asked[1], "bytes=") || asked[1] == "bytes=0-" {
		t.Errorf("asked for %q, want all, then the rest", asked)
	}
}

func TestADownloadSurvivesTheAgent(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("debvisor"), 1<<17)
	h, m := downloader(t), newMirror(t, content)
	half, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	m.serve = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Range") != "" {
			return false
		}
		w.Header().Set("ETag", m.tag)
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		_, _ = w.Write(content[:len(content)/2])
		_ = http.NewResponseController(w).Flush()
		once.Do(func() { close(half) })
		<-release
		return true
	}
	image, task := h.fromURL("tiny", rawImage(m.URL, content, true))
	<-half
	h.until("half of it has arrived", func(*fsm.View) bool {
		pool := fsm.Pools.Get(h.log.f.Read(), fsm.DefaultPool)
		n, err := h.storage.StagedBytes(t.Context(), h.pool(pool.Name), image.ID)
		return err == nil && n >= int64(len(content)/2)
	})
	h.end()
	close(release)
	h.start()
	old := fsm.Tasks.Get(h.log.f.Read(), task)
	h.log.must(t, fsm.ReleaseTask.Entry(fsm.TaskReport{Name: task, Node: old.Node, Epoch: old.Epoch, Attempt: old.Attempt}))
	h.dispatch(task)
	h.untilTask(task, api.TaskDone)
	h.wantImage(image, content)
	if asked := m.asked(); asked[len(asked)-1] != fmt.Sprintf("bytes=%d-", len(content)/2) {
		t.Errorf("asked for %q, want the second half last", asked)
	}
}

func TestAnotherFileThanTheHalfIsFetchedWhole(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("debvisor"), 1<<17)
	h, m := downloader(t), newMirror(t, content)
	m.serve = func(w http.ResponseWriter, r *http.Request) bool {
		m.mu.Lock()
		first := len(m.ranges) == 1
		m.mu.Unlock()
		if first {
			old := &mirror{content: bytes.Repeat([]byte("obsolete"), 1<<17), tag: `"zero"`}
			old.cut(w, 1<<19)
		}
		return false
	}
	image, task := h.fromURL("tiny", rawImage(m.URL, content, true))
	h.untilTask(task, api.TaskDone)
	h.wantImage(image, content)
}

func TestAServerThatLiesIsRefused(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("debvisor"), 1<<13)
	for name, c := range map[string]struct {
		sized bool
		field string
		serve func(w http.ResponseWriter, r *http.Request)
	}{
		"another content": {true, "sha256", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(bytes.Repeat([]byte("evildisk"), 1<<13))
		}},
		"another length": {true, "size_bytes", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "short") }},
		"no length":      {false, "size_bytes", func(w http.ResponseWriter, _ *http.Request) { endless(w) }},
		"no end":         {true, "size_bytes", func(w http.ResponseWriter, _ *http.Request) { endless(w) }},
		"nothing":        {true, "url", func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }},
		"huge": {false, "size_bytes", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(api.ImageSizeMax+1))
			w.WriteHeader(http.StatusOK)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, m := downloader(t), newMirror(t, content)
			m.serve = func(w http.ResponseWriter, r *http.Request) bool { c.serve(w, r); return true }
			image, task := h.fromURL("tiny", rawImage(m.URL+"/image?signature=hidden", content, c.sized))
			h.untilTask(task, api.TaskFailed)
			err := fsm.Tasks.Get(h.log.f.Read(), task).Error
			if err.Code != api.CodeInvalid || err.Field != c.field || strings.Contains(err.Error(), "hidden") {
				t.Errorf("got %v, want one about %s", err, c.field)
			}
			if n, err := h.storage.StagedBytes(t.Context(), h.pool(fsm.DefaultPool), image.ID); err != nil || n != 0 {
				t.Errorf("%d bytes are kept: %v", n, err)
			}
		})
	}
}

// endless writes until the client has enough, without a length.
func endless(w http.ResponseWriter) {
	for piece := make([]byte, 1<<16); ; {
		if _, err := w.Write(piece); err != nil {
			return
		}
	}
}

func TestADownloadIsCancelled(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("debvisor"), 1<<13)
	h, m := downloader(t), newMirror(t, content)
	began := make(chan struct{})
	m.serve = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		_ = http.NewResponseController(w).Flush()
		close(began)
		<-r.Context().Done()
		return true
	}
	_, task := h.fromURL("tiny", rawImage(m.URL, content, true))
	<-began
	h.log.must(t, fsm.CancelTask.Entry(fsm.TaskName{Name: task}))
	h.untilTask(task, api.TaskCancelled)
}

func TestADeletedImageIsFetchedNoMore(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("debvisor"), 1<<13)
	h, m := downloader(t), newMirror(t, content)
	began := make(chan struct{})
	m.serve = func(_ http.ResponseWriter, r *http.Request) bool {
		close(began)
		<-r.Context().Done()
		return true
	}
	image, task := h.fromURL("tiny", rawImage(m.URL, content, true))
	<-began
	h.log.must(t, fsm.Images.Delete(image.Tenant, image.Name, image.Modified))
	h.untilTask(task, api.TaskCancelled)
}

// pool is where the pool lies on the host.
func (h *host) pool(name string) plugins.PoolSpec {
	return plugins.PoolSpec{Name: name, Path: filepath.Join(h.dir, "pools", name)}
}
