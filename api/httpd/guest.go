package httpd

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
)

// ConsoleOptions say which console of a guest is opened.
type ConsoleOptions struct {
	Kind   string // api.ConsoleSerial or ConsoleVNC
	Replay bool   // serial: what the guest printed before comes first
}

// Consoles reaches guests on whichever node they run.
type Consoles interface {
	// Open opens the serial console, or the display as RFB.
	Open(ctx context.Context, vm *api.VM, instance *api.Instance, o ConsoleOptions) (io.ReadWriteCloser, error)
	// Screenshot is the display as a PNG file.
	Screenshot(ctx context.Context, vm *api.VM, instance *api.Instance) ([]byte, error)
	// Log finds lines in what the serial console's log has kept.
	Log(ctx context.Context, vm *api.VM, instance *api.Instance, q api.LogQuery) (*api.ConsoleLog, error)
}

type logInput struct {
	Name   string `path:"name" maxLength:"63" doc:"name of the VM"`
	Tenant string `query:"tenant" maxLength:"63" doc:"of the VM; default when left out"`
	Tail   int    `query:"tail" minimum:"1" maximum:"10000" default:"100" doc:"the last lines that match, at most this many"`
	Grep   string `query:"grep" maxLength:"512" doc:"a pattern that a line must match, as RE2 has it"`
}

func (s *Server) registerConsoles() error {
	right := authz.Right{Verb: authz.Console, Kind: api.KindVM, Scope: authz.ScopeTenant}
	return errors.Join(
		handle(s, route{method: http.MethodGet, path: "/v1/vms/{name}/console", right: right, console: api.ConsoleSerial,
			media: "application/octet-stream", status: http.StatusSwitchingProtocols, summary: "Talk to a VM's serial console",
			about: "A WebSocket whose binary messages are the bytes of the console. It is closed with status 4001 when the VM runs on another node from now on: open it again."},
			(*exchange).console),
		handle(s, route{method: http.MethodGet, path: "/v1/vms/{name}/vnc", right: right, console: api.ConsoleVNC,
			media: "application/octet-stream", status: http.StatusSwitchingProtocols, summary: "See a VM's display",
			about: "A WebSocket whose binary messages are RFB (RFC 6143) without authentication, as noVNC speaks it; subprotocol binary. It is closed with status 4001 when the VM runs on another node from now on."},
			(*exchange).display),
		handle(s, route{method: http.MethodPost, path: "/v1/vms/{name}/console-ticket", right: right, body: ticketBody{}, bytes: VerbBytesMax,
			answer: api.ConsoleTicket{}, status: http.StatusCreated, summary: "Make a ticket that opens one console, once",
			about: "For browsers, which then open the console on any node without a key. Nothing of it is stored or logged: the issuing node keeps a hash in memory for 30 seconds."},
			(*exchange).issueTicket),
		handle(s, route{method: http.MethodGet, path: "/v1/vms/{name}/screenshot", right: right, media: "image/png", summary: "See a picture of a VM's display"},
			(*exchange).screenshot),
		handle(s, route{method: http.MethodGet, path: "/v1/vms/{name}/log", right: right, answer: api.ConsoleLog{}, summary: "Search what a VM's serial console has printed"},
			(*exchange).consoleLog))
}

func (x *exchange) screenshot(in *ticketInput) error {
	vm, instance, err := x.placedVM(in.Name)
	if err != nil {
		return err
	}
	picture, err := x.s.cfg.Consoles.Screenshot(x.ctx(), vm, instance)
	if err != nil {
		return err
	}
	h := x.w.Header()
	h.Set("Content-Type", "image/png")
	h.Set("Content-Length", strconv.Itoa(len(picture)))
	x.w.WriteHeader(http.StatusOK)
	_, _ = x.w.Write(picture)
	return nil
}

func (x *exchange) consoleLog(in *logInput) error {
	vm, instance, err := x.placedVM(in.Name)
	if err != nil {
		return err
	}
	log, err := x.s.cfg.Consoles.Log(x.ctx(), vm, instance, api.LogQuery{Tail: in.Tail, Grep: in.Grep})
	if err != nil {
		return err
	}
	return x.answer(http.StatusOK, log)
}
