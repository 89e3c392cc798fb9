package cluster_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/rpc"
	"github.com/debvisor/debvisor/cluster"
	"github.com/debvisor/debvisor/fsm"
)

func tryJoin(t *testing.T, n *node, token string) error {
	t.Helper()
	_, err := cluster.Join(t.Context(), n.cfg, cluster.JoinOptions{Token: token, Name: n.name})
	return err
}

func TestATokenAdmitsOneNodeOnce(t *testing.T) {
	t.Parallel()
	c := start(t, 1, nil)
	token := c.token()
	nodes := []*node{newNode(t, "a", nil), newNode(t, "b", nil), newNode(t, "c", nil)}
	errs := make([]error, len(nodes))
	var all sync.WaitGroup
	for i, n := range nodes {
		all.Go(func() { errs[i] = tryJoin(t, n, token) })
	}
	all.Wait()
	admitted := 0
	for _, err := range errs {
		if err == nil {
			admitted++
		} else if api.CodeOf(err) != api.CodeForbidden {
			t.Errorf("refused with %v", err)
		}
	}
	if admitted != 1 {
		t.Fatalf("%d nodes were admitted: %v", admitted, errs)
	}
	if err := tryJoin(t, newNode(t, "d", nil), token); api.CodeOf(err) != api.CodeForbidden {
		t.Fatalf("a used token: %v", err)
	}
}

func TestBadTokensAreRefusedWithTheNextStep(t *testing.T) {
	t.Parallel()
	c := start(t, 1, nil)
	host := c.nodes[0].Self().Address
	good := c.token()
	text, _, _ := strings.Cut(good, "@")

	e, expired, err := c.nodes[0].NewToken(2*time.Second, false)
	if err != nil {
		t.Fatal(err)
	}
	c.must(c.nodes[0], e)
	later := tenant("later") // moves the replicated clock past the token
	later.Time = time.Now().Add(time.Minute).UTC()
	foreign := start(t, 1, nil)
	unmade, _ := func() (string, error) {
		_, text, err := c.nodes[0].NewToken(0, false) // its entry is never proposed
		return text, err
	}()
	for _, bad := range []struct {
		name, token string
		code        api.Code
	}{
		{"no host", text, api.CodeInvalid},
		{"cut short", text[:len(text)-9] + "@" + host, api.CodeInvalid},
		{"not a token", "hello@" + host, api.CodeInvalid},
		{"never made", unmade + "@" + host, api.CodeForbidden},
		{"of another cluster", foreign.token(), api.CodeForbidden},
		{"nobody there", text + "@127.0.0.1:1", api.CodeUnavailable},
	} {
		token := bad.token
		if bad.name == "of another cluster" {
			token, _, _ = strings.Cut(token, "@")
			token += "@" + host
		}
		err := tryJoin(t, newNode(t, "n", nil), token)
		e := api.AsError(err)
		if err == nil || e.Code != bad.code || e.Next == "" && e.Allowed == "" {
			t.Errorf("%s: %v", bad.name, err)
		}
	}
	c.must(c.nodes[0], later)
	if err := tryJoin(t, newNode(t, "n", nil), expired+"@"+host); api.CodeOf(err) != api.CodeForbidden || !strings.Contains(err.Error(), "expired") {
		t.Errorf("expired: %v", err)
	}
	if err := tryJoin(t, newNode(t, "node1", nil), good); err == nil {
		t.Error("a second node of the same name was admitted")
	}
}

func TestAPortInUseIsToldBeforeTheTokenIsSpent(t *testing.T) {
	t.Parallel()
	c := start(t, 1, nil)
	token := c.token()
	n := newNode(t, "n", nil)
	taken := listen(t, "127.0.0.1:0")
	defer func() { _ = taken.Close() }()
	n.cfg.Listener, n.cfg.Listen, n.cfg.Advertise = nil, taken.Addr().String(), taken.Addr().String()
	if err := tryJoin(t, n, token); api.CodeOf(err) != api.CodeUnavailable {
		t.Fatalf("join with a port in use: %v", err)
	}
	n = newNode(t, "n", nil)
	if err := tryJoin(t, n, token); err != nil {
		t.Fatalf("the token was spent: %v", err)
	}
	n.cfg.Listener = nil
	n.cfg.Listen = taken.Addr().String()
	if _, err := cluster.Open(n.cfg); api.CodeOf(err) != api.CodeUnavailable {
		t.Fatalf("open with a port in use: %v", err)
	}
}

