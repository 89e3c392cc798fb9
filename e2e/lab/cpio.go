package lab

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// File types of a cpio archive, from the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst.
const (
	cpioDir  = 0o040000
	cpioFile = 0o100000
	cpioNode = 0o020000 // character device
)

// cpioWriter writes the "newc" format that the kernel unpacks as its initial
// RAM disk. The first error sticks and comes from Close.
type cpioWriter struct {
	w     io.Writer
	inode int
	err   error
}

// add writes one entry; device is (major, minor) of a device node.
func (c *cpioWriter) add(name string, mode uint32, content []byte, device [2]uint32) {
	name = strings.TrimPrefix(name, "/")
	c.inode++
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", c.inode, mode, 0, 0, 1, 0,
		len(content), 0, 0, device[0], device[1], len(name)+1, 0)
	c.write([]byte(header + name + "\x00"))
	c.pad(len(header) + len(name) + 1)
	c.write(content)
	c.pad(len(content))
}

func (c *cpioWriter) dir(name string) { c.add(name, cpioDir|0o755, nil, [2]uint32{}) }

func (c *cpioWriter) file(name string, mode uint32, content []byte) {
	c.add(name, cpioFile|mode, content, [2]uint32{})
}

func (c *cpioWriter) pad(n int) { c.write(make([]byte, (4-n%4)%4)) }

func (c *cpioWriter) write(p []byte) {
	if c.err == nil {
		_, c.err = c.w.Write(p)
	}
}

// Close writes the trailer; it does not close the writer below.
func (c *cpioWriter) Close() error {
	c.add("TRAILER!!!", 0, nil, [2]uint32{})
	if c.err != nil {
		return errors.Join(errors.New("write initial RAM disk"), c.err)
	}
	return nil
}
