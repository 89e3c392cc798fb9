package httpd_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/httpd"
)

func TestBadBodiesAreRefused(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	deep := strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000)
	for name, c := range map[string]struct {
		body   string
		status int
		field  string
	}{
		"nothing":              {"", 400, ""},
		"no JSON":              {"x", 400, ""},
		"an array":             {"[]", 400, ""},
		"a string":             {`"x"`, 400, ""},
		"null":                 {`null`, 400, ""},
		"a duplicate key":      {`{"cpus":1,"cpus":2}`, 400, "cpus"},
		"a folded key":         {`{"CPUs":1}`, 400, "CPUs"},
		"both":                 {`{"cpus":1,"Cpus":2}`, 400, "Cpus"},
		"a nested duplicate":   {`{"placement":{"node":"a","node":"b"}}`, 400, "node"},
		"trailing data":        {`{} {}`, 400, ""},
		"trailing garbage":     {`{}x`, 400, ""},
		"NaN":                  {`{"cpus":NaN}`, 400, ""},
		"1e400":                {`{"cpus":1e400}`, 400, "cpus"},
		"a float":              {`{"cpus":1.5}`, 400, "cpus"},
		"too deep":             {deep[:60_000], 400, ""},
		"an unknown field":     {`{"cpu":1}`, 400, "cpu"},
		"an unknown inner":     {`{"placement":{"host":"a"}}`, 400, "host"},
		"a wrong type":         {`{"cpus":"1"}`, 400, "cpus"},
		"bytes beyond UTF-8":   {"{\"description\":\"\xff\xfe\"}", 400, ""},
		"a control character":  {"{\"cpus\":1,\"memory_bytes\":134217728,\"description\":\"a\\u0000b\"}", 400, "description"},
		"a direction override": {"{\"cpus\":1,\"memory_bytes\":134217728,\"description\":\"a\\u202eb\"}", 400, "description"},
		"another name":         {`{"name":"other"}`, 400, "name"},
		"another tenant":       {`{"tenant":"other"}`, 400, "tenant"},
		"a negative size":      {`{"cpus":-1,"memory_bytes":134217728}`, 400, "cpus"},
		"memory of 2^63":       {`{"cpus":1,"memory_bytes":9223372036854775808}`, 400, "memory_bytes"},
		"too large":            {`{"description":"` + strings.Repeat("x", httpd.ObjectBytesMax) + `"}`, 413, ""},
	} {
		headers := []string{}
		if c.body == "" {
			headers = append(headers, "Content-Type", "application/json")
		}
		a := s.call("PUT", "/v1/vms/web", c.body, headers...)
		if p := a.problem(t); a.status != c.status || c.field != "" && p.Field != c.field || strings.Contains(string(a.body), "goroutine") {
			t.Errorf("%s: got %d %s, want %d at %q", name, a.status, a.body, c.status, c.field)
		}
	}
	if n := len(s.want(200, "GET", "/v1/vms", "").body); n > 60 {
		t.Errorf("something was stored")
	}
}

// badRequest is a request that must be answered with a status.
type badRequest struct {
	status       int
	method, path string
	headers      []string
}

