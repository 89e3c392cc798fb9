package client

import (
	"context"
	"encoding/json"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/debvisor/debvisor/api"
)

// object ties a struct to the methods of its pointer.
type object[T any] interface {
	*T
	api.Object
}

// Objects is the access to the objects of one kind.
type Objects[T any, P object[T]] struct {
	c    *Client
	kind api.Kind
}

// Resource gives access to the objects of a kind, by its singular or plural
// name. It panics for a kind that does not exist.
func Resource[T any, P object[T]](c *Client, kind string) Objects[T, P] {
	k, ok := api.LookupKind(kind)
	if !ok {
		panic("no such kind: " + kind)
	}
	return Objects[T, P]{c, k}
}

// ReadOptions say which state a read sees. The zero value asks for the
// linearizable one.
type ReadOptions struct {
	Stale    bool          // the node's own state, without asking the leader
	At       uint64        // as it was at this index
	MinIndex uint64        // wait until the node has applied this index
	Index    uint64        // wait until the kind changed after this index
	Wait     time.Duration // how long, at most 10 minutes; 0 with Index: 5 minutes
}

// ListOptions select what a list shows.
type ListOptions struct {
	ReadOptions
	Tenant string // of a tenant-scoped kind; empty: default
	All    bool   // all tenants
	Labels map[string]string
	Limit  int    // of a page; 0: the server's default
	After  string // cursor: Next of the page before
}

// List is one page of objects.
type List[T any] struct {
	Items []T    `json:"items"`
	Index uint64 `json:"index"`         // of the state that was read; give it to Index to wait for the next
	Next  string `json:"next,omitzero"` // cursor of the next page; empty: this is the last
	Stale bool   `json:"stale,omitzero"`
	AgeMS int64  `json:"age_ms,omitzero"` // age of a stale answer, in milliseconds
}

func (o ReadOptions) apply(call *call) {
	q := call.query
	if o.Stale {
		q.Set("stale", "true")
	}
	for name, v := range map[string]uint64{"at": o.At, "min_index": o.MinIndex, "index": o.Index} {
		if v != 0 {
			q.Set(name, strconv.FormatUint(v, 10))
		}
	}
	if o.Index != 0 {
		if o.Wait == 0 {
			o.Wait = 5 * time.Minute
		}
		q.Set("wait", o.Wait.String())
		call.wait = o.Wait + o.Wait/8
	}
}

func (o ListOptions) apply(call *call) {
	o.ReadOptions.apply(call)
	q := call.query
	if o.All {
		q.Set("tenant", "*")
	} else if o.Tenant != "" {
		q.Set("tenant", o.Tenant)
	}
	for _, k := range slices.Sorted(maps.Keys(o.Labels)) {
		q.Add("label", k+"="+o.Labels[k])
	}
	if o.Limit != 0 {
		q.Set("limit", strconv.Itoa(o.Limit))
	}
	if o.After != "" {
		q.Set("after", o.After)
	}
}

// List reads one page.
func (r Objects[T, P]) List(ctx context.Context, o ListOptions) (*List[T], error) {
	out := &List[T]{}
	call := &call{method: http.MethodGet, path: "/v1/" + r.kind.Plural, query: url.Values{}, out: out}
	o.apply(call)
	if _, err := r.c.do(ctx, call); err != nil {
		return nil, err
	}
	return out, nil
}

// All reads every page and returns them as one. Pages after the first are of
// states no older than the first.
func (r Objects[T, P]) All(ctx context.Context, o ListOptions) (*List[T], error) {
	if o.Limit == 0 {
		o.Limit = pageSize
	}
	out, err := r.List(ctx, o)
	for err == nil && out.Next != "" {
		o.After, o.Index, o.MinIndex = out.Next, 0, max(o.MinIndex, out.Index)
		var page *List[T]
		if page, err = r.List(ctx, o); err == nil {
			out.Items, out.Next = append(out.Items, page.Items...), page.Next
		}
	}
	return out, err
}

