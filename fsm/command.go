package fsm

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"iter"
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/debvisor/debvisor/api"
)

// Command is a named transition: the op of an entry, with its body's type.
type Command[In any] struct {
	op     string
	since  uint32 // cluster version that allows it
	quiet  bool   // leaves no record of its own, only its share of the next record's digest; needs no request ID
	users  bool   // users may propose it, not controllers and agents only
	agents bool   // agents propose it, each about its own node: "node" in the body, or "id"
	run    func(tx *Tx, in In) (any, *api.Error)
}

// Op is the operation's name on the log.
func (c Command[In]) Op() string { return c.op }

// Entry makes the entry that proposes the transition. The proposer stamps the rest.
func (c Command[In]) Entry(in In) Entry {
	body, err := json.Marshal(in)
	if err != nil {
		panic(fmt.Sprintf("encode %s: %v", c.op, err)) // a type that cannot be encoded: a bug
	}
	return Entry{Op: c.op, Body: body}
}

// result names the row that an outcome shows.
type result struct {
	kind, key string
	row       any
}

// transition declares a command whose outcome shows the row it returns.
func transition[In any, T any, P object[T]](op string, t Table[T, P], run func(tx *Tx, in In) (*T, *api.Error)) Command[In] {
	return Command[In]{op: op, since: VersionMin, run: func(tx *Tx, in In) (any, *api.Error) {
		row, err := run(tx, in)
		if err != nil || row == nil {
			return nil, err
		}
		return result{t.kind, t.key(row), row}, nil
	}}
}

// effect declares a command that shows no row.
func effect[In any](op string, run func(tx *Tx, in In) *api.Error) Command[In] {
	return Command[In]{op: op, since: VersionMin, run: func(tx *Tx, in In) (any, *api.Error) { return nil, run(tx, in) }}
}

// forUsers lets users propose the command.
func (c Command[In]) forUsers() Command[In] { c.users = true; return c }

// forAgents lets agents propose the command, each about its own node.
func (c Command[In]) forAgents() Command[In] { c.agents = true; return c }

// asDigest keeps the command's rows out of the journal.
func (c Command[In]) asDigest() Command[In] { c.quiet = true; return c }

// Deletion is the body of <kind>.delete.
type Deletion struct {
	Tenant   string `json:"tenant,omitzero"`
	Name     string `json:"name"`
	Modified uint64 `json:"modified"` // the revision to be deleted
}

// Put makes the entry that creates v (Modified 0) or replaces the revision
// v.Modified.
func (t Table[T, P]) Put(v *T) (Entry, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return Entry{}, fmt.Errorf("encode %s: %w", t.kind, err)
	}
	return Entry{Op: t.kind + ".put", Body: body}, nil
}

// Delete makes the entry that deletes the revision modified.
func (t Table[T, P]) Delete(tenant, name string, modified uint64) Entry {
	body, _ := json.Marshal(Deletion{Tenant: tenant, Name: name, Modified: modified})
	return Entry{Op: t.kind + ".delete", Body: body}
}

func (t Table[T, P]) conflict(key string, have, want uint64) *api.Error {
	switch {
	case have == 0:
		return api.Errorf(api.CodeNotFound, "does not exist").On(t.kind, key)
	case want == 0:
		return api.Errorf(api.CodeConflict, "exists already, at revision %d", have).On(t.kind, key).Do("choose another name, or change what is there")
	}
	return api.Errorf(api.CodeConflict, "is at revision %d, the change was made for %d", have, want).On(t.kind, key).Do("read it again and repeat the change")
}

func (t Table[T, P]) revision(r Reader, key string) uint64 {
	if row := t.Get(r, key); row != nil {
		return P(row).Head().Modified
	}
	return 0
}

func (t Table[T, P]) revisionOf(r Reader, key string) uint64 { return t.revision(r, key) }

func (t Table[T, P]) applyPut(tx *Tx, after T) (any, *api.Error) {
	key := t.key(&after)
	if err := P(&after).Validate(); err != nil {
		return nil, api.AsError(err).OnMissing(t.kind, key)
	}
	if have, want := t.revision(tx, key), P(&after).Head().Modified; have != want {
		return nil, t.conflict(key, have, want)
	}
	before := t.Get(tx, key)
	if m := P(&after).Head(); before != nil && m.ID != "" && m.ID != P(before).Head().ID {
		return nil, api.Invalid("id", "is fixed").On(t.kind, key).Allow("%s, or leave it out", P(before).Head().ID)
	} else if before != nil {
		m.ID = P(before).Head().ID
	} else if m.ID == "" {
		m.ID = tx.NewID(t.kind, key)
	} else if !isUUID(m.ID) {
		return nil, api.Invalid("id", "is %q", m.ID).On(t.kind, key).Allow("a UUID in lower case, or leave it out")
	}
	if err := t.check(tx, before, &after); err != nil {
		return nil, err.OnMissing(t.kind, key)
	}
	return result{t.kind, key, t.put(tx, after)}, nil
}

