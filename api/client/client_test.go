package client_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

func serve(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	return s
}

func certificate(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func dial(t *testing.T, timeout time.Duration, servers ...*httptest.Server) *client.Client {
	t.Helper()
	cfg := client.Config{Key: "dvk_test_secret", Timeout: timeout, CACert: certificate(servers[0].Certificate())}
	for _, s := range servers {
		cfg.Addresses = append(cfg.Addresses, s.URL)
	}
	c, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func refuse(w http.ResponseWriter, status int, code api.Code) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("X-Request-Id", "r-1")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, `{"type":"about:blank","status":%d,"code":%q,"message":"no","field":"cpus"}`, status, code)
}

func TestRetriesKeepTheIdempotencyKey(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	keys := map[string]int{}
	h := func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		keys[r.Header.Get("Idempotency-Key")]++
		switch total := keys[r.Header.Get("Idempotency-Key")]; total {
		case 1:
			refuse(w, 503, api.CodeNoLeader)
		case 2:
			refuse(w, 504, api.CodeUnknown)
		case 3:
			panic(http.ErrAbortHandler) // the connection breaks
		default:
			_, _ = io.WriteString(w, `{"name":"web","modified":7}`)
		}
	}
	c := dial(t, 10*time.Second, serve(t, h), serve(t, h))
	vm, err := client.Resource[api.VM](c, "vm").Put(t.Context(), &api.VM{Meta: api.Meta{Name: "web"}})
	if err != nil || vm.Modified != 7 {
		t.Fatalf("got %v, %v", vm, err)
	}
	if len(keys) != 1 || keys[""] != 0 {
		t.Fatalf("the tries used the keys %v, want one", keys)
	}
}

func TestRefusalsAreNotRepeated(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	c := dial(t, 5*time.Second, serve(t, func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		refuse(w, 409, api.CodeConflict)
	}))
	err := client.Resource[api.VM](c, "vm").Delete(t.Context(), "", "web", 3)
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeConflict || e.Field != "cpus" || e.RequestID != "r-1" {
		t.Fatalf("got %#v", err)
	}
	if calls.Load() != 1 {
		t.Fatalf("sent %d times", calls.Load())
	}
}

