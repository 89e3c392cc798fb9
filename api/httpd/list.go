package httpd

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
	"github.com/debvisor/debvisor/fsm"
)

// listInput are the parameters of a list.
type listInput struct {
	ReadOptions
	Tenant string   `query:"tenant" maxLength:"63" doc:"of the objects; default when left out, * for all"`
	Label  []string `query:"label,explode" maxItems:"16" example:"role=web" doc:"only objects that carry this label, as KEY=VALUE; may be repeated"`
	Limit  int      `query:"limit" minimum:"1" maximum:"50000" default:"100" doc:"objects of this page at most"`
	After  string   `query:"after" maxLength:"200" doc:"cursor: next of the page before"`
	At     uint64   `query:"at" doc:"as it was at this index"`
}

// objectInput are the parameters of a read of one object.
type objectInput struct {
	ReadOptions
	Name   string `path:"name" maxLength:"127" doc:"name of the object"`
	Tenant string `query:"tenant" maxLength:"63" doc:"of the object; default when left out"`
	At     uint64 `query:"at" doc:"as it was at this index"`
}

// clusterListInput and clusterObjectInput are those of kinds without a tenant.
type clusterListInput struct {
	ReadOptions
	Label []string `query:"label,explode" maxItems:"16" example:"role=web" doc:"only objects that carry this label, as KEY=VALUE; may be repeated"`
	Limit int      `query:"limit" minimum:"1" maximum:"50000" default:"100" doc:"objects of this page at most"`
	After string   `query:"after" maxLength:"200" doc:"cursor: next of the page before"`
	At    uint64   `query:"at" doc:"as it was at this index"`
}

type clusterObjectInput struct {
	ReadOptions
	Name string `path:"name" maxLength:"127" doc:"name of the object"`
	At   uint64 `query:"at" doc:"as it was at this index"`
}

// page is the shape of a list, for the document.
type page[T any] struct {
	Items []T    `json:"items"`
	Index uint64 `json:"index" doc:"index of the state that was read"`
	Next  string `json:"next,omitzero" doc:"cursor of the next page; absent on the last"`
	Stale bool   `json:"stale,omitzero"`
	AgeMS int64  `json:"age_ms,omitzero" doc:"age of a stale answer in milliseconds"`
}

func (s *Server) serveList(res resourceOf) func(*exchange, *listInput) error {
	return func(x *exchange, in *listInput) error { return x.list(res, in) }
}

func (s *Server) serveClusterList(res resourceOf) func(*exchange, *clusterListInput) error {
	return func(x *exchange, in *clusterListInput) error {
		return x.list(res, &listInput{ReadOptions: in.ReadOptions, Label: in.Label, Limit: in.Limit, After: in.After, At: in.At})
	}
}

// selection is what a list shows of a kind.
type selection struct {
	res    resourceOf
	tenant string // empty: no tenant, or all
	labels map[string]string
	asks   bool // each object needs a decision of its own
}

func (x *exchange) selection(res resourceOf, tenant string, labels []string) (*selection, error) {
	sel := &selection{res: res}
	var err error
	if sel.labels, err = ParseLabels(labels); err != nil {
		return nil, err
	}
	if tenant != allTenants {
		sel.tenant = tenant
	}
	sel.asks = !x.maySee(res.kind().Name, sel.tenant)
	return sel, nil
}

// shows reports whether an object belongs to the list.
func (x *exchange) shows(sel *selection, view *fsm.View, key string) bool {
	if sel.labels == nil && !sel.asks && (sel.tenant == "" || sel.res.kind().TenantScope) {
		return true
	}
	tenant := sel.res.tenant(view, key)
	if sel.tenant != "" && tenant != sel.tenant {
		return false
	}
	head := sel.res.head(view, key)
	if head == nil || !api.MatchLabels(head.Labels, sel.labels) {
		return false
	}
	return !sel.asks || x.allowed(authz.Read, sel.res.kind().Name, tenant, head.Name) == nil
}

func (x *exchange) list(res resourceOf, in *listInput) error {
	tenant := x.tenant
	if !res.kind().TenantScope {
		if tenant = in.Tenant; tenant != "" && tenant != allTenants {
			if err := api.CheckName("tenant", tenant); err != nil {
				return err
			}
		}
	}
	sel, err := x.selection(res, tenant, in.Label)
	if err != nil {
		return err
	}
	if in.After != "" && res.kind().TenantScope && sel.tenant != "" && !strings.HasPrefix(in.After, sel.tenant+"/") || strings.ContainsRune(in.After, 0) {
		return api.Invalid("after", "is no cursor of this list").Allow("next of the page before, with the same tenant")
	}
	view, err := x.read(in.ReadOptions, x.s.kindSubject(res))
	if err != nil {
		return err
	}
	x.index(view.Index())
	if in.At != 0 {
		return x.listAt(sel, view, in)
	}
	return x.writePage(sel, view, in)
}

func (s *Server) kindSubject(res resourceOf) subject {
	name := res.kind().Name
	return subject{watch: res.watch, exact: true,
		moved: func(*fsm.View, uint64) (bool, bool) { return false, false },
		about: func(c api.Change) bool { return c.Kind == name }}
}

