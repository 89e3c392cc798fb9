// Package api holds the objects of a debvisor cluster, the rules each of them
// obeys on its own, and the codes of the errors that clients can act on.
//
// One struct per kind serves the HTTP API, HCL files, the command line, the
// replicated log, snapshots and the Go client. The package imports the
// standard library only, and holds no state.
//
// Field names in JSON are never renamed or reused. An added field carries
// omitzero, and its zero value means "as before".
package api

// The kinds of object, as they appear in paths, log operations and "KIND/NAME".
const (
	KindTenant   = "tenant"
	KindRegion   = "region"
	KindNode     = "node"
	KindPool     = "pool"
	KindVolume   = "volume"
	KindImage    = "image"
	KindNetwork  = "network"
	KindFirewall = "firewall"
	KindVM       = "vm"
	KindInstance = "instance"
	KindReplica  = "replica"
	KindTask     = "task"
	KindSnapshot = "snapshot"
	KindConfig   = "config"
	KindRole     = "role"
	KindAPIKey   = "api_key"
	KindToken    = "join_token"
)

// Kind describes one kind of object to code that treats kinds alike: routes,
// HCL, the command line and authorization.
type Kind struct {
	Name        string // singular, as in "vm"
	Plural      string // as in the path "/v1/vms"
	TenantScope bool   // keyed "tenant/name" rather than "name"
	UserEdits   bool   // users may put and delete it; HCL may declare it
}

// Kinds lists every kind that the HTTP API shows, in the order in which a file
// that declares several of them is applied.
func Kinds() []Kind {
	return []Kind{
		{Name: KindConfig, Plural: "config", UserEdits: true},
		{Name: KindTenant, Plural: "tenants", UserEdits: true},
		{Name: KindRole, Plural: "roles", UserEdits: true},
		{Name: KindRegion, Plural: "regions"},
		{Name: KindNode, Plural: "nodes"},
		{Name: KindPool, Plural: "pools", UserEdits: true},
		{Name: KindNetwork, Plural: "networks", UserEdits: true, TenantScope: true},
		{Name: KindFirewall, Plural: "firewalls", UserEdits: true, TenantScope: true},
		{Name: KindImage, Plural: "images", UserEdits: true, TenantScope: true},
		{Name: KindVolume, Plural: "volumes", UserEdits: true, TenantScope: true},
		{Name: KindVM, Plural: "vms", UserEdits: true, TenantScope: true},
		{Name: KindInstance, Plural: "instances"},
		{Name: KindReplica, Plural: "replicas"},
		{Name: KindTask, Plural: "tasks"},
		{Name: KindSnapshot, Plural: "snapshots", TenantScope: true},
		{Name: KindAPIKey, Plural: "api_keys"},
		{Name: KindToken, Plural: "join_tokens"},
	}
}

// LookupKind finds a kind by its singular or plural name.
func LookupKind(name string) (Kind, bool) {
	for _, k := range Kinds() {
		if k.Name == name || k.Plural == name {
			return k, true
		}
	}
	return Kind{}, false
}

// Key is the table key of an object of this kind: "tenant/name" for kinds that
// belong to a tenant, "name" for the others.
func (k Kind) Key(tenant, name string) string {
	if k.TenantScope {
		return Key(tenant, name)
	}
	return name
}
