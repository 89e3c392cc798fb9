package httpd_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/httpd"
	"github.com/debvisor/debvisor/fsm"
)

// consoleServer has two VMs that run, with consoles that say "hi".
func consoleServer(t *testing.T, change ...func(*httpd.Config)) *server {
	t.Helper()
	s := newServer(t, change...)
	for _, name := range []string{"web", "db"} {
		s.want(201, "PUT", "/v1/vms/"+name, vmBody(name))
	}
	s.runOn("default/web")
	s.assign("default/db", "node1", 0)
	s.consoles = func() (io.ReadWriteCloser, error) {
		a, b := net.Pipe()
		t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
		go func() { _, _ = io.WriteString(b, "hi") }()
		return a, nil
	}
	return s
}

func (s *server) assign(key, node string, gen uint64) {
	s.tb.Helper()
	s.do(fsm.AssignInstance.Entry(fsm.Assignment{VM: fsm.VMs.Get(s.f.Read(), key).ID, Node: node, Epoch: 1, Gen: gen,
		Decision: api.Decision{Node: node, Summary: "the only node that fits"}}))
}

func (s *server) ticket(vm, kind string, headers ...string) api.ConsoleTicket {
	s.tb.Helper()
	var out api.ConsoleTicket
	s.want(201, "POST", "/v1/vms/"+vm+"/console-ticket", `{"kind":"`+kind+`"}`, headers...).into(s.tb, &out)
	return out
}

// shows opens a WebSocket without a key and returns the status that it got;
// 101 when the console said "hi".
func (s *server) shows(path string, header http.Header, protocols ...string) int {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(s.tb.Context(), patience)
	defer cancel()
	conn, resp, err := websocket.Dial(ctx, s.url+path, &websocket.DialOptions{HTTPHeader: header, Subprotocols: protocols})
	if err != nil {
		if resp == nil {
			s.tb.Fatalf("%s: %v", path, err)
		}
		return resp.StatusCode
	}
	defer func() { _ = conn.CloseNow() }()
	if _, data, err := conn.Read(ctx); err != nil || string(data) != "hi" {
		s.tb.Fatalf("%s: got %q, %v", path, data, err)
	}
	return 101
}

func TestATicketOpensOneConsoleOnce(t *testing.T) {
	t.Parallel()
	s := consoleServer(t)
	for kind, path := range map[string]string{"serial": "/v1/vms/web/console", "vnc": "/v1/vms/web/vnc"} {
		k := s.ticket("web", kind)
		if k.Path != path || k.Node != "node1" || k.Kind != kind || time.Until(k.Expires) > api.TicketLife {
			t.Errorf("got %+v", k)
		}
		if got := s.shows(k.Path, nil, "binary", "debvisor.ticket."+k.Ticket); got != 101 {
			t.Errorf("%s: got %d", kind, got)
		}
		if got := s.shows(k.Path, nil, "debvisor.ticket."+k.Ticket); got != 401 {
			t.Errorf("%s again: got %d, want 401", kind, got)
		}
		k = s.ticket("web", kind)
		if got := s.shows(k.Path+"?ticket="+k.Ticket, nil); got != 101 {
			t.Errorf("%s in the query: got %d", kind, got)
		}
	}
	s.want(404, "POST", "/v1/vms/none/console-ticket", `{"kind":"vnc"}`)
	s.want(400, "POST", "/v1/vms/web/console-ticket", `{"kind":"spice"}`)
	// A ticket opens consoles and nothing else.
	k := s.ticket("web", "serial")
	for _, path := range []string{"/v1/vms/web/screenshot", "/v1/events"} {
		if a := s.send(s.request("GET", path, "", "Authorization", "", "Sec-WebSocket-Protocol", "debvisor.ticket."+k.Ticket)); a.status != 401 {
			t.Errorf("%s with a ticket: got %d, want 401", path, a.status)
		}
	}
}

