package httpd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/debvisor/debvisor/api"
)

// body reads the JSON body of the request strictly. None at all is nil.
func (x *exchange) body() ([]byte, error) {
	limit := x.route.bytes
	if x.r.ContentLength == 0 {
		return nil, nil
	}
	if x.r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	media, params, err := mime.ParseMediaType(x.r.Header.Get("Content-Type"))
	if charset := params["charset"]; err != nil || media != "application/json" || charset != "" && !strings.EqualFold(charset, "utf-8") {
		return nil, withStatus(http.StatusUnsupportedMediaType, api.Invalid("Content-Type", "is %.100q", x.r.Header.Get("Content-Type")).Allow("application/json"))
	}
	_ = http.NewResponseController(x.w).SetReadDeadline(time.Now().Add(BodyTimeout))
	defer func() { _ = http.NewResponseController(x.w).SetReadDeadline(time.Time{}) }()
	raw, err := io.ReadAll(http.MaxBytesReader(x.w, x.r.Body, limit))
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over):
		return nil, tooLarge(limit)
	case err != nil:
		return nil, withStatus(http.StatusRequestTimeout, api.Errorf(api.CodeInvalid, "the body did not arrive whole within %v", BodyTimeout))
	}
	if len(raw) == 0 {
		return nil, nil
	}
	if err := CheckJSON(raw); err != nil {
		return nil, err
	}
	return raw, nil
}

func tooLarge(limit int64) error {
	return withStatus(http.StatusRequestEntityTooLarge, api.Errorf(api.CodeLimit, "the body is too large").Allow("at most %d bytes on this route", limit))
}

// decode reads the body into v. A missing body is refused.
func (x *exchange) decode(v any) error {
	raw, err := x.body()
	if err != nil {
		return err
	}
	if raw == nil {
		return api.Errorf(api.CodeInvalid, "the body is missing").Allow("a JSON object")
	}
	return decodeStrict(raw, v)
}

// decodeOptional is decode, but a missing body leaves v as it is.
func (x *exchange) decodeOptional(v any) error {
	raw, err := x.body()
	if err != nil || raw == nil {
		return err
	}
	return decodeStrict(raw, v)
}

// decodeStrict decodes what CheckJSON has passed, and refuses unknown fields.
func decodeStrict(raw []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		return nil
	}
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return api.Invalid(wrong.Field, "is a JSON %s", wrong.Value).Allow("%s", wrong.Type.String())
	}
	if name, ok := strings.CutPrefix(err.Error(), `json: unknown field "`); ok {
		return api.Invalid(strings.TrimSuffix(name, `"`), "is no field of this object").Do("see /v1/openapi.json for its fields")
	}
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e
	}
	return api.Errorf(api.CodeInvalid, "the body is not understood: %s", strings.TrimPrefix(err.Error(), "json: "))
}

// CheckJSON refuses a body that two decoders could read differently: duplicate
// keys, keys that differ in case only or have capitals at all (no field of
// this API has any), text that is not UTF-8, data after the value, and
// nesting beyond JSONDepthMax. The errors are *api.Error.
func CheckJSON(raw []byte) error {
	if !utf8.Valid(raw) {
		return api.Errorf(api.CodeInvalid, "the body is not UTF-8")
	}
	if json.Valid(raw) && plain(raw) {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var open []*level
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) && len(open) == 0 {
			return api.Errorf(api.CodeInvalid, "the body is empty").Allow("a JSON object")
		}
		if err != nil {
			return api.Errorf(api.CodeInvalid, "the body is not JSON, at byte %d", d.InputOffset()).Allow("one JSON object in UTF-8")
		}
		if open, err = descend(open, token); err != nil {
			return err
		}
		if len(open) > 0 {
			continue
		}
		if _, err := d.Token(); !errors.Is(err, io.EOF) {
			return api.Errorf(api.CodeInvalid, "the body has data after its value, at byte %d", d.InputOffset()).Allow("one JSON object")
		}
		return nil
	}
}

// level is an object or array that the scan is inside of.
type level struct {
	object bool
	value  bool // an object's key was read: a value follows
	keys   map[string]struct{}
}

func descend(open []*level, token json.Token) ([]*level, error) {
	if delim, ok := token.(json.Delim); ok && (delim == '}' || delim == ']') {
		return open[:len(open)-1], nil
	}
	if n := len(open); n > 0 && open[n-1].object {
		top := open[n-1]
		if !top.value {
			key, _ := token.(string)
			top.value = true
			return open, top.add(key)
		}
		top.value = false
	}
	delim, ok := token.(json.Delim)
	if !ok {
		if len(open) == 0 {
			return open, api.Errorf(api.CodeInvalid, "the body is a JSON %s", typeName(token)).Allow("a JSON object")
		}
		return open, nil
	}
	if len(open) == 0 && delim != '{' {
		return open, api.Errorf(api.CodeInvalid, "the body is a JSON array").Allow("a JSON object")
	}
	if len(open) == JSONDepthMax {
		return open, api.Errorf(api.CodeInvalid, "the body is nested deeper than %d", JSONDepthMax)
	}
	l := &level{object: delim == '{'}
	if l.object {
		l.keys = map[string]struct{}{}
	}
	return append(open, l), nil
}

func (l *level) add(key string) error {
	if _, twice := l.keys[key]; twice {
		return api.Invalid(bounded(key), "is given twice").Allow("each key once")
	}
	if key != strings.ToLower(key) {
		return api.Invalid(bounded(key), "is no field of this object").Allow("keys in lower case")
	}
	l.keys[key] = struct{}{}
	return nil
}

// bounded keeps what a client sent short enough to send back.
func bounded(s string) string {
	if len(s) > api.NameLengthMax {
		return fmt.Sprintf("%.60s...", s)
	}
	return s
}

func typeName(token json.Token) string {
	switch token.(type) {
	case string:
		return "string"
	case bool:
		return "boolean"
	case nil:
		return "null"
	}
	return "number"
}
