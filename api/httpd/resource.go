package httpd

import (
	"bytes"
	"encoding/json"
	"iter"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// object ties a struct to the methods of its pointer.
type object[T any] interface {
	*T
	api.Object
}

// resourceOf is the access to the rows of one kind without its type.
type resourceOf interface {
	kind() api.Kind
	zero() any // an object, for the document
	page() any // a page of objects, for the document
	row(view *fsm.View, key string) json.RawMessage
	rows(view *fsm.View, after string) iter.Seq2[string, json.RawMessage]
	head(view *fsm.View, key string) *api.Meta
	tenant(view *fsm.View, key string) string
	owned() bool // rows belong to tenants, though their keys may not say so
	watch(view *fsm.View) <-chan struct{}
	watchKey(view *fsm.View, key string) <-chan struct{}
	show(row json.RawMessage) json.RawMessage
	put(raw []byte, settle func(*api.Meta) error) (fsm.Entry, string, error)
	remove(tenant, name string, modified uint64) fsm.Entry
	restore(view *fsm.View, past json.RawMessage) (fsm.Entry, error)
}

// resource is the access to the rows of one kind.
type resource[T any, P object[T]] struct {
	k      api.Kind
	table  fsm.Table[T, P]
	hide   func(*T)                       // removes what clients must not see; nil: nothing
	plain  func(row json.RawMessage) bool // nothing to hide in this row; nil: look always
	belong func(*T) string                // tenant of a row whose key does not say it; nil: none
	revive func(*fsm.View, *T)            // mends what a row of the past refers to; nil: nothing
}

func of[T any, P object[T]](table fsm.Table[T, P]) *resource[T, P] {
	k, ok := api.LookupKind(table.Kind())
	if !ok {
		panic("the API does not know kind " + table.Kind())
	}
	return &resource[T, P]{k: k, table: table}
}

func resources() map[string]resourceOf {
	keys, tokens := of(fsm.APIKeys), of(fsm.JoinTokens)
	keys.hide = func(k *api.APIKey) { k.Hash, k.PreviousHash = "", "" }
	tokens.hide = func(t *api.JoinToken) { t.Hash = "" }
	instances, replicas, tasks := of(fsm.Instances), of(fsm.Replicas), of(fsm.Tasks)
	instances.belong = func(i *api.Instance) string { return tenantOfKey(i.VM) }
	replicas.belong = func(r *api.Replica) string { return tenantOfKey(r.Of) }
	tasks.belong = func(t *api.Task) string { return t.Tenant }
	// The parts of a large apply hold whole objects, which have rows of their own.
	tasks.hide = summarizePart
	tasks.plain = func(row json.RawMessage) bool { return !bytes.Contains(row, []byte(`"`+api.TaskApply+`"`)) }
	vms := of(fsm.VMs)
	vms.revive = reviveVM
	all := map[string]resourceOf{}
	for _, r := range []resourceOf{of(fsm.Configs), of(fsm.Tenants), of(fsm.Roles), of(fsm.Regions), of(fsm.Nodes), of(fsm.Pools), of(fsm.Networks), of(fsm.Firewalls),
		of(fsm.Images), of(fsm.Volumes), vms, instances, replicas, tasks, keys, tokens, of(fsm.Snapshots)} {
		all[r.kind().Name] = r
	}
	return all
}

// summarizePart leaves of a part's arguments which part it is, and how many
// objects it holds.
func summarizePart(t *api.Task) {
	var part api.ApplyPart
	if t.Verb != api.TaskApply || json.Unmarshal(t.Args, &part) != nil {
		return
	}
	args, err := json.Marshal(partSummary{Set: part.Set, Part: part.Part, Parts: part.Parts, Objects: len(part.Operations)})
	if err == nil {
		t.Args = args
	}
}

// partSummary is what clients see of an api.ApplyPart.
type partSummary struct {
	Set     string `json:"set"`
	Part    int    `json:"part"`
	Parts   int    `json:"parts"`
	Objects int    `json:"objects"`
}

func tenantOfKey(key string) string {
	tenant, _ := api.SplitKey(key)
	return tenant
}

func (r *resource[T, P]) kind() api.Kind { return r.k }

func (r *resource[T, P]) zero() any { return *new(T) }

func (r *resource[T, P]) page() any { return page[T]{} }

func (r *resource[T, P]) row(view *fsm.View, key string) json.RawMessage {
	return r.table.JSON(view, key)
}

func (r *resource[T, P]) rows(view *fsm.View, after string) iter.Seq2[string, json.RawMessage] {
	return r.table.After(view, after)
}

func (r *resource[T, P]) head(view *fsm.View, key string) *api.Meta {
	if v := r.table.Get(view, key); v != nil {
		return P(v).Head()
	}
	return nil
}

func (r *resource[T, P]) tenant(view *fsm.View, key string) string {
	if r.k.TenantScope {
		return tenantOfKey(key)
	}
	if v := r.table.Get(view, key); v != nil && r.belong != nil {
		return r.belong(v)
	}
	return ""
}

func (r *resource[T, P]) owned() bool { return r.k.TenantScope || r.belong != nil }

func (r *resource[T, P]) watch(view *fsm.View) <-chan struct{} { return r.table.Watch(view) }

func (r *resource[T, P]) watchKey(view *fsm.View, key string) <-chan struct{} {
	return r.table.WatchKey(view, key)
}

// show is the row as clients may see it.
func (r *resource[T, P]) show(row json.RawMessage) json.RawMessage {
	if r.hide == nil || len(row) == 0 || r.plain != nil && r.plain(row) {
		return row
	}
	var v T
	if err := json.Unmarshal(row, &v); err != nil {
		return json.RawMessage(`{}`) // rather nothing than a secret
	}
	r.hide(&v)
	out, err := json.Marshal(&v)
	if err != nil {
		return json.RawMessage(`{}`)
	}
	return out
}

// put decodes an object strictly, lets settle complete its Meta, checks it, and
// makes the entry that stores it.
func (r *resource[T, P]) put(raw []byte, settle func(*api.Meta) error) (fsm.Entry, string, error) {
	var v T
	if err := decodeStrict(raw, &v); err != nil {
		return fsm.Entry{}, "", err
	}
	m := P(&v).Head()
	if err := settle(m); err != nil {
		return fsm.Entry{}, "", err
	}
	key := r.k.Key(m.Tenant, m.Name)
	if err := P(&v).Validate(); err != nil {
		e := *api.AsError(err)
		return fsm.Entry{}, "", e.OnMissing(r.k.Name, key)
	}
	entry, err := r.table.Put(&v)
	return entry, key, err
}

func (r *resource[T, P]) remove(tenant, name string, modified uint64) fsm.Entry {
	return r.table.Delete(tenant, name, modified)
}

// showChange is a change of a row as clients may see it; ok is false when they
// may not see it at all.
func (s *Server) showChange(c api.Change) (out api.Change, ok bool) {
	r, known := s.resources[c.Kind]
	if !known {
		return c, false // sealed secrets, certificates, lease counters
	}
	c.Before, c.After = r.show(c.Before), r.show(c.After)
	return c, true
}

// showChanges drops and redacts what clients may not see.
func (s *Server) showChanges(changes []api.Change) []api.Change {
	out := make([]api.Change, 0, len(changes))
	for _, c := range changes {
		if c, ok := s.showChange(c); ok {
			out = append(out, c)
		}
	}
	return out
}

// showRecord is a record as clients may see it.
func (s *Server) showRecord(r *api.Record) api.Record {
	out := *r
	out.Changes = s.showChanges(r.Changes)
	return out
}
