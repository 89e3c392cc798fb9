package httpd_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/httpd"
	"github.com/debvisor/debvisor/fsm"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// later sends a request and delivers its answer.
func (s *server) later(method, path string) <-chan answer {
	out := make(chan answer, 1)
	req := s.request(method, path, "")
	go func() {
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			close(out)
			return
		}
		defer func() { _ = resp.Body.Close() }()
		raw, _ := io.ReadAll(resp.Body)
		out <- answer{resp.StatusCode, resp.Header, raw}
	}()
	return out
}

func receive(t *testing.T, ch <-chan answer) answer {
	t.Helper()
	select {
	case a := <-ch:
		return a
	case <-time.After(patience):
		t.Fatal("no answer")
	}
	return answer{}
}

const netBody = `{"driver":"bridge","bridge":"br0"}`

func TestABlockingQueryWakesForItsKindOnly(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	at := s.f.Index()
	list := s.later("GET", "/v1/networks?index="+u(at)+"&wait=10m")
	object := s.later("GET", "/v1/networks/b?index="+u(at)+"&wait=10m")
	s.want(201, "PUT", "/v1/tenants/t", `{}`) // another kind
	select {
	case a := <-list:
		t.Fatalf("woken by another kind: %s", a.body)
	case <-time.After(50 * time.Millisecond):
	}
	s.want(201, "PUT", "/v1/networks/a", netBody)
	if a := receive(t, list); a.status != 200 || !strings.Contains(string(a.body), `"name":"a"`) {
		t.Fatalf("got %d %s", a.status, a.body)
	}
	s.want(201, "PUT", "/v1/networks/b", netBody)
	if a := receive(t, object); a.status != 200 || !strings.Contains(string(a.body), `"name":"b"`) {
		t.Fatalf("got %d %s", a.status, a.body)
	}
}

func TestABlockingQuerySeesWhatHappenedBefore(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.want(201, "PUT", "/v1/networks/a", netBody)
	at := s.f.Index()
	s.want(204, "DELETE", "/v1/networks/a", "", "If-Match", "*")
	if a := s.want(200, "GET", "/v1/networks?index="+u(at)+"&wait=10m", ""); !strings.Contains(string(a.body), `"items":[]`) {
		t.Fatalf("got %s", a.body)
	}
	s.want(404, "GET", "/v1/networks/a?index="+u(at)+"&wait=10m", "")
}

func TestABlockingQueryEnds(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.want(200, "GET", "/v1/networks?index="+u(s.f.Index())+"&wait=10ms", "")
	var key api.Secret
	s.want(201, "POST", "/v1/api_keys", `{"name":"ci","role":"admin"}`).into(t, &key)
	req := s.request("GET", "/v1/networks?index="+u(s.f.Index())+"&wait=10m", "", "Authorization", "Bearer "+key.Key)
	revoked := make(chan int, 1)
	go func() { revoked <- s.send(req).status }()
	s.want(204, "DELETE", "/v1/api_keys/ci", "")
	select {
	case got := <-revoked:
		if got != 401 {
			t.Errorf("after the key was revoked: got %d", got)
		}
	case <-time.After(patience):
		t.Error("a revoked key goes on waiting")
	}
	wait := s.later("GET", "/v1/networks?index="+u(s.f.Index())+"&wait=10m")
	close(s.shutdown)
	if a := receive(t, wait); a.status != 503 {
		t.Errorf("at shutdown: got %d", a.status)
	}
}

func TestManyBlockingQueriesWake(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	const n = 100
	at := u(s.f.Index())
	var group sync.WaitGroup
	for range n {
		group.Go(func() {
			req := s.request("GET", "/v1/networks?index="+at+"&wait=10m", "")
			if a := s.send(req); a.status != 200 || !strings.Contains(string(a.body), `"name":"a"`) {
				t.Errorf("got %d %s", a.status, a.body)
			}
		})
	}
	s.want(201, "PUT", "/v1/networks/a", netBody)
	group.Wait()
}

func TestStaleAndFreshReads(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.contact = 2 * time.Second
	var page struct {
		Stale bool  `json:"stale"`
		AgeMS int64 `json:"age_ms"`
	}
	s.want(200, "GET", "/v1/nodes?stale=true", "").into(t, &page)
	if !page.Stale || page.AgeMS != 2000 {
		t.Errorf("got %+v", page)
	}
	s.contact = time.Minute
	s.want(503, "GET", "/v1/nodes?stale=true", "")
	s.contact = 0
	fresh := s.later("GET", "/v1/nodes?min_index="+u(s.f.Index()+1))
	s.want(201, "PUT", "/v1/networks/a", netBody)
	if a := receive(t, fresh); a.status != 200 {
		t.Errorf("got %d", a.status)
	}
}