func badRequests() []badRequest {
	long := strings.Repeat("a", 64)
	return []badRequest{
		{415, "PUT", "/v1/vms/web", []string{"Content-Type", ""}},
		{415, "PUT", "/v1/vms/web", []string{"Content-Type", "application/x-www-form-urlencoded"}},
		{415, "PUT", "/v1/vms/web", []string{"Content-Type", "text/plain"}},
		{415, "PUT", "/v1/vms/web", []string{"Content-Type", "application/json; charset=latin1"}},
		{415, "PUT", "/v1/vms/web", []string{"Content-Encoding", "gzip"}},
		{400, "PUT", "/v1/vms/web", []string{"Idempotency-Key", strings.Repeat("k", 200)}},
		{400, "PUT", "/v1/vms/web", []string{"Idempotency-Key", "a b"}},
		{400, "PUT", "/v1/vms/web", []string{"If-Match", "5"}},
		{400, "PUT", "/v1/vms/web", []string{"If-Match", `W/"5"`}},
		{400, "PUT", "/v1/vms/web", []string{"If-Match", `"5", "6"`}},
		{400, "PUT", "/v1/vms/web", []string{"If-Match", "*"}},
		{400, "PUT", "/v1/vms/web", []string{"If-None-Match", `"5"`}},
		{400, "PUT", "/v1/vms/web", []string{"If-None-Match", "*", "If-Match", `"5"`}},
		{400, "GET", "/v1/vms/a%2fb", nil},
		{400, "GET", "/v1/vms/a%2Fb", nil},
		{400, "GET", "/v1/vms/%2e%2e", nil},
		{400, "GET", "/v1/vms/..", nil},
		{400, "GET", "/v1/./vms", nil},
		{400, "GET", "/v1//vms", nil},
		{400, "GET", "/v1/vms/", nil},
		{400, "GET", "/v1/vms/a%00b", nil},
		{400, "GET", "/v1/vms/%c0%ae", nil},
		{400, "GET", "/v1/vms/" + long, nil},
		{400, "GET", "/v1/vms/-a", nil},
		{400, "GET", "/v1/vms/A", nil},
		{400, "GET", "/v1/vms/%F0%9F%98%80", nil},
		{400, "GET", "/v1/vms/a_b", nil},
		{400, "GET", "/v1/vms?limit=0", nil},
		{400, "GET", "/v1/vms?limit=-1", nil},
		{400, "GET", "/v1/vms?limit=1000000000", nil},
		{400, "GET", "/v1/vms?limit=x", nil},
		{400, "GET", "/v1/vms?limit=1&limit=2", nil},
		{400, "GET", "/v1/vms?limit=", nil},
		{400, "GET", "/v1/vms?limits=1", nil},
		{400, "GET", "/v1/vms?tenant=../x", nil},
		{400, "GET", "/v1/vms?label=x", nil},
		{400, "GET", "/v1/vms?label=a=1&label=a=2", nil},
		{400, "GET", "/v1/vms?" + strings.Repeat("label=a=1&", 20), nil},
		{400, "GET", "/v1/vms?after=other/x", nil},
		{400, "GET", "/v1/vms?index=-1", nil},
		{400, "GET", "/v1/vms?wait=5m", nil},
		{400, "GET", "/v1/vms?index=1&wait=5h", nil},
		{400, "GET", "/v1/vms?index=1&wait=-5s", nil},
		{400, "GET", "/v1/vms?at=99999", nil},
		{400, "GET", "/v1/vms?plan=true", nil},
		{400, "PUT", "/v1/vms/web?plan", nil},
		{400, "PUT", "/v1/vms/web?plan=maybe", nil},
		{400, "GET", "/v1/vms?a;b", nil},
		{400, "GET", "/v1/nodes?tenant=default", nil},
		{404, "GET", "/v1/history/none/x", nil},
		{400, "GET", "/v1/history/node/node1?tenant=default", nil},
		{404, "GET", "/v1/history/vm/none", nil},
		{400, "GET", "/v1/diff/vm/web", nil},
		{400, "GET", "/v1/diff/vm/web?from=yesterday", nil},
		{400, "GET", "/v1/events?kind=none", nil},
	}
}

func TestBadHeadersAndPathsAreRefused(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	for _, c := range badRequests() {
		body := ""
		if c.method == "PUT" {
			body = vmBody("web")
		}
		a := s.call(c.method, c.path, body, c.headers...)
		if a.status != c.status {
			t.Errorf("%s %s %v: got %d %s, want %d", c.method, c.path, c.headers, a.status, a.body, c.status)
			continue
		}
		a.problem(t)
	}
}

