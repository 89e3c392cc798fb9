package authz_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
)

// TestInheritanceIsThatOfANaiveWalk draws roles that inherit one another, and
// compares who may do what with a walk over all that a role inherits.
func TestInheritanceIsThatOfANaiveWalk(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 8).Draw(t, "roles")
		var roles []*api.Role
		byName := map[string]*api.Role{}
		for i := range n {
			r := &api.Role{Meta: api.Meta{Name: fmt.Sprintf("r%d", i)}}
			for j := range i { // only earlier ones: no circles, which Apply refuses
				if rapid.Bool().Draw(t, "inherits") {
					r.Inherits = append(r.Inherits, fmt.Sprintf("r%d", j))
				}
			}
			if rapid.IntRange(0, 3).Draw(t, "viewer") == 0 {
				r.Inherits = append(r.Inherits, api.RoleViewer)
			}
			for range rapid.IntRange(0, 2).Draw(t, "rules") {
				r.Rules = append(r.Rules, api.RoleRule{Effect: rapid.SampledFrom([]string{"", "allow", "deny"}).Draw(t, "effect"),
					Verbs: []string{rapid.SampledFrom([]string{"read", "start", "*", "unheard-of"}).Draw(t, "verb")},
					Kinds: []string{rapid.SampledFrom([]string{api.KindVM, api.KindNetwork, "*"}).Draw(t, "kind")}})
			}
			roles, byName[r.Name] = append(roles, r), r
		}
		rules, err := authz.RulesOf(roles)
		if err != nil {
			t.Fatal(err)
		}
		policies, err := authz.Compile(rules)
		if err != nil {
			t.Fatal(err)
		}
		who := rapid.SampledFrom(roles).Draw(t, "who").Name
		q := &authz.Request{Principal: "p", Roles: []string{who}, Tenant: "default", Verb: rapid.SampledFrom([]authz.Verb{authz.Read, authz.Start}).Draw(t, "asked"),
			Kind: rapid.SampledFrom([]string{api.KindVM, api.KindNetwork}).Draw(t, "about"), Name: "x"}
		if got, want := policies.Allow(q).Allowed, walked(byName, who, q); got != want {
			t.Errorf("%s %s by %s: got %v, want %v", q.Verb, q.Kind, who, got, want)
		}
	})
}

func walked(byName map[string]*api.Role, who string, q *authz.Request) bool {
	allowed, denied := false, false
	var walk func(name string)
	walk = func(name string) {
		if name == api.RoleViewer && q.Verb == authz.Read {
			allowed = true
		}
		r := byName[name]
		if r == nil {
			return
		}
		for _, rule := range r.Rules {
			if !slices.ContainsFunc(rule.Verbs, func(v string) bool { return v == "*" || v == string(q.Verb) }) ||
				!slices.ContainsFunc(rule.Kinds, func(k string) bool { return k == "*" || k == q.Kind }) {
				continue
			}
			if rule.Effect == "deny" {
				denied = true
			} else {
				allowed = true
			}
		}
		for _, p := range r.Inherits {
			walk(p)
		}
	}
	walk(who)
	return allowed && !denied
}

func TestLongRoleNamesMakeRulesThatDiffer(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", api.NameLengthMax-1)
	var roles []*api.Role
	for _, last := range []string{"b", "c"} {
		r := &api.Role{Meta: api.Meta{Name: long + last}, Rules: []api.RoleRule{{Verbs: []string{"read"}, Kinds: []string{"vm"}}}}
		if err := r.Validate(); err != nil {
			t.Fatal(err)
		}
		roles = append(roles, r)
	}
	rules, err := authz.RulesOf(roles)
	if err != nil {
		t.Fatal(err)
	}
	compile(t, rules...)
}
