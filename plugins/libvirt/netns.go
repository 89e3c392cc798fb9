package libvirt

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// NetNS finds the network namespace of the daemon behind a socket, where the
// bridges of its guests have to be: a path as /proc/PID/ns/net, or the empty
// string when it is the caller's own. An absent daemon is CodeUnavailable. The
// path is good as long as the daemon lives.
func NetNS(socket string) (string, error) {
	if socket == "" {
		socket = DefaultSocket
	}
	c, err := net.DialTimeout("unix", socket, 5*time.Second)
	if err != nil {
		return "", unreachable(socket, err)
	}
	defer func() { _ = c.Close() }()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return "", fmt.Errorf("look at libvirt's socket: %w", err)
	}
	var peer *unix.Ucred
	var peerErr error
	if err := raw.Control(func(fd uintptr) { peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || peerErr != nil {
		return "", fmt.Errorf("look at libvirt's socket: %w", errors.Join(err, peerErr))
	}
	theirs := fmt.Sprintf("/proc/%d/ns/net", peer.Pid)
	a, err := os.Stat(theirs)
	if err != nil {
		return "", nil // not ours to look at: a daemon beside us, as on any host
	}
	b, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		return "", fmt.Errorf("look at the own network namespace: %w", err)
	}
	if os.SameFile(a, b) {
		return "", nil
	}
	return theirs, nil
}
