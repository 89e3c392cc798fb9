package httpd

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/coder/websocket"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
)

// eventBatchMax is how many records a stream looks at before it checks again
// that it may go on.
const eventBatchMax = 256

type eventInput struct {
	Index  uint64   `query:"index" doc:"events after this index; left out: from now on"`
	Kind   []string `query:"kind,explode" maxItems:"32" doc:"only changes of these kinds; may be repeated"`
	Tenant string   `query:"tenant" maxLength:"63" doc:"only changes of this tenant's objects"`
	Label  []string `query:"label,explode" maxItems:"16" doc:"only changes of objects that carry this label, before or after"`
	LastID string   `header:"Last-Event-ID" maxLength:"20" doc:"as index, from a browser that connects again"`
}

// event is a message of a WebSocket stream.
type event struct {
	Type   string      `json:"type"` // change, beat or problem
	Index  uint64      `json:"index,omitzero"`
	Record *api.Record `json:"record,omitzero"`
	Error  *Problem    `json:"error,omitzero"`
}

func (s *Server) registerEvents() error {
	return handle(s, route{method: http.MethodGet, path: "/v1/events", right: authz.Right{Verb: authz.Watch, Kind: authz.KindEvent, Scope: authz.ScopeCluster},
		media: "text/event-stream", summary: "Follow what changes",
		about: "Server-sent events named change, whose id is the index to resume from; or the same as messages of a WebSocket. A line beat comes every 10 s."},
		(*exchange).events)
}

// sink is where a stream goes.
type sink interface {
	change(index uint64, r *api.Record) error
	beat(index uint64) error
	problem(p *Problem)
}

// filter selects changes.
type filter struct {
	x      *exchange
	kinds  []string
	tenant string
	labels map[string]string
	asks   bool
}

func (x *exchange) events(in *eventInput) error {
	f, err := x.newFilter(in)
	if err != nil {
		return err
	}
	view, err := x.barrier(ReadOptions{Stale: true})
	if err != nil {
		return err
	}
	from := view.Index()
	if in.LastID != "" {
		if in.Index, err = strconv.ParseUint(in.LastID, 10, 64); err != nil {
			return api.Invalid("Last-Event-ID", "is %q", in.LastID).Allow("the id of an event")
		}
	}
	if in.Index != 0 {
		from = in.Index
		if _, err := x.recordsAfter(from); err != nil {
			return err
		}
	}
	x.leaveSlot()
	leave, err := x.s.streams.enter()
	if err != nil {
		return err
	}
	defer leave()
	x.index(from)
	if upgrade(x.r) {
		return x.socketEvents(f, from)
	}
	x.w.Header().Set("Content-Type", "text/event-stream")
	x.w.WriteHeader(http.StatusOK)
	out := &sseSink{x: x, flush: http.NewResponseController(x.w)}
	if err := out.beat(from); err != nil {
		return nil //nolint:nilerr // the client is gone
	}
	x.follow(x.ctx(), f, from, out)
	return nil
}

func (x *exchange) newFilter(in *eventInput) (*filter, error) {
	labels, err := ParseLabels(in.Label)
	if err != nil {
		return nil, err
	}
	for i, name := range in.Kind {
		k, ok := api.LookupKind(name)
		if !ok {
			return nil, api.Invalid("kind", "there is no kind %q", bounded(name)).Do("see /v1/openapi.json")
		}
		in.Kind[i] = k.Name
	}
	if in.Tenant != "" {
		if err := api.CheckName("tenant", in.Tenant); err != nil {
			return nil, err
		}
	}
	// Who may look at everything is spared the question about each change.
	r, err := x.rules()
	if err != nil {
		return nil, err
	}
	return &filter{x: x, kinds: in.Kind, tenant: in.Tenant, labels: labels, asks: r.denies || !x.who.admin()}, nil
}

// show is the part of a record that the filter selects and the caller may see;
// nil when there is none.
func (f *filter) show(r *api.Record) *api.Record {
	var changes []api.Change
	for _, c := range r.Changes {
		if len(f.kinds) > 0 && !slices.Contains(f.kinds, c.Kind) || !f.selects(&c) {
			continue
		}
		if c, ok := f.x.s.showChange(c); ok {
			changes = append(changes, c)
		}
	}
	if len(changes) == 0 {
		return nil
	}
	out := *r
	out.Changes = changes
	return &out
}

