package authz

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/debvisor/debvisor/api"
)

// guarded are the kinds that say who may do what. Only admins change them.
func guarded() []string { return []string{api.KindRole, api.KindAPIKey, api.KindToken, api.KindTenant} }

// looking are the verbs that change nothing.
func looking() []Verb { return []Verb{Read, List, Watch, Plan, History} }

// BuiltIn returns the rules of the built-in roles.
func BuiltIn() []Rule {
	rule := func(name, role string, verbs []Verb, kinds ...string) Rule {
		return Rule{Name: name, Effect: Allow, Roles: []string{role}, Verbs: verbs, Kinds: kinds, Tenants: []string{Any}}
	}
	secret := []string{api.KindAPIKey, api.KindToken, KindJournal}
	return []Rule{
		rule("admin", api.RoleAdmin, []Verb{Any}, Any),
		rule("operator", api.RoleOperator, []Verb{Any}, kindsBut(append(guarded(), api.KindConfig, KindJournal)...)...),
		rule("operator-looks", api.RoleOperator, looking(), api.KindConfig, api.KindTenant, api.KindRole),
		rule("developer", api.RoleDeveloper, []Verb{Any}, tenantKinds()...),
		rule("developer-looks", api.RoleDeveloper, append(looking(), Cancel), kindsBut(append(secret, api.KindRole, KindMetrics)...)...),
		rule("viewer", api.RoleViewer, looking(), kindsBut(secret...)...),
		rule("auditor", api.RoleAuditor, append(looking(), Verify), Any),
	}
}

// tenantKinds are the kinds of objects that belong to tenants.
func tenantKinds() []string {
	var out []string
	for _, k := range api.Kinds() {
		if k.TenantScope {
			out = append(out, k.Name)
		}
	}
	return out
}

// kindsBut is every kind of request but those.
func kindsBut(without ...string) []string {
	all := []string{KindCluster, KindEvent, KindJournal, KindMetrics, KindSchema, KindHealth}
	for _, k := range api.Kinds() {
		all = append(all, k.Name)
	}
	return slices.DeleteFunc(all, func(k string) bool { return slices.Contains(without, k) })
}

// RulesOf turns roles of one's own into rules. The rules of a role count for
// every role that inherits it as well. A verb that this binary does not know
// matches no request, so it is left out; with it a rule that has no other.
func RulesOf(roles []*api.Role) ([]Rule, error) {
	heirs := heirsOf(roles)
	var out []Rule
	for _, r := range BuiltIn() {
		if names := heirs[r.Roles[0]]; len(names) > 1 {
			r.Roles = names
		}
		out = append(out, r)
	}
	for n, role := range roles {
		for i := range role.Rules {
			r, err := ruleOf(&role.Rules[i])
			if err != nil {
				return nil, fmt.Errorf("role %s, rule %d: %w", role.Name, i, err)
			}
			if len(r.Verbs) == 0 {
				continue
			}
			r.Name, r.Roles = ruleName(role.Name, n, i), heirs[role.Name]
			out = append(out, r)
		}
	}
	return out, nil
}

// ruleName names rule i of a role. The name of a role that would be too long
// with it is cut, and told apart by its place n among the roles.
func ruleName(role string, n, i int) string {
	if name := fmt.Sprintf("%s-%d", role, i); len(name) <= api.NameLengthMax {
		return name
	}
	suffix := fmt.Sprintf("-%d-%d", n, i)
	return role[:api.NameLengthMax-len(suffix)] + suffix
}

// heirsOf lists, for each role, itself and the roles that inherit it, over any
// number of steps.
func heirsOf(roles []*api.Role) map[string][]string {
	parents := map[string][]string{}
	for _, r := range roles {
		parents[r.Name] = r.Inherits
	}
	heirs := map[string][]string{}
	for _, name := range api.BuiltInRoles() {
		heirs[name] = []string{name}
	}
	for _, r := range roles {
		seen := map[string]bool{}
		var climb func(name string)
		climb = func(name string) {
			if seen[name] {
				return
			}
			seen[name] = true
			heirs[name] = append(heirs[name], r.Name)
			for _, p := range parents[name] {
				climb(p)
			}
		}
		climb(r.Name)
	}
	return heirs
}

func ruleOf(in *api.RoleRule) (Rule, error) {
	r := Rule{Effect: Allow, Kinds: in.Kinds, Tenants: []string{Any}, Names: in.Names, Labels: in.Labels,
		NotBefore: in.NotBefore, NotAfter: in.NotAfter, Factor: SecondFactor(in.SecondFactor)}
	if in.Effect != "" {
		r.Effect = Effect(in.Effect)
	}
	for _, v := range in.Verbs {
		if verb := Verb(v); v == Any || verb.Known() {
			r.Verbs = append(r.Verbs, verb)
		}
	}
	for _, a := range in.Addresses {
		p, err := netip.ParsePrefix(a)
		if err != nil {
			return r, err
		}
		r.Addresses = append(r.Addresses, p)
	}
	return r, nil
}
