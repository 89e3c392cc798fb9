package httpd

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
	"github.com/debvisor/debvisor/fsm"
)

const (
	partBytesMax      = api.TaskArgsMax - 16<<10 // operations of one part, with room for the rest of its arguments
	leftoverBytesMax  = 8 << 10                  // revisions of objects that no operation names, in the first part
	operationOverhead = 64                       // bytes of an operation beside its body
)

func (s *Server) registerApply() error {
	return handle(s, route{method: http.MethodPost, path: "/v1/apply", right: authz.Right{Verb: authz.Update, Kind: authz.KindCluster, Scope: authz.ScopeSelf},
		change: true, body: api.Apply{}, bytes: ApplyBytesMax, answer: api.Applied{}, summary: "Make many changes at once",
		about: "Up to 256 KiB they are one entry, all or nothing. More answers 202 with a task: parts are carried out one after the other, each all or nothing."},
		(*exchange).apply)
}

func (x *exchange) apply(in *clusterCreateInput) error {
	if x.r.ContentLength < 0 || x.r.ContentLength > ObjectBytesMax {
		leave, err := x.s.applies.enter()
		if err != nil {
			return err
		}
		defer leave()
	}
	var body api.Apply
	if err := x.decode(&body); err != nil {
		return err
	}
	if len(body.Operations) == 0 {
		return api.Invalid("operations", "is empty").Allow("at least one operation")
	}
	for i := range body.Operations {
		if err := x.checkOperation(&body.Operations[i]); err != nil {
			return atOperation(i, err)
		}
	}
	revisions, err := checkRevisions(body.Revisions)
	if err != nil {
		return err
	}
	body.Revisions = revisions
	if entry, fits := x.oneEntry(&body); fits {
		return x.change(in.Plan, entry, func(out fsm.Outcome) error {
			return x.answer(http.StatusOK, api.Applied{Index: out.Index, Changed: len(body.Operations)})
		})
	}
	return x.applyParts(in.Plan, split(&body))
}

func atOperation(i int, err error) error {
	e := *api.AsError(err)
	e.Field = strings.TrimSuffix(fmt.Sprintf("operations[%d].%s", i, e.Field), ".")
	return &e
}

// checkOperation decodes the body as strictly as its own route would, asks for
// its right, and leaves it in the form in which it is stored.
func (x *exchange) checkOperation(o *api.Operation) error {
	kind, verb, _ := strings.Cut(o.Op, ".")
	res, known := x.s.resources[kind]
	if !known || !res.kind().UserEdits || verb != "put" && verb != "delete" {
		return api.Invalid("op", "is %q", bounded(o.Op)).Allow("KIND.put or KIND.delete of a kind that users edit")
	}
	if verb == "delete" {
		var d fsm.Deletion
		if err := decodeStrict(orEmpty(o.Body), &d); err != nil {
			return err
		}
		if err := api.CheckName("name", d.Name); err != nil {
			return err
		}
		if d.Modified == 0 {
			return api.Invalid("modified", "is missing").Allow("the revision to be deleted")
		}
		o.Body = res.remove(d.Tenant, d.Name, d.Modified).Body
		return x.allowed(authz.Delete, kind, d.Tenant, d.Name)
	}
	var tenant, name string
	entry, _, err := res.put(orEmpty(o.Body), func(m *api.Meta) error {
		tenant, name = m.Tenant, m.Name
		return x.settle(res.kind(), m.Name, m.Tenant, func(*api.Meta) error { return nil })(m)
	})
	if err != nil {
		return err
	}
	o.Body = entry.Body
	return x.allowed(authz.Update, kind, tenant, name)
}

// checkRevisions keeps those of kinds that users edit: the others change by
// themselves, and moving there says nothing.
func checkRevisions(revisions map[string]uint64) (map[string]uint64, error) {
	var kept map[string]uint64
	for ref, revision := range revisions {
		name, key, ok := strings.Cut(ref, "/")
		kind, known := api.LookupKind(name)
		if !ok || !known || kind.Name != name || key == "" {
			return nil, api.Invalid("revisions", "has %q", bounded(ref)).Allow("KIND/KEY")
		}
		if kind.UserEdits {
			if kept == nil {
				kept = map[string]uint64{}
			}
			kept[ref] = revision
		}
	}
	return kept, nil
}

// oneEntry makes the entry of an apply, if it fits one.
func (x *exchange) oneEntry(body *api.Apply) (fsm.Entry, bool) {
	if len(body.Operations) > fsm.OperationsMax {
		return fsm.Entry{}, false
	}
	entry := fsm.ApplyMany.Entry(operations(body))
	sized := entry
	sized.By, sized.RequestID, sized.Auth = x.who.by(), x.requestID, &x.who.auth
	sized.Time = x.began
	_, err := sized.Encode()
	return entry, err == nil
}

func operations(body *api.Apply) fsm.Operations {
	in := fsm.Operations{Revisions: body.Revisions}
	for _, o := range body.Operations {
		in.Operations = append(in.Operations, fsm.Operation{Op: o.Op, Body: o.Body})
	}
	return in
}

