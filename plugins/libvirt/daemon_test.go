package libvirt_test

import (
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/uuid"
)

// fakeDaemon answers what an adapter asks of libvirtd, in its protocol
// (virnetprotocol.x, remote_protocol.x), as far as tests need it, and counts.
type fakeDaemon struct {
	socket  string
	replies map[uint32][]byte // by procedure; an unknown one ends the connection

	mu    sync.Mutex // guards calls
	calls map[uint32]int
}

// Procedures.
const (
	procConnectOpen  = 1
	procAuthList     = 66
	procDomainsStats = 344
)

func newFakeDaemon(t testing.TB) *fakeDaemon {
	t.Helper()
	d := &fakeDaemon{socket: filepath.Join(t.TempDir(), "s"), calls: map[uint32]int{},
		replies: map[uint32][]byte{procAuthList: xdrInts(1, 0), procConnectOpen: nil}}
	listener, err := net.Listen("unix", d.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go d.serve(conn)
		}
	}()
	return d
}

func (d *fakeDaemon) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	for head := make([]byte, 28); ; {
		if _, err := io.ReadFull(conn, head); err != nil {
			return
		}
		if _, err := io.CopyN(io.Discard, conn, int64(binary.BigEndian.Uint32(head))-28); err != nil {
			return
		}
		procedure := binary.BigEndian.Uint32(head[12:])
		d.mu.Lock()
		d.calls[procedure]++
		reply, known := d.replies[procedure]
		d.mu.Unlock()
		if !known {
			return
		}
		answer := append([]byte{}, head...)
		binary.BigEndian.PutUint32(answer, uint32(len(head)+len(reply)))
		binary.BigEndian.PutUint32(answer[16:], 1) // type: reply
		binary.BigEndian.PutUint32(answer[24:], 0) // status: ok
		if _, err := conn.Write(append(answer, reply...)); err != nil {
			return
		}
	}
}

func (d *fakeDaemon) total() (calls int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range d.calls {
		calls += n
	}
	return calls
}

func xdrInts(values ...uint32) (out []byte) {
	for _, v := range values {
		out = binary.BigEndian.AppendUint32(out, v)
	}
	return out
}

func xdrString(out []byte, s string) []byte {
	out = append(binary.BigEndian.AppendUint32(out, uint32(len(s))), s...)
	for len(out)%4 != 0 {
		out = append(out, 0)
	}
	return out
}

// param is one typed parameter: uint64 or string.
type param struct {
	name  string
	value any
}

func xdrParams(out []byte, params []param) []byte {
	out = binary.BigEndian.AppendUint32(out, uint32(len(params)))
	for _, p := range params {
		out = xdrString(out, p.name)
		switch v := p.value.(type) {
		case uint64:
			out = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(out, 4), v)
		case string:
			out = xdrString(binary.BigEndian.AppendUint32(out, 7), v)
		}
	}
	return out
}

// statsReply answers with what each guest has used.
func statsReply(ids []string, params func(i int) []param) []byte {
	out := binary.BigEndian.AppendUint32(nil, uint32(len(ids)))
	for i, id := range ids {
		parsed := uuid.MustParse(id)
		out = append(xdrString(out, "default.vm-"+id), parsed[:]...)
		out = binary.BigEndian.AppendUint32(out, uint32(i+1))
		out = xdrParams(out, params(i))
	}
	return out
}
