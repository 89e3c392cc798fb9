package sim

import (
	"encoding/binary"
	"fmt"
	"image"
	"io"
	"net"
	"sync"
	"time"
)

const cutTextMax = 64 << 10 // bytes that a viewer may paste

// screen serves one viewer of a guest's display: RFB 3.8 (RFC 6143) without
// authentication, pixels of 8, 16 or 32 bits in true colour, raw rectangles.
type screen struct {
	hypervisor *Hypervisor
	domain     *domain
	record     *record
	conn       net.Conn
	typed      []byte // of the line that is being typed

	mu     sync.Mutex // guards below
	format pixelFormat
}

// pixelFormat is how the viewer wants a pixel.
type pixelFormat struct {
	bytes  int
	big    bool
	max    [3]uint16 // red, green, blue
	shifts [3]uint8
}

func pixelFormatDefault() pixelFormat {
	return pixelFormat{bytes: 4, max: [3]uint16{255, 255, 255}, shifts: [3]uint8{16, 8, 0}}
}

// serve talks to the viewer until it leaves or the guest ends.
func (s *screen) serve() {
	defer s.conn.Close()
	s.format = pixelFormatDefault()
	if err := s.greet(); err != nil {
		s.hypervisor.config.Logger.Debug("viewer left during the handshake", "id", s.domain.id, "error", err)
		return
	}
	asked := make(chan bool, 1) // true: for all of the picture, changed or not
	var draw sync.WaitGroup
	defer draw.Wait()
	done := make(chan struct{})
	defer close(done)
	draw.Go(func() { s.draw(asked, done) })
	for {
		if err := s.message(asked); err != nil {
			return
		}
	}
}

func (s *screen) greet() error {
	answers := []struct {
		say  []byte
		hear int
	}{
		{[]byte("RFB 003.008\n"), 12}, {[]byte{1, 1}, 1}, {make([]byte, 4), 1}, {s.hello(), 0},
	}
	for _, a := range answers {
		if _, err := s.conn.Write(a.say); err != nil {
			return err
		}
		if _, err := io.ReadFull(s.conn, make([]byte, a.hear)); err != nil {
			return err
		}
	}
	return nil
}

// hello is ServerInit: size, pixel format and name.
func (s *screen) hello() []byte {
	name := "debvisor simulated guest " + s.record.Spec.Name
	out := binary.BigEndian.AppendUint16(nil, screenWidth)
	out = binary.BigEndian.AppendUint16(out, screenHeight)
	out = append(out, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0)
	out = binary.BigEndian.AppendUint32(out, uint32(len(name)))
	return append(out, name...)
}

// message reads one message of the viewer.
func (s *screen) message(asked chan<- bool) error {
	kind, err := s.take(1)
	if err != nil {
		return err
	}
	lengths := map[byte]int{0: 19, 2: 3, 3: 9, 4: 7, 5: 5, 6: 7}
	length, known := lengths[kind[0]]
	if !known {
		return fmt.Errorf("message %d is unknown", kind[0])
	}
	body, err := s.take(length)
	if err != nil {
		return err
	}
	switch kind[0] {
	case 0: // SetPixelFormat
		return s.setFormat(body[3:])
	case 2: // SetEncodings: raw is what every viewer takes
		_, err = s.take(4 * int(binary.BigEndian.Uint16(body[1:])))
	case 3: // FramebufferUpdateRequest
		select {
		case asked <- body[0] == 0:
		default: // one is waiting already
		}
	case 4: // KeyEvent
		s.key(body[0] != 0, binary.BigEndian.Uint32(body[3:]))
	case 6: // ClientCutText
		n := binary.BigEndian.Uint32(body[3:])
		if n > cutTextMax {
			return fmt.Errorf("a text of %d bytes", n)
		}
		_, err = s.take(int(n))
	}
	return err
}

func (s *screen) take(n int) ([]byte, error) {
	p := make([]byte, n)
	_, err := io.ReadFull(s.conn, p)
	return p, err
}

func (s *screen) setFormat(f []byte) error {
	format := pixelFormat{bytes: int(f[0]) / 8, big: f[2] != 0}
	if f[3] == 0 || format.bytes != 1 && format.bytes != 2 && format.bytes != 4 {
		return fmt.Errorf("pixels of %d bits are not drawn", f[0])
	}
	for i := range 3 {
		format.max[i], format.shifts[i] = binary.BigEndian.Uint16(f[4+2*i:]), f[10+i]%32
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.format = format
	return nil
}

// key types into the guest: printable ASCII, and Return.
func (s *screen) key(down bool, symbol uint32) {
	const enter = 0xff0d
	switch {
	case !down:
	case symbol == enter && len(s.typed) > 0:
		s.domain.echo(string(s.typed))
		s.typed = nil
	case symbol >= ' ' && symbol < 0x7f && len(s.typed) < typedLineMax:
		s.typed = append(s.typed, byte(symbol))
	}
}

// draw answers requests: at once for all, else when the picture has changed.
func (s *screen) draw(asked <-chan bool, done <-chan struct{}) {
	defer s.conn.Close()
	tick := time.NewTicker(tickEvery / 4)
	defer tick.Stop()
	shown, waiting := -1, false
	for {
		changed := s.domain.changes()
		if !s.hypervisor.live(s.domain, s.record) {
			return
		}
		second := secondsSince(s.record, time.Now())
		if waiting && second != shown {
			if s.update(second) != nil {
				return
			}
			shown, waiting = second, false
		}
		select {
		case all := <-asked:
			if waiting = true; all {
				shown = -1
			}
		case <-changed:
		case <-tick.C:
		case <-done:
			return
		}
	}
}

// update sends the whole picture as one raw rectangle.
func (s *screen) update(second int) error {
	s.mu.Lock()
	format := s.format
	s.mu.Unlock()
	out := []byte{0, 0, 0, 1, 0, 0, 0, 0}
	out = binary.BigEndian.AppendUint16(out, screenWidth)
	out = binary.BigEndian.AppendUint16(out, screenHeight)
	out = append(out, 0, 0, 0, 0)
	_, err := s.conn.Write(format.encode(out, picture(s.record, second)))
	return err
}

func (f pixelFormat) encode(out []byte, picture *image.RGBA) []byte {
	var order binary.AppendByteOrder = binary.LittleEndian
	if f.big {
		order = binary.BigEndian
	}
	for i := 0; i < len(picture.Pix); i += 4 {
		value := uint32(0)
		for c := range 3 {
			value |= uint32(picture.Pix[i+c]) * uint32(f.max[c]) / 255 << f.shifts[c]
		}
		switch f.bytes {
		case 1:
			out = append(out, byte(value))
		case 2:
			out = order.AppendUint16(out, uint16(value))
		default:
			out = order.AppendUint32(out, value)
		}
	}
	return out
}
