package api

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// The built-in roles. They cannot be changed, and no role of one's own may
// have their names.
const (
	RoleAdmin     = "admin"     // everything
	RoleOperator  = "operator"  // the machines and all that runs on them; nothing about who may do what
	RoleDeveloper = "developer" // VMs and what belongs to them
	RoleViewer    = "viewer"    // look at everything but keys and the journal
	RoleAuditor   = "auditor"   // look at everything, the journal included
)

// BuiltInRoles lists the roles that every cluster has.
func BuiltInRoles() []string {
	return []string{RoleAdmin, RoleOperator, RoleDeveloper, RoleViewer, RoleAuditor}
}

// Limits of roles.
const (
	RolesMax        = 250 // of one's own, in a cluster
	RoleRulesMax    = 32
	RoleInheritsMax = 15
	RoleListMax     = 256 // entries of a list of a rule
)

// Role is a named set of rules, with those of the roles that it inherits. A key
// has a role, in all tenants or in some. What no rule allows is not allowed,
// and a rule that denies wins over all that allow.
type Role struct {
	Meta
	Description string     `json:"description,omitzero"`
	Inherits    []string   `json:"inherits,omitzero"` // names of roles, built in or one's own
	Rules       []RoleRule `json:"rules,omitzero"`
}

// RoleRule allows or denies verbs on kinds. Lists that are left out ask
// nothing, but for verbs and kinds, which must say something.
type RoleRule struct {
	Effect       string            `json:"effect,omitzero"`        // allow (default) or deny
	Verbs        []string          `json:"verbs"`                  // as in the API's description (x-debvisor-verb); "*": every one
	Kinds        []string          `json:"kinds"`                  // as in the API's description (x-debvisor-kind); "*": every one
	Names        []string          `json:"names,omitzero"`         // of objects: exact, or the start of a name followed by "*"
	Labels       map[string]string `json:"labels,omitzero"`        // that the object must carry
	Addresses    []string          `json:"addresses,omitzero"`     // networks from which the request must come, as 10.0.0.0/8
	NotBefore    time.Time         `json:"not_before,omitzero"`    // the rule counts from then on
	NotAfter     time.Time         `json:"not_after,omitzero"`     // the rule counts until then
	SecondFactor string            `json:"second_factor,omitzero"` // present or absent; empty: either
}

// Validate implements Object.
func (r *Role) Validate() error {
	var p problems
	r.check(&p, false)
	for _, name := range BuiltInRoles() {
		if r.Name == name {
			p.add("name", "is that of a built-in role").Allow("another name")
		}
	}
	checkText(&p, "description", r.Description, TextLengthMax)
	if len(r.Inherits) > RoleInheritsMax {
		p.add("inherits", "has %d names", len(r.Inherits)).Allow("at most %d", RoleInheritsMax)
	}
	for _, name := range r.Inherits {
		p.addErr(CheckName("inherits", name))
		if name == r.Name {
			p.add("inherits", "names the role itself")
		}
	}
	if len(r.Rules) > RoleRulesMax {
		p.add("rules", "has %d rules", len(r.Rules)).Allow("at most %d", RoleRulesMax)
		return p.err()
	}
	for i := range r.Rules {
		r.Rules[i].check(&p, fmt.Sprintf("rules[%d]", i))
	}
	return p.err()
}

func (r *RoleRule) check(p *problems, at string) {
	checkOneOf(p, at+".effect", r.Effect, "", "allow", "deny")
	checkOneOf(p, at+".second_factor", r.SecondFactor, "", "present", "absent")
	for _, l := range []struct {
		field  string
		words  []string
		needed bool
	}{{"verbs", r.Verbs, true}, {"kinds", r.Kinds, true}, {"names", r.Names, false}, {"addresses", r.Addresses, false}} {
		if l.needed && len(l.words) == 0 {
			p.add(at+"."+l.field, "is missing").Allow(`a list, or ["*"] for all`)
		}
		if len(l.words) > RoleListMax {
			p.add(at+"."+l.field, "has %d entries", len(l.words)).Allow("at most %d", RoleListMax)
		}
	}
	for _, word := range append(append([]string{}, r.Verbs...), r.Kinds...) {
		if word != "*" && (word == "" || len(word) > NameLengthMax || strings.Trim(word, "abcdefghijklmnopqrstuvwxyz_.-") != "") {
			p.add(at, "%q is no verb or kind", word).Allow("lower-case letters, '_', '.', '-'; or *")
		}
	}
	for _, name := range r.Names {
		if stem := strings.TrimSuffix(name, "*"); name == "" || len(name) > NameLengthMax+1 || strings.Trim(stem, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			p.add(at+".names", "has %q", name).Allow("a name, or the start of one followed by *")
		}
	}
	checkLabels(p, at+".labels", r.Labels)
	checkNetworks(p, at+".addresses", r.Addresses)
}

// checkNetworks accepts networks in CIDR notation, without bits below the mask.
func checkNetworks(p *problems, field string, networks []string) {
	for _, text := range networks {
		if prefix, err := netip.ParsePrefix(text); err != nil || prefix.Masked() != prefix {
			p.add(field, "has %q", text).Allow("networks, as 10.0.0.0/8 or 2001:db8::/32")
		}
	}
}

// Permission answers whether somebody may do something.
type Permission struct {
	Allowed bool   `json:"allowed"`
	Rule    string `json:"rule,omitzero"` // that decided; empty: none did
	Reason  string `json:"reason"`
}
