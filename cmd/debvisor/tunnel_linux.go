package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/rpc"
	"github.com/debvisor/debvisor/cluster"
	"github.com/debvisor/debvisor/fsm"
)

// Limits of tunnels: byte streams between two nodes, each for one service.
const (
	tunnelsMax       = 4096 // accepted at a time
	tunnelHeaderMax  = 4096 // bytes of the line that opens one, and of its answer
	tunnelHeaderWait = 5 * time.Second
	tunnelOpenWait   = 20 * time.Second // for the other node to open what was asked for
)

// The services that nodes offer one another over tunnels.
const (
	tunnelConsole = "console"        // argument: consoleRequest
	tunnelScreen  = "screenshot"     // argument: ID of a VM; the answer is in pieces
	tunnelLog     = "console-log"    // argument: logRequest
	tunnelStats   = "stats"          // argument: statsRequest
	tunnelTicket  = "console-ticket" // argument: httpd.TicketClaim
	tunnelForeign = "foreign"        // the node's guests that debvisor does not manage
	tunnelImage   = "image"          // argument: imageRequest
	tunnelRenew   = "renew"          // leases: a line with a renewal each way, many times
	tunnelMigrate = "migrate"        // argument: agent.MigrationStream
	tunnelStatus  = "status"         // the cluster as the leader sees it
)

// tunnelRequest is the first line of a tunnel.
type tunnelRequest struct {
	Service  string          `json:"service"`
	Argument json.RawMessage `json:"argument,omitzero"`
}

// tunnelAnswer is the line that answers it. The bytes of the service follow
// unless there is an error.
type tunnelAnswer struct {
	Error *api.Error `json:"error,omitzero"`
}

// tunnelService opens what the argument asks for, on behalf of the node of
// that ID, and returns how it is served on the connection.
type tunnelService func(ctx context.Context, peerID string, argument json.RawMessage) (serve func(ctx context.Context, conn net.Conn), err error)

// tunnels accepts and opens tunnels.
type tunnels struct {
	server   *cluster.Server
	services map[string]tunnelService
	logger   hclog.Logger
}

// accept serves tunnels until the listener closes or ctx ends, and waits for
// the last one.
func (t *tunnels) accept(ctx context.Context) error {
	listener := t.server.Tunnel()
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() }) // only ends Accept
	defer stop()
	slots := make(chan struct{}, tunnelsMax)
	var open sync.WaitGroup
	defer open.Wait()
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("accept tunnels: %w", err)
		}
		open.Go(func() {
			defer func() { <-slots }()
			t.serve(ctx, conn)
		})
	}
}

func (t *tunnels) serve(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	_ = conn.SetDeadline(time.Now().Add(tunnelHeaderWait))
	var in tunnelRequest
	if err := readJSONLine(conn, &in); err != nil {
		t.logger.Debug("tunnel without a request", "remote", conn.RemoteAddr(), "error", err)
		return
	}
	_ = conn.SetDeadline(time.Time{})
	serve, err := t.open(ctx, conn, in)
	answer := tunnelAnswer{}
	if err != nil {
		t.logger.Debug("tunnel refused", "service", in.Service, "remote", conn.RemoteAddr(), "error", err)
		answer.Error = api.AsError(err)
	}
	if writeJSONLine(conn, answer) == nil && err == nil {
		serve(ctx, conn)
	}
}

func (t *tunnels) open(ctx context.Context, conn net.Conn, in tunnelRequest) (func(context.Context, net.Conn), error) {
	peer, ok := conn.(rpc.NodeConn)
	if !ok {
		return nil, api.Errorf(api.CodeUnauthenticated, "the caller is no node")
	}
	service := t.services[in.Service]
	if service == nil {
		return nil, api.Errorf(api.CodeInvalid, "service %q is unknown", in.Service).Do("upgrade this node")
	}
	return service(ctx, peer.NodeID(), in.Argument)
}