func TestJoinThroughAFollowerWorks(t *testing.T) {
	t.Parallel()
	c := start(t, 2, nil)
	text, _, _ := strings.Cut(c.token(), "@")
	n := newNode(t, "late", nil)
	if err := tryJoin(t, n, text+"@"+c.follower().Self().Address); err != nil {
		t.Fatal(err)
	}
	n.open()
	c.ready(n)
}

func TestARemovedNodeLearnsItAndStops(t *testing.T) {
	t.Parallel()
	for _, offline := range []bool{false, true} {
		t.Run(map[bool]string{false: "running", true: "offline"}[offline], func(t *testing.T) {
			t.Parallel()
			c := start(t, 3, nil)
			gone := c.follower()
			id := gone.Self().ID
			if offline {
				gone.kill()
			}
			l := c.waitLeader()
			c.must(l, fsm.RemoveNode.Entry(fsm.NodeRemove{Node: gone.name, Reason: "test"}))
			c.eventually("out of the configuration", func() bool { return c.waitLeader().RemoveServer(t.Context(), id) == nil })
			if offline {
				gone.ended = make(chan struct{})
				gone.fatal = nil
				gone.open()
			}
			select {
			case <-gone.ended:
			case <-time.After(patience):
				t.Fatal("a removed node goes on")
			}
			if f := gone.fatal[0]; f.ExitStatus != cluster.ExitError || !strings.Contains(f.Err.Error(), "removed") {
				t.Fatalf("ended with %+v", f)
			}
			c.eventually("its certificate opens nothing", func() bool {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				_, err := gone.Propose(ctx, tenant("from-the-grave"))
				return err != nil
			})
			if !c.waitLeader().RotationDue() {
				t.Fatal("a voter was removed, and no rotation of the secrets is due")
			}
			if err := c.waitLeader().RotateSecrets(t.Context()); err != nil {
				t.Fatalf("rotate secrets: %v", err)
			}
			if c.waitLeader().RotationDue() || c.waitLeader().Unpromoted() == 0 {
				t.Fatal("the rotation does not count as done")
			}
			keys, err := l.GossipKeys(t.Context())
			if err != nil || len(keys) != 2 {
				t.Fatalf("gossip keys after the rotation: %d %v", len(keys), err)
			}
			if err := c.waitLeader().PromoteGossipKey(t.Context()); err != nil {
				t.Fatal(err)
			}
			if c.waitLeader().Unpromoted() != 0 {
				t.Fatal("the promotion does not count as done")
			}
			if next, err := l.GossipKeys(t.Context()); err != nil || len(next) != 1 || !bytes.Equal(next[0], keys[1]) {
				t.Fatalf("gossip keys after the promotion: %d %v", len(next), err)
			}
		})
	}
}

func TestCertificatesAreRenewedWithoutARestart(t *testing.T) {
	t.Parallel()
	c := start(t, 2, nil)
	n := newNode(t, "replica", func(cfg *cluster.Config) { cfg.CertificateLife = time.Hour })
	c.join(n, false) // it holds no CA key and asks the leader
	for _, m := range []*node{c.waitLeader(), n} {
		before := m.Certificate().Leaf
		if err := m.RenewCertificate(t.Context()); err != nil {
			t.Fatalf("renew on %s: %v", m.name, err)
		}
		after := m.Certificate().Leaf
		if after.SerialNumber.Cmp(before.SerialNumber) == 0 || bytes.Equal(after.RawSubjectPublicKeyInfo, before.RawSubjectPublicKeyInfo) {
			t.Fatal("it is the same certificate")
		}
		if left := time.Until(m.RenewAt()); left < 0 {
			t.Fatalf("due again %v ago", -left)
		}
	}
	n.restart() // from the renewed files
	c.ready(n)
	c.must(n, tenant("after"))
}

