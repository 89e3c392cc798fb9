package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// entryBytes is the size of the body of a measured write.
const entryBytes = 300

const answerBytesMax = 64 << 20

// loadClient speaks HTTP/1.1 to one node over kept connections and never tries
// again, so that what is measured is the server and not a client's retries.
type loadClient struct {
	base, key string
	http      *http.Client
	wires     *wires // for loads
}

func (d *dev) load(address string) (*loadClient, error) {
	pem, err := os.ReadFile(d.ca)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	secure := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}}
	return &loadClient{base: "https://" + address, key: d.key, wires: &wires{address: address, key: d.key, tls: secure, open: map[int]*wire{}}, http: &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		TLSClientConfig:     secure,
		TLSNextProto:        map[string]func(string, *tls.Conn) http.RoundTripper{},
		MaxIdleConnsPerHost: 2048, DisableCompression: true,
	}}}, nil
}

func (l *loadClient) call(ctx context.Context, method, path string, body []byte) (int, error) {
	req, err := http.NewRequestWithContext(ctx, method, l.base+path, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+l.key)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := l.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, io.LimitReader(resp.Body, answerBytesMax))
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	return int(n), err
}

// create makes a tenant, on a connection that is made anew where it broke.
func (l *loadClient) create(ctx context.Context, n uint64) error {
	_, err := l.call(ctx, http.MethodPost, "/v1/tenants", tenantBody(n))
	return err
}

// put makes a tenant, as part of a load.
func (l *loadClient) put(ctx context.Context, worker int, n uint64) error {
	return l.wires.call(ctx, worker, http.MethodPost, "/v1/tenants", tenantBody(n))
}

// get reads a path, as part of a load.
func (l *loadClient) get(path string) func(context.Context, int, uint64) error {
	return func(ctx context.Context, worker int, _ uint64) error {
		return l.wires.call(ctx, worker, http.MethodGet, path, nil)
	}
}

func (l *loadClient) close() {
	l.wires.close()
	l.http.CloseIdleConnections()
}
