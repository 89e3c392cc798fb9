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

// loadClient speaks HTTP/1.1 over kept connections, one per worker, so that
// what is measured is the server and not a client's retries.
type loadClient struct {
	base, key string
	http      *http.Client
}

func (d *dev) load(address string) (*loadClient, error) {
	pem, err := os.ReadFile(d.ca)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return &loadClient{base: "https://" + address, key: d.key, http: &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}},
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

// put creates a tenant.
func (l *loadClient) put(ctx context.Context, _ int, n uint64) error {
	_, err := l.call(ctx, http.MethodPost, "/v1/tenants", tenantBody(n))
	return err
}

func (l *loadClient) get(path string) func(context.Context, int, uint64) error {
	return func(ctx context.Context, _ int, _ uint64) error {
		_, err := l.call(ctx, http.MethodGet, path, nil)
		return err
	}
}
