//go:build linux

package main

import (
	"net"
	"path/filepath"
	"testing"
	"time"
)

func TestServiceManagerIsTold(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	env := func(n string) string { return map[string]string{"NOTIFY_SOCKET": name}[n] }
	if err := notifySystemd(env, "READY=1"); err != nil {
		t.Fatal(err)
	}
	if err := l.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 64)
	n, err := l.Read(got)
	if err != nil || string(got[:n]) != "READY=1" {
		t.Errorf("the service manager got %q, %v", got[:n], err)
	}
	if err := notifySystemd(func(string) string { return "" }, "READY=1"); err != nil {
		t.Errorf("without a service manager: %v", err)
	}
	if err := notifySystemd(func(string) string { return name + "x" }, "READY=1"); err == nil {
		t.Error("a socket that is gone is no error")
	}
}
