package httpd_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
	"github.com/debvisor/debvisor/api/httpd"
	"github.com/debvisor/debvisor/fsm"
)

// sdk is a client of a server over TLS and HTTP/2.
func sdk(t *testing.T, s *server) *client.Client {
	t.Helper()
	ts := httptest.NewUnstartedServer(s.api)
	ts.EnableHTTP2 = true
	ts.StartTLS()
	t.Cleanup(ts.Close)
	c, err := client.New(client.Config{Addresses: []string{ts.URL}, Key: httpd.FormatKey("root", secret), Timeout: patience,
		CACert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ts.Certificate().Raw})})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func aVM(name string) *api.VM {
	return &api.VM{Meta: api.Meta{Name: name}, CPUs: 1, MemoryBytes: 128 * api.MiB, Disks: []api.Disk{{Name: "root", SizeBytes: api.GiB}}}
}

func TestTheClientReachesEveryPart(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	c, ctx := sdk(t, s), t.Context()
	vms := client.Resource[api.VM](c, api.KindVM)
	var plan api.Plan
	if _, err := vms.Put(ctx, aVM("web"), client.AsPlan(&plan)); err != nil || len(plan.Changes) != 2 {
		t.Fatalf("plan: %+v, %v", plan, err)
	}
	vm, err := vms.Put(ctx, aVM("web"))
	if err != nil || vm.Modified == 0 {
		t.Fatalf("create: %+v, %v", vm, err)
	}
	if _, err := vms.Put(ctx, aVM("web")); api.CodeOf(err) != api.CodeConflict {
		t.Fatalf("create again: %v", err)
	}
	vm.CPUs = 2
	if vm, err = vms.Put(ctx, vm); err != nil || vm.CPUs != 2 {
		t.Fatalf("change: %+v, %v", vm, err)
	}
	if d, err := c.Diff(ctx, "vm", "", "web", u(vm.Created), ""); err != nil || len(d.Fields) != 1 {
		t.Fatalf("diff: %+v, %v", d, err)
	}
	if h, err := c.History(ctx, "vm", "default", "web", 0, 0); err != nil || len(h) != 2 {
		t.Fatalf("history: %+v, %v", h, err)
	}
	if w, err := c.Why(ctx, "vm", "", "web"); err != nil || w.Summary == "" {
		t.Fatalf("why: %+v, %v", w, err)
	}
	if done, err := c.Revert(ctx, "vm", "", "web", vm.Created); err != nil || done.Changed != 1 {
		t.Fatalf("revert: %+v, %v", done, err)
	}
	if act, err := c.StopVM(ctx, "", "web", false); err != nil || act.VM.On() {
		t.Fatalf("stop: %+v, %v", act, err)
	}
	if err := vms.Delete(ctx, "", "web", 0); err != nil {
		t.Fatalf("delete: %v", err)
	}
	_, _, err = vms.Get(ctx, "", "web", client.ReadOptions{})
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeNotFound || e.RequestID == "" || e.Key != "default/web" {
		t.Fatalf("read: %#v", err)
	}
	if r, err := c.VerifyAudit(ctx, nil); err != nil || r.Last != 2 {
		t.Fatalf("verify: %+v, %v", r, err)
	}
	if records, err := c.Audit(ctx, 0, 3); err != nil || len(records) != 3 {
		t.Fatalf("audit: %+v, %v", records, err)
	}
	var backup bytes.Buffer
	if err := c.Backup(ctx, "correct horse battery", &backup); err != nil || !strings.HasPrefix(backup.String(), "backup") {
		t.Fatalf("backup: %q, %v", backup.String(), err)
	}
	if token, err := c.CreateJoinToken(ctx, false); err != nil || token.Token == "" {
		t.Fatalf("token: %+v, %v", token, err)
	}
	if v, err := c.Version(ctx); err != nil || v.Node != "node1" {
		t.Fatalf("version: %+v, %v", v, err)
	}
	s.notReady = []string{"no leader"}
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if err := c.Ready(short); err == nil || !strings.Contains(err.Error(), "no leader") {
		t.Fatalf("ready: %v", err)
	}
}