// check runs the kind's rule, if it has one.
func (t Table[T, P]) check(tx *Tx, before, after *T) *api.Error {
	if r, ok := tx.b.registry.rules[t.kind].(rule[T]); ok {
		return r(tx, before, after)
	}
	return nil
}

func (t Table[T, P]) applyDelete(tx *Tx, in Deletion) (any, *api.Error) {
	var named T
	P(&named).Head().Tenant, P(&named).Head().Name = in.Tenant, in.Name
	key := t.key(&named)
	before := t.Get(tx, key)
	if before == nil {
		return nil, t.conflict(key, 0, in.Modified)
	}
	if have := P(before).Head().Modified; have != in.Modified {
		return nil, t.conflict(key, have, in.Modified)
	}
	if err := t.check(tx, before, nil); err != nil {
		return nil, err.OnMissing(t.kind, key)
	}
	t.delete(tx, key)
	return result{t.kind, key, nil}, nil
}

// anyTable is a table of any kind.
type anyTable interface {
	Kind() string
	Watch(v *View) <-chan struct{}
	schema() *memdb.TableSchema
	rowsOf(txn *memdb.Txn) iter.Seq2[string, anyRow]
	decodeRow(raw []byte) (string, anyRow, error)
	abandon(txn *memdb.Txn) error
	revisionOf(r Reader, key string) uint64
	commands() []anyCommand
}

// anyCommand is a command with its types erased.
type anyCommand struct {
	op     string
	since  uint32
	quiet  bool
	users  bool
	agents bool
	run    func(tx *Tx, body []byte) (any, *api.Error, error) // the last one: body not understood
	check  func(body []byte) error                            // whether run would understand the body
}

type erasable interface{ erase() anyCommand }

func (c Command[In]) erase() anyCommand {
	bodies := &strict{}
	check := func(body []byte) error {
		var in In
		return bodies.decode(body, &in)
	}
	return anyCommand{op: c.op, since: c.since, quiet: c.quiet, users: c.users, agents: c.agents, check: check, run: func(tx *Tx, body []byte) (any, *api.Error, error) {
		var in In
		if err := bodies.decode(body, &in); err != nil {
			return nil, nil, fmt.Errorf("body of %s: %w (%w)", c.op, ErrUpgrade, err)
		}
		out, refusal := c.run(tx, in)
		return out, refusal, tx.strange
	}}
}

func (t Table[T, P]) commands() []anyCommand {
	if !t.edits {
		return nil
	}
	put := Command[T]{op: t.kind + ".put", since: VersionMin, users: true, run: t.applyPut}
	del := Command[Deletion]{op: t.kind + ".delete", since: VersionMin, users: true, run: t.applyDelete}
	return []anyCommand{put.erase(), del.erase()}
}

// registry is every table and command, built once.
type registry struct {
	tables   []anyTable // in snapshot order
	byKind   map[string]anyTable
	commands map[string]*anyCommand
	rules    map[string]any // rule[T] of a kind
	schema   *memdb.DBSchema
}

func newRegistry() *registry {
	r := &registry{byKind: map[string]anyTable{}, commands: map[string]*anyCommand{}, rules: rules(), schema: &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{
		systemTable: systemSchema(),
	}}}
	add := func(c anyCommand) {
		if r.commands[c.op] != nil {
			panic("op declared twice: " + c.op)
		}
		r.commands[c.op] = &c
	}
	r.tables = tables()
	for _, t := range r.tables {
		if r.byKind[t.Kind()] != nil {
			panic("kind declared twice: " + t.Kind())
		}
		r.byKind[t.Kind()] = t
		r.schema.Tables[t.Kind()] = t.schema()
		for _, c := range t.commands() {
			add(c)
		}
	}
	for _, c := range transitions() {
		add(c.erase())
	}
	return r
}

// apply carries out one entry on the batch: its outcome, and its record unless
// the request ID was known.
func (b *batch) apply(c Committed, e *Entry) (Outcome, *Yield, error) {
	cmd := b.registry.commands[e.Op]
	if e.Time.After(b.sys.Time) {
		b.sys.Time = e.Time.UTC()
	}
	tx := &Tx{Index: c.Index, Term: c.Term, Time: b.sys.Time, By: e.By, RequestID: e.RequestID, b: b}
	b.tx = tx
	digest := bodyDigest(e)
	if e.RequestID != "" && !cmd.quiet {
		if first, known := b.gen.requests.find(e.RequestID); known {
			return b.replay(first, digest), nil, nil
		}
	}
	refusal, passing := b.admit(cmd, e)
	var out any
	if refusal == nil {
		var err error
		if out, refusal, err = cmd.run(tx, e.Body); err != nil {
			return Outcome{}, nil, fmt.Errorf("entry %d: %w", c.Index, err)
		}
	}
	if refusal == nil && cmd.users {
		refusal = checkQuotas(tx)
	}
	if refusal != nil {
		tx.undo()
		out = nil
	}
	outcome := Outcome{Index: c.Index, Err: refusal}
	if res, ok := out.(result); ok {
		outcome.Kind, outcome.Key, outcome.Row = res.kind, res.key, res.row
	}
	if e.RequestID != "" && !cmd.quiet && !passing {
		b.gen.requests.add(&request{ID: e.RequestID, Index: c.Index, Digest: digest, Time: b.sys.Time,
			Err: refusal, Kind: outcome.Kind, Key: outcome.Key})
	}
	if cmd.quiet {
		b.sys.Quiet = api.ChainHash(b.sys.Quiet, e.Body)
		return outcome, nil, nil
	}
	yield := b.record(c, e, tx, refusal)
	return outcome, &yield, nil
}

