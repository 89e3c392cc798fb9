package cluster_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"image/png"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/e2e/cluster/harness"
	"github.com/debvisor/debvisor/plugins/plugintest"
)

// TestConsolesThroughAnyNode asks one node for a ticket and opens a display on
// another, of a guest on the third.
func TestConsolesThroughAnyNode(t *testing.T) {
	t.Parallel()
	c := harness.Start(t, harness.Options{})
	c.Must("vm", "create", "web", "--cpus", "1", "--memory", "128MiB", "--wait")
	c.Must("vm", "console", "web", "--replay", "--no-input", "--until", "GUEST-READY", "--timeout", "1m")
	vm := c.Client(20 * time.Second)
	var owner api.VM
	if _, err := vm.Call(t.Context(), http.MethodGet, "/v1/vms/web", nil, nil, &owner); err != nil {
		t.Fatal(err)
	}
	var instance api.Instance
	if _, err := vm.Call(t.Context(), http.MethodGet, "/v1/instances/"+owner.ID, nil, nil, &instance); err != nil {
		t.Fatal(err)
	}
	others := c.Others(c.Node(instance.Owner))
	ticket, err := c.Client(20*time.Second, others[0]).ConsoleTicket(t.Context(), "", "web", api.ConsoleVNC)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := openWithTicket(ctx, t, c, others[1], ticket)
	if err != nil {
		t.Fatalf("the display through %s with a ticket of %s: %v", others[1].Name, others[0].Name, err)
	}
	display := websocket.NetConn(ctx, conn, websocket.MessageBinary)
	viewer, err := plugintest.NewViewer(display)
	if err != nil {
		t.Fatal(err)
	}
	if frame, err := viewer.Frame(); err != nil || !strings.Contains(viewer.Name, "default.web") {
		t.Errorf("a picture %v of %q: %v", frame.Bounds(), viewer.Name, err)
	}
	for _, node := range c.Nodes {
		if _, err := openWithTicket(ctx, t, c, node, ticket); err == nil || !strings.Contains(err.Error(), "401") {
			t.Errorf("the used ticket through %s: %v, want 401", node.Name, err)
		}
	}
	picture := filepath.Join(t.TempDir(), "web.png")
	for _, node := range c.Nodes {
		c.Must("vm", "screenshot", "web", "-f", picture, "--addr", node.Address)
		raw, err := os.ReadFile(picture)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := png.Decode(bytes.NewReader(raw)); err != nil {
			t.Errorf("the picture through %s: %v", node.Name, err)
		}
		if out := c.Must("vm", "log", "web", "--grep", "GUEST-READY", "--addr", node.Address).Stdout; strings.Count(out, "\n") != 1 {
			t.Errorf("the log through %s: %q", node.Name, out)
		}
		if raw, err := os.ReadFile(node.LogFile()); err != nil || bytes.Contains(raw, []byte(ticket.Ticket[len(ticket.Ticket)-52:])) {
			t.Errorf("the log of %s has the ticket: %v", node.Name, err)
		}
	}
}

func openWithTicket(ctx context.Context, t *testing.T, c *harness.Cluster, node *harness.Node, ticket *api.ConsoleTicket) (*websocket.Conn, error) {
	t.Helper()
	ca, err := os.ReadFile(c.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	defer transport.CloseIdleConnections()
	conn, resp, err := websocket.Dial(ctx, "https://"+node.Address+ticket.Path, &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: transport}, Subprotocols: []string{"binary", "debvisor.ticket." + ticket.Ticket}})
	if err != nil && resp != nil {
		err = fmt.Errorf("status %d: %w", resp.StatusCode, err)
	}
	return conn, err
}
