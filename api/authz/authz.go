// Package authz answers whether a request is allowed, and which rule said so.
// It is pure: everything that counts travels in the rules and the request.
//
// Nothing is allowed unless a rule allows it, and a rule that denies wins over
// every rule that allows, whatever their order.
package authz

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/debvisor/debvisor/api"
)

// Verb is what a request does to an object.
type Verb string

// The verbs. Routes, streams, commands and RPCs are registered with one.
const (
	Read    Verb = "read"    // one object
	List    Verb = "list"    // the objects of a kind; each is then asked about with Read
	Watch   Verb = "watch"   // changes as they happen
	Create  Verb = "create"  //
	Update  Verb = "update"  //
	Delete  Verb = "delete"  //
	Plan    Verb = "plan"    // see what a change would do
	Start   Verb = "start"   // power
	Stop    Verb = "stop"    // power
	Restart Verb = "restart" // power
	Migrate Verb = "migrate" // move a running VM to another node
	Drain   Verb = "drain"   // move every VM off a node
	Balance Verb = "balance" // carry out proposed moves
	Console Verb = "console" // talk to the guest
	Guest   Verb = "guest"   // ask the guest's agent

	Snapshot Verb = "snapshot" // take and delete states of a VM
	Revert   Verb = "revert"   // put it back to one of them

	Submit  Verb = "submit"  // ask for a task
	Cancel  Verb = "cancel"  // a task
	Upload  Verb = "upload"  // bytes of an image
	History Verb = "history" // what was before, and who changed it
	Verify  Verb = "verify"  // the journal's chain
	Backup  Verb = "backup"  // the whole replicated state
	Restore Verb = "restore" // the whole replicated state
)

// Any stands for every value in the lists of a rule that may name it.
const Any = "*"

// ClusterTenant stands, in a rule's Tenants, for requests about objects that
// belong to no tenant. Any covers them as well.
const ClusterTenant = "@cluster"

// Verbs lists every verb.
func Verbs() []Verb {
	return []Verb{Read, List, Watch, Create, Update, Delete, Plan, Start, Stop, Restart, Migrate, Drain, Balance, Console, Guest, Snapshot, Revert, Submit, Cancel, Upload, History, Verify, Backup, Restore}
}

// Known reports whether v is one of Verbs.
func (v Verb) Known() bool {
	switch v {
	case Read, List, Watch, Create, Update, Delete, Plan, Start, Stop, Restart, Migrate, Drain, Balance, Console, Guest, Snapshot, Revert, Submit, Cancel, Upload, History, Verify, Backup, Restore:
		return true
	}
	return false
}

// Scope tells where a route finds the tenant of its request.
type Scope string

// The scopes. There is no default: a route that names none is refused.
const (
	ScopePublic  Scope = "public"  // answers without a key: health, join with its token
	ScopeSelf    Scope = "self"    // about the caller; any valid key will do
	ScopeCluster Scope = "cluster" // objects that belong to no tenant
	ScopeTenant  Scope = "tenant"  // objects of the tenant that the path or query names
)

// Kinds of request that are about no object of api.Kinds.
const (
	KindCluster = "cluster" // status, backup, restore
	KindEvent   = "event"
	KindJournal = "journal"
	KindMetrics = "metrics"
	KindSchema  = "schema" // the API's own description
	KindHealth  = "health"
)

// Right is what a route demands. Registering a route takes one.
type Right struct {
	Verb  Verb
	Kind  string
	Scope Scope
}

// Check returns an error unless the verb, the kind and the scope are known and
// the scope suits the kind. Registration must fail on it, so that a route
// without a permission check cannot exist.
func (r Right) Check() error {
	if !r.Verb.Known() {
		return fmt.Errorf("right %q on %q: no such verb", r.Verb, r.Kind)
	}
	kind, known := api.LookupKind(r.Kind)
	switch {
	case known && kind.Name == r.Kind:
	case r.Kind == KindCluster, r.Kind == KindEvent, r.Kind == KindJournal, r.Kind == KindMetrics, r.Kind == KindSchema, r.Kind == KindHealth:
	default:
		return fmt.Errorf("right %q on %q: no such kind", r.Verb, r.Kind)
	}
	switch r.Scope {
	case ScopePublic, ScopeSelf, ScopeCluster:
		if kind.TenantScope {
			return fmt.Errorf("right %q on %q: scope %q, and the kind belongs to tenants", r.Verb, r.Kind, r.Scope)
		}
	case ScopeTenant:
	default:
		return fmt.Errorf("right %q on %q: no such scope %q", r.Verb, r.Kind, r.Scope)
	}
	return nil
}

// Request is one question. Who asks comes from the verified key or
// certificate; what it is about from the route and the stored object, never
// from a body or header that the caller wrote.
type Request struct {
	Principal string            // name of the key or user; empty: nobody, who may do nothing
	Roles     []string          // at most RolesMax
	Tenant    string            // of the object; empty: it belongs to none
	Verb      Verb              //
	Kind      string            //
	Name      string            // of the object; empty in a list
	Labels    map[string]string // of the object as stored
	IP        netip.Addr        // of the real peer
	Time      time.Time         // of the request
	MFA       bool              // a second factor was shown
}

// Decision is the answer.
type Decision struct {
	Allowed bool
	Rule    string // name of the rule that decided; empty: none did
	Reason  string // one phrase for people
}

// Err is nil when the request is allowed, and otherwise an error of code
// forbidden that names what was asked and which rule decided.
func (d Decision) Err(r *Request) error {
	if d.Allowed {
		return nil
	}
	key := r.Name
	if r.Tenant != "" {
		key = api.Key(r.Tenant, r.Name)
	}
	return api.Errorf(api.CodeForbidden, "%s may not %s %s: %s", r.Principal, r.Verb, r.Kind, d.Reason).
		On(r.Kind, key).Do("ask an administrator for a role that allows it")
}
