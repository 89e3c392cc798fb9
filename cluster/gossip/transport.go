package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/debvisor/debvisor/api"
)

const (
	packetBytesMax = 65536
	packetQueue    = 1024 // packets that wait for memberlist; more are dropped, as on a wire
	streamQueue    = 32   // streams that wait for memberlist; more are closed
	readPause      = 50 * time.Millisecond
)

// transport carries packets over UDP and streams over the cluster's port.
type transport struct {
	cfg  Config
	ip   net.IP
	port int
	udp  *net.UDPConn

	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	once    sync.Once
	wait    sync.WaitGroup
}

func newTransport(cfg Config) (*transport, error) {
	ip, port, err := splitAddress(cfg.Advertise)
	if err != nil {
		return nil, err
	}
	bound, ok := cfg.Streams.Addr().(*net.TCPAddr)
	if !ok {
		return nil, fmt.Errorf("gossip: the port's address is %v", cfg.Streams.Addr())
	}
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: bound.IP, Port: bound.Port, Zone: bound.Zone})
	if err != nil {
		return nil, &api.Error{Code: api.CodeUnavailable, Field: "listen", Message: fmt.Sprintf("cannot listen on UDP %v: %v", bound, err),
			Next: "stop what uses the port, or choose another address"}
	}
	t := &transport{cfg: cfg, ip: ip, port: port, udp: udp, done: make(chan struct{}),
		packets: make(chan *memberlist.Packet, packetQueue), streams: make(chan net.Conn, streamQueue)}
	t.wait.Go(t.receive)
	t.wait.Go(t.accept)
	return t, nil
}

func (t *transport) receive() {
	buffer := make([]byte, packetBytesMax)
	for {
		n, from, err := t.udp.ReadFrom(buffer)
		now := time.Now()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n == 0 {
			select {
			case <-t.done:
				return
			case <-time.After(readPause):
			}
			continue
		}
		select {
		case t.packets <- &memberlist.Packet{Buf: append([]byte(nil), buffer[:n]...), From: from, Timestamp: now}:
		default:
		}
	}
}

func (t *transport) accept() {
	for {
		conn, err := t.cfg.Streams.Accept()
		if err != nil {
			return // the port is closed
		}
		select {
		case t.streams <- conn:
		case <-t.done:
			_ = conn.Close()
			return
		default:
			_ = conn.Close()
		}
	}
}

// FinalAdvertiseAddr implements memberlist.Transport.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) { return t.ip, t.port, nil }

// WriteTo implements memberlist.Transport.
func (t *transport) WriteTo(b []byte, address string) (time.Time, error) {
	to, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return time.Time{}, fmt.Errorf("resolve %s: %w", address, err)
	}
	_, err = t.udp.WriteTo(b, to)
	return time.Now(), err
}

// WriteToAddress implements memberlist.NodeAwareTransport.
func (t *transport) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, to.Addr)
}

// PacketCh implements memberlist.Transport.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// DialTimeout implements memberlist.Transport.
func (t *transport) DialTimeout(address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return t.cfg.Dial(ctx, address)
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (t *transport) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(to.Addr, timeout)
}

// StreamCh implements memberlist.Transport.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown implements memberlist.Transport. The port itself stays open.
func (t *transport) Shutdown() error {
	t.once.Do(func() {
		close(t.done)
		_ = t.udp.Close()
		_ = t.cfg.Streams.Close()
	})
	t.wait.Wait()
	return nil
}
