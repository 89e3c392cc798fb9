package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/httpd"
	"github.com/debvisor/debvisor/plugins"
)

const (
	guestAnswerWait = 30 * time.Second // for a picture, or lines of a log, of another node
	logAnswerBytes  = 8 << 20          // of such lines, encoded
)

// consoleRequest is the argument of the tunnel service "console".
type consoleRequest struct {
	VM     string `json:"vm"`            // ID
	Kind   string `json:"kind,omitzero"` // api.ConsoleSerial when left out
	Replay bool   `json:"replay,omitzero"`
}

// logRequest is the argument of the tunnel service "console-log".
type logRequest struct {
	VM string `json:"vm"` // ID
	api.LogQuery
}

// consoles reaches guests here, or through a tunnel on the node that runs
// them.
type consoles struct{ n *node }

// Open implements httpd.Consoles.
func (c consoles) Open(ctx context.Context, vm *api.VM, instance *api.Instance, o httpd.ConsoleOptions) (io.ReadWriteCloser, error) {
	in := consoleRequest{VM: vm.ID, Kind: o.Kind, Replay: o.Replay}
	if instance.Owner == c.n.server.Self().Name {
		return c.n.openConsole(ctx, in)
	}
	return c.n.tunnels.dial(ctx, instance.Owner, tunnelConsole, in)
}

// Screenshot implements httpd.Consoles.
func (c consoles) Screenshot(ctx context.Context, vm *api.VM, instance *api.Instance) ([]byte, error) {
	if instance.Owner == c.n.server.Self().Name {
		return c.n.agent.Screenshot(ctx, vm.ID)
	}
	conn, err := c.n.tunnels.dial(ctx, instance.Owner, tunnelScreen, vm.ID)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	pieces := &pieceReader{conn: conn, stop: stop}
	defer pieces.Close()
	picture, err := io.ReadAll(io.LimitReader(pieces, plugins.ScreenshotBytesMax+1))
	if err == nil && len(picture) > plugins.ScreenshotBytesMax {
		err = io.ErrShortBuffer
	}
	if err != nil {
		return nil, api.Errorf(api.CodeUnavailable, "the picture did not come from node %s: %v", instance.Owner, err).Do("try again")
	}
	return picture, nil
}

// Log implements httpd.Consoles.
func (c consoles) Log(ctx context.Context, vm *api.VM, instance *api.Instance, q api.LogQuery) (*api.ConsoleLog, error) {
	if instance.Owner == c.n.server.Self().Name {
		return c.n.agent.ConsoleLog(ctx, vm.ID, q)
	}
	log := &api.ConsoleLog{}
	err := c.n.tunnels.ask(ctx, instance.Owner, tunnelLog, logRequest{vm.ID, q}, logAnswerBytes, log)
	return log, err
}

// ask opens a service whose whole answer is one JSON value.
func (t *tunnels) ask(ctx context.Context, node, service string, argument any, bytesMax int64, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, guestAnswerWait)
	defer cancel()
	conn, err := t.dial(ctx, node, service, argument)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := json.NewDecoder(io.LimitReader(conn, bytesMax)).Decode(answer); err != nil {
		return api.Errorf(api.CodeUnavailable, "node %s did not send its answer: %v", node, err).Do("try again")
	}
	return nil
}

// reply serves an answer of ask.
func (n *node) reply(answer any) func(context.Context, net.Conn) {
	return func(_ context.Context, conn net.Conn) {
		_ = conn.SetWriteDeadline(time.Now().Add(guestAnswerWait))
		if err := writeJSONLine(conn, answer); err != nil {
			n.logger.Debug("an answer was not taken", "remote", conn.RemoteAddr(), "error", err)
		}
	}
}

func (n *node) openConsole(ctx context.Context, in consoleRequest) (io.ReadWriteCloser, error) {
	switch in.Kind {
	case "", api.ConsoleSerial:
		return n.agent.Console(ctx, in.VM, in.Replay)
	case api.ConsoleVNC:
		return n.agent.Display(ctx, in.VM)
	}
	return nil, api.Invalid("kind", "is %.64q", in.Kind).Allow("%s, %s", api.ConsoleSerial, api.ConsoleVNC)
}

// serveConsole is the tunnel service that opens a console for another node.
func (n *node) serveConsole(ctx context.Context, _ string, argument json.RawMessage) (func(context.Context, net.Conn), error) {
	var in consoleRequest
	if err := json.Unmarshal(argument, &in); err != nil {
		return nil, api.Invalid("argument", "is no console request")
	}
	console, err := n.openConsole(ctx, in)
	if err != nil {
		return nil, err
	}
	return func(_ context.Context, conn net.Conn) { copyBoth(conn, console) }, nil
}

// serveScreenshot is the tunnel service that sends a picture to another node.
func (n *node) serveScreenshot(ctx context.Context, _ string, argument json.RawMessage) (func(context.Context, net.Conn), error) {
	var id string
	if err := json.Unmarshal(argument, &id); err != nil {
		return nil, api.Invalid("argument", "is no VM")
	}
	picture, err := n.agent.Screenshot(ctx, id)
	if err != nil {
		return nil, err
	}
	return func(_ context.Context, conn net.Conn) {
		if err := sendPieces(conn, bytes.NewReader(picture)); err != nil {
			n.logger.Debug("a picture was not taken", "vm", id, "error", err)
		}
	}, nil
}

// serveLog is the tunnel service that searches a log for another node.
func (n *node) serveLog(ctx context.Context, _ string, argument json.RawMessage) (func(context.Context, net.Conn), error) {
	var in logRequest
	if err := json.Unmarshal(argument, &in); err != nil {
		return nil, api.Invalid("argument", "is no log request")
	}
	log, err := n.agent.ConsoleLog(ctx, in.VM, in.LogQuery)
	if err != nil {
		return nil, err
	}
	return n.reply(log), nil
}

// redeemTicket shows a ticket to the node that issued it.
func (n *node) redeemTicket(ctx context.Context, node string, claim httpd.TicketClaim) (httpd.TicketGrant, error) {
	var grant httpd.TicketGrant
	err := n.tunnels.ask(ctx, node, tunnelTicket, claim, tunnelHeaderMax, &grant)
	return grant, err
}

// serveTicket is the tunnel service that uses a ticket of this node up.
func (n *node) serveTicket(_ context.Context, _ string, argument json.RawMessage) (func(context.Context, net.Conn), error) {
	var claim httpd.TicketClaim
	if err := json.Unmarshal(argument, &claim); err != nil {
		return nil, api.Invalid("argument", "is no ticket")
	}
	grant, err := n.api.RedeemTicket(claim)
	if err != nil {
		return nil, err
	}
	return n.reply(grant), nil
}
