package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// guest is the far end of a console.
func guest(t *testing.T) (near net.Conn, far net.Conn) {
	t.Helper()
	near, far = net.Pipe()
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

func consoleApp(in io.Reader, out io.Writer) *app {
	return newApp(in, out, io.Discard, func(string) string { return "" })
}

func TestConsoleLeavesWhenTheTextWasSeen(t *testing.T) {
	t.Parallel()
	near, far := guest(t)
	go func() {
		for _, part := range []string{"booting\r\n", "GUEST-", "READY\r\n"} {
			_, _ = far.Write([]byte(part))
		}
	}()
	var out bytes.Buffer
	if err := consoleApp(strings.NewReader(""), &out).console(t.Context(), near, "web", consoleOptions{until: "GUEST-READY", noInput: true}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "GUEST-READY") {
		t.Errorf("output %q", out.String())
	}
}

func TestConsoleSaysWhenTheTextDidNotCome(t *testing.T) {
	t.Parallel()
	near, far := guest(t)
	go func() {
		_, _ = far.Write([]byte("booting\r\n"))
		far.Close()
	}()
	err := consoleApp(strings.NewReader(""), io.Discard).console(t.Context(), near, "web", consoleOptions{until: "READY", noInput: true})
	if err == nil || !strings.Contains(err.Error(), `before the guest printed "READY"`) {
		t.Errorf("a console that ends early: %v", err)
	}
	silent, _ := guest(t)
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, errConsoleTimeout)
	defer cancel()
	err = consoleApp(strings.NewReader(""), io.Discard).console(ctx, silent, "web", consoleOptions{until: "READY", noInput: true, timeout: time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), `did not print "READY" within 1ms`) {
		t.Errorf("a guest that says nothing: %v", err)
	}
}

func TestConsoleCopiesItsInput(t *testing.T) {
	t.Parallel()
	near, far := guest(t)
	typed := make(chan string, 1)
	go func() {
		buffer := make([]byte, 64)
		n, _ := far.Read(buffer)
		typed <- string(buffer[:n])
		_, _ = far.Write([]byte("total 0\r\n"))
		far.Close()
	}()
	var out bytes.Buffer
	if err := consoleApp(strings.NewReader("ls\n"), &out).console(t.Context(), near, "web", consoleOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := <-typed; got != "ls\n" || out.String() != "total 0\r\n" {
		t.Errorf("the guest read %q and the output is %q", got, out.String())
	}
}

func TestEscapeLeavesTheConsole(t *testing.T) {
	t.Parallel()
	var sent bytes.Buffer
	in := io.MultiReader(strings.NewReader("uptime\n"), strings.NewReader("\x1drest"))
	if err := typeInto(&sent, in, true); err != nil || sent.String() != "uptime\n" {
		t.Errorf("sent %q, %v; want what came before Ctrl-]", sent.String(), err)
	}
}