func TestALostAnswerIsUnknown(t *testing.T) {
	t.Parallel()
	c := dial(t, 300*time.Millisecond, serve(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	_, err := c.StartVM(t.Context(), "", "web")
	if api.CodeOf(err) != api.CodeUnknown || api.AsError(err).RequestID == "" {
		t.Fatalf("a change: got %v, want unknown with its request ID", err)
	}
	if _, err := c.Status(t.Context()); api.CodeOf(err) != api.CodeUnavailable {
		t.Fatalf("a read: got %v, want unavailable", err)
	}
}

func TestAnotherAddressAnswers(t *testing.T) {
	t.Parallel()
	dead := serve(t, func(http.ResponseWriter, *http.Request) {})
	live := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"leader":"node2"}`) })
	c := dial(t, 5*time.Second, dead, live)
	dead.Close()
	status, err := c.Status(t.Context())
	if err != nil || status.Leader != "node2" {
		t.Fatalf("got %v, %v", status, err)
	}
}

func TestAWrongCAIsNamed(t *testing.T) {
	t.Parallel()
	s := serve(t, func(http.ResponseWriter, *http.Request) {})
	c, err := client.New(client.Config{Addresses: []string{s.URL}, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "CA certificate") {
		t.Fatalf("got %v", err)
	}
	for _, bad := range []client.Config{
		{}, {Addresses: []string{"http://x:1"}}, {Addresses: []string{"https://x:1/path"}}, {Addresses: []string{"https://u@x:1"}},
		{Addresses: []string{"x:1"}, CACert: []byte("nothing")}, {Addresses: []string{"x:1"}, CAFile: "/does/not/exist"},
	} {
		if _, err := client.New(bad); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%+v: got %v, want invalid", bad, err)
		}
	}
}

func TestAPlanIsAskedFor(t *testing.T) {
	t.Parallel()
	c := dial(t, 5*time.Second, serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("plan") != "true" || r.Header.Get("If-None-Match") != "*" {
			t.Errorf("got %s %v", r.URL, r.Header)
		}
		_, _ = io.WriteString(w, `{"index":9,"changes":[]}`)
	}))
	var plan api.Plan
	vm, err := client.Resource[api.VM](c, "vms").Put(t.Context(), &api.VM{Meta: api.Meta{Name: "web"}}, client.AsPlan(&plan))
	if err != nil || vm != nil || plan.Index != 9 {
		t.Fatalf("got %v, %v, %+v", vm, err, plan)
	}
}

func TestWatchFollowsTheIndex(t *testing.T) {
	t.Parallel()
	c := dial(t, 5*time.Second, serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch q := r.URL.Query(); q.Get("index") + "/" + q.Get("after") {
		case "/":
			_, _ = io.WriteString(w, `{"items":[],"index":5}`)
		case "5/":
			_, _ = io.WriteString(w, `{"items":[{"name":"a"}],"index":6,"next":"a"}`)
		case "/a": // the second page waits for nothing
			_, _ = io.WriteString(w, `{"items":[{"name":"b"}],"index":6}`)
		default:
			t.Errorf("unexpected %s", r.URL.RawQuery)
		}
	}))
	n := 0
	for list, err := range client.Resource[api.VM](c, "vm").Watch(t.Context(), client.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 2 {
			if list.Index != 6 || len(list.Items) != 2 {
				t.Fatalf("got %+v", list)
			}
			break
		}
	}
}

func TestEventsResumeAfterTheLast(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	c := dial(t, 5*time.Second, serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Debvisor-Index", "4")
		switch calls.Add(1) {
		case 1:
			_, _ = io.WriteString(w, ": beat\n\nid: 5\nevent: change\ndata: {\"index\":5,\"op\":\"vm.put\",\"hash\":\""+strings.Repeat("0", 64)+"\"}\n\n")
		case 2:
			if got := r.URL.Query().Get("index"); got != "5" {
				t.Errorf("resumed after %q, want 5", got)
			}
			_, _ = io.WriteString(w, "event: problem\ndata: {\"code\":\"unauthenticated\",\"message\":\"revoked\"}\n\n")
		}
	}))
	var got []uint64
	var end error
	for r, err := range c.Events(t.Context(), client.EventOptions{}) {
		if err != nil {
			end = err
			continue
		}
		got = append(got, r.Index)
	}
	if fmt.Sprint(got) != "[5]" || api.CodeOf(end) != api.CodeUnauthenticated {
		t.Fatalf("got %v, then %v", got, end)
	}
}

func TestConsoleCarriesBytesBothWays(t *testing.T) {
	t.Parallel()
	c := dial(t, 5*time.Second, serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/vms/gone/console" {
			refuse(w, 404, api.CodeNotFound)
			return
		}
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		conn := websocket.NetConn(context.Background(), ws, websocket.MessageBinary)
		_, _ = io.Copy(conn, conn)
	}))
	conn, err := c.Console(t.Context(), "", "web", true)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello" {
		t.Fatalf("got %q, %v", got, err)
	}
	if _, err := c.Console(t.Context(), "", "gone", false); api.CodeOf(err) != api.CodeNotFound {
		t.Fatalf("a missing VM: got %v", err)
	}
}

func TestANodeThatHangsIsPassedOver(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	hung := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	t.Cleanup(func() { close(release) })
	live := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"leader":"node2"}`) })
	c := dial(t, time.Minute, hung, live)
	status, err := c.Status(t.Context())
	if err != nil || status.Leader != "node2" {
		t.Fatalf("got %v, %v", status, err)
	}
}
