package authz_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api/authz"
	"pgregory.net/rapid"
)

func some(words ...string) *rapid.Generator[[]string] {
	return rapid.SliceOfN(rapid.SampledFrom(words), 1, 2)
}

func optional(words ...string) *rapid.Generator[[]string] {
	return rapid.SliceOfN(rapid.SampledFrom(words), 0, 2)
}

var (
	pairs = rapid.MapOfN(rapid.SampledFrom([]string{"a", "b"}), rapid.SampledFrom([]string{"", "x"}), 0, 2)
	times = rapid.Custom(func(t *rapid.T) time.Time {
		if s := rapid.Int64Range(0, 3).Draw(t, "time"); s > 0 {
			return time.Unix(s, 0)
		}
		return time.Time{}
	})
	networks = rapid.SampledFrom([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::/0"), netip.MustParsePrefix("10.1.0.7/16")})
	rules    = rapid.Custom(func(t *rapid.T) authz.Rule {
		r := authz.Rule{
			Effect:     rapid.SampledFrom([]authz.Effect{authz.Allow, authz.Allow, authz.Deny}).Draw(t, "effect"),
			Roles:      some("dev", "ops", "*").Draw(t, "roles"),
			Kinds:      some("vm", "pool", "*").Draw(t, "kinds"),
			Tenants:    some("t1", "t2", "*", authz.ClusterTenant).Draw(t, "tenants"),
			Principals: optional("ada", "bob").Draw(t, "principals"),
			Names:      optional("web", "web-1", "web-*", "w*", "*").Draw(t, "names"),
			Labels:     pairs.Draw(t, "labels"),
			Addresses:  rapid.SliceOfN(networks, 0, 2).Draw(t, "addresses"),
			NotBefore:  times.Draw(t, "from"),
			NotAfter:   times.Draw(t, "until"),
			Factor:     rapid.SampledFrom([]authz.SecondFactor{"", "", authz.FactorAbsent, authz.FactorPresent}).Draw(t, "factor"),
		}
		for _, v := range some("read", "delete", "*").Draw(t, "verbs") {
			r.Verbs = append(r.Verbs, authz.Verb(v))
		}
		return r
	})
	requests = rapid.Custom(func(t *rapid.T) authz.Request {
		return authz.Request{
			Principal: rapid.SampledFrom([]string{"ada", "bob", ""}).Draw(t, "principal"),
			Roles:     optional("dev", "ops", "*", "").Draw(t, "roles"),
			Tenant:    rapid.SampledFrom([]string{"t1", "t2", "t3", "", "*"}).Draw(t, "tenant"),
			Verb:      authz.Verb(rapid.SampledFrom([]string{"read", "delete", "list", "*", "x"}).Draw(t, "verb")),
			Kind:      rapid.SampledFrom([]string{"vm", "pool", "node", "*", ""}).Draw(t, "kind"),
			Name:      rapid.SampledFrom([]string{"web", "web-1", "web-12", "w", "db", "*", ""}).Draw(t, "name"),
			Labels:    pairs.Draw(t, "labels"),
			IP:        rapid.SampledFrom([]netip.Addr{{}, netip.MustParseAddr("10.2.3.4"), netip.MustParseAddr("::ffff:10.1.1.1"), netip.MustParseAddr("fd00::1")}).Draw(t, "ip"),
			Time:      time.Unix(rapid.Int64Range(0, 4).Draw(t, "time"), 0),
			MFA:       rapid.Bool().Draw(t, "mfa"),
		}
	})
)

// naive looks at one rule after the other, as the documentation of Rule reads.
func naive(rules []authz.Rule, q *authz.Request) (allowed bool, by string) {
	if q.Principal == "" || !slices.Contains(authz.Verbs(), q.Verb) {
		return false, ""
	}
	for _, effect := range []authz.Effect{authz.Deny, authz.Allow} {
		for _, r := range rules {
			if r.Effect == effect && applies(&r, q) {
				return effect == authz.Allow, r.Name
			}
		}
	}
	return false, ""
}

func applies(r *authz.Rule, q *authz.Request) bool {
	has := func(list []string, s string) bool { return slices.Contains(list, "*") || slices.Contains(list, s) }
	tenant := q.Tenant
	if tenant == "" {
		tenant = "@cluster"
	}
	role := slices.Contains(r.Roles, "*") || slices.ContainsFunc(q.Roles, func(s string) bool { return slices.Contains(r.Roles, s) })
	verb := slices.Contains(r.Verbs, "*") || slices.Contains(r.Verbs, q.Verb)
	name := len(r.Names) == 0 || q.Name != "" && slices.ContainsFunc(r.Names, func(n string) bool {
		return n == q.Name || strings.HasSuffix(n, "*") && strings.HasPrefix(q.Name, n[:len(n)-1])
	})
	for k, v := range r.Labels {
		if got, ok := q.Labels[k]; !ok || got != v {
			return false
		}
	}
	address := len(r.Addresses) == 0 || slices.ContainsFunc(r.Addresses, func(p netip.Prefix) bool { return p.Contains(q.IP.Unmap()) })
	clock := (r.NotBefore.IsZero() || !q.Time.Before(r.NotBefore)) && (r.NotAfter.IsZero() || !q.Time.After(r.NotAfter))
	factor := r.Factor == "" || (r.Factor == authz.FactorPresent) == q.MFA
	return role && verb && name && address && clock && factor && has(r.Kinds, q.Kind) && has(r.Tenants, tenant) &&
		(len(r.Principals) == 0 || slices.Contains(r.Principals, q.Principal))
}

func TestCompiledRulesAgreeWithTheNaiveReading(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfN(rules, 0, 80).Draw(t, "rules")
		for i := range list {
			list[i].Name = fmt.Sprintf("r%d", i)
		}
		p, err := authz.Compile(list)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			q := requests.Draw(t, "request")
			allowed, by := naive(list, &q)
			if d := p.Allow(&q); d.Allowed != allowed || d.Rule != by {
				t.Fatalf("got %+v, want %v by %q for %+v", d, allowed, by, q)
			}
		}
	})
}

