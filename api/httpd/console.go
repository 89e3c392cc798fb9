package httpd

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// consoleBytesMax is the longest message of a console's client.
const consoleBytesMax = 64 << 10

type consoleInput struct {
	Name   string `path:"name" maxLength:"63" doc:"name of the VM"`
	Tenant string `query:"tenant" maxLength:"63" doc:"of the VM; default when left out"`
	Replay bool   `query:"replay" doc:"send first what the guest printed before"`
}

// console joins a WebSocket and the guest's serial console until either ends,
// the key is revoked, or the node shuts down.
func (x *exchange) console(in *consoleInput) error {
	if !upgrade(x.r) {
		return withStatus(http.StatusUpgradeRequired, api.Errorf(api.CodeInvalid, "this route is a WebSocket").Do("use: debvisor vm console NAME"))
	}
	if err := x.checkOrigin(); err != nil {
		return err
	}
	view, err := x.barrier(ReadOptions{})
	if err != nil {
		return err
	}
	key := api.Key(x.tenant, in.Name)
	vm := fsm.VMs.Get(view, key)
	if vm == nil {
		return api.Errorf(api.CodeNotFound, "does not exist").On(api.KindVM, key)
	}
	instance := fsm.Instances.Get(view, vm.ID)
	if instance == nil || instance.Owner == "" {
		return api.Errorf(api.CodeConflict, "has no host, so there is no console").On(api.KindVM, key).Do("see why with: debvisor why vm/%s", in.Name)
	}
	x.leaveSlot()
	leave, err := x.s.streams.enter()
	if err != nil {
		return err
	}
	defer leave()
	// The request's context does not outlive the upgrade.
	ctx, cancel := context.WithCancel(context.WithoutCancel(x.ctx()))
	defer cancel()
	guest, err := x.s.cfg.Consoles.Open(ctx, vm, instance, in.Replay)
	if err != nil {
		return err
	}
	defer func() { _ = guest.Close() }()
	conn, err := x.accept()
	if err != nil {
		return nil //nolint:nilerr // Accept has answered
	}
	conn.SetReadLimit(consoleBytesMax)
	x.pump(ctx, conn, guest)
	return nil
}

func (x *exchange) accept() (*websocket.Conn, error) {
	return websocket.Accept(x.w, x.r, &websocket.AcceptOptions{
		Subprotocols:       []string{streamProtocol},
		InsecureSkipVerify: true, // checkOrigin has looked, more strictly
	})
}

// pump copies both ways until one side ends, or the console must.
func (x *exchange) pump(ctx context.Context, conn *websocket.Conn, guest io.ReadWriteCloser) {
	ctx, cancel := context.WithCancel(ctx)
	ended, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() {
		defer stop()
		toGuest(ctx, guest, conn)
	})
	group.Go(func() {
		defer stop()
		fromGuest(ctx, conn, guest)
	})
	status, reason := x.untilCut(ended)
	_ = guest.Close()
	_ = conn.Close(status, reason)
	cancel()
	group.Wait()
}

func toGuest(ctx context.Context, guest io.Writer, conn *websocket.Conn) {
	for {
		_, data, err := conn.Read(ctx)
		if err != nil {
			return
		}
		if _, err := guest.Write(data); err != nil {
			return
		}
	}
}

func fromGuest(ctx context.Context, conn *websocket.Conn, guest io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := guest.Read(buf)
		if n > 0 && sendBytes(ctx, conn, buf[:n]) != nil || err != nil {
			return
		}
	}
}

func sendBytes(ctx context.Context, conn *websocket.Conn, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, WriteIdleMax)
	defer cancel()
	return conn.Write(ctx, websocket.MessageBinary, data)
}

// untilCut blocks until one side of the console has ended, or the key is
// revoked, or the node shuts down. It says how to close the WebSocket.
func (x *exchange) untilCut(ended context.Context) (websocket.StatusCode, string) {
	check := time.NewTicker(rightsCheckInterval)
	defer check.Stop()
	for {
		view := x.s.cfg.Cluster.State().Read()
		if err := x.stillIn(view); err != nil {
			return websocket.StatusPolicyViolation, "the key was revoked or has expired"
		}
		select {
		case <-ended.Done():
			return websocket.StatusNormalClosure, "the console ended"
		case <-x.keyWatch(view):
		case <-check.C:
		case <-x.s.cfg.Shutdown:
			return websocket.StatusGoingAway, "this node is shutting down"
		}
	}
}
