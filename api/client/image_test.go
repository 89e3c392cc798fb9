package client_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
)

// imageNode keeps what is uploaded, and serves it. It breaks the first
// connections that move bytes.
type imageNode struct {
	mu     sync.Mutex // guards below
	got    []byte
	breaks int
	ranges []string
}

func (n *imageNode) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case strings.HasSuffix(r.URL.Path, "/upload"):
		_ = json.NewEncoder(w).Encode(api.Upload{OffsetBytes: int64(len(n.got))})
	case r.Method == http.MethodPut:
		n.ranges = append(n.ranges, r.Header.Get("Content-Range"))
		if r.Header.Get("Content-Range") == "" {
			n.got = nil
		}
		if n.breaks > 0 {
			n.breaks--
			half, _ := io.ReadAll(io.LimitReader(r.Body, r.ContentLength/2))
			n.got = append(n.got, half...)
			panic(http.ErrAbortHandler)
		}
		rest, _ := io.ReadAll(r.Body)
		n.got = append(n.got, rest...)
		_ = json.NewEncoder(w).Encode(api.Image{Meta: api.Meta{Name: "tiny"}})
	default:
		n.ranges = append(n.ranges, r.Header.Get("Range"))
		if n.breaks > 0 {
			n.breaks--
			w.Header().Set("Content-Length", fmt.Sprint(len(n.got)))
			_, _ = w.Write(n.got[:len(n.got)/2])
			panic(http.ErrAbortHandler)
		}
		sum := sha256.Sum256(n.got)
		w.Header().Set("ETag", `"`+hex.EncodeToString(sum[:])+`"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(n.got))
	}
}

func TestAnUploadGoesOnAfterItBroke(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("debvisor"), 1<<17)
	n := &imageNode{breaks: 2}
	c := dial(t, 30*time.Second, serve(t, n.ServeHTTP))
	var sent []int64
	image, err := c.UploadImage(t.Context(), "", "tiny", int64(len(content)), bytes.NewReader(content), func(n int64) { sent = append(sent, n) })
	if err != nil || image.Name != "tiny" || sent[len(sent)-1] != int64(len(content)) {
		t.Fatalf("got %v, %v, %v", image, err, sent)
	}
	if !bytes.Equal(n.got, content) {
		t.Errorf("%d bytes have arrived, want %d", len(n.got), len(content))
	}
	half, rest := len(content)/2, len(content)/4*3
	if want := fmt.Sprintf("[ bytes %d-%d/%d bytes %d-%d/%d]", half, len(content)-1, len(content), rest, len(content)-1, len(content)); fmt.Sprint(n.ranges) != want {
		t.Errorf("the ranges were %v, want %s", n.ranges, want)
	}
}

func TestADownloadIsVerifiedAndGoesOn(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("debvisor"), 1<<17)
	sum := sha256.Sum256(content)
	image := &api.Image{Meta: api.Meta{Name: "tiny"}, SHA256: hex.EncodeToString(sum[:])}
	n := &imageNode{breaks: 1, got: content}
	c := dial(t, 30*time.Second, serve(t, n.ServeHTTP))
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := c.DownloadImage(t.Context(), image, f, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(f.Name()); err != nil || !bytes.Equal(got, content) {
		t.Errorf("got %d bytes: %v", len(got), err)
	}
	if want := fmt.Sprintf("[ bytes=%d-]", len(content)/2); fmt.Sprint(n.ranges) != want {
		t.Errorf("the ranges were %v, want %s", n.ranges, want)
	}
	if err := f.Truncate(100); err != nil { // as an export that was killed
		t.Fatal(err)
	}
	if err := c.DownloadImage(t.Context(), image, f, nil); err != nil || n.ranges[len(n.ranges)-1] != "bytes=100-" {
		t.Errorf("of the rest: %v, %v", n.ranges, err)
	}
	if _, err := f.WriteAt([]byte("X"), 5); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(200); err != nil {
		t.Fatal(err)
	}
	if err := c.DownloadImage(t.Context(), image, f, nil); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("after a wrong beginning: %v, want invalid", err)
	}
}