// thousand makes 1,000 rules that differ in names, labels and tenants.
func thousand() []authz.Rule {
	list := make([]authz.Rule, 0, 1000)
	for i := range 1000 {
		r := authz.Rule{Name: fmt.Sprintf("r%d", i), Effect: authz.Allow, Roles: []string{"dev"}, Verbs: []authz.Verb{authz.Read}, Kinds: []string{"vm"}, Tenants: []string{"shop"}}
		switch i % 4 {
		case 0:
			r.Names = []string{fmt.Sprintf("web-%d", i), fmt.Sprintf("db-%d-*", i)}
		case 1:
			r.Labels = map[string]string{"app": fmt.Sprint(i)}
		case 2:
			r.Tenants = []string{fmt.Sprintf("t%d", i)}
		case 3:
			r.Effect, r.Principals = authz.Deny, []string{fmt.Sprintf("p%d", i)}
		}
		list = append(list, r)
	}
	return list
}

func TestAllowAllocatesNothing(t *testing.T) {
	p := compile(t, thousand()...)
	q := request(func(q *authz.Request) { q.Name = "web-996" })
	if !p.Allow(q).Allowed {
		t.Fatal("denied")
	}
	if n := testing.AllocsPerRun(100, func() { p.Allow(q) }); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

// BenchmarkAllow has to stay at or below 2 microseconds with 1,000 rules.
func BenchmarkAllow1000Rules(b *testing.B) {
	p := compile(b, thousand()...)
	for name, q := range map[string]*authz.Request{
		"allowed": request(func(q *authz.Request) { q.Name = "web-996" }),
		"denied":  request(),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p.Allow(q)
			}
		})
	}
}