// split cuts a large apply into parts that each fit a task. A revision goes
// with the operation on its object; those of other objects go, as far as there
// is room, with the first part.
func split(body *api.Apply) []api.Apply {
	left := maps.Clone(body.Revisions)
	var parts []api.Apply
	size := partBytesMax
	for _, o := range body.Operations {
		n := len(o.Body) + len(o.Op) + operationOverhead
		ref := refOf(o)
		revision, planned := left[ref]
		if planned {
			n += len(ref) + operationOverhead
		}
		if last := len(parts) - 1; last < 0 || size+n > partBytesMax || len(parts[last].Operations) == fsm.OperationsMax {
			parts, size = append(parts, api.Apply{Revisions: map[string]uint64{}}), 0
		}
		part := &parts[len(parts)-1]
		part.Operations = append(part.Operations, o)
		if size += n; planned {
			part.Revisions[ref] = revision
			delete(left, ref)
		}
	}
	room := leftoverBytesMax
	for _, ref := range slices.Sorted(maps.Keys(left)) {
		if room -= len(ref) + operationOverhead; room < 0 {
			break
		}
		parts[0].Revisions[ref] = left[ref]
	}
	return parts
}

func refOf(o api.Operation) string {
	var head struct {
		Tenant string `json:"tenant"`
		Name   string `json:"name"`
	}
	_ = json.Unmarshal(o.Body, &head) // it was decoded before
	kind, _, _ := strings.Cut(o.Op, ".")
	k, _ := api.LookupKind(kind)
	return kind + "/" + k.Key(head.Tenant, head.Name)
}

// applyParts plans the parts, or submits a task for each. They begin when the
// last one has been submitted; a request that is repeated under the same
// idempotency key goes on where the first one stopped.
func (x *exchange) applyParts(plan bool, parts []api.Apply) error {
	if plan {
		entries := make([]fsm.Entry, len(parts))
		for i := range parts {
			entries[i] = fsm.ApplyMany.Entry(operations(&parts[i]))
		}
		return x.plan(entries...)
	}
	set := x.derivedName("apply")
	var out fsm.Outcome
	for i := range parts {
		args, err := json.Marshal(api.ApplyPart{Set: set, Part: i, Parts: len(parts), Key: x.who.auth.Key, KeyRevision: x.who.auth.Revision, Apply: parts[i]})
		if err != nil {
			return err
		}
		if len(args) > api.TaskArgsMax {
			return withStatus(http.StatusRequestEntityTooLarge, api.Errorf(api.CodeLimit, "an object of a large apply has %d bytes", len(args)).
				Allow("at most %d", partBytesMax).Do("apply that object by itself"))
		}
		entry := fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: api.PartName(set, i), Verb: api.TaskApply, Args: args})
		entry.RequestID = x.requestID + "/" + strconv.Itoa(i)
		if out, err = x.propose(entry); err != nil {
			return err
		}
	}
	x.index(out.Index)
	done := api.Applied{Index: out.Index}
	if task := fsm.Tasks.Get(x.s.cfg.Cluster.State().Read(), api.PartName(set, len(parts)-1)); task != nil {
		shown := *task
		summarizePart(&shown)
		done.Task = &shown
	}
	return x.answer(http.StatusAccepted, done)
}

// ApplyParts carries out the tasks of verb TaskApply, which large applies
// leave. It runs on the leader and may run again at any time: a part is one
// entry under the task's own request ID, and waits for the parts before it.
func ApplyParts(cluster Cluster) func(ctx context.Context, task *api.Task, report func(percent int, step string)) error {
	return func(ctx context.Context, task *api.Task, _ func(int, string)) error {
		var part api.ApplyPart
		if err := decodeStrict(task.Args, &part); err != nil {
			return err
		}
		if err := awaitParts(ctx, cluster.State(), &part); err != nil {
			return err
		}
		entry := fsm.ApplyMany.Entry(operations(&part.Apply))
		entry.By, entry.RequestID = task.By, "task/"+task.Name
		entry.Auth = &fsm.Auth{Key: part.Key, Revision: part.KeyRevision}
		_, err := cluster.Propose(ctx, entry)
		return err
	}
}

// awaitParts blocks until every part exists and the one before is done.
func awaitParts(ctx context.Context, state *fsm.FSM, part *api.ApplyPart) error {
	for {
		view := state.Read()
		last := api.PartName(part.Set, part.Parts-1)
		waiting := fsm.Tasks.WatchKey(view, last)
		if fsm.Tasks.Get(view, last) != nil {
			if part.Part == 0 {
				return nil
			}
			before := api.PartName(part.Set, part.Part-1)
			waiting = fsm.Tasks.WatchKey(view, before)
			task := fsm.Tasks.Get(view, before)
			switch {
			case task == nil || task.Ended() && task.State != api.TaskDone:
				return api.Errorf(api.CodeConflict, "part %d of %d was not carried out", part.Part, part.Parts).On(api.KindTask, before).
					Do("see why, then plan and apply again: what is done already will not be repeated")
			case task.Ended():
				return nil
			}
		}
		select {
		case <-waiting:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
