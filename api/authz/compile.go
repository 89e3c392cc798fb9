package authz

import (
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/api"
)

// Policies answers requests. It never changes once made, and is safe for use
// by several goroutines.
//
// Each value that a rule can name has a set of the rules that accept it, one
// bit a rule. A request intersects the sets of its own values, so its cost
// hardly grows with the number of rules; only the few left are read. Rules
// that deny have the low bits: the first rule left is the one that decides.
type Policies struct {
	rules      []Rule
	reasons    []string
	words      int
	roles      dimension[string]
	verbs      dimension[Verb]
	kinds      dimension[string]
	tenants    dimension[string]
	principals dimension[string]
	names      dimension[string]
	prefixes   dimension[string]
	lengths    []int // of prefixes, so that only those are looked up
	labels     dimension[label]
}

type label struct{ key, value string }

// set has a bit for each rule.
type set []uint64

// dimension maps the values of one list to the rules that accept them.
type dimension[T comparable] struct {
	any    set // rules that accept every value
	values map[T]set
}

func (d *dimension[T]) add(words, rule int, value T) {
	if d.values == nil {
		d.values = map[T]set{}
	}
	if d.values[value] == nil {
		d.values[value] = make(set, words)
	}
	d.values[value].put(rule)
}

func (s set) put(rule int) { s[rule/64] |= 1 << (rule % 64) }

// at is word w of the set; the sets of values that no rule names are nil.
func (s set) at(w int) uint64 {
	if s == nil {
		return 0
	}
	return s[w]
}

// Compile checks the rules and makes them quick to ask. The error is an
// *api.Error that names the rule and the field.
func Compile(rules []Rule) (*Policies, error) {
	if len(rules) > RulesMax {
		return nil, api.Errorf(api.CodeLimit, "%d rules", len(rules)).Allow("at most %d", RulesMax)
	}
	names := map[string]bool{}
	for i := range rules {
		if err := rules[i].Validate(); err != nil {
			return nil, err
		}
		if names[rules[i].Name] {
			return nil, api.Invalid("name", "is used twice").On("rule", rules[i].Name).Do("rename one of the two rules")
		}
		names[rules[i].Name] = true
	}
	p := &Policies{rules: slices.Clone(rules), words: (len(rules) + 63) / 64}
	slices.SortStableFunc(p.rules, func(a, b Rule) int { return rank(a.Effect) - rank(b.Effect) })
	p.roles.any, p.verbs.any, p.kinds.any, p.tenants.any = make(set, p.words), make(set, p.words), make(set, p.words), make(set, p.words)
	p.principals.any, p.names.any, p.labels.any = make(set, p.words), make(set, p.words), make(set, p.words)
	for i := range p.rules {
		p.index(i)
	}
	slices.Sort(p.lengths)
	p.lengths = slices.Compact(p.lengths)
	return p, nil
}

func rank(e Effect) int {
	if e == Deny {
		return 0
	}
	return 1
}

func (p *Policies) index(i int) {
	r := &p.rules[i]
	if r.Effect == Deny {
		p.reasons = append(p.reasons, fmt.Sprintf("rule %s denies it", r.Name))
	} else {
		p.reasons = append(p.reasons, fmt.Sprintf("rule %s allows it", r.Name))
	}
	indexList(&p.roles, p.words, i, r.Roles, Any)
	indexList(&p.verbs, p.words, i, r.Verbs, Any)
	indexList(&p.kinds, p.words, i, r.Kinds, Any)
	indexList(&p.tenants, p.words, i, r.Tenants, Any)
	if len(r.Principals) == 0 {
		p.principals.any.put(i)
	}
	for _, name := range r.Principals {
		p.principals.add(p.words, i, name)
	}
	if len(r.Names) == 0 {
		p.names.any.put(i)
	}
	for _, name := range r.Names {
		if prefix, ok := strings.CutSuffix(name, Any); ok {
			p.prefixes.add(p.words, i, prefix)
			p.lengths = append(p.lengths, len(prefix))
			continue
		}
		p.names.add(p.words, i, name)
	}
	if len(r.Labels) == 0 {
		p.labels.any.put(i)
		return
	}
	// One pair is enough to find the rule; holds looks at the others.
	r.Labels = maps.Clone(r.Labels)
	first := slices.Min(slices.Collect(maps.Keys(r.Labels)))
	p.labels.add(p.words, i, label{first, r.Labels[first]})
}

