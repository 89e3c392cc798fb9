package httpd

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// exchange is one request with its answer.
type exchange struct {
	s          *Server
	w          *recorder
	r          *http.Request
	route      *route
	requestID  string
	idempotent bool // the client chose the request ID
	who        principal
	ticketVM   string   // ID of the VM of the ticket that the request came with
	kind       api.Kind // that the request is about
	tenant     string   // of the request, for tenant-scoped kinds
	slot       func()   // gives the place among the running requests back; nil once done
	began      time.Time
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange {
	x, _ := ctx.Value(exchangeKey{}).(*exchange)
	return x
}

func (x *exchange) ctx() context.Context { return x.r.Context() }

// recorder notes what was answered.
type recorder struct {
	http.ResponseWriter
	status int // 0: nothing yet
	bytes  int64
}

// WriteHeader implements http.ResponseWriter.
func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *recorder) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach what is below.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{s: s, w: &recorder{ResponseWriter: w}, began: time.Now()}
	x.r = r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x))
	x.requestID = rand.Text()
	defer x.finish()
	h := w.Header()
	h["X-Debvisor-Version"], h["X-Content-Type-Options"] = s.fixed.version, s.fixed.sniff
	if !isAPI(r.URL.Path) {
		s.servePanel(x.w, x.r)
		return
	}
	h["Cache-Control"], h["Content-Security-Policy"] = s.fixed.cache, s.fixed.policy
	err := x.identify()
	h.Set("X-Request-Id", x.requestID)
	if err == nil {
		err = checkTarget(r)
	}
	if err == nil {
		x.slot, err = s.requests.enter()
	}
	if err != nil {
		x.fail(err)
		return
	}
	s.router.ServeHTTP(x.w, x.r)
}

// identify takes the request ID that the client chose.
func (x *exchange) identify() error {
	values := x.r.Header.Values("Idempotency-Key")
	if len(values) == 0 {
		return nil
	}
	id := values[0]
	if len(values) > 1 || id == "" || len(id) > fsm.RequestIDLengthMax-requestIDSpare || strings.Trim(id, requestIDChars) != "" {
		return api.Invalid("Idempotency-Key", "is no request ID").Allow("once, 1 to %d of letters, digits and -._~:+/=", fsm.RequestIDLengthMax-requestIDSpare)
	}
	x.requestID, x.idempotent = id, true
	return nil
}

const (
	requestIDChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~:+/="
	requestIDSpare = 16 // for the number of a part of a large apply
)

// checkTarget refuses paths and queries that could mean two things.
func checkTarget(r *http.Request) error {
	raw := r.URL.EscapedPath()
	if strings.ContainsAny(raw, "%\\") || strings.Contains(raw, "//") || raw != "/" && strings.HasSuffix(raw, "/") {
		return api.Errorf(api.CodeInvalid, "the path is not canonical").Allow("names are plain: a-z, 0-9 and '-'").Do("send no escapes, no empty parts, and no slash at the end")
	}
	for part := range strings.SplitSeq(raw, "/") {
		if part == "." || part == ".." || strings.ContainsFunc(part, func(c rune) bool { return c <= ' ' || c >= 0x7f }) {
			return api.Errorf(api.CodeInvalid, "the path is not canonical").Allow("names are plain: a-z, 0-9 and '-'")
		}
	}
	if enc := r.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return withStatus(http.StatusUnsupportedMediaType, api.Invalid("Content-Encoding", "is %q", enc).Allow("bodies that are not compressed"))
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return api.Errorf(api.CodeInvalid, "the query is malformed").Allow("name=value pairs joined by &")
	}
	for name, values := range query {
		if len(values) > 1 && name != "label" && name != "kind" {
			return api.Invalid(name, "is given %d times", len(values)).Allow("once")
		}
		for _, v := range values {
			if v == "" {
				return api.Invalid(name, "has no value").Allow("%s=VALUE, or leave it out", name)
			}
		}
	}
	return nil
}

// leaveSlot gives the place among the running requests back, for requests that
// go on to wait or stream under a limit of their own.
func (x *exchange) leaveSlot() {
	if x.slot != nil {
		x.slot()
		x.slot = nil
	}
}

// finish gives places back, answers for a handler that panicked, and logs.
func (x *exchange) finish() {
	x.leaveSlot()
	caught := recover()
	if caught != nil && caught != http.ErrAbortHandler { //nolint:errorlint // panics compare by identity
		x.s.log.Error("handler panicked", "request_id", x.requestID, "path", x.r.URL.Path, "panic", caught)
		if x.w.status == 0 {
			x.problem(problemOf(api.AsError(errPanic{}), x.requestID))
			caught = nil
		}
	}
	x.logAccess()
	if caught != nil {
		panic(http.ErrAbortHandler)
	}
}

// errPanic stands for a bug; its text goes nowhere.
type errPanic struct{}

func (errPanic) Error() string { return "panic" }

func (x *exchange) logAccess() {
	took := time.Since(x.began)
	name := "other"
	if x.route != nil {
		name = x.route.path
	}
	x.s.metrics.observe(x.r.Method, name, x.w.status, took)
	args := []any{"request_id", x.requestID, "method", x.r.Method, "path", x.r.URL.Path, "status", x.w.status, "bytes", x.w.bytes,
		"took_ms", float64(took.Microseconds()) / 1000, "by", x.who.key, "peer", x.r.RemoteAddr}
	if x.r.Method == http.MethodGet && x.w.status < 500 {
		x.s.log.Debug("request", args...)
		return
	}
	x.s.log.Info("request", args...)
}

func (x *exchange) peer() netip.Addr {
	addr, err := netip.ParseAddrPort(x.r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return addr.Addr().Unmap()
}

// answer sends v as JSON.
func (x *exchange) answer(status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return x.send(status, body)
}

// send sends encoded JSON.
func (x *exchange) send(status int, body []byte) error {
	h := x.w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	x.w.WriteHeader(status)
	_, _ = x.w.Write(body)
	return nil
}

func (x *exchange) index(index uint64) {
	x.w.Header().Set(debvisorIndexHeader, strconv.FormatUint(index, 10))
}
