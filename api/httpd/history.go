package httpd

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
	"github.com/debvisor/debvisor/fsm"
)

// PastInput are the parameters of what tells about an object's past.
type PastInput struct {
	Kind   string `path:"kind" maxLength:"32" doc:"kind of the object, as vm"`
	Name   string `path:"name" maxLength:"127" doc:"name of the object"`
	Tenant string `query:"tenant" maxLength:"63" doc:"of the object; default when left out"`
}

type historyInput struct {
	PastInput
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"50" doc:"changes of this page at most"`
	Before uint64 `query:"before" doc:"only changes below this index"`
}

type diffInput struct {
	PastInput
	From string `query:"from" required:"true" maxLength:"40" example:"2h" doc:"an index, a time (RFC 3339), or a duration before now"`
	To   string `query:"to" maxLength:"40" doc:"the same; left out: now"`
}

type revertInput struct {
	WriteOptions
	PastInput
}

type revertBody struct {
	To uint64 `json:"to" doc:"index at which the object was as it shall be again"`
}

type auditInput struct {
	From  uint64 `query:"from" doc:"records after this index; left out: from the oldest"`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"50" doc:"records of this page at most"`
}

func (s *Server) registerHistory() error {
	past := authz.Right{Verb: authz.History, Kind: authz.KindJournal, Scope: authz.ScopeTenant}
	journal := authz.Right{Verb: authz.History, Kind: authz.KindJournal, Scope: authz.ScopeCluster}
	return errors.Join(
		handle(s, route{method: http.MethodGet, path: "/v1/history/{kind}/{name}", right: past, answer: page[api.HistoryItem]{},
			summary: "List the changes of an object, newest first"}, (*exchange).history),
		handle(s, route{method: http.MethodGet, path: "/v1/why/{kind}/{name}", right: past, answer: api.Explanation{},
			summary: "Explain why an object is as it is"}, (*exchange).why),
		handle(s, route{method: http.MethodGet, path: "/v1/diff/{kind}/{name}", right: past, answer: api.Diff{},
			summary: "Compare an object between two points in time"}, (*exchange).diff),
		handle(s, route{method: http.MethodPost, path: "/v1/revert/{kind}/{name}", right: authz.Right{Verb: authz.Update, Kind: authz.KindJournal, Scope: authz.ScopeTenant},
			change: true, body: revertBody{}, bytes: VerbBytesMax, answer: api.Applied{}, summary: "Make an object what it was at an index",
			about: "It is changed back, created again, or deleted; content of disks does not come back."}, (*exchange).revert),
		handle(s, route{method: http.MethodGet, path: "/v1/audit", right: journal, answer: page[api.Record]{},
			summary: "List records of the journal, oldest first"}, (*exchange).audit),
		handle(s, route{method: http.MethodGet, path: "/v1/audit/verify", right: authz.Right{Verb: authz.Verify, Kind: authz.KindJournal, Scope: authz.ScopeCluster},
			media: "application/x-ndjson", summary: "Verify this node's journal",
			about: "One JSON object a line; the last has done, and error names the first bad record."}, (*exchange).verify))
}

// past finds the kind that the path names and the object's key.
func (x *exchange) past(in *PastInput) (resourceOf, string) {
	return x.s.resources[x.kind.Name], x.kind.Key(x.tenant, in.Name)
}

func (x *exchange) history(in *historyInput) error {
	res, key := x.past(&in.PastInput)
	view, err := x.barrier(ReadOptions{})
	if err != nil {
		return err
	}
	records, err := x.s.cfg.Journal.History(x.ctx(), res.kind().Name, key, in.Before, in.Limit)
	if err != nil {
		return err
	}
	if len(records) == 0 && in.Before == 0 && res.row(view, key) == nil {
		return api.Errorf(api.CodeNotFound, "neither exists nor has a history").On(res.kind().Name, key)
	}
	out := page[api.HistoryItem]{Items: []api.HistoryItem{}, Index: view.Index()}
	for i := range records {
		if c := changeOf(&records[i], res.kind().Name, key); c != nil {
			out.Items = append(out.Items, api.HistoryItem{Index: records[i].Index, Time: records[i].Time, Op: records[i].Op, By: records[i].By,
				RequestID: records[i].RequestID, Action: c.Action(), Before: res.show(c.Before), After: res.show(c.After)})
		}
	}
	if len(records) == in.Limit {
		out.Next = strconv.FormatUint(records[len(records)-1].Index, 10)
	}
	x.index(view.Index())
	return x.answer(http.StatusOK, out)
}

