package authz_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
)

var every = []string{authz.Any}

func compile(t testing.TB, rules ...authz.Rule) *authz.Policies {
	t.Helper()
	p, err := authz.Compile(rules)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// rule allows role dev everything; change narrows it.
func rule(name string, change ...func(*authz.Rule)) authz.Rule {
	r := authz.Rule{Name: name, Effect: authz.Allow, Roles: []string{"dev"}, Verbs: []authz.Verb{authz.Any}, Kinds: every, Tenants: every}
	for _, f := range change {
		f(&r)
	}
	return r
}

func request(change ...func(*authz.Request)) *authz.Request {
	q := &authz.Request{Principal: "ada", Roles: []string{"dev"}, Tenant: "shop", Verb: authz.Read, Kind: api.KindVM, Name: "web-1",
		Labels: map[string]string{"app": "web"}, IP: netip.MustParseAddr("10.1.2.3"), Time: time.Unix(1e9, 0)}
	for _, f := range change {
		f(q)
	}
	return q
}

func TestAdminMayDoEverythingAndOthersNothing(t *testing.T) {
	t.Parallel()
	p := compile(t, authz.BuiltIn()...)
	for _, verb := range authz.Verbs() {
		for _, kind := range api.Kinds() {
			q := request(func(q *authz.Request) { q.Verb, q.Kind, q.Roles = verb, kind.Name, []string{api.RoleAdmin} })
			if d := p.Allow(q); !d.Allowed || d.Rule != "admin" || d.Reason != "rule admin allows it" {
				t.Errorf("admin %s %s: %+v", verb, kind.Name, d)
			}
			q.Roles = []string{"dev"}
			if d := p.Allow(q); d.Allowed || d.Rule != "" || d.Reason != "no rule allows it" {
				t.Errorf("dev %s %s: %+v", verb, kind.Name, d)
			}
		}
	}
}

func TestWhoIsNobodyOrAsksNonsenseIsDenied(t *testing.T) {
	t.Parallel()
	p := compile(t, rule("all", func(r *authz.Rule) { r.Roles = every }))
	long := map[string]string{}
	for i := range api.LabelsMax + 1 {
		long[fmt.Sprint(i)] = "x"
	}
	for name, f := range map[string]func(*authz.Request){
		"nobody":          func(q *authz.Request) { q.Principal = "" },
		"no verb":         func(q *authz.Request) { q.Verb = "" },
		"unknown verb":    func(q *authz.Request) { q.Verb = "destroy" },
		"the wildcard":    func(q *authz.Request) { q.Verb = authz.Any },
		"cluster marker":  func(q *authz.Request) { q.Tenant = authz.ClusterTenant },
		"too many roles":  func(q *authz.Request) { q.Roles = make([]string, authz.RolesMax+1) },
		"too many labels": func(q *authz.Request) { q.Labels = long },
		"too long a name": func(q *authz.Request) { q.Name = strings.Repeat("a", 300) },
	} {
		if d := p.Allow(request(f)); d.Allowed || d.Reason == "" {
			t.Errorf("%s: %+v, want a denial with a reason", name, d)
		}
	}
	var zero authz.Policies
	if d := zero.Allow(request()); d.Allowed {
		t.Error("no policies at all allow something")
	}
}

func TestDenyWinsWhateverTheOrder(t *testing.T) {
	t.Parallel()
	deny := rule("no-prod", func(r *authz.Rule) { r.Effect = authz.Deny; r.Labels = map[string]string{"app": "web"} })
	for _, rules := range [][]authz.Rule{{rule("all"), deny}, {deny, rule("all")}} {
		d := compile(t, rules...).Allow(request())
		if d.Allowed || d.Rule != "no-prod" || d.Reason != "rule no-prod denies it" {
			t.Errorf("got %+v", d)
		}
	}
}

func TestEachFieldNarrowsARule(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name  string
		rule  func(*authz.Rule)
		meets func(*authz.Request)
		fails func(*authz.Request)
	}{
		{"role", nil, func(q *authz.Request) { q.Roles = []string{"ops", "dev"} }, func(q *authz.Request) { q.Roles = nil }},
		{"verb", func(r *authz.Rule) { r.Verbs = []authz.Verb{authz.Console, authz.Read} }, func(q *authz.Request) { q.Verb = authz.Console }, func(q *authz.Request) { q.Verb = authz.Delete }},
		{"kind", func(r *authz.Rule) { r.Kinds = []string{api.KindVM} }, nil, func(q *authz.Request) { q.Kind = api.KindVolume }},
		{"tenant", func(r *authz.Rule) { r.Tenants = []string{"shop"} }, nil, func(q *authz.Request) { q.Tenant = "bank" }},
		{"tenant only", func(r *authz.Rule) { r.Tenants = []string{"shop"} }, nil, func(q *authz.Request) { q.Tenant = "" }},
		{"cluster only", func(r *authz.Rule) { r.Tenants = []string{authz.ClusterTenant} }, func(q *authz.Request) { q.Tenant = "" }, nil},
		{"principal", func(r *authz.Rule) { r.Principals = []string{"ada"} }, nil, func(q *authz.Request) { q.Principal = "bob" }},
		{"name", func(r *authz.Rule) { r.Names = []string{"db", "web-1"} }, nil, func(q *authz.Request) { q.Name = "web-10" }},
		{"name of a list", func(r *authz.Rule) { r.Names = []string{"*"} }, nil, func(q *authz.Request) { q.Name = "" }},
		{"prefix", func(r *authz.Rule) { r.Names = []string{"web-*"} }, func(q *authz.Request) { q.Name = "web-22" }, func(q *authz.Request) { q.Name = "web" }},
		{"label", func(r *authz.Rule) { r.Labels = map[string]string{"app": "web"} }, nil, func(q *authz.Request) { q.Labels = nil }},
		{"empty label", func(r *authz.Rule) { r.Labels = map[string]string{"old": ""} }, func(q *authz.Request) { q.Labels = map[string]string{"old": ""} }, nil},
		{"address", func(r *authz.Rule) { r.Addresses = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} }, func(q *authz.Request) { q.IP = netip.MustParseAddr("::ffff:10.9.9.9") }, func(q *authz.Request) { q.IP = netip.MustParseAddr("11.0.0.1") }},
		{"no address", func(r *authz.Rule) { r.Addresses = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")} }, nil, func(q *authz.Request) { q.IP = netip.Addr{} }},
		{"from", func(r *authz.Rule) { r.NotBefore = time.Unix(1e9, 0) }, nil, func(q *authz.Request) { q.Time = time.Unix(1e9-1, 0) }},
		{"until", func(r *authz.Rule) { r.NotAfter = time.Unix(1e9, 0) }, nil, func(q *authz.Request) { q.Time = time.Unix(1e9+1, 0) }},
		{"factor", func(r *authz.Rule) { r.Factor = authz.FactorPresent }, func(q *authz.Request) { q.MFA = true }, nil},
		{"no factor", func(r *authz.Rule) { r.Factor = authz.FactorAbsent }, nil, func(q *authz.Request) { q.MFA = true }},
	}
	for _, c := range cases {
		r := rule("it")
		if c.rule != nil {
			c.rule(&r)
		}
		p := compile(t, r)
		meets, fails := request(), request()
		if c.meets != nil {
			c.meets(meets)
		}
		if c.fails != nil {
			c.fails(fails)
		}
		if !p.Allow(meets).Allowed {
			t.Errorf("%s: denied, want allowed: %+v", c.name, meets)
		}
		if p.Allow(fails).Allowed {
			t.Errorf("%s: allowed, want denied: %+v", c.name, fails)
		}
	}
}

func TestCompileRefusesWithTheField(t *testing.T) {
	t.Parallel()
	for field, f := range map[string]func(*authz.Rule){
		"name":          func(r *authz.Rule) { r.Name = "A rule" },
		"effect":        func(r *authz.Rule) { r.Effect = "" },
		"roles":         func(r *authz.Rule) { r.Roles = nil },
		"verbs":         func(r *authz.Rule) { r.Verbs = []authz.Verb{"raed"} },
		"kinds":         func(r *authz.Rule) { r.Kinds = nil },
		"tenants":       func(r *authz.Rule) { r.Tenants = make([]string, authz.ListMax+1) },
		"names":         func(r *authz.Rule) { r.Names = []string{"a*b"} },
		"addresses":     func(r *authz.Rule) { r.Addresses = make([]netip.Prefix, 1) },
		"second_factor": func(r *authz.Rule) { r.Factor = "maybe" },
	} {
		_, err := authz.Compile([]authz.Rule{rule("it", f)})
		e, ok := errors.AsType[*api.Error](err)
		if !ok || e.Field != field || e.Kind != "rule" || e.Allowed == "" {
			t.Errorf("%s: got %v", field, err)
		}
	}
	if _, err := authz.Compile([]authz.Rule{rule("it"), rule("it")}); err == nil {
		t.Error("two rules of one name were accepted")
	}
	if _, err := authz.Compile(make([]authz.Rule, authz.RulesMax+1)); api.CodeOf(err) != api.CodeLimit {
		t.Errorf("too many rules: %v", err)
	}
}

func TestErrNamesWhatWasAsked(t *testing.T) {
	t.Parallel()
	q := request()
	err := compile(t, authz.BuiltIn()...).Allow(q).Err(q)
	if api.CodeOf(err) != api.CodeForbidden || !strings.Contains(err.Error(), "vm/shop/web-1: ada may not read vm: no rule allows it") {
		t.Errorf("got %v", err)
	}
	if err := compile(t, rule("all")).Allow(q).Err(q); err != nil {
		t.Errorf("allowed, and still %v", err)
	}
}

func TestRightsAreComplete(t *testing.T) {
	t.Parallel()
	for _, r := range []authz.Right{
		{},
		{Verb: authz.Read, Kind: api.KindVM},
		{Verb: authz.Read, Scope: authz.ScopeTenant},
		{Kind: api.KindVM, Scope: authz.ScopeTenant},
		{Verb: authz.Read, Kind: "vms", Scope: authz.ScopeTenant},
		{Verb: authz.Read, Kind: "widget", Scope: authz.ScopeCluster},
		{Verb: authz.Read, Kind: api.KindVM, Scope: authz.ScopeCluster},
		{Verb: authz.Read, Kind: api.KindVM, Scope: "all"},
	} {
		if r.Check() == nil {
			t.Errorf("%+v was accepted", r)
		}
	}
	for _, r := range []authz.Right{
		{authz.Console, api.KindVM, authz.ScopeTenant},
		{authz.List, api.KindNode, authz.ScopeCluster},
		{authz.Read, authz.KindHealth, authz.ScopePublic},
		{authz.Watch, authz.KindEvent, authz.ScopeTenant},
	} {
		if err := r.Check(); err != nil {
			t.Errorf("%+v: %v", r, err)
		}
	}
}