func TestHugeBodiesAndHeadersAreCut(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	req := s.request("PUT", "/v1/vms/web", "x")
	req.Body, req.ContentLength = io.NopCloser(endless{}), -1
	if resp, err := http.DefaultTransport.RoundTrip(req); err == nil {
		if resp.StatusCode != 413 {
			t.Errorf("an endless body: got %d", resp.StatusCode)
		}
		_ = resp.Body.Close()
	}
	req = s.request("POST", "/v1/apply", "x")
	req.ContentLength = 2 << 30
	req.Body = io.NopCloser(endless{})
	if resp, err := http.DefaultTransport.RoundTrip(req); err == nil {
		if resp.StatusCode != 413 {
			t.Errorf("a body of 2 GiB: got %d", resp.StatusCode)
		}
		_ = resp.Body.Close()
	}
	req = s.request("GET", "/v1/vms", "")
	for i := range 2000 {
		req.Header.Set(fmt.Sprintf("X-%d", i), strings.Repeat("y", 50))
	}
	if resp, err := http.DefaultTransport.RoundTrip(req); err == nil {
		if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("100 KiB of headers: got %d", resp.StatusCode)
		}
		_ = resp.Body.Close()
	}
}

// endless is a body without an end.
type endless struct{}

// Read implements io.Reader.
func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func TestRawRequestsThatMeanTwoThingsAreRefused(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	for _, head := range []string{
		"GET /v1/vms HTTP/1.1\r\nHost: a\r\nHost: b\r\n",
		"POST /v1/vms HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
		"GET /v1/vms/\x00 HTTP/1.1\r\nHost: a\r\n",
		"GET /v1/vms\\..\\x HTTP/1.1\r\nHost: a\r\n",
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = fmt.Fprintf(conn, "%sAuthorization: Bearer %s\r\nConnection: close\r\n\r\n", head, httpd.FormatKey("root", secret))
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err == nil && resp.StatusCode < 400 {
			t.Errorf("%q: got %d", head, resp.StatusCode)
		}
		_ = conn.Close()
	}
}

func FuzzCheckJSON(f *testing.F) {
	for _, seed := range []string{`{}`, `{"a":1,"a":2}`, `{"a":[{"b":null}]}`, `{"A":1}`, `[]`, `{} 1`, "{\"a\":\"\xff\"}", `{"a":1e999}`, vmBody("web"),
		`{"a":{"a":1},"b":[{"a":1},{"a":2}]}`, `{"a":["x,y",["b","b"],{}],"c":{"d":{},"e":1}}`, `{"a":{"b":1,"b":2}}`, `{"a":[{"b":1,"b":2}]}`,
		`{"a":["x"],"a":1}`, `{"a":"\"","a":1}`, `{"a\"":1,"a":1}`, `{"a":"{","a":1}`, `{"\u0061":1,"a":1}`, `"a"`, `[{"a":1}]`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		err := httpd.CheckJSON(raw)
		if err != nil && api.CodeOf(err) != api.CodeInvalid {
			t.Fatalf("%q: got %v", raw, err)
		}
		if want := naive(raw); (err == nil) != want {
			t.Fatalf("%q: got %v, the naive check says %v", raw, err, want)
		}
	})
}

func FuzzParseLabels(f *testing.F) {
	f.Add("role=web", "a=b")
	f.Add("=", "==")
	f.Fuzz(func(t *testing.T, a, b string) {
		labels, err := httpd.ParseLabels([]string{a, b})
		if err != nil {
			if api.CodeOf(err) != api.CodeInvalid {
				t.Fatalf("got %v", err)
			}
			return
		}
		if len(labels) != 2 {
			t.Fatalf("%q, %q: got %v", a, b, labels)
		}
		for k, v := range labels {
			if p := k + "=" + v; p != a && p != b {
				t.Fatalf("%q, %q: got %v", a, b, labels)
			}
		}
	})
}

func FuzzParseRevision(f *testing.F) {
	f.Add(`"5"`)
	f.Add(`*`)
	f.Add(`W/"5"`)
	f.Fuzz(func(t *testing.T, text string) {
		n, any, err := httpd.ParseRevision("If-Match", text)
		digits := strings.TrimLeft(strings.Trim(text, `"`), "0")
		if err == nil && !any && (n == 0 || fmt.Sprint(n) != digits) || any && text != "*" {
			t.Fatalf("%q: got %d, %v", text, n, any)
		}
	})
}