func changeOf(r *api.Record, kind, key string) *api.Change {
	for i := range r.Changes {
		if r.Changes[i].Kind == kind && r.Changes[i].Key == key {
			return &r.Changes[i]
		}
	}
	return nil
}

func (x *exchange) audit(in *auditInput) error {
	view, err := x.barrier(ReadOptions{})
	if err != nil {
		return err
	}
	if in.From == 0 {
		in.From = x.s.cfg.Journal.Floor()
	}
	records, err := x.s.cfg.Journal.Range(x.ctx(), in.From, view.Index(), in.Limit)
	if err != nil {
		return err
	}
	out := page[api.Record]{Items: []api.Record{}, Index: view.Index()}
	for i := range records {
		out.Items = append(out.Items, x.s.showRecord(&records[i]))
	}
	// A page may end early at the journal's own limit of bytes.
	if n := len(records); n > 0 && records[n-1].Index < view.Index() {
		out.Next = strconv.FormatUint(records[n-1].Index, 10)
	}
	x.index(view.Index())
	return x.answer(http.StatusOK, out)
}

// verify recomputes the journal's chain, and tells how far it is.
func (x *exchange) verify(*noInput) error {
	x.leaveSlot()
	leave, err := x.s.uploads.enter()
	if err != nil {
		return err
	}
	defer leave()
	x.w.Header().Set("Content-Type", "application/x-ndjson")
	x.w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(x.w)
	say := func(report api.AuditReport) {
		body, err := json.Marshal(report)
		if err != nil {
			return
		}
		_, _ = (&patient{x}).Write(append(body, '\n'))
		_ = flush.Flush()
	}
	report, err := x.s.cfg.Journal.Verify(x.ctx(), func(records uint64) { say(api.AuditReport{Records: records}) })
	if report.Done = true; err != nil {
		report.Error = api.AsError(err)
		x.s.log.Error("journal verification failed", "request_id", x.requestID, "error", err)
	}
	say(report)
	return nil
}

// point finds the index that a point in time stands for: an index, a time, or
// a duration before now.
func (x *exchange) point(view *fsm.View, field, text string) (uint64, error) {
	if text == "" {
		return view.Index(), nil
	}
	if n, err := strconv.ParseUint(text, 10, 64); err == nil {
		if n > view.Index() {
			return 0, api.Invalid(field, "is in the future").Allow("up to %d", view.Index())
		}
		return n, nil
	}
	at, err := ParsePoint(text, view.Time())
	if err != nil {
		return 0, api.Invalid(field, "is %q", text).Allow("an index, a time as 2026-01-02T15:04:05Z, or a duration before now as 2h")
	}
	return x.indexAt(view, at)
}

// ParsePoint reads a time in RFC 3339, or a duration before now.
func ParsePoint(text string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil {
		if d < 0 {
			return time.Time{}, errors.New("is negative")
		}
		return now.Add(-d), nil
	}
	return time.Parse(time.RFC3339, text)
}

// indexAt is the index of the last record not later than a time. Times of
// records never go back, so halving finds it.
func (x *exchange) indexAt(view *fsm.View, at time.Time) (uint64, error) {
	floor := x.s.cfg.Journal.Floor()
	low, high := floor, view.Index() // low is not later; everything after high is
	found := low
	for low < high {
		middle := low + (high-low)/2
		records, err := x.s.cfg.Journal.Range(x.ctx(), middle, high, 1)
		if err != nil {
			return 0, err
		}
		if len(records) == 0 || records[0].Time.After(at) {
			high = middle
			continue
		}
		found, low = records[0].Index, records[0].Index
	}
	if found == floor && floor > 0 {
		return 0, api.Errorf(api.CodeGone, "history at %s was dropped", at.UTC().Format(time.RFC3339)).Allow("a time after that of index %d", floor)
	}
	return found, nil
}
