package httpd_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/httpd"
	"github.com/debvisor/debvisor/fsm"
)

func (s *server) image(content string) {
	s.tb.Helper()
	s.want(201, "PUT", "/v1/images/tiny", fmt.Sprintf(`{"format":"raw","sha256":"%x","size_bytes":%d}`, sha256.Sum256([]byte(content)), len(content)))
}

func TestAnImageIsUploaded(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	octets := []string{"Content-Type", "application/octet-stream"}
	s.want(404, "PUT", "/v1/images/tiny/content", "hello", octets...)
	s.image("hello")
	s.want(200, "PUT", "/v1/images/tiny/content", "hello", octets...)
	if s.imported.String() != "hello" {
		t.Fatalf("got %q", s.imported.String())
	}
	s.want(415, "PUT", "/v1/images/tiny/content", "hello")
	s.want(400, "PUT", "/v1/images/tiny/content", "hell", octets...)
	for _, body := range []io.Reader{strings.NewReader("hell"), endless{}} {
		req := s.request("PUT", "/v1/images/tiny/content", "x", octets...)
		req.Body, req.ContentLength = io.NopCloser(body), -1
		if resp, err := http.DefaultTransport.RoundTrip(req); err == nil {
			if resp.StatusCode != 400 {
				t.Errorf("%T: got %d", body, resp.StatusCode)
			}
			_ = resp.Body.Close()
		}
		if s.imported.Len() > 6 {
			t.Errorf("%T: read %d bytes", body, s.imported.Len())
		}
	}
}

func TestAnUploadGoesOnWhereItBrokeOff(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	octets := []string{"Content-Type", "application/octet-stream"}
	s.image("hello world")
	s.want(400, "PUT", "/v1/images/tiny/content", "hello", octets...)
	req := s.request("PUT", "/v1/images/tiny/content", "hello", octets...)
	req.ContentLength = -1
	if a := s.send(req); a.status != 400 {
		t.Fatalf("half of it: got %d %s", a.status, a.body)
	}
	var have api.Upload
	s.want(200, "GET", "/v1/images/tiny/upload", "").into(t, &have)
	if have.OffsetBytes != 5 || have.SizeBytes != 11 || have.Node != "node1" {
		t.Fatalf("%+v have arrived", have)
	}
	for _, bad := range []string{"bytes 5-9/11", "bytes 5-10/12", "bytes 11-10/11", "bytes -5-10/11", "bytes 5-10", "octets 5-10/11", "bytes x-10/11"} {
		s.want(400, "PUT", "/v1/images/tiny/content", " world", append(octets, "Content-Range", bad)...)
	}
	s.want(200, "PUT", "/v1/images/tiny/content", " world", append(octets, "Content-Range", "bytes 5-10/11")...)
	if got := s.content(); got != "hello world" {
		t.Fatalf("got %q", got)
	}
}

func TestAnImageIsDownloadedInWholeAndInPart(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	octets := []string{"Content-Type", "application/octet-stream"}
	s.image("hello world")
	s.want(200, "PUT", "/v1/images/tiny/content", "hello world", octets...)
	whole := s.want(200, "GET", "/v1/images/tiny/content", "")
	tag := whole.header.Get("ETag")
	if string(whole.body) != "hello world" || tag != fmt.Sprintf(`"%x"`, sha256.Sum256([]byte("hello world"))) {
		t.Fatalf("got %q, %s", whole.body, tag)
	}
	part := s.want(206, "GET", "/v1/images/tiny/content", "", "Range", "bytes=6-", "If-Range", tag)
	if string(part.body) != "world" || part.header.Get("Content-Range") != "bytes 6-10/11" {
		t.Errorf("got %q %v", part.body, part.header)
	}
	if a := s.want(200, "GET", "/v1/images/tiny/content", "", "Range", "bytes=6-", "If-Range", `"another"`); string(a.body) != "hello world" {
		t.Errorf("of another content: got %q", a.body)
	}
	if a := s.want(200, "GET", "/v1/images/tiny/content", "", "Range", "bytes=0-1,3-4,6-7"); string(a.body) != "hello world" {
		t.Errorf("many ranges: got %q", a.body)
	}
	s.want(416, "GET", "/v1/images/tiny/content", "", "Range", "bytes=99-")
	s.want(404, "GET", "/v1/images/other/content", "")
}

func TestFetchAndTemplateAreTasks(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.want(201, "PUT", "/v1/images/far", fmt.Sprintf(`{"format":"raw","sha256":"%064d","url":"https://example.com/far"}`, 1))
	var list struct{ Items []api.Task }
	s.want(200, "GET", "/v1/tasks", "").into(t, &list)
	if len(list.Items) != 1 || list.Items[0].Verb != api.TaskFetch || list.Items[0].Object != "default/far" {
		t.Fatalf("the tasks are %+v", list.Items)
	}
	s.want(409, "POST", "/v1/images/far/fetch", "")
	s.want(200, "POST", "/v1/tasks/"+list.Items[0].Name+"/cancel", "")
	var task api.Task
	s.want(200, "POST", "/v1/images/far/fetch", `{"node":"node1"}`).into(t, &task)
	if task.Verb != api.TaskFetch || string(task.Args) != `{"node":"node1"}` {
		t.Errorf("the task is %+v", task)
	}
	s.image("hello")
	s.want(409, "POST", "/v1/images/tiny/fetch", "")
	s.want(404, "POST", "/v1/vms/web/template", `{"image":"golden"}`)
	s.want(201, "POST", "/v1/vms", vmBody("web"))
	s.want(409, "POST", "/v1/vms/web/template", `{"image":"golden"}`)
	s.want(400, "POST", "/v1/vms/web/template", `{"image":"../x"}`)
	for _, bad := range []string{"http://user:pw@example.com/x", "ftp://example.com/x", "https:///x", "https://example.com/#x", "https://example.com/ x"} {
		a := s.want(400, "PUT", "/v1/images/bad", fmt.Sprintf(`{"format":"raw","sha256":"%064d","url":%q}`, 1, bad))
		if p := a.problem(t); p.Field != "url" || strings.Contains(string(a.body), "pw") {
			t.Errorf("%s: got %s", bad, a.body)
		}
	}
}

