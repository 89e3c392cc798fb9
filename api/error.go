package api

import (
	"errors"
	"fmt"
	"strings"
)

// Code tells a client what kind of failure it met. Codes are part of the API.
type Code string

// The codes that a client can act on; any other failure is CodeInternal.
const (
	CodeInvalid         Code = "invalid"         // the request is wrong: mend the named field
	CodeNotFound        Code = "not_found"       // no such object, or none that you may see
	CodeConflict        Code = "conflict"        // the object moved or exists: read again
	CodeForbidden       Code = "forbidden"       // a rule denies it
	CodeUnauthenticated Code = "unauthenticated" // no valid key
	CodeLimit           Code = "limit"           // a named limit is reached
	CodeNoLeader        Code = "no_leader"       // nobody leads now: try again
	CodeUnknown         Code = "unknown"         // it may or may not have happened: retry with the same request ID
	CodeUnavailable     Code = "unavailable"     // this node cannot serve it now
	CodeGone            Code = "gone"            // history below the retention floor
	CodeInternal        Code = "internal"        // a bug or a broken machine; logged with the request ID
)

// Error is a failure for people and programs. The zero value of a field means
// that there is nothing to say.
type Error struct {
	Code    Code     `json:"code"`
	Message string   `json:"message"`          // what is wrong, in one sentence
	Kind    string   `json:"kind,omitzero"`    // the object's kind
	Key     string   `json:"key,omitzero"`     // the object's key
	Field   string   `json:"field,omitzero"`   // the field, as in JSON: "disks[0].size_bytes"
	Allowed string   `json:"allowed,omitzero"` // what would be accepted
	Next    string   `json:"next,omitzero"`    // what to do about it
	Details []*Error `json:"details,omitzero"` // more than one thing is wrong

	RequestID string `json:"request_id,omitzero"` // of the request that failed; set in answers to clients only
}

// Error renders one line: object, field, message, what is allowed, next step.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Kind != "" || e.Key != "" {
		fmt.Fprintf(&b, "%s/%s: ", e.Kind, e.Key)
	}
	if e.Field != "" {
		fmt.Fprintf(&b, "%s: ", e.Field)
	}
	b.WriteString(e.Message)
	if e.Allowed != "" {
		fmt.Fprintf(&b, " (allowed: %s)", e.Allowed)
	}
	if e.Next != "" {
		fmt.Fprintf(&b, "; %s", e.Next)
	}
	for _, d := range e.Details {
		b.WriteString("\n  " + d.Error())
	}
	return b.String()
}

// Where names the object and the field that the error is about, as
// "vm/default/web cpus". It has no wording in it.
func (e *Error) Where() string {
	where := e.Field
	if e.Kind != "" || e.Key != "" {
		where = strings.TrimSpace(e.Kind + "/" + e.Key + " " + e.Field)
	}
	return where
}

// Is makes errors.Is(err, &Error{Code: c}) match by code alone.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && t.Message == ""
}

// Errorf makes an error with a code and a message.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Invalid makes the error for one bad field.
func Invalid(field, format string, args ...any) *Error {
	return &Error{Code: CodeInvalid, Field: field, Message: fmt.Sprintf(format, args...)}
}

// Allow adds what would have been accepted.
func (e *Error) Allow(format string, args ...any) *Error {
	e.Allowed = fmt.Sprintf(format, args...)
	return e
}

// Do adds the next step.
func (e *Error) Do(format string, args ...any) *Error {
	e.Next = fmt.Sprintf(format, args...)
	return e
}

// At names the field that the error is about.
func (e *Error) At(field string) *Error {
	e.Field = field
	return e
}

// On names the object that the error is about.
func (e *Error) On(kind, key string) *Error {
	e.Kind, e.Key = kind, key
	return e
}

// OnMissing names the object unless the error names one already.
func (e *Error) OnMissing(kind, key string) *Error {
	if e.Kind == "" {
		return e.On(kind, key)
	}
	return e
}

// CodeOf is the code of err: CodeInternal when err carries none, and the empty
// code for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return CodeInternal
}

// AsError returns err as an *Error. A failure without a code becomes
// CodeInternal with a message that reveals nothing; the caller logs the cause.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Code: CodeInternal, Message: "internal error", Next: "look for the request ID in the node's log"}
}

// problems collects what is wrong with an object, so that a user sees all of
// it at once. At most problemsMax are kept.
type problems struct{ list []*Error }

const problemsMax = 20

func (p *problems) add(field, format string, args ...any) *Error {
	e := Invalid(field, format, args...)
	if len(p.list) < problemsMax {
		p.list = append(p.list, e)
	}
	return e
}

func (p *problems) addErr(err *Error) {
	if err != nil && len(p.list) < problemsMax {
		p.list = append(p.list, err)
	}
}

func (p *problems) err() error {
	switch len(p.list) {
	case 0:
		return nil
	case 1:
		return p.list[0]
	}
	return &Error{Code: CodeInvalid, Message: fmt.Sprintf("%d fields are wrong", len(p.list)), Details: p.list}
}
