package httpd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/httpd"
	"github.com/debvisor/debvisor/fsm"
)

const nodeID = "00000001-0000-4000-8000-000000000000"

// secret is that of the key "root" of every test.
var secret = strings.Repeat("a", 52)

// fake is a cluster of one that applies straight to its FSM. It is the
// journal, the consoles and the images as well.
type fake struct {
	tb  testing.TB
	f   *fsm.FSM
	mu  sync.Mutex
	log []api.Record // guarded by mu
	now time.Time    // guarded by mu; zero: the clock

	fail     func(fsm.Entry) error // instead of proposing; may be nil
	consoles func() (io.ReadWriteCloser, error)
	stats    fakeStats
	imported bytes.Buffer // guarded by mu while requests run
	notReady []string
	contact  time.Duration
	shutdown chan struct{}
}

func (c *fake) State() *fsm.FSM { return c.f }

func (c *fake) ReadIndex(context.Context) (uint64, error) { return c.f.Index(), nil }

func (c *fake) Propose(_ context.Context, e fsm.Entry) (fsm.Outcome, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fail != nil {
		if err := c.fail(e); err != nil {
			return fsm.Outcome{}, err
		}
	}
	if e.Time = c.now; e.Time.IsZero() {
		e.Time = time.Now().UTC()
	}
	raw, err := e.Encode()
	if err != nil {
		return fsm.Outcome{}, err
	}
	out, yields, err := c.f.ApplyBatch([]fsm.Committed{{Index: c.f.Index() + 1, Term: 1, Data: raw}})
	if err != nil {
		return fsm.Outcome{}, err
	}
	for _, y := range yields {
		c.log = append(c.log, *y.Record)
	}
	if out[0].Err != nil {
		return out[0], out[0].Err
	}
	return out[0], nil
}

func (c *fake) At(_ context.Context, kind, key string, index uint64) (row json.RawMessage, known bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.log {
		for _, ch := range r.Changes {
			if ch.Kind != kind || ch.Key != key {
				continue
			}
			if r.Index > index {
				if !known {
					return ch.Before, true, nil
				}
				return row, true, nil
			}
			row, known = ch.After, true
		}
	}
	return row, known, nil
}

func (c *fake) History(_ context.Context, kind, key string, before uint64, limit int) (out []api.Record, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range slices.Backward(c.log) {
		if before != 0 && r.Index >= before || len(out) == limit {
			continue
		}
		if slices.ContainsFunc(r.Changes, func(ch api.Change) bool { return ch.Kind == kind && ch.Key == key }) {
			out = append(out, r)
		}
	}
	return out, nil
}

func (c *fake) Range(_ context.Context, after, through uint64, limit int) (out []api.Record, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.log {
		if r.Index > after && r.Index <= through && len(out) < limit {
			out = append(out, r)
		}
	}
	return out, nil
}

func (c *fake) Floor() uint64 { return 0 }

func (c *fake) Verify(_ context.Context, progress func(uint64)) (api.AuditReport, error) {
	progress(1)
	return api.AuditReport{Records: 2, First: 1, Last: 2}, nil
}

func (c *fake) Open(context.Context, *api.VM, *api.Instance, httpd.ConsoleOptions) (io.ReadWriteCloser, error) {
	return c.consoles()
}

func (c *fake) Screenshot(_ context.Context, vm *api.VM, _ *api.Instance) ([]byte, error) {
	return []byte("picture of " + vm.Name), nil
}

func (c *fake) Log(_ context.Context, _ *api.VM, i *api.Instance, q api.LogQuery) (*api.ConsoleLog, error) {
	return &api.ConsoleLog{Node: i.Owner, Lines: []string{fmt.Sprintf("%d %s", q.Tail, q.Grep)}}, nil
}

func (c *fake) Arrived(context.Context, *api.Image) (int64, error) {
	return int64(len(c.content())), nil
}

func (c *fake) content() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.imported.String()
}

func (c *fake) OpenImage(_ context.Context, _ *api.Image, offset int64) (io.ReadCloser, int64, error) {
	content := c.content()
	return io.NopCloser(strings.NewReader(content[offset:])), int64(len(content)), nil
}

func (c *fake) Import(_ context.Context, image *api.Image, offset int64, r io.Reader) error {
	var got bytes.Buffer
	got.WriteString(c.content()[:offset])
	_, err := io.Copy(&got, r)
	n := int64(got.Len())
	c.mu.Lock()
	c.imported = got
	c.mu.Unlock()
	if err == nil && n != image.SizeBytes {
		err = api.Invalid("size_bytes", "got %d bytes", n)
	}
	return err
}

// do proposes an entry that must be accepted.
func (c *fake) do(e fsm.Entry) fsm.Outcome {
	c.tb.Helper()
	out, err := c.Propose(context.Background(), e)
	if err != nil {
		c.tb.Fatalf("%s: %v", e.Op, err)
	}
	return out
}

func newFake(tb testing.TB) *fake {
	tb.Helper()
	c := &fake{tb: tb, f: fsm.New(), shutdown: make(chan struct{})}
	c.do(fsm.InitCluster.Entry(fsm.ClusterInit{
		ClusterID: "11111111-1111-4111-8111-111111111111", Region: "here", Version: fsm.VersionMin,
		Node: fsm.NodeJoin{ID: nodeID, Name: "node1", Address: "127.0.0.1:7443"},
		Key:  fsm.KeyCreate{Name: "root", Hash: httpd.HashSecret(secret), Role: api.RoleAdmin},
	}))
	return c
}

