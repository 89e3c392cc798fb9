package cluster_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
	"github.com/debvisor/debvisor/e2e/cluster/harness"
)

// slowMirror serves a file. Until release is closed, requests for all of it get
// the first half and wait.
type slowMirror struct {
	content []byte
	half    chan struct{} // closed when somebody has the half
	release chan struct{}

	once   sync.Once
	mu     sync.Mutex // guards ranges
	ranges []string
}

func (m *slowMirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	m.ranges = append(m.ranges, r.Header.Get("Range"))
	m.mu.Unlock()
	w.Header().Set("ETag", `"one"`)
	select {
	case <-m.release:
		http.ServeContent(w, r, "image", time.Time{}, bytes.NewReader(m.content))
		return
	default:
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(m.content)))
	_, _ = w.Write(m.content[:len(m.content)/2])
	_ = http.NewResponseController(w).Flush()
	m.once.Do(func() { close(m.half) })
	<-r.Context().Done()
}

// TestAnImageComesFromItsURLAlthoughTheNodeDies: the node that fetches is killed
// half way; what it had is gone on from. Addresses inside are refused.
func TestAnImageComesFromItsURLAlthoughTheNodeDies(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, harness.Options{})
	for _, n := range c.Nodes {
		f, err := os.OpenFile(n.ConfigFile(), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteString("\noutbound_allow = [\"127.0.0.0/8\"]\noutbound_http = true\n")
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		n.Kill()
		n.Start()
		n.Ready(time.Minute)
	}
	m := &slowMirror{content: bytes.Repeat([]byte("debvisor"), 1<<20), half: make(chan struct{}), release: make(chan struct{})}
	server := httptest.NewServer(m)
	t.Cleanup(server.Close)
	sum := sha256.Sum256(m.content)
	c.Must("image", "create", "far", "--url", server.URL+"/far", "--sha256", hex.EncodeToString(sum[:]), "--format", "raw", "--no-wait")
	select {
	case <-m.half:
	case <-time.After(time.Minute):
		t.Fatalf("nobody fetches: %s", c.Must("task", "list").Stdout)
	}
	conn := c.Client(time.Minute)
	task := fetchTask(t, conn, "default/far")
	n := c.Node(task.Node)
	pool := filepath.Join(n.DataDir(), "pools", "local", "images")
	harness.Until(t, time.Minute, "half of it has arrived", func() (bool, string) {
		parts, _ := filepath.Glob(filepath.Join(pool, ".new-part-*")) // the pattern is right
		for _, p := range parts {
			if info, err := os.Stat(p); err == nil && info.Size() == int64(len(m.content)/2) {
				return true, ""
			}
		}
		return false, fmt.Sprint(parts)
	})
	n.Kill()
	close(m.release)
	n.Start()
	n.Ready(time.Minute)
	c.Must("task", "wait", task.Name, "--timeout", "2m")
	m.mu.Lock()
	last := m.ranges[len(m.ranges)-1]
	m.mu.Unlock()
	if want := fmt.Sprintf("bytes=%d-", len(m.content)/2); last != want {
		t.Errorf("the last request asked for %q, want %q", last, want)
	}
	out := filepath.Join(t.TempDir(), "far.raw")
	c.Must("image", "export", "far", "--file", out)
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, m.content) {
		t.Errorf("exported %d bytes, want %d: %v", len(got), len(m.content), err)
	}
	for name, target := range map[string]string{"member": "http://" + c.Nodes[0].Address + "/v1/version", "metadata": "http://169.254.169.254/latest"} {
		r := c.Run("image", "create", name, "--url", target, "--sha256", strings.Repeat("0", 64), "--format", "raw", "--timeout", "1m")
		if r.Status == 0 || !strings.Contains(r.Stderr, "url") {
			t.Errorf("%s: status %d, %s", target, r.Status, r.Stderr)
		}
		if e := fetchTask(t, conn, "default/"+name).Error; e == nil || e.Code != api.CodeInvalid {
			t.Errorf("%s: the task ended with %v, want a refusal", target, e)
		}
	}
}

func fetchTask(t testing.TB, conn *client.Client, object string) *api.Task {
	t.Helper()
	list, err := client.Resource[api.Task](conn, api.KindTask).All(t.Context(), client.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range list.Items {
		if task := &list.Items[i]; task.Verb == api.TaskFetch && task.Object == object {
			return task
		}
	}
	t.Fatalf("no task fetches %s", object)
	return nil
}