const pageSize = 1000 // what All asks for at a time

func (r Objects[T, P]) path(name string) string {
	return "/v1/" + r.kind.Plural + "/" + url.PathEscape(name)
}

func (r Objects[T, P]) named(method, tenant, name string) *call {
	q := url.Values{}
	if r.kind.TenantScope && tenant != "" {
		q.Set("tenant", tenant)
	}
	return &call{method: method, path: r.path(name), query: q, header: http.Header{}}
}

// Get reads one object. A missing one is CodeNotFound. The answer's Index is
// the state's.
func (r Objects[T, P]) Get(ctx context.Context, tenant, name string, o ReadOptions) (*T, Answer, error) {
	out := new(T)
	call := r.named(http.MethodGet, tenant, name)
	call.out = out
	o.apply(call)
	answer, err := r.c.do(ctx, call)
	if err != nil {
		return nil, answer, err
	}
	return out, answer, nil
}

// Put creates v when its Modified is 0, and replaces the revision Modified
// otherwise. It returns what was stored; with AsPlan nil.
func (r Objects[T, P]) Put(ctx context.Context, v *T, options ...Option) (*T, error) {
	m := P(v).Head()
	call := r.named(http.MethodPut, m.Tenant, m.Name)
	call.in, call.out = v, new(T)
	if m.Modified == 0 {
		call.header.Set("If-None-Match", "*")
	} else {
		call.header.Set("If-Match", etag(m.Modified))
	}
	if _, err := r.c.do(ctx, call, options...); err != nil {
		return nil, err
	}
	if call.plan != nil {
		return nil, nil
	}
	return call.out.(*T), nil
}

// Delete deletes the revision modified, or whatever is there when it is 0.
// That revision is read first, so that a repetition names the same one.
func (r Objects[T, P]) Delete(ctx context.Context, tenant, name string, modified uint64, options ...Option) error {
	for tries := 1; ; tries++ {
		revision := modified
		if revision == 0 {
			v, _, err := r.Get(ctx, tenant, name, ReadOptions{})
			if err != nil {
				return err
			}
			revision = P(v).Head().Modified
		}
		call := r.named(http.MethodDelete, tenant, name)
		call.header.Set("If-Match", etag(revision))
		_, err := r.c.do(ctx, call, options...)
		if api.CodeOf(err) == api.CodeConflict && modified == 0 && tries < deleteTriesMax && !r.is(ctx, tenant, name, revision) {
			continue
		}
		return err
	}
}

// is reports whether the object is at that revision.
func (r Objects[T, P]) is(ctx context.Context, tenant, name string, revision uint64) bool {
	v, _, err := r.Get(ctx, tenant, name, ReadOptions{})
	return err == nil && P(v).Head().Modified == revision
}

// Watch yields the whole list now and after every change, until ctx ends or
// the loop stops. An error ends it, except that ctx ending ends it silently.
func (r Objects[T, P]) Watch(ctx context.Context, o ListOptions) iter.Seq2[*List[T], error] {
	return func(yield func(*List[T], error) bool) {
		for {
			list, err := r.All(ctx, o)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if list.Index != o.Index && !yield(list, nil) {
				return
			}
			o.Index = list.Index
		}
	}
}

func etag(modified uint64) string { return `"` + strconv.FormatUint(modified, 10) + `"` }

// Objects reads one page of any kind as it was sent, for code that treats
// kinds alike.
func (c *Client) Objects(ctx context.Context, kind api.Kind, o ListOptions) (*List[json.RawMessage], error) {
	out := &List[json.RawMessage]{}
	call := &call{method: http.MethodGet, path: "/v1/" + kind.Plural, query: url.Values{}, out: out}
	o.apply(call)
	if _, err := c.do(ctx, call); err != nil {
		return nil, err
	}
	return out, nil
}
