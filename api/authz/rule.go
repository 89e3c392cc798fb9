package authz

import (
	"net/netip"
	"strings"
	"time"

	"github.com/debvisor/debvisor/api"
)

// Effect is what a rule does when it applies.
type Effect string

// The effects.
const (
	Allow Effect = "allow"
	Deny  Effect = "deny"
)

// SecondFactor is a rule's condition on Request.MFA.
type SecondFactor string

// The conditions on the second factor; the zero value asks nothing.
const (
	FactorPresent SecondFactor = "present"
	FactorAbsent  SecondFactor = "absent"
)

// Limits of rules and requests.
const (
	RulesMax = 10000
	RolesMax = 16
	ListMax  = 256 // entries of any list in a rule
)

// Rule applies to a request when each of its lists does. Roles, Verbs, Kinds
// and Tenants must say something, if only Any, so that a forgotten list never
// widens a rule; the others ask nothing when they are empty.
type Rule struct {
	Name       string            `json:"name"` // unique; decisions and the audit log carry it
	Effect     Effect            `json:"effect"`
	Roles      []string          `json:"roles"` // that the principal must have one of; Any: every principal
	Verbs      []Verb            `json:"verbs"`
	Kinds      []string          `json:"kinds"`
	Tenants    []string          `json:"tenants"`             // names, ClusterTenant, or Any
	Principals []string          `json:"principals,omitzero"` // exact names
	Names      []string          `json:"names,omitzero"`      // exact, or a prefix followed by "*"; never match a list
	Labels     map[string]string `json:"labels,omitzero"`     // that the object must carry
	Addresses  []netip.Prefix    `json:"addresses,omitzero"`  // a request without an address is in none
	NotBefore  time.Time         `json:"not_before,omitzero"`
	NotAfter   time.Time         `json:"not_after,omitzero"`
	Factor     SecondFactor      `json:"second_factor,omitzero"`
}

// Validate returns an *api.Error that names the field, or nil.
func (r *Rule) Validate() error {
	if err := r.validate(); err != nil {
		return err.On("rule", r.Name)
	}
	return nil
}

func (r *Rule) validate() *api.Error {
	if err := api.CheckName("name", r.Name); err != nil {
		return err
	}
	if r.Effect != Allow && r.Effect != Deny {
		return api.Invalid("effect", "is %q", r.Effect).Allow("%s, %s", Allow, Deny)
	}
	for _, v := range r.Verbs {
		if v != Any && !v.Known() {
			return api.Invalid("verbs", "has %q", v).Allow("%v, or %s", Verbs(), Any)
		}
	}
	for _, l := range []struct {
		field    string
		size     int
		required bool
	}{
		{"roles", len(r.Roles), true}, {"verbs", len(r.Verbs), true}, {"kinds", len(r.Kinds), true}, {"tenants", len(r.Tenants), true},
		{"principals", len(r.Principals), false}, {"names", len(r.Names), false}, {"addresses", len(r.Addresses), false}, {"labels", len(r.Labels), false},
	} {
		if l.required && l.size == 0 {
			return api.Invalid(l.field, "is missing").Allow("a list, or [%q] for all", Any)
		}
		if l.size > ListMax {
			return api.Invalid(l.field, "has %d entries", l.size).Allow("at most %d", ListMax)
		}
	}
	for _, n := range r.Names {
		if n == "" || strings.Contains(strings.TrimSuffix(n, Any), Any) {
			return api.Invalid("names", "has %q", n).Allow("a name, or the start of one followed by %s", Any)
		}
	}
	for _, p := range r.Addresses {
		if !p.IsValid() {
			return api.Invalid("addresses", "has an empty entry").Allow("networks, as 10.0.0.0/8")
		}
	}
	if r.Factor != "" && r.Factor != FactorPresent && r.Factor != FactorAbsent {
		return api.Invalid("second_factor", "is %q", r.Factor).Allow("%s, %s", FactorPresent, FactorAbsent)
	}
	return nil
}

// holds reports whether the conditions hold that Policies does not look up.
func (r *Rule) holds(q *Request, ip netip.Addr) bool {
	if len(r.Labels) > 0 && !carries(q.Labels, r.Labels) {
		return false
	}
	if !r.NotBefore.IsZero() && q.Time.Before(r.NotBefore) || !r.NotAfter.IsZero() && q.Time.After(r.NotAfter) {
		return false
	}
	if r.Factor != "" && q.MFA != (r.Factor == FactorPresent) {
		return false
	}
	if len(r.Addresses) == 0 {
		return true
	}
	for _, p := range r.Addresses {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// carries is stricter than api.MatchLabels: a label that the object lacks is
// not the same as an empty one.
func carries(labels, selector map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}