// events reads server-sent events into a channel until the stream ends.
func (s *server) events(ctx context.Context, path string, headers ...string) (<-chan string, *http.Response) {
	s.tb.Helper()
	req := s.request("GET", path, "", headers...).WithContext(ctx)
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		s.tb.Fatal(err)
	}
	out := make(chan string, 100)
	go func() {
		defer close(out)
		defer func() { _ = resp.Body.Close() }()
		name := ""
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			if n, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
				name = n
			}
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				out <- name + " " + data
			}
		}
	}()
	return out, resp
}

func next(t *testing.T, ch <-chan string) string {
	t.Helper()
	select {
	case e := <-ch:
		return e
	case <-time.After(patience):
		t.Fatal("no event")
	}
	return ""
}

func TestEventsAreFilteredAndResume(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	at := s.f.Index()
	s.want(201, "PUT", "/v1/networks/a", `{"driver":"bridge","bridge":"br0","labels":{"role":"web"}}`)
	s.want(201, "POST", "/v1/api_keys", `{"name":"ci","role":"admin"}`)
	s.want(201, "PUT", "/v1/networks/b", netBody)
	first, resp := s.events(t.Context(), "/v1/events?index="+u(at)+"&kind=network")
	if resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("got %v", resp.Header)
	}
	if a, b := next(t, first), next(t, first); !strings.Contains(a, `"default/a"`) || !strings.Contains(b, `"default/b"`) {
		t.Fatalf("got %s, %s", a, b)
	}
	labelled, _ := s.events(t.Context(), "/v1/events?label=role=web", "Last-Event-ID", u(at))
	if a := next(t, labelled); !strings.Contains(a, `"default/a"`) {
		t.Fatalf("got %s", a)
	}
	keys, _ := s.events(t.Context(), "/v1/events?kind=api_key&index="+u(at))
	if a := next(t, keys); strings.Contains(a, `"hash":"`) && strings.Contains(a, httpd.HashSecret(secret)) || strings.Contains(a, `\"hash\"`) {
		t.Fatalf("the stream shows a hash: %s", a)
	}
	s.want(204, "DELETE", "/v1/networks/a", "", "If-Match", "*")
	for name, ch := range map[string]<-chan string{"kind": first, "label": labelled} {
		if e := next(t, ch); !strings.Contains(e, `"before"`) || strings.Contains(e, `"after"`) {
			t.Errorf("%s: got %s, want a deletion", name, e)
		}
	}
}

func TestAStreamEndsWithItsKey(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	var key api.Secret
	s.want(201, "POST", "/v1/api_keys", `{"name":"ci","role":"admin"}`).into(t, &key)
	stream, _ := s.events(t.Context(), "/v1/events?kind=vm", "Authorization", "Bearer "+key.Key)
	began := time.Now()
	s.want(204, "DELETE", "/v1/api_keys/ci", "")
	if e := next(t, stream); !strings.HasPrefix(e, "problem ") || !strings.Contains(e, "unauthenticated") {
		t.Fatalf("got %s", e)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v", took)
	}
	other, _ := s.events(t.Context(), "/v1/events")
	close(s.shutdown)
	if e := next(t, other); !strings.Contains(e, "shutting down") {
		t.Fatalf("got %s", e)
	}
}

// socket opens a WebSocket as root; origin may be empty.
func (s *server) socket(ctx context.Context, path, origin string, protocols ...string) (*websocket.Conn, *http.Response, error) {
	header := http.Header{}
	if len(protocols) == 0 {
		header.Set("Authorization", "Bearer "+httpd.FormatKey("root", secret))
	}
	if origin != "" {
		header.Set("Origin", origin)
	}
	return websocket.Dial(ctx, s.url+path, &websocket.DialOptions{HTTPHeader: header, Subprotocols: protocols})
}