func TestABackupSaysWhenItIsComplete(t *testing.T) {
	t.Parallel()
	fail := false
	s := newServer(t, func(c *httpd.Config) {
		whole := c.Backup
		c.Backup = func(ctx context.Context, w io.Writer, passphrase string) error {
			if err := whole(ctx, w, passphrase); err != nil || !fail {
				return err
			}
			_, _ = w.Write(bytes.Repeat([]byte("x"), 1<<20))
			return api.Errorf(api.CodeUnavailable, "the disk broke")
		}
	})
	s.want(400, "POST", "/v1/cluster/backup", `{"passphrase":"short"}`)
	body := `{"passphrase":"correct horse battery"}`
	get := func() (int, string, error) {
		resp, err := http.DefaultTransport.RoundTrip(s.request("POST", "/v1/cluster/backup", body))
		if err != nil {
			return 0, "", err
		}
		defer func() { _ = resp.Body.Close() }()
		_, err = io.ReadAll(resp.Body)
		return resp.StatusCode, resp.Trailer.Get("X-Debvisor-Complete"), err
	}
	if status, complete, err := get(); status != 200 || complete != "true" || err != nil {
		t.Fatalf("got %d, complete %q, %v", status, complete, err)
	}
	fail = true
	if _, complete, err := get(); err == nil || complete == "true" {
		t.Fatalf("a broken backup: complete %q, %v", complete, err)
	}
}

// manyVMs fills a cluster with n VMs.
func manyVMs(tb testing.TB, s *server, n int) {
	tb.Helper()
	batch := make([]fsm.Committed, 0, 256)
	index := s.f.Index()
	for i := range n {
		vm := api.VM{Meta: api.Meta{Name: fmt.Sprintf("vm-%05d", i), Tenant: "default", Labels: map[string]string{"role": "web", "number": fmt.Sprint(i % 100)}},
			CPUs: 2, MemoryBytes: api.GiB, Description: strings.Repeat("d", 100)}
		e, err := fsm.VMs.Put(&vm)
		if err != nil {
			tb.Fatal(err)
		}
		e.Time = time.Now()
		raw, err := e.Encode()
		if err != nil {
			tb.Fatal(err)
		}
		index++
		if batch = append(batch, fsm.Committed{Index: index, Term: 1, Data: raw}); len(batch) == cap(batch) || i == n-1 {
			if _, _, err := s.f.ApplyBatch(batch); err != nil {
				tb.Fatal(err)
			}
			batch = batch[:0]
		}
	}
}

// TestALongListIsOnePage: the benchmark below does it with 20,000 and measures.
func TestALongListIsOnePage(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	manyVMs(t, s, 5000)
	var page struct {
		Items []api.Meta `json:"items"`
		Next  string     `json:"next"`
	}
	s.want(200, "GET", "/v1/vms?limit=50000", "").into(t, &page)
	if len(page.Items) != 5000 || page.Next != "" {
		t.Fatalf("got %d, next %q", len(page.Items), page.Next)
	}
	s.want(200, "GET", "/v1/vms?label=number=7&limit=1000", "").into(t, &page)
	if len(page.Items) != 50 {
		t.Fatalf("got %d", len(page.Items))
	}
}

func BenchmarkList20000VMs(b *testing.B) {
	s := newServer(b)
	manyVMs(b, s, 20_000)
	req := s.request("GET", "/v1/vms?limit=50000", "")
	for b.Loop() {
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(n)
		_ = resp.Body.Close()
	}
}

func BenchmarkPut(b *testing.B) {
	s := newServer(b)
	i := 0
	for b.Loop() {
		i++
		s.want(201, "PUT", fmt.Sprintf("/v1/networks/n-%d", i), netBody)
	}
}

// BenchmarkWake1000 measures from a write to the last of 1,000 answers that
// waited for it.
func BenchmarkWake1000(b *testing.B) {
	s := newServer(b)
	const waiters = 1000
	transport := &http.Transport{MaxIdleConnsPerHost: waiters}
	defer transport.CloseIdleConnections()
	i := 0
	for b.Loop() {
		b.StopTimer()
		i++
		done := make(chan error, waiters)
		before := s.waiting(b)
		for range waiters {
			req := s.request("GET", "/v1/networks?limit=1&wait=10m&index="+u(s.f.Index()), "")
			go func() {
				resp, err := transport.RoundTrip(req)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
				done <- err
			}()
		}
		for s.waiting(b) < before+waiters {
			runtime.Gosched()
		}
		b.StartTimer()
		s.want(201, "PUT", fmt.Sprintf("/v1/networks/n-%d", i), netBody)
		for range waiters {
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		}
	}
}

// waiting is how many blocking queries wait now.
func (s *server) waiting(tb testing.TB) int {
	tb.Helper()
	for line := range strings.Lines(string(s.want(200, "GET", "/metrics", "").body)) {
		var n int
		if _, err := fmt.Sscanf(line, `debvisor_http_open{limit="blocking queries"} %d`, &n); err == nil {
			return n
		}
	}
	tb.Fatal("the metrics lack the blocking queries")
	return 0
}
