package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"

	"github.com/debvisor/debvisor/api"
)

// tunnelGuest asks the agent inside a guest; argument: guestRequest. The answer
// is JSON in pieces.
const tunnelGuest = "guest"

// guestAnswerMax is how many bytes of an answer are read.
const guestAnswerMax = 1 << 20

// guestRequest is the argument of the tunnel service "guest". It may hold a
// password, and is in no log.
type guestRequest struct {
	VM      string           `json:"vm"` // ID
	Request api.GuestRequest `json:"request"`
}

// guestAgents asks guests' agents here, or through a tunnel on the node that
// runs the guest.
type guestAgents struct{ n *node }

// Ask implements httpd.Guests.
func (g guestAgents) Ask(ctx context.Context, vm *api.VM, instance *api.Instance, in api.GuestRequest) (api.GuestAnswer, error) {
	if instance.Owner == g.n.server.Self().Name {
		return g.n.agent.AskGuest(ctx, vm.ID, in)
	}
	var out api.GuestAnswer
	conn, err := g.n.tunnels.dial(ctx, instance.Owner, tunnelGuest, guestRequest{vm.ID, in})
	if err != nil {
		return out, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	r := &pieceReader{conn: conn, stop: stop}
	defer r.Close()
	raw, err := io.ReadAll(io.LimitReader(r, guestAnswerMax))
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil {
		return out, api.Errorf(api.CodeUnknown, "node %s did not say what came of it: %v", instance.Owner, err).Do("look at the guest, then try again")
	}
	return out, nil
}

// serveGuest is the tunnel service that asks a guest's agent for another node.
func (n *node) serveGuest(ctx context.Context, _ string, argument json.RawMessage) (func(context.Context, net.Conn), error) {
	var in guestRequest
	if json.Unmarshal(argument, &in) != nil {
		return nil, api.Invalid("argument", "is no request to a guest")
	}
	answer, err := n.agent.AskGuest(ctx, in.VM, in.Request)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(answer)
	if err != nil {
		return nil, err
	}
	return func(_ context.Context, conn net.Conn) {
		if err := sendPieces(conn, bytes.NewReader(raw)); err != nil {
			n.logger.Debug("answer of a guest not sent", "error", err)
		}
	}, nil
}