func TestThePortAnswersEachProtocolAndNobodyElse(t *testing.T) {
	t.Parallel()
	c := start(t, 1, nil)
	n := c.nodes[0]
	address := n.Self().Address
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }), ReadHeaderTimeout: time.Second}
	go func() { _ = server.Serve(n.HTTP()) }()
	t.Cleanup(func() { _ = server.Close() })
	ca, err := os.ReadFile(cluster.CAFile(n.cfg.DataDir))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	for _, http2 := range []bool{false, true} {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: http2}}
		resp, err := client.Get("https://" + address)
		if err != nil {
			t.Fatalf("http2 %v: %v", http2, err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if want := map[bool]string{false: "HTTP/1.1", true: "HTTP/2.0"}[http2]; string(body) != want {
			t.Fatalf("got %s, want %s", body, want)
		}
	}
	refused := func(what string, config *tls.Config) {
		t.Helper()
		config.RootCAs = pool
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", address, config)
		if err == nil {
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			_, err = conn.Read(make([]byte, 1)) // TLS 1.3 tells a refused certificate only now
			_ = conn.Close()
		}
		if err == nil {
			t.Errorf("%s was let in", what)
		}
	}
	foreign := start(t, 1, nil).nodes[0].Certificate()
	for _, proto := range []string{cluster.ProtocolRPC, cluster.ProtocolRaft, cluster.ProtocolGossip, cluster.ProtocolTunnel} {
		refused(proto+" without a certificate", &tls.Config{NextProtos: []string{proto}})
		refused(proto+" with another cluster's certificate", &tls.Config{NextProtos: []string{proto}, Certificates: []tls.Certificate{*foreign}})
	}
	refused("an unknown protocol", &tls.Config{NextProtos: []string{"gopher"}})
	refused("TLS 1.2", &tls.Config{MaxVersion: tls.VersionTLS12})
	plain, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = plain.Close() }()
	_, _ = plain.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	_ = plain.SetReadDeadline(time.Now().Add(10 * time.Second))
	answer, err := io.ReadAll(plain)
	if ne, ok := err.(net.Error); ok && ne.Timeout() || bytes.Contains(answer, []byte("200")) {
		t.Fatalf("plain text was served: %q %v", answer, err)
	}
	c.must(n, tenant("still-alive"))
}

// A join that was killed after it was admitted is finished by the same command.
func TestAJoinThatWasKilledIsDoneAgain(t *testing.T) {
	t.Parallel()
	c := start(t, 1, nil)
	token, n := c.token(), newNode(t, "killed", nil)
	blocked := n.cfg.DataDir + "/ca.pem" // the first file that is written after the answer
	if err := os.MkdirAll(blocked+"/x", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := tryJoin(t, n, token); err == nil {
		t.Fatal("it joined without a CA")
	}
	if err := os.RemoveAll(blocked); err != nil {
		t.Fatal(err)
	}
	if err := tryJoin(t, newNode(t, "other", nil), token); api.CodeOf(err) != api.CodeForbidden {
		t.Fatalf("another machine with the same token: %v", err)
	}
	if err := tryJoin(t, n, token); err != nil {
		t.Fatalf("again: %v", err)
	}
	if _, err := os.Stat(n.cfg.DataDir + "/joining.json"); !os.IsNotExist(err) {
		t.Fatalf("a finished join leaves its key behind: %v", err)
	}
	n.open()
	c.ready(n)
}

// Who a member is can be read from its certificate. That must not let a
// stranger write to the log.
func TestAStrangerWritesNothingToTheLog(t *testing.T) {
	t.Parallel()
	c := start(t, 1, nil)
	l := c.nodes[0]
	pool := x509.NewCertPool()
	ca, err := os.ReadFile(cluster.CAFile(l.cfg.DataDir))
	if err != nil {
		t.Fatal(err)
	}
	pool.AppendCertsFromPEM(ca)
	conn, err := rpc.Connect(func(ctx context.Context) (net.Conn, error) {
		d := tls.Dialer{Config: &tls.Config{RootCAs: pool, NextProtos: []string{cluster.ProtocolJoin}}}
		return d.DialContext(ctx, "tcp", l.Self().Address)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	before := l.State().Index()
	in := &rpc.Joining{Token: strings.Repeat("junk", 1000), Secret: strings.Repeat("ab", 32), NodeID: l.Self().ID, Name: l.name,
		Address: l.Self().Address, Request: request}
	if _, err := rpc.CallJoin(t.Context(), conn, in); api.CodeOf(err) != api.CodeForbidden {
		t.Errorf("a stranger's join: %v", err)
	}
	if after := l.State().Index(); after != before {
		t.Errorf("the log grew from %d to %d", before, after)
	}
}

// Connections that prove nothing are few and do not stay: nodes get in beside
// them, and a join does when they are gone.
func TestIdleStrangersDoNotKeepTheDoorShut(t *testing.T) {
	t.Parallel()
	c := start(t, 1, nil)
	address := c.nodes[0].Self().Address
	config := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{cluster.ProtocolJoin}}
	shut := false
	for i := 0; i < 200 && !shut; i++ {
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", address, config)
		if err != nil {
			shut = true
			break
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		_, err = conn.Read(make([]byte, 1024)) // a connection that is served begins with HTTP/2's settings
		ne, late := err.(net.Error)
		shut = err != nil && !(late && ne.Timeout())
	}
	if !shut {
		t.Fatal("200 strangers were let in at once")
	}
	if _, err := c.nodes[0].ReadIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := newNode(t, "patient", nil)
	token := c.token()
	c.eventually("a join gets in", func() bool { return tryJoin(t, n, token) == nil })
}