// admit is what every entry must pass before its command looks at it. passing
// says that the refusal must not be remembered, because the same request may be
// accepted later or its first outcome is no longer known.
func (b *batch) admit(cmd *anyCommand, e *Entry) (refusal *api.Error, passing bool) {
	if cmd.since > b.sys.ClusterVersion && b.sys.ClusterVersion != 0 {
		return tooNew(e.Op, cmd.since, b.sys.ClusterVersion), false
	}
	if e.RequestID != "" && !cmd.quiet {
		if e.Time.Before(b.sys.Time.Add(-RequestMemory)) {
			return api.Errorf(api.CodeUnknown, "the request is older than %v: its outcome is no longer known", RequestMemory).
				Do("look at the object, then repeat the change under a new request ID"), true
		}
		b.gen.requests.trim(b.sys.Time)
		if limit := b.gen.requests.max; b.gen.requests.len() >= limit {
			return api.Errorf(api.CodeLimit, "%d requests are remembered", limit).Do("wait a moment and repeat it"), true
		}
	}
	if e.Auth != nil {
		return checkAuth(b.tx, e.Auth), false
	}
	return nil, false
}

func tooNew(op string, since, active uint32) *api.Error {
	return api.Errorf(api.CodeUnavailable, "%s needs cluster version %d, active is %d", op, since, active).
		Do("upgrade every node, then activate the new version")
}

func checkAuth(tx *Tx, auth *Auth) *api.Error {
	key := APIKeys.Get(tx, auth.Key)
	if key == nil || key.Modified != auth.Revision || !key.Expires.IsZero() && !tx.Time.Before(key.Expires) {
		return api.Errorf(api.CodeUnauthenticated, "the key was revoked, changed or expired").Do("sign in with a valid key")
	}
	return nil
}

func (b *batch) replay(first *request, digest [16]byte) Outcome {
	if first.Digest != digest {
		return Outcome{Index: first.Index, Replayed: true,
			Err: api.Invalid("request_id", "was used for another change").Do("use a new request ID for each change")}
	}
	out := Outcome{Index: first.Index, Err: first.Err, Kind: first.Kind, Key: first.Key, Replayed: true}
	return out
}

func bodyDigest(e *Entry) (d [16]byte) {
	h := sha256.New()
	h.Write([]byte(e.Op + "\x00" + e.By + "\x00"))
	h.Write(e.Body)
	copy(d[:], h.Sum(nil))
	return d
}

// record appends the entry to the chain of the journal.
func (b *batch) record(c Committed, e *Entry, tx *Tx, refusal *api.Error) Yield {
	rec := &api.Record{Index: c.Index, Term: c.Term, Time: b.sys.Time, Op: e.Op, By: e.By, RequestID: e.RequestID}
	if refusal != nil {
		rec.Code, rec.Message = refusal.Code, refusal.Where()
	}
	if b.sys.Quiet != (api.Hash{}) {
		rec.Digest, b.sys.Quiet = b.sys.Quiet.String(), api.Hash{}
	}
	rec.Changes = tx.apiChanges()
	canonical := rec.Canonical()
	rec.Hash = api.ChainHash(b.sys.Chain, canonical)
	b.sys.Chain = rec.Hash
	return Yield{Record: rec, Canonical: canonical}
}

func (tx *Tx) apiChanges() []api.Change {
	var out []api.Change
	for _, c := range tx.changes {
		if c.before == nil && c.after == nil {
			continue
		}
		ch := api.Change{Kind: c.kind, Key: c.key}
		if c.before != nil {
			ch.Before = c.before.encoded()
		}
		if c.after != nil {
			ch.After = c.after.encoded()
		}
		out = append(out, ch)
	}
	return out
}

// RequestMemory is how long the outcome of a request ID is known, in
// replicated time.
const RequestMemory = 10 * time.Minute

// isUUID reports whether s is a UUID in lower case (RFC 9562).
func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range []byte(s) {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (c == '-') || !dash && !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	return true
}

// first is the first of a sequence, or nil.
func first[T any](seq iter.Seq[*T]) *T {
	for v := range seq {
		return v
	}
	return nil
}
