package httpd

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
	"github.com/debvisor/debvisor/fsm"
)

// createInput, putInput and deleteInput are the parameters of changes of one
// object; the cluster variants are those of kinds without a tenant.
type createInput struct {
	WriteOptions
	Tenant string `query:"tenant" maxLength:"63" doc:"of the object; default when left out"`
}

type putInput struct {
	WriteOptions
	Name        string `path:"name" maxLength:"63" doc:"name of the object"`
	Tenant      string `query:"tenant" maxLength:"63" doc:"of the object; default when left out"`
	IfMatch     string `header:"If-Match" maxLength:"32" doc:"ETag of the revision to be replaced; * for any in a DELETE"`
	IfNoneMatch string `header:"If-None-Match" maxLength:"32" doc:"* to create, never replace"`
}

type clusterCreateInput struct {
	WriteOptions
}

type clusterPutInput struct {
	WriteOptions
	Name        string `path:"name" maxLength:"63" doc:"name of the object"`
	IfMatch     string `header:"If-Match" maxLength:"32" doc:"ETag of the revision to be replaced; * for any in a DELETE"`
	IfNoneMatch string `header:"If-None-Match" maxLength:"32" doc:"* to create, never replace"`
}

// change plans the entries, or proposes the only one, and answers with what
// done makes of the outcome.
func (x *exchange) change(plan bool, entry fsm.Entry, done func(fsm.Outcome) error) error {
	if plan {
		return x.plan(entry)
	}
	out, err := x.propose(entry)
	if err != nil {
		return err
	}
	x.index(out.Index)
	return done(out)
}

// propose commits an entry in the name of the caller.
func (x *exchange) propose(entry fsm.Entry) (fsm.Outcome, error) {
	entry.By, entry.Auth = x.who.by(), &fsm.Auth{Key: x.who.auth.Key, Revision: x.who.auth.Revision}
	if entry.RequestID == "" {
		entry.RequestID = x.requestID
	}
	if len(entry.Body) > fsm.EntrySizeMax/2 {
		if _, err := entry.Encode(); api.CodeOf(err) == api.CodeLimit {
			return fsm.Outcome{}, withStatus(http.StatusRequestEntityTooLarge, api.AsError(err))
		}
	}
	ctx, cancel := context.WithTimeout(x.ctx(), ProposeTimeout)
	defer cancel()
	out, err := x.s.cfg.Cluster.Propose(ctx, entry)
	if err != nil && api.CodeOf(err) == api.CodeInternal && ctx.Err() != nil {
		return out, api.Errorf(api.CodeUnknown, "the change was sent and its outcome is not known").Do("repeat it with Idempotency-Key: %s", x.requestID)
	}
	return out, err
}

// plan answers with what entries would do.
func (x *exchange) plan(entries ...fsm.Entry) error { return x.planMoves(nil, entries...) }

// planMoves is plan, and tells where guests that run would go.
func (x *exchange) planMoves(moves []api.PlannedPlacement, entries ...fsm.Entry) error {
	if _, err := x.barrier(ReadOptions{}); err != nil {
		return err
	}
	now := time.Now().UTC()
	for i := range entries {
		entries[i].By, entries[i].Time, entries[i].RequestID = x.who.by(), now, x.requestID
	}
	plan, after, err := x.s.cfg.Cluster.State().Plan(entries)
	if err != nil {
		return err
	}
	var vms []*api.VM
	for _, c := range plan.Changes {
		if c.Kind == api.KindVM && len(c.After) > 0 {
			if vm := fsm.VMs.Get(after, c.Key); vm != nil && vm.On() {
				vms = append(vms, vm)
			}
		}
	}
	if len(vms) > 0 {
		plan.Placements = x.s.cfg.Placements(after, vms)
	}
	plan.Placements = append(plan.Placements, moves...)
	plan.Effects = effects(x.s.cfg.Cluster.State().Read(), after, plan.Changes)
	plan.Changes = x.s.showChanges(plan.Changes)
	x.index(plan.Index)
	return x.answer(http.StatusOK, plan)
}