func indexList[T comparable](d *dimension[T], words, rule int, values []T, every T) {
	for _, v := range values {
		if v == every {
			d.any.put(rule)
			continue
		}
		d.add(words, rule, v)
	}
}

// nameMax bounds the name in a request. Names of users' objects are shorter;
// replicas join an ID and a node's name.
const nameMax = 256

// Allow answers q. It allocates nothing, save for names that match more than
// 64 prefixes of different length.
func (p *Policies) Allow(q *Request) Decision {
	if q.Principal == "" {
		return Decision{Reason: "nobody is signed in"}
	}
	if !q.Verb.Known() {
		return Decision{Reason: "there is no such verb"}
	}
	if q.Tenant == ClusterTenant {
		return Decision{Reason: "there is no such tenant"}
	}
	if len(q.Roles) > RolesMax || len(q.Labels) > api.LabelsMax || len(q.Name) > nameMax {
		return Decision{Reason: "the request has too many roles or labels, or too long a name"}
	}
	var roles [RolesMax]set
	for i, role := range q.Roles {
		roles[i] = p.roles.values[role]
	}
	verb, kind, principal := p.verbs.values[q.Verb], p.kinds.values[q.Kind], p.principals.values[q.Principal]
	tenant := p.tenants.values[tenantOf(q)]
	var names, labels [api.LabelsMax]set
	nameSets, labelSets := names[:0], labels[:0]
	if q.Name != "" {
		nameSets = p.nameSets(q.Name, nameSets)
	}
	for k, v := range q.Labels {
		if s := p.labels.values[label{k, v}]; s != nil {
			labelSets = append(labelSets, s)
		}
	}
	ip := q.IP.Unmap()
	for w := range p.words {
		left := p.roles.any[w] | union(roles[:len(q.Roles)], w)
		left &= (p.verbs.any[w] | verb.at(w)) & (p.kinds.any[w] | kind.at(w)) & (p.tenants.any[w] | tenant.at(w))
		left &= p.principals.any[w] | principal.at(w)
		if left == 0 {
			continue
		}
		left &= (p.names.any[w] | union(nameSets, w)) & (p.labels.any[w] | union(labelSets, w))
		for ; left != 0; left &= left - 1 {
			i := w*64 + bits.TrailingZeros64(left)
			if p.rules[i].holds(q, ip) {
				return Decision{Allowed: p.rules[i].Effect == Allow, Rule: p.rules[i].Name, Reason: p.reasons[i]}
			}
		}
	}
	return Decision{Reason: "no rule allows it"}
}

func (p *Policies) nameSets(name string, sets []set) []set {
	if s := p.names.values[name]; s != nil {
		sets = append(sets, s)
	}
	for _, n := range p.lengths {
		if n > len(name) {
			break
		}
		if s := p.prefixes.values[name[:n]]; s != nil {
			sets = append(sets, s)
		}
	}
	return sets
}

func tenantOf(q *Request) string {
	if q.Tenant == "" {
		return ClusterTenant
	}
	return q.Tenant
}

func union(sets []set, w int) uint64 {
	var out uint64
	for _, s := range sets {
		out |= s.at(w)
	}
	return out
}

// Rules returns a copy of the rules in the order in which they decide: those
// that deny first, and otherwise as given.
func (p *Policies) Rules() []Rule { return slices.Clone(p.rules) }
