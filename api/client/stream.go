package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/debvisor/debvisor/api"
)

const (
	eventBytesMax = 4 << 20          // of one event; an entry has at most 256 KiB
	silenceMax    = 45 * time.Second // on an event stream, which sends a heartbeat every 10 s
)

// stream opens an answer that is read as it arrives. Only the opening is tried
// on several addresses.
func (c *Client) stream(ctx context.Context, call *call, read func(*http.Response) error) error {
	body := ""
	if call.header == nil {
		call.header = http.Header{}
	}
	if call.in != nil {
		raw, err := json.Marshal(call.in)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		body = string(raw)
		call.header.Set("Content-Type", "application/json")
	}
	var last error
	first := int(c.last.Load())
	for n := range c.addresses {
		at := (first + n) % len(c.addresses)
		var reader io.Reader
		if call.in != nil {
			reader = strings.NewReader(body)
		}
		resp, err := c.open(ctx, c.addresses[at], call, reader)
		if err == nil {
			c.last.Store(int64(at))
			defer func() { _ = resp.Body.Close() }()
			return read(resp)
		}
		if last = err; !retryable(err) {
			return err
		}
	}
	return final(last, "", false)
}

// EventOptions select events.
type EventOptions struct {
	After  uint64   // events after this index; 0: from now on
	Kinds  []string // empty: all
	Tenant string   // empty: all
	Labels map[string]string
}

func (o EventOptions) query() url.Values {
	q := tenantQuery(o.Tenant)
	if o.After != 0 {
		q.Set("index", strconv.FormatUint(o.After, 10))
	}
	for _, k := range o.Kinds {
		q.Add("kind", k)
	}
	for _, k := range slices.Sorted(maps.Keys(o.Labels)) {
		q.Add("label", k+"="+o.Labels[k])
	}
	return q
}

// Events yields what changes, each record with the selected changes only. When
// the stream breaks it goes on after the last event, on another node if need
// be. It ends silently with ctx, and with an error when the cluster refuses.
func (c *Client) Events(ctx context.Context, o EventOptions) iter.Seq2[*api.Record, error] {
	return func(yield func(*api.Record, error) bool) {
		var trouble time.Time // since when nothing works
		for {
			stopped, err := c.events(ctx, &o, func(r *api.Record) bool { trouble = time.Time{}; return yield(r, nil) })
			if stopped || ctx.Err() != nil {
				return
			}
			if trouble.IsZero() {
				trouble = time.Now()
			}
			if err != nil && (!retryable(err) || time.Since(trouble) > c.cfg.Timeout) {
				yield(nil, err)
				return
			}
			c.last.Add(1)
			c.last.Store(c.last.Load() % int64(len(c.addresses)))
			select {
			case <-time.After(backoffMin + mathrand.N(backoffMax/2)):
			case <-ctx.Done():
				return
			}
		}
	}
}

// events reads one stream. stopped says that the consumer wants no more.
func (c *Client) events(ctx context.Context, o *EventOptions, yield func(*api.Record) bool) (stopped bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	silence := time.AfterFunc(silenceMax, cancel)
	defer silence.Stop()
	call := &call{method: http.MethodGet, path: "/v1/events", query: o.query(), header: http.Header{"Accept": {"text/event-stream"}}}
	err = c.stream(ctx, call, func(resp *http.Response) error {
		if o.After == 0 {
			o.After = answerOf(resp).Index
		}
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(make([]byte, 64<<10), eventBytesMax)
		var e event
		for lines.Scan() {
			silence.Reset(silenceMax)
			done := e.add(lines.Text())
			if !done {
				continue
			}
			if e.id > o.After {
				o.After = e.id
			}
			record, err := e.record()
			if err != nil {
				return err
			}
			if record != nil && !yield(record) {
				stopped = true
				return nil
			}
			e = event{}
		}
		return &failure{errors.Join(errors.New("the event stream ended"), lines.Err()), "events"}
	})
	return stopped, err
}

// event is one server-sent event.
type event struct {
	id   uint64
	name string
	data string
}

// add takes a line and reports whether it completes the event.
func (e *event) add(line string) bool {
	field, value, _ := strings.Cut(line, ":")
	value = strings.TrimPrefix(value, " ")
	switch {
	case line == "":
		return e.name != "" || e.data != "" || e.id != 0
	case field == "id":
		e.id, _ = strconv.ParseUint(value, 10, 64)
	case field == "event":
		e.name = value
	case field == "data":
		e.data += value
	}
	return false
}

func (e *event) record() (*api.Record, error) {
	switch e.name {
	case "change":
		r := &api.Record{}
		if err := json.Unmarshal([]byte(e.data), r); err != nil {
			return nil, fmt.Errorf("event %d: %w", e.id, err)
		}
		return r, nil
	case "problem":
		p := &api.Error{}
		if err := json.Unmarshal([]byte(e.data), p); err != nil {
			return nil, fmt.Errorf("problem in the event stream: %w", err)
		}
		return nil, p
	}
	return nil, nil
}

// VerifyAudit has the answering node verify its journal. progress, when not
// nil, is told as it goes. A bad record is the error.
func (c *Client) VerifyAudit(ctx context.Context, progress func(api.AuditReport)) (*api.AuditReport, error) {
	var last api.AuditReport
	err := c.stream(ctx, &call{method: http.MethodGet, path: "/v1/audit/verify"}, func(resp *http.Response) error {
		for d := json.NewDecoder(resp.Body); !last.Done; {
			last = api.AuditReport{}
			if err := d.Decode(&last); err != nil {
				return api.Errorf(api.CodeUnavailable, "the verification was cut short: %v", err).Do("repeat it")
			}
			if progress != nil {
				progress(last)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if last.Error != nil {
		return &last, last.Error
	}
	return &last, nil
}