// settle completes and checks the Meta of a body: the path and the query name
// the object, and the body may only agree.
func (x *exchange) settle(k api.Kind, name, tenant string, match func(*api.Meta) error) func(*api.Meta) error {
	return func(m *api.Meta) error {
		if name != "" && m.Name != "" && m.Name != name {
			return api.Invalid("name", "is %q", bounded(m.Name)).Allow("%q as in the path, or leave it out", name)
		}
		if name != "" {
			m.Name = name
		}
		if !k.TenantScope && m.Tenant != "" {
			return api.Invalid("tenant", "this kind belongs to no tenant").Allow("leave it out")
		}
		if k.TenantScope && m.Tenant != "" && m.Tenant != tenant {
			return api.Invalid("tenant", "is %q", bounded(m.Tenant)).Allow("%q as in the query, or leave it out", tenant)
		}
		m.Tenant = tenant
		// The kernel's own fields: what a client read and sends back is dropped.
		m.Created, m.CreatedAt, m.ModifiedAt = 0, time.Time{}, time.Time{}
		return match(m)
	}
}

func (x *exchange) create(res resourceOf, o WriteOptions) error {
	raw, err := x.body()
	if err != nil {
		return err
	}
	entry, key, err := res.put(orEmpty(raw), x.settle(res.kind(), "", x.tenant, func(m *api.Meta) error {
		if m.Modified != 0 {
			return api.Invalid("modified", "is %d", m.Modified).Allow("nothing: POST creates").Do("use PUT to change an object")
		}
		return nil
	}))
	if err != nil {
		return err
	}
	return x.change(o.Plan, entry, func(out fsm.Outcome) error { return x.stored(http.StatusCreated, res, key, out) })
}

// orEmpty makes a missing body an object that lacks everything.
func orEmpty(raw []byte) []byte {
	if raw == nil {
		return []byte("{}")
	}
	return raw
}

// put creates or replaces an object. The revision to be replaced comes from
// If-Match or the body; a PUT without one only creates.
func (x *exchange) put(res resourceOf, in *putInput) error {
	raw, err := x.body()
	if err != nil {
		return err
	}
	view := x.s.cfg.Cluster.State().Read()
	revision := uint64(0)
	entry, key, err := res.put(orEmpty(raw), x.settle(res.kind(), in.Name, x.tenant, func(m *api.Meta) error {
		want, err := x.wanted(in, m)
		revision, m.Modified = want, want
		return err
	}))
	if err != nil {
		return err
	}
	if head := res.head(view, key); revision == 0 && in.IfNoneMatch == "" && head != nil && !x.idempotent {
		return revisionMissing(res.kind(), key, head)
	}
	status := http.StatusOK
	if revision == 0 {
		status = http.StatusCreated
	}
	err = x.change(in.Plan, entry, func(out fsm.Outcome) error { return x.stored(status, res, key, out) })
	if head := res.head(x.s.cfg.Cluster.State().Read(), key); api.CodeOf(err) == api.CodeConflict && revision == 0 && in.IfNoneMatch == "" && head != nil {
		return revisionMissing(res.kind(), key, head)
	}
	return err
}

func revisionMissing(k api.Kind, key string, head *api.Meta) error {
	return withStatus(http.StatusPreconditionRequired, api.Errorf(api.CodeConflict, "exists; the revision to be changed is missing").
		On(k.Name, key).Allow("If-Match: %s", etag(head.Modified)).Do("read it, then send If-Match with its ETag"))
}

// wanted is the revision that a PUT replaces; 0: it creates.
func (x *exchange) wanted(in *putInput, m *api.Meta) (uint64, error) {
	if in.IfNoneMatch != "" {
		if in.IfNoneMatch != "*" || in.IfMatch != "" || m.Modified != 0 {
			return 0, api.Invalid("If-None-Match", "does not go with this").Allow("* alone, to create")
		}
		return 0, nil
	}
	if in.IfMatch == "" {
		return m.Modified, nil
	}
	revision, any, err := ParseRevision("If-Match", in.IfMatch)
	if err != nil {
		return 0, err
	}
	if any || m.Modified != 0 && m.Modified != revision {
		return 0, api.Invalid("If-Match", "does not agree with the body").Allow("one revision, in the header or as modified")
	}
	return revision, nil
}

