package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/debvisor/debvisor/api"
)

// Option changes one call.
type Option func(*call)

// AsPlan makes a change a plan: nothing happens, and into receives what would.
func AsPlan(into *api.Plan) Option {
	return func(c *call) { c.plan = into; c.query.Set("plan", "true") }
}

// WithRequestID sets the idempotency key of a change, for one that is repeated
// by a later call.
func WithRequestID(id string) Option { return func(c *call) { c.requestID = id } }

// call is one request of the API, over all of its tries.
type call struct {
	method    string
	path      string // below the address, as "/v1/vms"
	query     url.Values
	header    http.Header
	in        any // body, encoded as JSON; nil: none
	out       any // receives the answer; nil: it is dropped
	plan      *api.Plan
	requestID string
	wait      time.Duration // that the server may take on top
	hurry     bool          // others may be asked: do not wait long for this one
}

// Answer is what an answer says beside its body.
type Answer struct {
	Status    int
	RequestID string
	Index     uint64 // X-Debvisor-Index
	ETag      string
	Header    http.Header
}

// Call makes any request of the API: path as "/v1/vms/web", in is sent as JSON
// unless nil, out receives the answer unless nil (a *json.RawMessage gets it as
// it is). It blocks until an answer, or until the client's timeout.
func (c *Client) Call(ctx context.Context, method, path string, query url.Values, in, out any, options ...Option) (Answer, error) {
	return c.do(ctx, &call{method: method, path: path, query: query, in: in, out: out}, options...)
}

func (c *Client) do(ctx context.Context, call *call, options ...Option) (Answer, error) {
	if call.query == nil {
		call.query = url.Values{}
	}
	if call.header == nil {
		call.header = http.Header{}
	}
	for _, o := range options {
		o(call)
	}
	if call.requestID == "" && call.method != http.MethodGet {
		call.requestID = rand.Text()
	}
	var body []byte
	if call.in != nil {
		var err error
		if body, err = json.Marshal(call.in); err != nil {
			return Answer{}, fmt.Errorf("encode request: %w", err)
		}
		call.header.Set("Content-Type", "application/json")
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout+call.wait)
	defer cancel()
	return c.try(ctx, call, body)
}

// try sends the call to one address after the other until one gives a final
// answer or the time is over.
func (c *Client) try(ctx context.Context, call *call, body []byte) (Answer, error) {
	first, uncertain, backoff := int(c.last.Load()), false, backoffMin
	began, hopeless, foreign := time.Now(), true, 0
	var last error
	for n := 0; ; n++ {
		at := (first + n) % len(c.addresses)
		call.hurry = n < len(c.addresses) && len(c.addresses) > 1
		answer, err := c.send(ctx, c.addresses[at], call, body)
		if err == nil || !retryable(err) {
			c.last.Store(int64(at))
			return answer, err
		}
		if call.method != http.MethodGet && call.plan == nil && mayHaveHappened(err) {
			uncertain = true
		}
		if last == nil || ctx.Err() == nil {
			last = err // what the nodes said tells more than that the time is over
		}
		if hopeless = hopeless && (dialFailed(err) || api.CodeOf(err) == api.CodeNoLeader); isForeign(err) {
			foreign++
		}
		if ctx.Err() != nil || foreign == len(c.addresses) || hopeless && time.Since(began) > hopelessMax {
			return answer, final(last, call.requestID, uncertain)
		}
		if (n+1)%len(c.addresses) != 0 {
			continue
		}
		select {
		case <-time.After(backoff/2 + mathrand.N(backoff/2)):
			backoff, foreign = min(2*backoff, backoffMax), 0
		case <-ctx.Done():
			return answer, final(last, call.requestID, uncertain)
		}
	}
}

// isForeign reports whether what answered is no node of this cluster: trying
// again changes nothing.
func isForeign(err error) bool {
	var certificate *tls.CertificateVerificationError
	return errors.As(err, &certificate)
}

// dialFailed reports whether nobody listens at the address.
func dialFailed(err error) bool {
	var f *failure
	var op *net.OpError
	return errors.As(err, &f) && errors.As(f.err, &op) && op.Op == "dial"
}

