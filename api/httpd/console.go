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

// catchUpMax is how long the end of a console waits for the reason of it.
const catchUpMax = time.Second

// displayProtocol is the subprotocol that VNC viewers in browsers ask for.
const displayProtocol = "binary"

type consoleInput struct {
	Name   string `path:"name" maxLength:"63" doc:"name of the VM"`
	Tenant string `query:"tenant" maxLength:"63" doc:"of the VM; default when left out"`
	Replay bool   `query:"replay" doc:"send first what the guest printed before"`
	Ticket string `query:"ticket" maxLength:"192" doc:"a console ticket instead of a key; better sent as the subprotocol debvisor.ticket.TICKET"`
}

type displayInput struct {
	Name   string `path:"name" maxLength:"63" doc:"name of the VM"`
	Tenant string `query:"tenant" maxLength:"63" doc:"of the VM; default when left out"`
	Ticket string `query:"ticket" maxLength:"192" doc:"a console ticket instead of a key; better sent as the subprotocol debvisor.ticket.TICKET"`
}

// placedVM finds a VM that has a host.
func (x *exchange) placedVM(name string) (*api.VM, *api.Instance, error) {
	view, err := x.barrier(ReadOptions{})
	if err != nil {
		return nil, nil, err
	}
	key := api.Key(x.tenant, name)
	vm := fsm.VMs.Get(view, key)
	if vm == nil {
		return nil, nil, api.Errorf(api.CodeNotFound, "does not exist").On(api.KindVM, key)
	}
	if x.ticketVM != "" && vm.ID != x.ticketVM {
		return nil, nil, foreignTicket() // another VM has this name now
	}
	instance := fsm.Instances.Get(view, vm.ID)
	if instance == nil || instance.Owner == "" {
		return nil, nil, api.Errorf(api.CodeConflict, "has no host, so there is nothing to see").On(api.KindVM, key).Do("see why with: debvisor why vm/%s", name)
	}
	return vm, instance, nil
}

// console joins a WebSocket and the guest's serial console.
func (x *exchange) console(in *consoleInput) error {
	return x.openConsole(in.Name, ConsoleOptions{Kind: api.ConsoleSerial, Replay: in.Replay}, streamProtocol)
}

// display joins a WebSocket and the guest's display.
func (x *exchange) display(in *displayInput) error {
	return x.openConsole(in.Name, ConsoleOptions{Kind: api.ConsoleVNC}, displayProtocol, streamProtocol)
}

// openConsole joins both until either ends, the VM moves, the key is revoked,
// or the node shuts down.
func (x *exchange) openConsole(name string, o ConsoleOptions, protocols ...string) error {
	if !upgrade(x.r) {
		return withStatus(http.StatusUpgradeRequired, api.Errorf(api.CodeInvalid, "this route is a WebSocket").Do("use: debvisor vm console NAME"))
	}
	if err := x.checkOrigin(); err != nil {
		return err
	}
	vm, instance, err := x.placedVM(name)
	if err != nil {
		return err
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
	guest, err := x.s.cfg.Consoles.Open(ctx, vm, instance, o)
	if err != nil {
		return err
	}
	defer func() { _ = guest.Close() }()
	conn, err := x.accept(protocols...)
	if err != nil {
		return nil //nolint:nilerr // Accept has answered
	}
	conn.SetReadLimit(consoleBytesMax)
	x.pump(ctx, conn, guest, instance)
	return nil
}

func (x *exchange) accept(protocols ...string) (*websocket.Conn, error) {
	return websocket.Accept(x.w, x.r, &websocket.AcceptOptions{
		Subprotocols:       protocols,
		InsecureSkipVerify: true, // checkOrigin has looked, more strictly
	})
}

// pump copies both ways until one side ends, or the console must.
func (x *exchange) pump(ctx context.Context, conn *websocket.Conn, guest io.ReadWriteCloser, instance *api.Instance) {
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
	status, reason := x.untilCut(ended, instance)
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

// catchUp makes the local replica as new as the cluster, if that is possible
// soon.
func (x *exchange) catchUp() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(x.ctx()), catchUpMax)
	defer cancel()
	if index, err := x.s.cfg.Cluster.ReadIndex(ctx); err == nil {
		_ = x.s.cfg.Cluster.State().Wait(ctx, index) // what is here has to do
	}
}

// untilCut blocks until one side of the console has ended, or the VM has
// another owner, or the key is revoked, or the node shuts down. It says how to
// close the WebSocket.
func (x *exchange) untilCut(ended context.Context, instance *api.Instance) (websocket.StatusCode, string) {
	check := time.NewTicker(rightsCheckInterval)
	defer check.Stop()
	for {
		over := ended.Err() != nil
		if over {
			x.catchUp() // the end of a guest that moved may be heard before the move
		}
		view := x.s.cfg.Cluster.State().Read()
		now := fsm.Instances.Get(view, instance.Name)
		switch err := x.stillIn(view); {
		case err != nil:
			return websocket.StatusPolicyViolation, "the key was revoked or has expired"
		case now != nil && now.Owner != "" && now.Owner != instance.Owner:
			return api.ConsoleMoved, "the VM moved to node " + now.Owner
		case over:
			return websocket.StatusNormalClosure, "the console ended"
		}
		select {
		case <-ended.Done():
		case <-fsm.Instances.WatchKey(view, instance.Name):
		case <-x.keyWatch(view):
		case <-check.C:
		case <-x.s.cfg.Shutdown:
			return websocket.StatusGoingAway, "this node is shutting down"
		}
	}
}
