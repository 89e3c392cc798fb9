package main

import (
	"fmt"
	"net"
)

// notifySystemd tells the service manager about this process, as sd_notify(3)
// describes: one datagram to the socket that NOTIFY_SOCKET names. Without that
// variable it does nothing.
func notifySystemd(env func(string) string, state string) error {
	name := env("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}
