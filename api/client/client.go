// Package client is the Go SDK of the HTTP API. The command line and the
// end-to-end tests use it and nothing else.
//
// A call tries the configured addresses in turn until one answers or its time
// is over. Every change carries an idempotency key that stays the same over
// these tries, so that a change happens once however often it is sent. Errors
// are *api.Error with the request ID.
package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/debvisor/debvisor/api"
)

// Limits of a client.
const (
	DefaultTimeout  = 30 * time.Second // of a call in all, tries included
	AddressesMax    = 64
	AnswerBytesMax  = 512 << 20 // of an answer that is read whole
	problemBytesMax = 1 << 20
	backoffMin      = 50 * time.Millisecond
	backoffMax      = time.Second
	dialTimeout     = 5 * time.Second
	attemptFirst    = 3 * time.Second  // until one node's answer begins, the first time round; then the next is tried
	attemptMax      = 10 * time.Second // the same from then on, and where only one address is known
	pingAfter       = 10 * time.Second // of silence on a connection
	pingTimeout     = 5 * time.Second
	hopelessMax     = 10 * time.Second // while at every address nobody listens, or says that nobody leads
	deleteTriesMax  = 3                // of a deletion of whatever revision is there
)

// Config says where the cluster is and who asks.
type Config struct {
	Addresses  []string      // "host:port" or "https://host:port" of any nodes
	CACert     []byte        // PEM certificates of the cluster's CA; empty with an empty CAFile: the system's
	CAFile     string        // a file of the same
	ServerName string        // name to expect in the certificate; empty: the host of the address
	Key        string        // API key; empty: only the health endpoints answer
	Timeout    time.Duration // of a call in all; 0: DefaultTimeout
	Agent      string        // User-Agent
}

// Client talks to one cluster. It is safe for concurrent use.
type Client struct {
	cfg       Config
	addresses []string // https://host:port
	http      *http.Client
	upgrade   *http.Client // HTTP/1.1 only, for WebSockets
	last      atomic.Int64 // index of the address that answered last
}

// New makes a client. It connects to nothing yet. The errors name the setting
// that is wrong.
func New(cfg Config) (*Client, error) {
	if len(cfg.Addresses) == 0 || len(cfg.Addresses) > AddressesMax {
		return nil, api.Invalid("addresses", "has %d", len(cfg.Addresses)).Allow("1 to %d", AddressesMax).Do("set --addr or DEBVISOR_ADDR to host:port of a node")
	}
	c := &Client{cfg: cfg}
	if c.cfg.Timeout <= 0 {
		c.cfg.Timeout = DefaultTimeout
	}
	if c.cfg.Agent == "" {
		c.cfg.Agent = "debvisor-client"
	}
	for _, a := range cfg.Addresses {
		base, err := baseURL(a)
		if err != nil {
			return nil, err
		}
		c.addresses = append(c.addresses, base)
	}
	roots, err := readRoots(cfg)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: cfg.ServerName}
	c.http = newHTTP(config, true)
	c.upgrade = newHTTP(config.Clone(), false)
	return c, nil
}

// Close gives idle connections back.
func (c *Client) Close() {
	c.http.CloseIdleConnections()
	c.upgrade.CloseIdleConnections()
}

// Addresses are the base URLs that calls try.
func (c *Client) Addresses() []string { return append([]string(nil), c.addresses...) }

func newHTTP(config *tls.Config, http2 bool) *http.Client {
	t := &http.Transport{
		TLSClientConfig:     config,
		ForceAttemptHTTP2:   http2,
		TLSHandshakeTimeout: dialTimeout,
		IdleConnTimeout:     time.Minute,
		MaxIdleConnsPerHost: 64,
		DisableCompression:  true,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		DialContext:         dialer().DialContext,
	}
	if !http2 {
		t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
		config.NextProtos = []string{"http/1.1"}
	}
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // the key goes to the configured addresses only
	}}
}

func baseURL(address string) (string, error) {
	text := address
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" && u.Path != "/" || u.User != nil || u.RawQuery != "" {
		return "", api.Invalid("addresses", "%q is no address", address).Allow("host:port or https://host:port")
	}
	return "https://" + u.Host, nil
}

func readRoots(cfg Config) (*x509.CertPool, error) {
	pem := cfg.CACert
	if len(pem) == 0 && cfg.CAFile != "" {
		var err error
		if pem, err = os.ReadFile(cfg.CAFile); err != nil {
			return nil, api.Invalid("ca_file", "cannot be read: %v", err).Do("set --cacert or DEBVISOR_CACERT to the CA file that init wrote")
		}
	}
	if len(pem) == 0 {
		return nil, nil
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, api.Invalid("ca_cert", "holds no certificate").Allow("certificates in PEM form")
	}
	return roots, nil
}

// failure is an attempt that did not get an answer of the API.
type failure struct {
	err     error
	address string
}

func (f *failure) Error() string { return fmt.Sprintf("%s: %v", f.address, f.err) }
func (f *failure) Unwrap() error { return f.err }

// final turns the last attempt's error into what the caller sees. sent says
// that a change may have reached the cluster.
func final(err error, requestID string, sent bool) error {
	var answered *api.Error
	if errors.As(err, &answered) && !sent {
		return answered
	}
	code, next := api.CodeUnavailable, "check the addresses and that a node runs there"
	if sent {
		code, next = api.CodeUnknown, "look whether it happened, or repeat it with the same request ID"
	}
	if isForeign(err) {
		next = "check the CA certificate: it is not the one of this cluster, or the address is not in the node's certificate"
	}
	out := api.Errorf(code, "no answer: %v", cause(err)).Do("%s", next)
	if answered != nil {
		out = api.Errorf(code, "%s", answered.Message).Do("%s", next)
	}
	out.RequestID = requestID
	return out
}

// cause drops what net/http repeats of the URL.
func cause(err error) error {
	var u *url.Error
	if f := (*failure)(nil); errors.As(err, &f) && errors.As(f.err, &u) {
		return &failure{err: u.Err, address: f.address}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.New("the time is over")
	}
	return err
}

func drain(r io.ReadCloser) {
	_, _ = io.CopyN(io.Discard, r, 64<<10) // so that the connection can be used again
	_ = r.Close()
}
