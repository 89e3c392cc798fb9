package libvirt

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// Bounds of displays.
const (
	descriptorTimeout = 5 * time.Second  // from the daemon's answer to the descriptor that follows it
	screenshotTimeout = 20 * time.Second // for the whole picture
	screenPixelsMax   = 64 << 20         // of a picture that is converted
)

type graphicsXML struct {
	Type        string     `xml:"type,attr"`
	SharePolicy string     `xml:"sharePolicy,attr,omitempty"`
	Listen      *listenXML `xml:"listen"`
}

type listenXML struct {
	Type string `xml:"type,attr"`
}

type videoXML struct {
	Model modelTypeXML `xml:"model"`
}

type inputXML struct {
	Type string `xml:"type,attr"`
	Bus  string `xml:"bus,attr,omitempty"`
}

func checkScreen(spec plugins.DomainSpec) error {
	switch spec.Graphics {
	case "", api.GraphicsNone, api.GraphicsVNC:
	default:
		return wrongSpec(spec, "graphics", "is %q", spec.Graphics).Allow("%s, %s", api.GraphicsVNC, api.GraphicsNone)
	}
	switch spec.Video {
	case "", api.VideoNone, api.VideoVirtio, api.VideoVGA:
	default:
		return wrongSpec(spec, "video", "is %q", spec.Video).Allow("%s, %s, %s", api.VideoVirtio, api.VideoVGA, api.VideoNone)
	}
	return nil
}

// addScreen gives the guest a display. Nobody listens for it, neither on a port
// nor on a socket file: OpenDisplay has the daemon hand a connected socket over,
// so only who may talk to the daemon can look, and a definition names no place
// that another node would not have.
func (d *domainXML) addScreen(spec plugins.DomainSpec, _ machine) {
	if spec.Video != "" && spec.Video != api.VideoNone {
		d.Devices.Videos = []videoXML{{Model: modelTypeXML{Type: spec.Video}}}
	}
	if spec.Graphics == api.GraphicsVNC {
		d.Devices.Graphics = []graphicsXML{{Type: "vnc", SharePolicy: "force-shared", Listen: &listenXML{Type: "none"}}}
		// A tablet tells where the pointer is; a mouse only where it went, and
		// the viewer's pointer would part from the guest's.
		d.Devices.Inputs = []inputXML{{Type: "tablet", Bus: "usb"}}
	}
}

// screenOf looks for a guest that has a display.
func (h *Hypervisor) screenOf(ctx context.Context, id string, shows func(devicesXML) bool) (*conn, *found, error) {
	if err := checkID(id); err != nil {
		return nil, nil, err
	}
	c, err := h.connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	f, err := h.look(ctx, c, id)
	switch {
	case err != nil:
		return nil, nil, err
	case f == nil:
		return nil, nil, api.Errorf(api.CodeNotFound, "no domain %s", id)
	case !f.executing():
		return nil, nil, api.Errorf(api.CodeConflict, "the domain does not execute").On(api.KindVM, f.xml.Name).Do("start the VM, then look at its display")
	case !shows(f.xml.Devices):
		return nil, nil, api.Errorf(api.CodeConflict, "the guest runs without a display").On(api.KindVM, f.xml.Name).
			Do(`set graphics = "vnc", then stop and start the VM; its serial console is there`)
	}
	return c, f, nil
}

// OpenDisplay implements plugins.Screens.
func (h *Hypervisor) OpenDisplay(ctx context.Context, id string) (io.ReadWriteCloser, error) {
	_, f, err := h.screenOf(ctx, id, func(d devicesXML) bool { return len(d.Graphics) > 0 })
	if err != nil {
		return nil, err
	}
	// On a connection of its own: the descriptor follows the answer as a byte
	// that belongs to no packet, after which the library could read no more.
	receiver := &descriptorConn{got: make(chan int, 1)}
	c, err := dialWith(ctx, h.config.Socket, func(plain net.Conn) net.Conn {
		receiver.UnixConn = plain.(*net.UnixConn)
		return receiver
	})
	if err != nil {
		return nil, err
	}
	defer c.close()
	defer receiver.drop()
	err = c.call(ctx, func(l *libvirt.Libvirt) error {
		return l.DomainOpenGraphicsFd(f.handle, 0, libvirt.DomainOpenGraphicsSkipauth)
	})
	if err != nil {
		return nil, err
	}
	select {
	case fd := <-receiver.got:
		file := os.NewFile(uintptr(fd), "display")
		display, err := net.FileConn(file)
		if err := errors.Join(err, file.Close()); err != nil {
			return nil, fmt.Errorf("take over the display's socket: %w", err)
		}
		return display, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.raw.dead:
		return nil, lost(nil)
	case <-time.After(descriptorTimeout):
		return nil, api.Errorf(api.CodeUnavailable, "libvirt handed no display over").Do("look at: journalctl -u libvirtd")
	}
}

// descriptorConn reads what the daemon sends, and keeps the first descriptor
// that comes with it.
type descriptorConn struct {
	*net.UnixConn
	got chan int

	mu   sync.Mutex // guards done
	done bool
}