// dial opens a service on the node of that name. The connection ends with
// Close, not with ctx.
func (t *tunnels) dial(ctx context.Context, node, service string, argument any) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, tunnelOpenWait)
	defer cancel()
	row := fsm.Nodes.Get(t.server.State().Read(), node)
	if row == nil {
		return nil, api.Errorf(api.CodeNotFound, "is not a member").On(api.KindNode, node)
	}
	raw, err := json.Marshal(argument)
	if err != nil {
		return nil, fmt.Errorf("encode tunnel request: %w", err)
	}
	conn, err := t.server.DialNode(ctx, row.ID, cluster.ProtocolTunnel)
	if err != nil {
		return nil, api.Errorf(api.CodeUnavailable, "node %s cannot be reached: %v", node, err).Do("see whether it runs: debvisor cluster status")
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err = writeJSONLine(conn, tunnelRequest{Service: service, Argument: raw})
	var answer tunnelAnswer
	if err == nil {
		err = readJSONLine(conn, &answer)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	switch {
	case err != nil:
		err = api.Errorf(api.CodeUnavailable, "node %s does not answer: %v", node, err).Do("try again")
	case answer.Error != nil:
		err = answer.Error
	default:
		return conn, nil
	}
	_ = conn.Close()
	return nil, err
}

func writeJSONLine(w io.Writer, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode line: %w", err)
	}
	_, err = w.Write(append(raw, '\n'))
	return err
}

// readJSONLine reads one line, and not a byte beyond it.
func readJSONLine(r io.Reader, v any) error {
	line := make([]byte, 0, 128)
	for one := make([]byte, 1); ; {
		if _, err := io.ReadFull(r, one); err != nil {
			return err
		}
		if one[0] == '\n' {
			break
		}
		if line = append(line, one[0]); len(line) > tunnelHeaderMax {
			return fmt.Errorf("a line of more than %d bytes", tunnelHeaderMax)
		}
	}
	decoder := json.NewDecoder(bytes.NewReader(line))
	return decoder.Decode(v)
}

const (
	pieceBytesMax = 256 << 10
	pieceIdleMax  = time.Minute // without progress of a transfer
)

// sendPieces sends r in pieces, each after its length in four bytes. A piece
// of length 0 says that all was sent: the end of a connection does not.
func sendPieces(conn net.Conn, r io.Reader) error {
	buffer := make([]byte, 4+pieceBytesMax)
	for {
		n, err := io.ReadFull(r, buffer[4:])
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return err
		}
		_ = conn.SetWriteDeadline(time.Now().Add(pieceIdleMax))
		binary.BigEndian.PutUint32(buffer, uint32(n))
		if _, err := conn.Write(buffer[:4+n]); err != nil || n == 0 {
			return err
		}
	}
}

// pieceReader reads what sendPieces sends.
type pieceReader struct {
	conn net.Conn
	stop func() bool
	left int // of the present piece
	done bool
}

// Read implements io.Reader. An end before the last piece is
// io.ErrUnexpectedEOF.
func (p *pieceReader) Read(b []byte) (int, error) {
	if p.done {
		return 0, io.EOF
	}
	_ = p.conn.SetReadDeadline(time.Now().Add(pieceIdleMax))
	for p.left == 0 {
		var head [4]byte
		if _, err := io.ReadFull(p.conn, head[:]); err != nil {
			return 0, cutShort(err)
		}
		length := binary.BigEndian.Uint32(head[:])
		if length > pieceBytesMax {
			return 0, fmt.Errorf("a piece of %d bytes; at most %d are sent", length, pieceBytesMax)
		}
		if p.left = int(length); p.left == 0 {
			p.done = true
			return 0, io.EOF
		}
	}
	n, err := p.conn.Read(b[:min(len(b), p.left)])
	p.left -= n
	return n, cutShort(err)
}

func cutShort(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Close implements io.Closer.
func (p *pieceReader) Close() error {
	p.stop()
	return p.conn.Close()
}

// copyBoth joins two connections until either ends, and closes both.
func copyBoth(a, b io.ReadWriteCloser) {
	var wait sync.WaitGroup
	for _, way := range [][2]io.ReadWriteCloser{{a, b}, {b, a}} {
		wait.Go(func() {
			_, _ = io.Copy(way[0], way[1]) // an end is all that it tells
			_ = a.Close()
			_ = b.Close()
		})
	}
	wait.Wait()
}
