package httpd

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/debvisor/debvisor/api"
)

// Problem is an error as RFC 9457 has it, with the fields of api.Error.
type Problem struct {
	Type   string `json:"type" doc:"urn:debvisor:error:CODE"`
	Title  string `json:"title" doc:"the status in words"`
	Status int    `json:"status" doc:"the HTTP status"`
	Detail string `json:"detail" doc:"the whole error in one line, for people"`

	Code      api.Code     `json:"code" doc:"what kind of failure it is; part of the API"`
	Message   string       `json:"message" doc:"what is wrong"`
	Kind      string       `json:"kind,omitzero" doc:"kind of the object"`
	Key       string       `json:"key,omitzero" doc:"key of the object"`
	Field     string       `json:"field,omitzero" doc:"the field that is wrong"`
	Allowed   string       `json:"allowed,omitzero" doc:"what would be accepted"`
	Next      string       `json:"next,omitzero" doc:"what to do about it"`
	Details   []*api.Error `json:"details,omitzero" doc:"when more than one thing is wrong"`
	RequestID string       `json:"request_id"`
	Reasons   []string     `json:"reasons,omitzero" doc:"why the node is not ready"`
}

// statusError carries a status that does not follow from the code.
type statusError struct {
	status int
	err    *api.Error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

func withStatus(status int, err *api.Error) error { return &statusError{status, err} }

// statusOf maps a code to a status.
func statusOf(err *api.Error) int {
	switch err.Code {
	case api.CodeInvalid:
		if err.Field == "request_id" && strings.Contains(err.Message, "another change") {
			return http.StatusUnprocessableEntity
		}
		return http.StatusBadRequest
	case api.CodeNotFound:
		return http.StatusNotFound
	case api.CodeConflict, api.CodeLimit:
		return http.StatusConflict
	case api.CodeForbidden:
		return http.StatusForbidden
	case api.CodeUnauthenticated:
		return http.StatusUnauthorized
	case api.CodeNoLeader, api.CodeUnavailable:
		return http.StatusServiceUnavailable
	case api.CodeUnknown:
		return http.StatusGatewayTimeout
	case api.CodeGone:
		return http.StatusGone
	}
	return http.StatusInternalServerError
}

func problemOf(err error, requestID string) *Problem {
	e := api.AsError(err)
	status := statusOf(e)
	var s *statusError
	if errors.As(err, &s) {
		status, e = s.status, s.err
	}
	return &Problem{Type: "urn:debvisor:error:" + string(e.Code), Title: http.StatusText(status), Status: status, Detail: e.Error(),
		Code: e.Code, Message: e.Message, Kind: e.Kind, Key: e.Key, Field: e.Field, Allowed: e.Allowed, Next: e.Next,
		Details: e.Details, RequestID: requestID}
}

// fail answers with a problem. Once an answer has begun, it breaks the
// connection instead, so that nobody takes the part for the whole.
func (x *exchange) fail(err error) {
	if err == nil {
		return
	}
	if x.w.status != 0 {
		if x.ctx().Err() == nil {
			x.s.log.Warn("answer cut short", "request_id", x.requestID, "path", x.r.URL.Path, "error", err)
		}
		panic(http.ErrAbortHandler)
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		err = api.Errorf(api.CodeUnavailable, "there was no answer in time").Do("try again, or ask another node")
	}
	if api.CodeOf(err) == api.CodeInternal {
		x.s.log.Error("request failed", "request_id", x.requestID, "method", x.r.Method, "path", x.r.URL.Path, "error", err)
	}
	x.problem(problemOf(err, x.requestID))
}

func (x *exchange) problem(p *Problem) {
	h := x.w.Header()
	switch p.Status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Bearer realm="debvisor"`)
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		h.Set("Retry-After", "1")
	}
	body, err := json.Marshal(p)
	if err != nil {
		body = []byte(`{"code":"internal","status":500}`)
	}
	h.Del("ETag")
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	x.w.WriteHeader(p.Status)
	_, _ = x.w.Write(body)
}

// transform turns what huma finds wrong with parameters into a problem.
func (s *Server) transform(ctx huma.Context, _ string, v any) (any, error) {
	model, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	x := exchangeOf(ctx.Context())
	var details []*api.Error
	for _, d := range model.Errors {
		field := d.Location
		for _, prefix := range []string{"query.", "path.", "header."} {
			field = strings.TrimPrefix(field, prefix)
		}
		details = append(details, api.Invalid(field, "%s", d.Message))
	}
	out := api.Errorf(api.CodeInvalid, "%s", model.Detail).Do("see the OpenAPI document at /v1/openapi.json")
	if len(details) == 1 {
		out.Field, out.Message = details[0].Field, details[0].Message
	} else {
		out.Details = details
	}
	return problemOf(out, x.requestID), nil
}
