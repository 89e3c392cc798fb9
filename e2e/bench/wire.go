package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	wireTimeout   = time.Minute // of one request
	wireBufferMax = 16 << 10    // longest line of an answer
)

// wires are HTTP/1.1 connections over TLS, one for each worker, that write a
// request in one piece and read no more of an answer than its status and its
// length. The load generator shares the processors with what it measures:
// every microsecond that it does not spend counts.
type wires struct {
	address, key string
	tls          *tls.Config

	mu   sync.Mutex
	open map[int]*wire // by worker; guarded by mu
}

// wire is the connection of one worker.
type wire struct {
	conn net.Conn
	in   *bufio.Reader
	out  []byte
}

func (w *wires) of(ctx context.Context, worker int) (*wire, error) {
	w.mu.Lock()
	have := w.open[worker]
	w.mu.Unlock()
	if have != nil {
		return have, nil
	}
	conn, err := (&tls.Dialer{Config: w.tls}).DialContext(ctx, "tcp", w.address)
	if err != nil {
		return nil, err
	}
	made := &wire{conn: conn, in: bufio.NewReaderSize(conn, wireBufferMax)}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open[worker] = made
	return made, nil
}

// call sends a request and fails unless the answer's status is 2xx. A
// connection that failed is not used again.
func (w *wires) call(ctx context.Context, worker int, method, path string, body []byte) error {
	c, err := w.of(ctx, worker)
	if err != nil {
		return err
	}
	c.out = fmt.Appendf(c.out[:0], "%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n", method, path, w.address, w.key)
	if body != nil {
		c.out = fmt.Appendf(c.out, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	c.out = append(append(c.out, "\r\n"...), body...)
	status, err := c.exchange()
	if err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.open, worker)
		return errors.Join(err, c.conn.Close())
	}
	if status/100 != 2 {
		return fmt.Errorf("%s %s: %d %s", method, path, status, http.StatusText(status))
	}
	return nil
}

// exchange writes c.out and reads the answer to its end.
func (c *wire) exchange() (status int, err error) {
	if err := c.conn.SetDeadline(time.Now().Add(wireTimeout)); err != nil {
		return 0, err
	}
	if _, err := c.conn.Write(c.out); err != nil {
		return 0, err
	}
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if len(line) < len("HTTP/1.1 200") || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return 0, fmt.Errorf("the answer begins with %.40q", line)
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, err
	}
	length := -1
	for {
		if line, err = c.in.ReadSlice('\n'); err != nil {
			return 0, err
		}
		if len(line) <= len("\r\n") {
			break
		}
		if name, value, _ := bytes.Cut(line, []byte(":")); strings.EqualFold(string(name), "Content-Length") {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return 0, err
			}
		}
	}
	if length < 0 && status != http.StatusNoContent {
		return 0, errors.New("the answer does not say its length")
	}
	_, err = c.in.Discard(max(0, length))
	return status, err
}

func (w *wires) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for worker, c := range w.open {
		_ = c.conn.Close()
		delete(w.open, worker)
	}
}