func (c *fake) config() httpd.Config {
	return httpd.Config{
		Cluster: c, Journal: c, Consoles: c, Images: c, Stats: c.stats,
		Status: func(context.Context) (*api.ClusterStatus, error) {
			return &api.ClusterStatus{Leader: "node1", Index: c.f.Index(), Members: []api.Member{{Name: "node1"}}}, nil
		},
		Ready: func() []string { return c.notReady },
		Balance: func(_ *fsm.View, now time.Time, movesMax int) api.Balance {
			return api.Balance{At: now, Moves: []api.Move{{VM: "default/web", From: "node1", To: "node2"}}[:min(1, movesMax)]}
		},
		Placements: func(_ *fsm.View, vms []*api.VM) []api.PlannedPlacement {
			out := []api.PlannedPlacement{}
			for _, vm := range vms {
				out = append(out, api.PlannedPlacement{VM: api.Key(vm.Tenant, vm.Name), Decision: api.Decision{Node: "node1", Summary: "the only node"}})
			}
			return out
		},
		Backup: func(_ context.Context, w io.Writer, passphrase string) error {
			_, err := io.WriteString(w, "backup under "+passphrase)
			return err
		},
		Token: func(life time.Duration, witness bool) (fsm.Entry, string, error) {
			secret, hash := httpd.NewSecret()
			return fsm.CreateToken.Entry(fsm.TokenCreate{Name: "token-" + hash[:12], Hash: hash, Witness: witness,
				Expires: time.Now().UTC().Add(life)}), "dvj_" + secret, nil
		},
		LeaderContact: func() time.Duration { return c.contact },
		Node:          "node1", Version: "1.2.3", Shutdown: c.shutdown, Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Error, Output: logTo{c.tb}}),
	}
}

// server is the API of a fake cluster on the loopback interface.
type server struct {
	*fake
	api *httpd.Server
	url string
}

func newServer(tb testing.TB, change ...func(*httpd.Config)) *server {
	tb.Helper()
	return newFake(tb).serve(change...)
}

// serve is the API of one node of the fake cluster.
func (c *fake) serve(change ...func(*httpd.Config)) *server {
	tb := c.tb
	tb.Helper()
	cfg := c.config()
	for _, f := range change {
		f(&cfg)
	}
	h, err := httpd.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	ts := httptest.NewUnstartedServer(h)
	ts.Config = httpd.NewServer(h, nil)
	ts.Start()
	tb.Cleanup(ts.Close)
	return &server{fake: c, api: h, url: ts.URL}
}

// answer is what a request got.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) problem(tb testing.TB) httpd.Problem {
	tb.Helper()
	var p httpd.Problem
	if got := a.header.Get("Content-Type"); got != "application/problem+json" {
		tb.Fatalf("got %d %s %s, want a problem", a.status, got, a.body)
	}
	if err := json.Unmarshal(a.body, &p); err != nil {
		tb.Fatal(err)
	}
	if p.Status != a.status || p.RequestID == "" || p.Message == "" {
		tb.Fatalf("the problem is incomplete: %s", a.body)
	}
	return p
}

func (a answer) into(tb testing.TB, v any) {
	tb.Helper()
	if err := json.Unmarshal(a.body, v); err != nil {
		tb.Fatalf("answer %d %s: %v", a.status, a.body, err)
	}
}

func (s *server) request(method, path, body string, headers ...string) *http.Request {
	s.tb.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, s.url+path, r)
	if err != nil {
		s.tb.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+httpd.FormatKey("root", secret))
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Del(headers[i])
		if headers[i+1] != "" {
			req.Header.Set(headers[i], headers[i+1])
		}
	}
	return req
}

// call sends a request as root; headers are pairs, an empty value removes one.
func (s *server) call(method, path, body string, headers ...string) answer {
	s.tb.Helper()
	return s.send(s.request(method, path, body, headers...))
}

func (s *server) send(req *http.Request) answer {
	s.tb.Helper()
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		s.tb.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		s.tb.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, raw}
}

// want sends a request that must be answered with a status.
func (s *server) want(status int, method, path, body string, headers ...string) answer {
	s.tb.Helper()
	a := s.call(method, path, body, headers...)
	if a.status != status {
		s.tb.Fatalf("%s %s: got %d %s, want %d", method, path, a.status, a.body, status)
	}
	return a
}

func vmBody(name string) string {
	return fmt.Sprintf(`{"name":%q,"cpus":1,"memory_bytes":134217728,"disks":[{"name":"root","size_bytes":1073741824}]}`, name)
}

// runOn makes node1 live and gives it a VM that runs.
func (s *server) runOn(key string) {
	s.tb.Helper()
	s.do(fsm.RegisterNode.Entry(fsm.NodeRegister{ID: nodeID, Nonce: "n", Address: "127.0.0.1:7443"}))
	vm := fsm.VMs.Get(s.f.Read(), key)
	assigned := s.do(fsm.AssignInstance.Entry(fsm.Assignment{VM: vm.ID, Node: "node1", Epoch: 1, Decision: api.Decision{Node: "node1", Summary: "the only node that fits"}}))
	s.do(fsm.ReportInstance.Entry(fsm.InstanceReport{VM: vm.ID, Gen: assigned.Row.(*api.Instance).Gen, Node: "node1", Epoch: 1, State: api.InstanceRunning}))
}

func u(n uint64) string { return fmt.Sprint(n) }

// logTo sends what the server logs to the test.
type logTo struct{ tb testing.TB }

// Write implements io.Writer.
func (l logTo) Write(p []byte) (int, error) {
	l.tb.Logf("log: %s", p)
	return len(p), nil
}