func TestATicketIsBoundToKeyVMKindAndPage(t *testing.T) {
	t.Parallel()
	s := consoleServer(t)
	var key api.Secret
	s.want(201, "POST", "/v1/api_keys", `{"name":"ci","role":"admin"}`).into(t, &key)
	mine := []string{"Authorization", "Bearer " + key.Key}
	for name, c := range map[string]struct {
		path   string
		header http.Header
		want   int
	}{
		"another VM":        {"/v1/vms/db/console", nil, 403},
		"another kind":      {"/v1/vms/web/vnc", nil, 403},
		"a missing VM":      {"/v1/vms/none/console", nil, 403},
		"another key":       {"/v1/vms/web/console", http.Header{"Authorization": {"Bearer " + httpd.FormatKey("root", secret)}}, 403},
		"a bad key":         {"/v1/vms/web/console", http.Header{"Authorization": {"Bearer x"}}, 401},
		"its own key":       {"/v1/vms/web/console", http.Header{"Authorization": {"Bearer " + key.Key}}, 101},
		"a foreign page":    {"/v1/vms/web/console", http.Header{"Origin": {"https://evil.example"}}, 403},
		"this node's page":  {"/v1/vms/web/console", http.Header{"Origin": {"https://" + strings.TrimPrefix(s.url, "http://")}}, 101},
		"no page, a script": {"/v1/vms/web/console", nil, 101},
	} {
		k := s.ticket("web", "serial", mine...)
		if got := s.shows(c.path, c.header, "debvisor.ticket."+k.Ticket); got != c.want {
			t.Errorf("%s: got %d, want %d", name, got, c.want)
		}
		// Right or wrong, it was shown: it is used up. A bad key is refused
		// before anybody looks at the ticket.
		if got := s.shows("/v1/vms/web/console", nil, "debvisor.ticket."+k.Ticket); name != "a bad key" && got != 401 {
			t.Errorf("after %s: got %d, want 401", name, got)
		}
		httpd.ForgetGuesses(s.api) // this test shows bad ones on purpose
	}
	k := s.ticket("web", "serial", mine...)
	s.want(204, "DELETE", "/v1/api_keys/ci", "")
	if got := s.shows(k.Path, nil, "debvisor.ticket."+k.Ticket); got != 401 {
		t.Errorf("after its key was revoked: got %d, want 401", got)
	}
}

func TestConsolesOpenedWithATicketEndWithItsKey(t *testing.T) {
	t.Parallel()
	s := consoleServer(t)
	var key api.Secret
	s.want(201, "POST", "/v1/api_keys", `{"name":"ci","role":"admin"}`).into(t, &key)
	k := s.ticket("web", "vnc", "Authorization", "Bearer "+key.Key)
	conn, _, err := websocket.Dial(t.Context(), s.url+k.Path, &websocket.DialOptions{Subprotocols: []string{"binary", "debvisor.ticket." + k.Ticket}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.CloseNow() }()
	if conn.Subprotocol() != "binary" {
		t.Errorf("the subprotocol is %q, want binary", conn.Subprotocol())
	}
	s.do(fsm.DeleteKey.Entry(fsm.Named{Name: "ci"}))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		if _, _, err := conn.Read(ctx); err != nil {
			if websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
				t.Errorf("got %v, want a close for policy", err)
			}
			return
		}
	}
}

func TestTicketsExpire(t *testing.T) {
	t.Parallel()
	s := consoleServer(t)
	k := s.ticket("web", "serial")
	httpd.AgeTickets(s.api, api.TicketLife)
	if got := s.shows(k.Path, nil, "debvisor.ticket."+k.Ticket); got != 401 {
		t.Errorf("got %d, want 401", got)
	}
}

func TestTicketsAreNotGuessed(t *testing.T) {
	t.Parallel()
	s := consoleServer(t)
	good := s.ticket("web", "serial")
	bad := []string{"x", "dvt_", "dvt_node1_", "dvt_node1_" + strings.Repeat("A", 52), "dvt_other_" + strings.Repeat("A", 52),
		good.Ticket[:len(good.Ticket)-1], good.Ticket + "A", strings.ToLower(good.Ticket)}
	for i := range httpd.GuessesMax {
		if got := s.shows("/v1/vms/web/console", nil, "debvisor.ticket."+bad[i%len(bad)]); got != 401 {
			t.Fatalf("guess %d, %q: got %d, want 401", i, bad[i%len(bad)], got)
		}
	}
	if got := s.shows("/v1/vms/web/console", nil, "debvisor.ticket."+good.Ticket); got != 429 {
		t.Errorf("after %d guesses: got %d, want 429", httpd.GuessesMax, got)
	}
	httpd.AgeTickets(s.api, httpd.GuessWindow) // the good one ends, too
	good = s.ticket("web", "serial")
	if got := s.shows("/v1/vms/web/console", nil, "debvisor.ticket."+good.Ticket); got != 101 {
		t.Errorf("after the window: got %d", got)
	}
}

func TestUnusedTicketsAreBounded(t *testing.T) {
	t.Parallel()
	s := consoleServer(t)
	for range httpd.TicketsPerKeyMax {
		s.ticket("web", "serial")
	}
	s.want(429, "POST", "/v1/vms/web/console-ticket", `{"kind":"serial"}`)
	httpd.AgeTickets(s.api, api.TicketLife)
	s.ticket("web", "serial")
}

