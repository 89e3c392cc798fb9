package spec

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/debvisor/debvisor/api"
)

// What a Difference asks for.
const (
	Create = "create"
	Update = "update"
	Delete = "delete"
	None   = "none"
)

// Difference is what has to happen to one object.
type Difference struct {
	Action string // Create, Update, Delete or None
	Kind   string
	Key    string
	Before api.Object // nil for Create
	After  api.Object // to be put, with what the kernel has written kept; nil for Delete
	Fields []api.FieldChange
	At     Position // of the block; zero for Delete
}

// Diff compares what files want with what is there, object by object, in the
// order of desired. current returns a literal nil for what does not exist.
//
// Fields that the kernel writes (ID, revisions, times, a MAC that was left
// out, the volume made for a disk) do not count, nor does a default that is
// written out on one side only.
func Diff(desired []Object, current func(kind, key string) api.Object) []Difference {
	out := make([]Difference, 0, len(desired))
	for _, o := range desired {
		before := current(o.Kind, o.Key)
		d := Difference{Kind: o.Kind, Key: o.Key, Before: before, After: o.Value, At: o.At, Action: Create}
		if before == nil {
			d.Fields = fieldChanges(nil, treeOf(o.Value))
			out = append(out, d)
			continue
		}
		d.Action, d.After = None, Merge(o.Value, before)
		if d.Fields = fieldChanges(treeOf(spellOut(before)), treeOf(spellOut(d.After))); len(d.Fields) > 0 {
			d.Action = Update
		}
		out = append(out, d)
	}
	return out
}

// Prune returns what has to be deleted because it carries the set's name and
// is no longer declared, users before what they use. The cluster's settings
// are never deleted.
func Prune(set string, desired []Object, existing []Object) []Difference {
	if set == "" {
		return nil
	}
	declared := map[string]bool{}
	for _, o := range desired {
		declared[o.Kind+"/"+o.Key] = true
	}
	var gone []Object
	for _, o := range existing {
		if o.Value.Head().Labels[ManagedLabel] == set && !declared[o.Kind+"/"+o.Key] {
			gone = append(gone, o)
		}
	}
	return deletions(gone)
}

// Destroy returns what has to be deleted of what files declare, users before
// what they use. What does not exist is left out. current is as in Diff.
func Destroy(desired []Object, current func(kind, key string) api.Object) []Difference {
	var gone []Object
	for _, o := range desired {
		if have := current(o.Kind, o.Key); have != nil {
			gone = append(gone, Object{Kind: o.Kind, Key: o.Key, Value: have})
		}
	}
	return deletions(gone)
}

func deletions(gone []Object) []Difference {
	order := map[string]int{}
	for i, k := range api.Kinds() {
		order[k.Name] = -i
	}
	var out []Difference
	for _, o := range gone {
		if o.Kind != api.KindConfig {
			out = append(out, Difference{Action: Delete, Kind: o.Kind, Key: o.Key, Before: o.Value})
		}
	}
	slices.SortStableFunc(out, func(a, b Difference) int {
		return cmp.Or(cmp.Compare(order[a.Kind], order[b.Kind]), cmp.Compare(a.Key, b.Key))
	})
	return out
}

// treeOf is the object as JSON holds it, without what only the kernel writes
// and without its name, which is in its key.
func treeOf(o api.Object) tree {
	raw, err := json.Marshal(o)
	if err != nil {
		panic("encode " + o.Head().Name + ": " + err.Error()) // objects hold nothing that JSON cannot
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	t := tree{}
	if err := dec.Decode(&t); err != nil {
		panic("decode " + o.Head().Name + ": " + err.Error())
	}
	for _, field := range []string{"id", "name", "tenant", "created", "modified", "created_at", "modified_at"} {
		delete(t, field)
	}
	return t
}

// fieldChanges lists the fields that differ, by name.
func fieldChanges(before, after tree) []api.FieldChange {
	was, is := map[string]string{}, map[string]string{}
	flatten("", before, was)
	flatten("", after, is)
	var out []api.FieldChange
	for path, value := range is {
		if was[path] != value {
			out = append(out, api.FieldChange{Field: path, Before: raw(was[path]), After: raw(value)})
		}
	}
	for path, value := range was {
		if _, ok := is[path]; !ok {
			out = append(out, api.FieldChange{Field: path, Before: raw(value)})
		}
	}
	slices.SortFunc(out, func(a, b api.FieldChange) int { return cmp.Compare(a.Field, b.Field) })
	return out
}

func raw(s string) json.RawMessage {
	if s == "" {
		return nil
	}
	return json.RawMessage(s)
}

// flatten writes the JSON of every leaf under its path. A list without objects
// in it is a leaf.
func flatten(path string, v any, out map[string]string) {
	switch v := v.(type) {
	case tree:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			at := k
			if path != "" {
				at = path + "." + k
			}
			flatten(at, v[k], out)
		}
		return
	case []any:
		if len(v) == 0 {
			return
		}
		if _, ok := v[0].(tree); ok {
			for i, e := range v {
				flatten(fmt.Sprintf("%s[%d]", path, i), e, out)
			}
			return
		}
	case nil:
		return
	}
	if v == "" || v == false || v == json.Number("0") {
		return // as good as left out
	}
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic("encode " + path + ": " + err.Error()) // it was decoded from JSON just now
	}
	out[path] = string(bytes.TrimSpace(text.Bytes()))
}
