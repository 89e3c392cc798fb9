package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/debvisor/debvisor/api"
)

// rfbDisplay is the far end of a display that asks for no password and then
// says its name.
func rfbDisplay(t *testing.T) func() (io.ReadWriteCloser, error) {
	return func() (io.ReadWriteCloser, error) {
		near, far := net.Pipe()
		t.Cleanup(func() { near.Close(); far.Close() })
		go func() {
			if welcome(far, "") == nil {
				_, _ = io.ReadFull(far, make([]byte, 1)) // ClientInit
				_, _ = io.WriteString(far, "the display")
			}
		}()
		return near, nil
	}
}

// viewer makes a viewer's side of the handshake.
func viewer(conn net.Conn, version, password string) error {
	hello := make([]byte, 12)
	if _, err := io.ReadFull(conn, hello); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, version); err != nil {
		return err
	}
	length := 2
	if version == "RFB 003.003\n" {
		length = 4
	}
	kinds := make([]byte, length)
	if _, err := io.ReadFull(conn, kinds); err != nil {
		return err
	}
	kind := kinds[length-1]
	if length == 2 {
		if _, err := conn.Write([]byte{kind}); err != nil {
			return err
		}
	}
	if kind == rfbPassword {
		challenge := make([]byte, rfbChallenge)
		if _, err := io.ReadFull(conn, challenge); err != nil {
			return err
		}
		answer, err := answerChallenge(challenge, password)
		if err != nil {
			return err
		}
		if _, err := conn.Write(answer); err != nil {
			return err
		}
	}
	result := make([]byte, 4)
	if kind == rfbPassword || version == rfbVersion {
		if _, err := io.ReadFull(conn, result); err != nil {
			return err
		}
	}
	if !bytes.Equal(result, make([]byte, 4)) {
		return errors.New("refused")
	}
	if _, err := conn.Write([]byte{1}); err != nil {
		return err
	}
	name := make([]byte, len("the display"))
	if _, err := io.ReadFull(conn, name); err != nil || string(name) != "the display" {
		return errors.Join(err, errors.New("got "+string(name)))
	}
	return nil
}

func TestViewersAreJoinedWithTheDisplay(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	listener, err := listenForViewers(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &displayProxy{open: rfbDisplay(t), password: "secret78", notef: func(string, ...any) {}}
	var served sync.WaitGroup
	served.Go(func() {
		if err := p.serve(ctx, listener); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	for _, version := range []string{"RFB 003.003\n", "RFB 003.007\n", rfbVersion} {
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		if err := viewer(conn, version, "secret78"); err != nil {
			t.Errorf("%q: %v", version, err)
		}
		conn.Close()
	}
	cancel()
	served.Wait()
}

func TestWrongPasswordsEndTheProxy(t *testing.T) {
	t.Parallel()
	listener, err := listenForViewers(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &displayProxy{open: rfbDisplay(t), password: "secret78", notef: func(string, ...any) {}}
	ended := make(chan error, 1)
	go func() { ended <- p.serve(t.Context(), listener) }()
	for range passwordTries {
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		if err := viewer(conn, rfbVersion, "guess"); err == nil {
			t.Fatal("a wrong password was let in")
		}
		conn.Close()
	}
	select {
	case err := <-ended:
		if api.CodeOf(err) != api.CodeForbidden {
			t.Errorf("got %v, want CodeForbidden", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the proxy lets them guess on")
	}
}

func TestViewersConnectOnThisMachineOnly(t *testing.T) {
	t.Parallel()
	for _, listen := range []string{"0.0.0.0:0", "[::]:0", ":5900", "192.0.2.1:5900", "example.org:1", "nonsense", ""} {
		if l, err := listenForViewers(t.Context(), listen); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%q: %v %v, want CodeInvalid", listen, l, err)
		}
	}
	path := filepath.Join(t.TempDir(), "web.sock")
	l, err := listenForViewers(t.Context(), "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	stat, err := os.Stat(path)
	if err != nil || stat.Mode().Perm() != 0o600 {
		t.Errorf("the socket has mode %v: %v", stat.Mode(), err)
	}
	if _, err := listenForViewers(t.Context(), "unix:"+path); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("over a file that exists: %v, want CodeInvalid", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
}

func TestViewerPasswordsDiffer(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 200 {
		p := newViewerPassword()
		if len(p) != viewerPassLength || strings.Trim(p, viewerLetters) != "" || seen[p] {
			t.Fatalf("password %q", p)
		}
		seen[p] = true
	}
}

// movedConn ends as a console does whose VM has moved.
type movedConn struct{ net.Conn }

func (movedConn) Read([]byte) (int, error) {
	return 0, websocket.CloseError{Code: api.ConsoleMoved, Reason: "the VM moved"}
}

func TestAConsoleFollowsItsVM(t *testing.T) {
	t.Parallel()
	first, _ := guest(t)
	near, far := guest(t)
	opened := []bool{}
	conn, err := openMoving(t.Context(), func(string, ...any) {}, func(again bool) (io.ReadWriteCloser, error) {
		switch opened = append(opened, again); len(opened) {
		case 1:
			return movedConn{first}, nil
		case 2:
			return nil, api.Errorf(api.CodeConflict, "the domain does not execute")
		}
		return near, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.WriteString(far, "here") }()
	got := make([]byte, 4)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "here" {
		t.Fatalf("got %q, %v", got, err)
	}
	if len(opened) != 3 || opened[0] || !opened[1] || !opened[2] {
		t.Errorf("opened %v", opened)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}
