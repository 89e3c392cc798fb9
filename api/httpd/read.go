package httpd

import (
	"context"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// ReadOptions say which state a read sees, and whether it waits for a change.
type ReadOptions struct {
	Stale    bool   `query:"stale" doc:"this node's own state, without asking the leader; the answer has its age"`
	MinIndex uint64 `query:"min_index" doc:"wait until this node has applied this index"`
	Index    uint64 `query:"index" doc:"blocking query: answer once what is read changed after this index"`
	Wait     string `query:"wait" maxLength:"20" example:"5m" doc:"longest time of a blocking query, 10m at most; a random part of up to a sixteenth is added"`
}

// barrier makes sure that the local replica is as fresh as the request wants,
// and that the key is still good there.
func (x *exchange) barrier(o ReadOptions) (*fsm.View, error) {
	state := x.s.cfg.Cluster.State()
	if o.Stale {
		if age := x.s.cfg.LeaderContact(); age > StaleLimit {
			return nil, api.Errorf(api.CodeUnavailable, "this node has not heard from the leader for %v", age.Round(time.Second)).
				Do("ask another node")
		}
	}
	ctx, cancel := context.WithTimeout(x.ctx(), ReadTimeout)
	defer cancel()
	target := o.MinIndex
	if !o.Stale {
		index, err := x.s.cfg.Cluster.ReadIndex(ctx)
		if err != nil {
			return nil, err
		}
		target = max(target, index)
	}
	if state.Index() < target {
		if err := state.Wait(ctx, target); err != nil {
			if x.ctx().Err() != nil {
				return nil, err
			}
			return nil, api.Errorf(api.CodeUnavailable, "this node is at index %d and did not reach %d in time", state.Index(), target).Do("try again, or ask another node")
		}
	}
	view := state.Read()
	if err := x.stillIn(view); err != nil {
		return nil, err
	}
	return view, nil
}

// subject is what a read waits for.
type subject struct {
	watch func(*fsm.View) <-chan struct{}
	exact bool // the watch wakes for the subject alone, never for its neighbours
	// moved tells from the view alone whether the subject changed after index;
	// sure is false when only the records can tell.
	moved func(view *fsm.View, index uint64) (changed, sure bool)
	about func(api.Change) bool // the change is of the subject
}

// read returns the state to answer from: at once, or for a blocking query once
// the subject changed after its index or the time is over.
func (x *exchange) read(o ReadOptions, about subject) (*fsm.View, error) {
	wait, err := o.wait()
	if err != nil {
		return nil, err
	}
	view, err := x.barrier(o)
	if err != nil || o.Index == 0 {
		return view, err
	}
	x.leaveSlot()
	leave, err := x.s.waits.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	timer := time.NewTimer(wait + rand.N(wait/16+1))
	defer timer.Stop()
	return x.await(o.Index, about, timer.C)
}

// await blocks until the subject changed after index.
func (x *exchange) await(index uint64, about subject, timeout <-chan time.Time) (*fsm.View, error) {
	state := x.s.cfg.Cluster.State()
	for {
		advanced := state.Advanced()
		view := state.Read()
		changed := about.watch(view)
		if x.changedSince(view, index, about) {
			return x.fresh()
		}
		done, err := x.sleep(view, changed, advanced, timeout, func() bool { return x.changedSince(view, index, about) })
		if err != nil {
			return nil, err
		}
		if done || about.exact {
			return x.fresh()
		}
	}
}

// sleep blocks until the watch wakes, and is done when there is no need to
// look whether the subject changed. A record may appear a moment after the
// rows that it tells of; so once the next entry has been applied, late looks
// again whether the view was newer than the index already.
func (x *exchange) sleep(view *fsm.View, changed, advanced <-chan struct{}, timeout <-chan time.Time, late func() bool) (done bool, err error) {
	revoked := x.keyWatch(view)
	for {
		select {
		case <-changed:
			return false, nil
		case <-advanced:
			if advanced = nil; late() {
				return true, nil
			}
		case <-revoked:
			now := x.s.cfg.Cluster.State().Read()
			if err := x.stillIn(now); err != nil {
				return false, err
			}
			revoked = x.keyWatch(now)
		case <-timeout:
			return true, nil
		case <-x.s.cfg.Shutdown:
			return false, api.Errorf(api.CodeUnavailable, "this node is shutting down").Do("ask another node")
		case <-x.ctx().Done():
			return false, x.ctx().Err()
		}
	}
}

func (x *exchange) fresh() (*fsm.View, error) {
	view := x.s.cfg.Cluster.State().Read()
	return view, x.stillIn(view)
}

// changedSince reports whether the subject changed after index and not later
// than the view. When the records do not reach back that far it says yes:
// waking somebody for nothing costs little.
func (x *exchange) changedSince(view *fsm.View, index uint64, about subject) bool {
	if view.Index() <= index {
		return false
	}
	if changed, sure := about.moved(view, index); sure {
		return changed
	}
	records, ok := x.s.cfg.Cluster.State().Recent(index, 1<<30)
	if !ok {
		return true
	}
	for _, r := range records {
		for _, c := range r.Changes {
			if about.about(c) {
				return true
			}
		}
	}
	return false
}

func (o ReadOptions) wait() (time.Duration, error) {
	if o.Wait == "" {
		return WaitDefault, nil
	}
	if o.Index == 0 {
		return 0, api.Invalid("wait", "needs an index").Allow("index=N of an earlier answer, with wait=DURATION")
	}
	d, err := time.ParseDuration(o.Wait)
	if err != nil || d <= 0 || d > WaitMax {
		return 0, api.Invalid("wait", "is %q", o.Wait).Allow("a duration up to %v, as 5m", WaitMax)
	}
	return d, nil
}

// ParseLabels reads label selectors as KEY=VALUE, at most LabelsMax of them.
func ParseLabels(pairs []string) (map[string]string, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	if len(pairs) > LabelsMax {
		return nil, api.Invalid("label", "is given %d times", len(pairs)).Allow("at most %d", LabelsMax)
	}
	labels := make(map[string]string, len(pairs))
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" || len(k) > api.LabelKeyLengthMax || len(v) > api.LabelValueLengthMax {
			return nil, api.Invalid("label", "is %q", bounded(p)).Allow("KEY=VALUE")
		}
		if _, twice := labels[k]; twice {
			return nil, api.Invalid("label", "%q is given twice", k).Allow("each key once")
		}
		labels[k] = v
	}
	return labels, nil
}

// ParseRevision reads an If-Match or If-None-Match header: one entity tag of
// this API, or "*".
func ParseRevision(header, value string) (revision uint64, any bool, err error) {
	if value == "*" {
		return 0, true, nil
	}
	inner, ok := strings.CutPrefix(value, `"`)
	inner, end := strings.CutSuffix(inner, `"`)
	revision, bad := strconv.ParseUint(inner, 10, 64)
	if !ok || !end || bad != nil || revision == 0 || inner[0] == '+' {
		return 0, false, api.Invalid(header, "is %q", bounded(value)).Allow(`the ETag of an earlier answer, as "123", or *`)
	}
	return revision, false, nil
}

func etag(revision uint64) string { return `"` + strconv.FormatUint(revision, 10) + `"` }