func TestTheClientFollowsChanges(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	c := sdk(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	networks := client.Resource[api.Network](c, api.KindNetwork)
	put := func(name string) {
		if _, err := networks.Put(ctx, &api.Network{Meta: api.Meta{Name: name}, Driver: "bridge", Bridge: "br0"}); err != nil {
			t.Error(err)
		}
	}
	var group sync.WaitGroup
	defer group.Wait()
	seen := 0
	for list, err := range networks.Watch(ctx, client.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		if len(list.Items) == 3 {
			break
		}
		group.Go(func() { put(fmt.Sprint("n", len(list.Items))) })
		if seen++; seen > 10 {
			t.Fatal("woken for nothing")
		}
	}
	group.Wait()
	count := 0
	for r, err := range c.Events(ctx, client.EventOptions{After: 1, Kinds: []string{"network"}}) {
		if err != nil {
			t.Fatal(err)
		}
		if count++; r.Changes[0].Kind != "network" {
			t.Fatalf("got %+v", r)
		}
		if count == 3 {
			break
		}
	}
}

func TestTheClientTalksToAConsoleAndUploads(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	c, ctx := sdk(t, s), t.Context()
	s.want(201, "PUT", "/v1/vms/web", vmBody("web"))
	s.runOn("default/web")
	s.consoles = func() (io.ReadWriteCloser, error) {
		a, b := net.Pipe()
		go func() { _, _ = io.Copy(b, b) }()
		return a, nil
	}
	conn, err := c.Console(ctx, "", "web", true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello" {
		t.Fatalf("got %q, %v", got, err)
	}
	_ = conn.Close()
	content := strings.Repeat("x", 1<<20)
	s.image(content)
	image, err := c.UploadImage(ctx, "", "tiny", int64(len(content)), strings.NewReader(content), nil)
	if err != nil || image.Name != "tiny" || s.imported.Len() != len(content) {
		t.Fatalf("got %+v, %v", image, err)
	}
}

func TestTheClientOutlivesAnElection(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	c := sdk(t, s)
	fails := 5
	s.mu.Lock()
	s.fail = func(fsm.Entry) error {
		if fails--; fails > 0 {
			return []error{api.Errorf(api.CodeNoLeader, "nobody leads"), api.Errorf(api.CodeUnknown, "it was sent")}[fails%2]
		}
		return nil
	}
	s.mu.Unlock()
	if _, err := client.Resource[api.VM](c, api.KindVM).Put(t.Context(), aVM("web")); err != nil {
		t.Fatal(err)
	}
	if n := fsm.VMs.Len(s.f.Read()); n != 1 {
		t.Fatalf("got %d VMs", n)
	}
}

// lockedBuffer collects a log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestTheLogHasRequestIDsAndNoSecrets(t *testing.T) {
	t.Parallel()
	log := &lockedBuffer{}
	s := newServer(t, func(c *httpd.Config) { c.Logger = hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: log}) })
	var key, token api.Secret
	s.want(201, "POST", "/v1/api_keys", `{"name":"ci","role":"admin"}`).into(t, &key)
	s.want(201, "POST", "/v1/join_tokens", `{}`).into(t, &token)
	s.want(200, "POST", "/v1/cluster/backup", `{"passphrase":"a canary passphrase"}`)
	s.want(401, "GET", "/v1/vms", "", "Authorization", "Bearer dvk_root_"+strings.Repeat("c", 52))
	s.want(200, "GET", "/v1/vms", "", "Idempotency-Key", "my-request")
	s.want(400, "PUT", "/v1/vms/web", `{"description":"canary-in-a-body","cpu":1}`)
	for _, canary := range []string{secret, strings.Repeat("c", 52), strings.TrimPrefix(key.Key, "dvk_ci_"), strings.TrimPrefix(token.Token, "dvj_"), "canary"} {
		if strings.Contains(log.String(), canary) {
			t.Errorf("the log has %s", canary)
		}
	}
	if !strings.Contains(log.String(), "request_id=my-request") || !strings.Contains(log.String(), "by=root") {
		t.Errorf("the log lacks the request: %s", log)
	}
}

func TestUploadsAreLimitedInNumber(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.image("hello")
	var group sync.WaitGroup
	var ends []*io.PipeWriter
	for range httpd.UploadsMax {
		r, w := io.Pipe()
		ends = append(ends, w)
		req := s.request("PUT", "/v1/images/tiny/content", "x", "Content-Type", "application/octet-stream")
		req.Body, req.ContentLength = r, -1
		group.Go(func() { s.send(req) })
		_, _ = io.WriteString(w, "h") // returns when the transport has read it
	}
	deadline := time.Now().Add(patience)
	for s.call("PUT", "/v1/images/tiny/content", "hello", "Content-Type", "application/octet-stream").status != 429 {
		if time.Now().After(deadline) {
			t.Fatal("there is no limit")
		}
	}
	for _, w := range ends {
		_, _ = io.WriteString(w, "ello")
		_ = w.Close()
	}
	group.Wait()
	s.want(200, "PUT", "/v1/images/tiny/content", "hello", "Content-Type", "application/octet-stream")
}