// stored answers with the object as it is after the entry.
func (x *exchange) stored(status int, res resourceOf, key string, out fsm.Outcome) error {
	view := x.s.cfg.Cluster.State().Read()
	row, head := res.row(view, key), res.head(view, key)
	if row == nil { // deleted again already
		raw, err := json.Marshal(out.Row)
		if err != nil || out.Row == nil {
			x.w.WriteHeader(http.StatusNoContent)
			return nil //nolint:nilerr // there is nothing to show, and the change was made
		}
		return x.send(status, res.show(raw))
	}
	x.w.Header().Set("ETag", etag(head.Modified))
	return x.send(status, res.show(row))
}

func (x *exchange) remove(res resourceOf, in *putInput) error {
	k := res.kind()
	key := k.Key(x.tenant, in.Name)
	if in.IfMatch == "" {
		if head := res.head(x.s.cfg.Cluster.State().Read(), key); head != nil {
			return revisionMissing(k, key, head)
		}
		return api.Errorf(api.CodeNotFound, "does not exist").On(k.Name, key)
	}
	revision, any, err := ParseRevision("If-Match", in.IfMatch)
	if err != nil {
		return err
	}
	if any {
		view, err := x.barrier(ReadOptions{})
		if err != nil {
			return err
		}
		head := res.head(view, key)
		if head == nil {
			return api.Errorf(api.CodeNotFound, "does not exist").On(k.Name, key)
		}
		revision = head.Modified
	}
	return x.change(in.Plan, res.remove(x.tenant, in.Name, revision), x.nothing)
}

// nothing answers a change that leaves nothing to show.
func (x *exchange) nothing(fsm.Outcome) error {
	x.w.WriteHeader(http.StatusNoContent)
	return nil
}

// object answers with one object, now or in the past.
func (x *exchange) object(res resourceOf, in *objectInput) error {
	k := res.kind()
	key := k.Key(x.tenant, in.Name)
	view, err := x.read(in.ReadOptions, subject{
		watch: func(v *fsm.View) <-chan struct{} { return res.watchKey(v, key) },
		moved: func(v *fsm.View, index uint64) (bool, bool) {
			head := res.head(v, key)
			return head != nil && head.Modified > index, head != nil
		},
		about: func(c api.Change) bool { return c.Kind == k.Name && c.Key == key },
	})
	if err != nil {
		return err
	}
	x.index(view.Index())
	row := res.row(view, key)
	if in.At != 0 {
		if row, err = x.rowAt(res, view, key, in.At); err != nil {
			return err
		}
		x.index(in.At)
	}
	if row == nil {
		return api.Errorf(api.CodeNotFound, "does not exist").On(k.Name, key)
	}
	var head struct {
		Modified uint64 `json:"modified"`
	}
	if err := json.Unmarshal(row, &head); err != nil {
		return err
	}
	if err := x.mayRead(res, view, key, in.Name); err != nil {
		return err
	}
	if in.Stale {
		x.w.Header().Set("Age", ageSeconds(x.s.cfg.LeaderContact()))
	}
	tag := etag(head.Modified)
	x.w.Header().Set("ETag", tag)
	if x.r.Header.Get("If-None-Match") == tag {
		x.w.WriteHeader(http.StatusNotModified)
		return nil
	}
	return x.send(http.StatusOK, res.show(row))
}

// mayRead asks again about an object whose tenant only its row tells.
func (x *exchange) mayRead(res resourceOf, view *fsm.View, key, name string) error {
	if res.kind().TenantScope || !res.owned() {
		return nil
	}
	return x.allowed(authz.Read, res.kind().Name, res.tenant(view, key), name)
}

// rowAt is a row as it was at an index; nil when there was none.
func (x *exchange) rowAt(res resourceOf, view *fsm.View, key string, at uint64) (json.RawMessage, error) {
	if err := x.checkPast(view, at); err != nil {
		return nil, err
	}
	row, known, err := x.s.cfg.Journal.At(x.ctx(), res.kind().Name, key, at)
	if err != nil {
		return nil, err
	}
	if !known {
		row = res.row(view, key)
	}
	if len(row) == 0 {
		return nil, nil
	}
	return row, nil
}