func (f *filter) selects(c *api.Change) bool {
	if f.tenant == "" && f.labels == nil && !f.asks {
		return true
	}
	row := c.After
	if len(row) == 0 {
		row = c.Before
	}
	kind, known := api.LookupKind(c.Kind)
	if !known {
		return false
	}
	tenant := tenantOfRow(kind, c.Key, row)
	if f.tenant != "" && tenant != f.tenant {
		return false
	}
	if f.labels != nil && !carries(c.Before, f.labels) && !carries(c.After, f.labels) {
		return false
	}
	return !f.asks || f.x.allowed(authz.Read, c.Kind, tenant, nameOfKey(c.Key)) == nil
}

func carries(row json.RawMessage, labels map[string]string) bool {
	var head struct {
		Labels map[string]string `json:"labels"`
	}
	return len(row) > 0 && json.Unmarshal(row, &head) == nil && api.MatchLabels(head.Labels, labels)
}

// recordsAfter are the next records, from memory or the journal.
func (x *exchange) recordsAfter(index uint64) ([]*api.Record, error) {
	if records, ok := x.s.cfg.Cluster.State().Recent(index, eventBatchMax); ok {
		return records, nil
	}
	stored, err := x.s.cfg.Journal.Range(x.ctx(), index, ^uint64(0), eventBatchMax)
	if err != nil {
		return nil, err
	}
	records := make([]*api.Record, len(stored))
	for i := range stored {
		records[i] = &stored[i]
	}
	return records, nil
}

// follow sends what changes until the client goes, the key is revoked, the
// node shuts down, or the history is gone.
func (x *exchange) follow(ctx context.Context, f *filter, at uint64, out sink) {
	beat, check := time.NewTicker(Heartbeat), time.NewTicker(rightsCheckInterval)
	defer beat.Stop()
	defer check.Stop()
	state := x.s.cfg.Cluster.State()
	for {
		advanced, view := state.Advanced(), state.Read()
		if err := x.stillIn(view); err != nil {
			out.problem(problemOf(err, x.requestID))
			return
		}
		records, err := x.recordsAfter(at)
		if err != nil {
			out.problem(problemOf(err, x.requestID))
			return
		}
		for _, r := range records {
			if at = r.Index; ctx.Err() != nil {
				return
			}
			if shown := f.show(r); shown != nil && out.change(at, shown) != nil {
				return
			}
		}
		if len(records) > 0 {
			continue
		}
		select {
		case <-advanced:
		case <-x.keyWatch(view):
		case <-check.C:
		case <-beat.C:
			if out.beat(at) != nil {
				return
			}
		case <-x.s.cfg.Shutdown:
			out.problem(problemOf(api.Errorf(api.CodeUnavailable, "this node is shutting down").Do("go on at another node"), x.requestID))
			return
		case <-ctx.Done():
			return
		}
	}
}

// sseSink writes server-sent events.
type sseSink struct {
	x     *exchange
	flush *http.ResponseController
}

func (s *sseSink) write(format string, args ...any) error {
	_ = s.flush.SetWriteDeadline(time.Now().Add(WriteIdleMax))
	if _, err := fmt.Fprintf(s.x.w, format, args...); err != nil {
		return err
	}
	return s.flush.Flush()
}

func (s *sseSink) change(index uint64, r *api.Record) error {
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return s.write("id: %d\nevent: change\ndata: %s\n\n", index, body)
}

func (s *sseSink) beat(index uint64) error { return s.write(": beat\nid: %d\n\n", index) }

func (s *sseSink) problem(p *Problem) {
	body, _ := json.Marshal(p)
	_ = s.write("event: problem\ndata: %s\n\n", body)
}

// socketSink writes messages of a WebSocket.
type socketSink struct {
	ctx  context.Context
	conn *websocket.Conn
}

func (s *socketSink) write(e event) error {
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.ctx, WriteIdleMax)
	defer cancel()
	return s.conn.Write(ctx, websocket.MessageText, body)
}

func (s *socketSink) change(index uint64, r *api.Record) error {
	return s.write(event{Type: "change", Index: index, Record: r})
}

func (s *socketSink) beat(index uint64) error { return s.write(event{Type: "beat", Index: index}) }

func (s *socketSink) problem(p *Problem) { _ = s.write(event{Type: "problem", Error: p}) }

func (x *exchange) socketEvents(f *filter, from uint64) error {
	if err := x.checkOrigin(); err != nil {
		return err
	}
	conn, err := x.accept(streamProtocol)
	if err != nil {
		return nil //nolint:nilerr // Accept has answered
	}
	ctx := conn.CloseRead(context.WithoutCancel(x.ctx())) // ends when the client closes, or sends anything
	out := &socketSink{ctx: ctx, conn: conn}
	if out.beat(from) == nil {
		x.follow(ctx, f, from, out)
	}
	_ = conn.Close(websocket.StatusNormalClosure, "")
	return nil
}