// writePage sends the rows as they were encoded when they were written.
func (x *exchange) writePage(sel *selection, view *fsm.View, in *listInput) error {
	start := in.After
	if start == "" && sel.res.kind().TenantScope && sel.tenant != "" {
		start = sel.tenant + "/"
	}
	x.w.Header().Set("Content-Type", "application/json")
	x.w.WriteHeader(http.StatusOK)
	out := bufio.NewWriterSize(&patient{x}, 64<<10)
	_, _ = out.WriteString(`{"items":[`)
	n, size, last, next := 0, 0, "", ""
	for key, row := range sel.res.rows(view, start) {
		if sel.res.kind().TenantScope && sel.tenant != "" && !strings.HasPrefix(key, sel.tenant+"/") {
			break
		}
		if !x.shows(sel, view, key) {
			continue
		}
		if n == in.Limit || size > PageBytesMax {
			next = last
			break
		}
		if n > 0 {
			_ = out.WriteByte(',')
		}
		row = sel.res.show(row)
		if _, err := out.Write(row); err != nil {
			return err
		}
		n, size, last = n+1, size+len(row), key
	}
	return x.endPage(out, view.Index(), next, in.Stale)
}

func (x *exchange) endPage(out *bufio.Writer, index uint64, next string, stale bool) error {
	_, _ = fmt.Fprintf(out, `],"index":%d`, index)
	if next != "" {
		_, _ = fmt.Fprintf(out, `,"next":%s`, strconv.Quote(next))
	}
	if stale {
		_, _ = fmt.Fprintf(out, `,"stale":true,"age_ms":%d`, x.s.cfg.LeaderContact().Milliseconds())
	}
	_, _ = out.WriteString("}\n")
	return out.Flush()
}

// patient gives a client that reads time for every write, and one that does
// not WriteIdleMax.
type patient struct{ x *exchange }

// Write implements io.Writer.
func (p *patient) Write(b []byte) (int, error) {
	_ = http.NewResponseController(p.x.w).SetWriteDeadline(time.Now().Add(WriteIdleMax))
	return p.x.w.Write(b)
}

// listAt lists the kind as it was at an index: what is there now, with every
// change since taken back.
func (x *exchange) listAt(sel *selection, view *fsm.View, in *listInput) error {
	past, err := x.rowsAt(sel.res, view, in.At)
	if err != nil {
		return err
	}
	var keys []string
	for key, row := range past {
		var head struct {
			Labels map[string]string `json:"labels"`
		}
		if row == nil || json.Unmarshal(row, &head) != nil || !api.MatchLabels(head.Labels, sel.labels) {
			continue
		}
		tenant := tenantOfRow(sel.res.kind(), key, row)
		if sel.tenant != "" && tenant != sel.tenant || sel.asks && x.allowed(authz.Read, sel.res.kind().Name, tenant, nameOfKey(key)) != nil {
			continue
		}
		if key > in.After {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	next := ""
	if len(keys) > in.Limit {
		keys = keys[:in.Limit]
		next = keys[in.Limit-1]
	}
	x.w.Header().Set("Content-Type", "application/json")
	x.w.WriteHeader(http.StatusOK)
	out := bufio.NewWriterSize(&patient{x}, 64<<10)
	_, _ = out.WriteString(`{"items":[`)
	for i, key := range keys {
		if i > 0 {
			_ = out.WriteByte(',')
		}
		_, _ = out.Write(sel.res.show(past[key]))
	}
	return x.endPage(out, in.At, next, false)
}

// rowsAt is every row of a kind as it was at an index; nil for one that did
// not exist then.
func (x *exchange) rowsAt(res resourceOf, view *fsm.View, at uint64) (map[string]json.RawMessage, error) {
	if err := x.checkPast(view, at); err != nil {
		return nil, err
	}
	rows := map[string]json.RawMessage{}
	for key, row := range res.rows(view, "") {
		rows[key] = row
	}
	undone := map[string]bool{}
	for after, seen := at, 0; after < view.Index(); {
		records, err := x.s.cfg.Journal.Range(x.ctx(), after, view.Index(), HistoryMax)
		if err != nil {
			return nil, err
		}
		if len(records) == 0 {
			break
		}
		if seen += len(records); seen > ListAtRecordsMax {
			return nil, api.Invalid("at", "lies more than %d records back", ListAtRecordsMax).Do("ask for single objects, or for a later index")
		}
		for i := range records {
			for _, c := range records[i].Changes {
				if c.Kind == res.kind().Name && !undone[c.Key] {
					undone[c.Key] = true // the first change after the index tells what was there before
					rows[c.Key] = c.Before
				}
			}
		}
		after = records[len(records)-1].Index
	}
	return rows, nil
}

func (x *exchange) checkPast(view *fsm.View, at uint64) error {
	if at > view.Index() {
		return api.Invalid("at", "is in the future").Allow("up to %d", view.Index())
	}
	return nil
}

func nameOfKey(key string) string {
	_, name := api.SplitKey(key)
	return name
}

// tenantOfRow is the tenant that a row of the past belongs to.
func tenantOfRow(k api.Kind, key string, row json.RawMessage) string {
	if k.TenantScope {
		return tenantOfKey(key)
	}
	var v struct {
		Tenant string `json:"tenant"`
		VM     string `json:"vm"`
		Of     string `json:"of"`
	}
	_ = json.Unmarshal(row, &v)
	switch k.Name {
	case api.KindInstance:
		return tenantOfKey(v.VM)
	case api.KindReplica:
		return tenantOfKey(v.Of)
	}
	return v.Tenant
}