func TestTicketsGoThroughAnyNode(t *testing.T) {
	t.Parallel()
	issuer := consoleServer(t)
	var asked []string
	other := issuer.serve(func(c *httpd.Config) {
		c.Node = "node2"
		c.Redeem = func(_ context.Context, node string, claim httpd.TicketClaim) (httpd.TicketGrant, error) {
			asked = append(asked, node+" "+claim.Hash)
			return issuer.api.RedeemTicket(claim)
		}
	})
	k := issuer.ticket("web", "vnc")
	if got := other.shows(k.Path, nil, "debvisor.ticket."+k.Ticket); got != 101 {
		t.Errorf("got %d", got)
	}
	for path, node := range map[*server]string{issuer: "here", other: "there"} {
		if got := path.shows(k.Path, nil, "debvisor.ticket."+k.Ticket); got != 401 {
			t.Errorf("used again, %s: got %d, want 401", node, got)
		}
	}
	if len(asked) != 2 || !strings.HasPrefix(asked[0], "node1 ") || strings.Contains(asked[0], k.Ticket[len(k.Ticket)-52:]) {
		t.Errorf("the issuing node was asked with %q: once for each try, and without the secret", asked)
	}
}

func TestTicketsStayOutOfLogs(t *testing.T) {
	t.Parallel()
	log := &safeBuffer{}
	s := consoleServer(t, func(c *httpd.Config) {
		c.Logger = hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: log})
	})
	k := s.ticket("web", "serial")
	if got := s.shows(k.Path+"?ticket="+k.Ticket, nil); got != 101 {
		t.Fatalf("got %d", got)
	}
	a := s.send(s.request("GET", k.Path+"?ticket="+k.Ticket, "", "Authorization", ""))
	if strings.Contains(string(a.body), k.Ticket) {
		t.Errorf("the answer repeats the ticket: %s", a.body)
	}
	close(s.shutdown)
	for deadline := time.Now().Add(patience); strings.Count(log.String(), "path=/v1/vms/web/console ") < 2; {
		if time.Now().After(deadline) {
			t.Fatalf("the log lacks the requests: %s", log.String())
		}
		<-time.After(time.Millisecond)
	}
	for _, form := range []string{k.Ticket[len(k.Ticket)-52:], base64.StdEncoding.EncodeToString([]byte(k.Ticket))} {
		if strings.Contains(log.String(), form) {
			t.Errorf("the log has the ticket: %s", log.String())
		}
	}
}

// safeBuffer takes what a log writes while it is read.
type safeBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestAConsoleSaysWhenItsVMMoved(t *testing.T) {
	t.Parallel()
	s := consoleServer(t)
	s.want(201, "PUT", "/v1/vms/light", `{"cpus":1,"memory_bytes":134217728}`) // nothing keeps it on its node
	s.assign("default/light", "node1", 0)
	conn, _, err := s.socket(t.Context(), "/v1/vms/light/console", "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.CloseNow() }()
	s.do(fsm.CreateToken.Entry(fsm.TokenCreate{Name: "token-1", Hash: httpd.HashSecret(secret), Expires: time.Now().Add(time.Hour)}))
	const id = "00000002-0000-4000-8000-000000000000"
	s.do(fsm.JoinNode.Entry(fsm.NodeJoin{ID: id, Name: "node2", Address: "127.0.0.1:7444", TokenHash: httpd.HashSecret(secret)}))
	s.do(fsm.RegisterNode.Entry(fsm.NodeRegister{ID: id, Nonce: "n", Address: "127.0.0.1:7444"}))
	s.do(fsm.ConfirmOffNode.Entry(fsm.NodeConfirmOff{Node: "node1", Epoch: 1}))
	s.assign("default/light", "node2", fsm.Instances.Get(s.f.Read(), fsm.VMs.Get(s.f.Read(), "default/light").ID).Gen)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		if _, _, err := conn.Read(ctx); err != nil {
			if websocket.CloseStatus(err) != api.ConsoleMoved || !strings.Contains(err.Error(), "node2") {
				t.Errorf("got %v, want status %d that names node2", err, api.ConsoleMoved)
			}
			return
		}
	}
}

func TestScreenshotsAndLogsAreAnswered(t *testing.T) {
	t.Parallel()
	s := consoleServer(t)
	if a := s.want(200, "GET", "/v1/vms/web/screenshot", ""); string(a.body) != "picture of web" || a.header.Get("Content-Type") != "image/png" {
		t.Errorf("got %s, %v", a.body, a.header)
	}
	if a := s.want(200, "GET", "/v1/vms/web/log?tail=7&grep=a.b", ""); !strings.Contains(string(a.body), `"7 a.b"`) {
		t.Errorf("got %s", a.body)
	}
	s.want(404, "GET", "/v1/vms/none/screenshot", "")
	s.want(404, "GET", "/v1/vms/none/log", "")
	for _, bad := range []string{"tail=0", "tail=10001", "tail=x", "grep=" + strings.Repeat("a", 513), "since=1h"} {
		s.want(400, "GET", "/v1/vms/web/log?"+bad, "")
	}
}