// Read implements net.Conn.
func (d *descriptorConn) Read(p []byte) (int, error) {
	rights := make([]byte, unix.CmsgSpace(8*4))
	n, extra, _, _, err := d.ReadMsgUnix(p, rights)
	if extra > 0 {
		d.keep(rights[:extra])
	}
	if n == 0 && err == nil && len(p) > 0 {
		err = io.EOF
	}
	return max(n, 0), err // -1 goes with an error
}

func (d *descriptorConn) keep(rights []byte) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if d.done || len(d.got) > 0 {
				_ = unix.Close(fd)
				continue
			}
			unix.CloseOnExec(fd)
			d.got <- fd
		}
	}
}

// drop closes a descriptor that nobody took, and one that comes later.
func (d *descriptorConn) drop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.done = true
	select {
	case fd := <-d.got:
		_ = unix.Close(fd)
	default:
	}
}

// Screenshot implements plugins.Screens.
func (h *Hypervisor) Screenshot(ctx context.Context, id string) ([]byte, error) {
	_, f, err := h.screenOf(ctx, id, func(d devicesXML) bool { return len(d.Videos) > 0 })
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, screenshotTimeout)
	defer cancel()
	// On a connection of its own, as consoles are: a stream holds up all else.
	c, err := dial(ctx, h.config.Socket)
	if err != nil {
		return nil, err
	}
	defer c.close()
	picture := &boundedBuffer{}
	err = c.call(ctx, func(l *libvirt.Libvirt) error {
		_, err := l.DomainScreenshot(f.handle, picture, 0, 0)
		return err
	})
	raw := picture.take()
	// The library takes the end of a complete stream for an error.
	if err != nil && !(len(raw) > 0 && api.CodeOf(err) == api.CodeUnavailable && ctx.Err() == nil) {
		return nil, err
	}
	out, err := toPNG(raw)
	if err != nil {
		return nil, api.Errorf(api.CodeUnavailable, "the picture of the display is not usable: %v", err).On(api.KindVM, f.xml.Name).Do("try again")
	}
	return out, nil
}

// boundedBuffer keeps what is written to it up to a limit.
type boundedBuffer struct {
	mu    sync.Mutex // guards bytes
	bytes []byte
}

// Write implements io.Writer.
func (b *boundedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.bytes)+len(p) > pictureBytesMax {
		return 0, fmt.Errorf("a picture of more than %d bytes", pictureBytesMax)
	}
	b.bytes = append(b.bytes, p...)
	return len(p), nil
}

func (b *boundedBuffer) take() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes
}

// pictureBytesMax bounds what the daemon sends: a picture of screenPixelsMax
// without compression.
const pictureBytesMax = 3*screenPixelsMax + 64

// toPNG checks a picture that QEMU made, a complete PNG or a PPM, and gives it
// as PNG. A picture that was cut short is an error.
func toPNG(raw []byte) ([]byte, error) {
	var picture image.Image
	var err error
	if bytes.HasPrefix(raw, []byte("\x89PNG\r\n\x1a\n")) {
		header, err := png.DecodeConfig(bytes.NewReader(raw))
		if err != nil {
			return nil, err
		}
		if header.Width*header.Height > screenPixelsMax {
			return nil, fmt.Errorf("it has %d x %d pixels", header.Width, header.Height)
		}
		if _, err := png.Decode(bytes.NewReader(raw)); err != nil {
			return nil, err
		}
		if len(raw) > plugins.ScreenshotBytesMax {
			return nil, fmt.Errorf("it has %d bytes", len(raw))
		}
		return raw, nil
	}
	if picture, err = decodePPM(raw); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestSpeed}).Encode(&out, picture); err != nil {
		return nil, err
	}
	if out.Len() > plugins.ScreenshotBytesMax {
		return nil, fmt.Errorf("it has %d bytes", out.Len())
	}
	return out.Bytes(), nil
}

// decodePPM reads the binary form with 255 as the greatest value, which is
// what QEMU writes.
func decodePPM(raw []byte) (image.Image, error) {
	var width, height, depth int
	reader := bufio.NewReader(bytes.NewReader(raw))
	if _, err := fmt.Fscanf(reader, "P6\n%d %d\n%d\n", &width, &height, &depth); err != nil {
		return nil, errors.New("it is neither PNG nor PPM")
	}
	if width < 1 || height < 1 || depth != 255 || width > screenPixelsMax || height > screenPixelsMax/width {
		return nil, fmt.Errorf("it has %d x %d pixels of depth %d", width, height, depth)
	}
	picture, line := image.NewRGBA(image.Rect(0, 0, width, height)), make([]byte, 3*width)
	for y := range height {
		if _, err := io.ReadFull(reader, line); err != nil {
			return nil, fmt.Errorf("it ends in line %d of %d", y, height)
		}
		row := picture.Pix[y*picture.Stride:]
		for x := range width {
			copy(row[4*x:], line[3*x:3*x+3])
			row[4*x+3] = 255
		}
	}
	return picture, nil
}
