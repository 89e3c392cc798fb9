package httpd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/api"
)

// diff compares an object between two points.
func (x *exchange) diff(in *diffInput) error {
	res, key := x.past(&in.PastInput)
	view, err := x.barrier(ReadOptions{})
	if err != nil {
		return err
	}
	out := api.Diff{Kind: res.kind().Name, Key: key}
	if out.From, err = x.point(view, "from", in.From); err != nil {
		return err
	}
	if out.To, err = x.point(view, "to", in.To); err != nil {
		return err
	}
	before, err := x.rowAt(res, view, key, out.From)
	if err != nil {
		return err
	}
	after, err := x.rowAt(res, view, key, out.To)
	if err != nil {
		return err
	}
	if before == nil && after == nil {
		return api.Errorf(api.CodeNotFound, "existed at neither index %d nor %d", out.From, out.To).On(out.Kind, key)
	}
	if out.Fields, err = Fields(res.show(before), res.show(after)); err != nil {
		return err
	}
	switch {
	case before == nil:
		out.Action = "create"
	case after == nil:
		out.Action = "delete"
	case len(out.Fields) == 0:
		out.Action = "none"
	default:
		out.Action = "update"
	}
	x.index(view.Index())
	return x.answer(http.StatusOK, out)
}

// bookkeeping are the fields that every write changes.
func bookkeeping(field string) bool {
	switch field {
	case "created", "created_at", "modified", "modified_at":
		return true
	}
	return false
}

// Fields lists what differs between two objects in JSON, in the order of the
// fields' names; an empty side lacks everything. The kernel's bookkeeping is
// left out.
func Fields(before, after json.RawMessage) ([]api.FieldChange, error) {
	was, is := map[string]json.RawMessage{}, map[string]json.RawMessage{}
	if err := flatten(was, "", before, 0); err != nil {
		return nil, err
	}
	if err := flatten(is, "", after, 0); err != nil {
		return nil, err
	}
	names := maps.Clone(was)
	maps.Copy(names, is)
	out := []api.FieldChange{}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if !bookkeeping(name) && !bytes.Equal(was[name], is[name]) {
			out = append(out, api.FieldChange{Field: name, Before: was[name], After: is[name]})
		}
	}
	return out, nil
}

// flatten notes every leaf under its path.
func flatten(into map[string]json.RawMessage, path string, raw json.RawMessage, depth int) error {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		return nil
	}
	if depth > JSONDepthMax {
		return fmt.Errorf("object is nested deeper than %d", JSONDepthMax)
	}
	switch raw[0] {
	case '{':
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(raw, &fields); err != nil {
			return fmt.Errorf("field %s: %w", path, err)
		}
		for name, inner := range fields {
			if err := flatten(into, strings.TrimPrefix(path+"."+name, "."), inner, depth+1); err != nil {
				return err
			}
		}
	case '[':
		var elements []json.RawMessage
		if err := json.Unmarshal(raw, &elements); err != nil {
			return fmt.Errorf("field %s: %w", path, err)
		}
		for i, inner := range elements {
			if err := flatten(into, fmt.Sprintf("%s[%d]", path, i), inner, depth+1); err != nil {
				return err
			}
		}
	default:
		into[path] = raw
	}
	return nil
}