// retryable reports whether another try, perhaps elsewhere, may succeed.
func retryable(err error) bool {
	var f *failure
	if errors.As(err, &f) {
		return true
	}
	switch api.CodeOf(err) {
	case api.CodeNoLeader, api.CodeUnavailable, api.CodeUnknown:
		return true
	}
	return false
}

// mayHaveHappened reports whether a change may have reached the cluster
// although its answer did not reach us.
func mayHaveHappened(err error) bool {
	var f *failure
	if errors.As(err, &f) {
		return !dialFailed(err) && !isForeign(err)
	}
	return api.CodeOf(err) == api.CodeUnknown
}

func (c *Client) request(ctx context.Context, address string, call *call, body io.Reader) (*http.Request, error) {
	target := address + call.path
	if len(call.query) > 0 {
		target += "?" + call.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, call.method, target, body)
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "the request cannot be made: %v", err)
	}
	for k, v := range call.header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", c.cfg.Agent)
	if c.cfg.Key != "" {
		req.Header.Set("Authorization", "Bearer "+c.cfg.Key)
	}
	if call.requestID != "" {
		req.Header.Set("Idempotency-Key", call.requestID)
	}
	return req, nil
}

func (c *Client) send(ctx context.Context, address string, call *call, body []byte) (Answer, error) {
	var reader io.Reader
	if call.in != nil {
		reader = bytes.NewReader(body)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	limit := attemptMax + call.wait
	if call.hurry {
		limit = attemptFirst + call.wait
	}
	patience := time.AfterFunc(limit, cancel)
	resp, err := c.open(ctx, address, call, reader)
	if !patience.Stop() && err != nil {
		return Answer{}, &failure{fmt.Errorf("did not answer within %v", limit), address}
	}
	if err != nil {
		return Answer{}, err
	}
	defer drain(resp.Body)
	answer := answerOf(resp)
	into := call.out
	if call.plan != nil {
		into = call.plan
	}
	if into == nil || resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusNotModified {
		return answer, nil
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, AnswerBytesMax+1))
	if err != nil {
		return answer, &failure{err, address}
	}
	if len(raw) > AnswerBytesMax {
		return answer, api.Errorf(api.CodeLimit, "the answer is larger than %s", api.FormatSize(AnswerBytesMax)).Do("ask for pages")
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return answer, fmt.Errorf("answer of %s: %w", call.path, err)
	}
	return answer, nil
}

// open sends the call once and returns an answer whose status says success.
func (c *Client) open(ctx context.Context, address string, call *call, body io.Reader) (*http.Response, error) {
	req, err := c.request(ctx, address, call, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, &failure{err, address}
	}
	if resp.StatusCode < 400 {
		return resp, nil
	}
	defer drain(resp.Body)
	return nil, problem(resp, address)
}

// problem reads the error of an answer.
func problem(resp *http.Response, address string) error {
	raw, err := io.ReadAll(io.LimitReader(resp.Body, problemBytesMax))
	if err != nil {
		return &failure{err, address}
	}
	out := &api.Error{}
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") || json.Unmarshal(raw, out) != nil || out.Code == "" {
		// No node wrote this: a proxy, or another program on that port.
		out = api.Errorf(codeOfStatus(resp.StatusCode), "%s answered %s", address, resp.Status).Do("check that the address is a node of the cluster")
	}
	if out.RequestID == "" {
		out.RequestID = resp.Header.Get("X-Request-Id")
	}
	return out
}

func codeOfStatus(status int) api.Code {
	switch status {
	case http.StatusUnauthorized:
		return api.CodeUnauthenticated
	case http.StatusForbidden:
		return api.CodeForbidden
	case http.StatusNotFound:
		return api.CodeNotFound
	case http.StatusBadGateway, http.StatusServiceUnavailable:
		return api.CodeUnavailable
	case http.StatusGatewayTimeout:
		return api.CodeUnknown
	}
	return api.CodeInternal
}

func answerOf(resp *http.Response) Answer {
	index, _ := strconv.ParseUint(resp.Header.Get("X-Debvisor-Index"), 10, 64)
	return Answer{Status: resp.StatusCode, RequestID: resp.Header.Get("X-Request-Id"), Index: index, ETag: resp.Header.Get("ETag"), Header: resp.Header}
}

func dialer() *net.Dialer { return &net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second} }