func TestForeignPagesOpenNoStreams(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.want(201, "PUT", "/v1/vms/web", vmBody("web"))
	s.runOn("default/web")
	key := "debvisor.key." + httpd.FormatKey("root", secret)
	host := strings.TrimPrefix(s.url, "http://")
	for _, path := range []string{"/v1/events", "/v1/vms/web/console"} {
		for _, origin := range []string{"https://evil.example", "null", "http://" + host, "https://" + host + ".evil.example", "x"} {
			if _, resp, err := s.socket(t.Context(), path, origin); err == nil || resp.StatusCode != 403 {
				t.Errorf("%s from %q: got %v, want 403", path, origin, resp)
			}
		}
		if _, resp, err := s.socket(t.Context(), path, "", "debvisor", key); err == nil || resp.StatusCode != 403 {
			t.Errorf("%s with a key for browsers and no origin: got %v, want 403", path, resp)
		}
	}
	conn, _, err := s.socket(t.Context(), "/v1/events", "https://"+host, "debvisor", key)
	if err != nil || conn.Subprotocol() != "debvisor" {
		t.Fatalf("the panel itself: %v", err)
	}
	_ = conn.CloseNow()
}

func TestEventsOverAWebSocket(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	conn, _, err := s.socket(t.Context(), "/v1/events?kind=network&index="+u(s.f.Index()), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.CloseNow() }()
	s.want(201, "PUT", "/v1/networks/a", netBody)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		_, data, err := conn.Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var e struct {
			Type   string      `json:"type"`
			Record *api.Record `json:"record"`
		}
		if err := json.Unmarshal(data, &e); err != nil {
			t.Fatal(err)
		}
		if e.Type == "change" {
			if e.Record.Changes[0].Key != "default/a" {
				t.Fatalf("got %s", data)
			}
			return
		}
	}
}

func TestAConsoleJoinsBothSides(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.want(426, "GET", "/v1/vms/web/console", "")
	if _, resp, err := s.socket(t.Context(), "/v1/vms/web/console", ""); err == nil || resp.StatusCode != 404 {
		t.Fatalf("a missing VM: got %v", resp)
	}
	s.want(201, "PUT", "/v1/vms/web", vmBody("web"))
	if _, resp, err := s.socket(t.Context(), "/v1/vms/web/console", ""); err == nil || resp.StatusCode != 409 {
		t.Fatalf("a VM without a host: got %v", resp)
	}
	s.runOn("default/web")
	s.consoles = func() (io.ReadWriteCloser, error) {
		return nil, api.Errorf(api.CodeUnavailable, "the host does not answer")
	}
	if _, resp, err := s.socket(t.Context(), "/v1/vms/web/console", ""); err == nil || resp.StatusCode != 503 {
		t.Fatalf("a host that is away: got %v", resp)
	}
	guests := make(chan net.Conn, 1)
	s.consoles = func() (io.ReadWriteCloser, error) {
		a, b := net.Pipe()
		guests <- b
		return a, nil
	}
	conn, _, err := s.socket(t.Context(), "/v1/vms/web/console?replay=true", "")
	if err != nil {
		t.Fatal(err)
	}
	guest, user := <-guests, websocket.NetConn(t.Context(), conn, websocket.MessageBinary)
	go func() { _, _ = io.WriteString(guest, "login: ") }()
	got := make([]byte, 7)
	if _, err := io.ReadFull(user, got); err != nil || string(got) != "login: " {
		t.Fatalf("got %q, %v", got, err)
	}
	go func() { _, _ = io.WriteString(user, "root\n") }()
	if _, err := io.ReadFull(guest, got[:5]); err != nil || string(got[:5]) != "root\n" {
		t.Fatalf("got %q, %v", got[:5], err)
	}
	close(s.shutdown)
	_ = user.SetReadDeadline(time.Now().Add(patience))
	if _, err := user.Read(got); err == nil {
		t.Fatal("the console goes on after the shutdown")
	}
	if _, err := guest.Read(got); err == nil {
		t.Fatal("the guest's side stays open")
	}
}

func TestAConsoleEndsWithItsKey(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.want(201, "PUT", "/v1/vms/web", vmBody("web"))
	s.runOn("default/web")
	s.consoles = func() (io.ReadWriteCloser, error) { a, _ := net.Pipe(); return a, nil }
	var key api.Secret
	s.want(201, "POST", "/v1/api_keys", `{"name":"ci","role":"admin"}`).into(t, &key)
	conn, _, err := websocket.Dial(t.Context(), s.url+"/v1/vms/web/console", &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + key.Key}}})
	if err != nil {
		t.Fatal(err)
	}
	s.do(fsm.DeleteKey.Entry(fsm.Named{Name: "ci"}))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, _, err := conn.Read(ctx); websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
		t.Fatalf("got %v, want a close for policy within a second", err)
	}
}
