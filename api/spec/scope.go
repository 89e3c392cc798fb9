package spec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/api"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// scope is what expressions can refer to. A variable or local that is wrong
// has an unknown value, so that one mistake is not reported again wherever it
// is used.
type scope struct {
	problems *problems
	vars     map[string]cty.Value
	locals   map[string]*local
	order    []string // of locals, as written
	path     []string // locals being evaluated, outermost first
}

type local struct {
	attr  *hclsyntax.Attribute
	state int
	value cty.Value
	bytes int64
}

const (
	untouched = iota
	underway
	settled
)

// each is the element of a for_each that an object is made for.
type each struct {
	key   string
	value cty.Value
}

func newScope() *scope {
	return &scope{vars: map[string]cty.Value{}, locals: map[string]*local{}}
}

// setVariables reads the declarations and gives each its value.
func (s *scope) setVariables(blocks []*hclsyntax.Block, given map[string]string) {
	if len(blocks) > LocalsMax {
		s.problems.limit(position(blocks[LocalsMax].TypeRange), "more than %d variables (LocalsMax)", LocalsMax)
		return
	}
	at := map[string]hcl.Range{}
	for _, b := range blocks {
		if len(b.Labels) != 1 {
			s.problems.addf(b.TypeRange, `a variable needs one name, as variable "size"`)
			continue
		}
		name := b.Labels[0]
		if first, ok := at[name]; ok {
			s.problems.addf(b.LabelRanges[0], "variable %q is declared twice; first at %s", name, position(first))
			continue
		}
		at[name] = b.LabelRanges[0]
		s.vars[name] = cty.DynamicVal
		if v, ok := s.variable(b, given); ok {
			s.vars[name] = v
		}
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if _, ok := at[name]; !ok {
			err := api.Errorf(api.CodeInvalid, "a value is given for the variable %q, which no file declares", clean(name))
			suggest(err, name, slices.Sorted(maps.Keys(at)))
			s.problems.add(Position{File: "variables"}, err)
		}
	}
}

func (s *scope) variable(b *hclsyntax.Block, given map[string]string) (cty.Value, bool) {
	known := []string{"type", "default", "description"}
	bad := false
	for _, inner := range b.Body.Blocks {
		s.problems.addf(inner.TypeRange, "a variable holds no blocks")
		bad = true
	}
	for _, a := range ordered(b.Body.Attributes) {
		if !slices.Contains(known, a.Name) {
			suggest(s.problems.addf(a.NameRange, "unknown attribute %q of a variable", a.Name), a.Name, known)
			bad = true
		}
	}
	if bad {
		return cty.NilVal, false
	}
	name, want, at := b.Labels[0], cty.DynamicPseudoType, b.LabelRanges[0]
	if a := b.Body.Attributes["type"]; a != nil {
		t, diags := typeexpr.TypeConstraint(a.Expr)
		if s.problems.diagnostics(diags) {
			return cty.NilVal, false
		}
		want = t
	}
	var value cty.Value
	if raw, ok := given[name]; ok {
		v, err := fromText(raw, want)
		if err != nil {
			s.problems.addf(at, "the value given for variable %q is wrong: %s", name, clean(err.Error()))
			return cty.NilVal, false
		}
		value = v
	} else if a := b.Body.Attributes["default"]; a != nil {
		v, ok := s.constant(a.Expr)
		if !ok {
			return cty.NilVal, false
		}
		value, at = v, a.Expr.Range()
	} else {
		s.problems.addf(at, "variable %q has no default and was given no value", name).Do("give it one, as --var %s=VALUE", clean(name))
		return cty.NilVal, false
	}
	out, err := convert.Convert(value, want)
	if err != nil {
		s.problems.addf(at, "variable %q: %v", name, err)
		return cty.NilVal, false
	}
	return out, s.measure(out, at) >= 0
}

// fromText reads a variable's value as it stands on a command line: as it is
// for a text, else in HCL syntax.
func fromText(raw string, want cty.Type) (cty.Value, error) {
	if len(raw) > ValueSizeMax {
		return cty.NilVal, fmt.Errorf("it has %d bytes, more than %d (ValueSizeMax)", len(raw), ValueSizeMax)
	}
	if want == cty.String || want == cty.DynamicPseudoType || want.IsPrimitiveType() {
		return convert.Convert(cty.StringVal(raw), want)
	}
	inner := parser{scope: newScope()}
	file := File{Name: "value", Data: []byte(raw)}
	if !inner.scan(file, hcl.InitialPos) {
		return cty.NilVal, inner.problems.err()
	}
	expr, diags := hclsyntax.ParseExpression(file.Data, file.Name, hcl.InitialPos)
	if diags.HasErrors() {
		return cty.NilVal, diags
	}
	inner.scope.problems = &inner.problems
	if v, ok := inner.scope.constant(expr); ok {
		return v, nil
	}
	return cty.NilVal, inner.problems.err()
}

// constant evaluates an expression that may refer to nothing.
func (s *scope) constant(e hclsyntax.Expression) (cty.Value, bool) {
	if refs := e.Variables(); len(refs) > 0 {
		s.problems.addf(refs[0].SourceRange(), "a variable's value must be constant: no var, local or each")
		return cty.NilVal, false
	}
	return s.eval(e, nil)
}

// local evaluates a local on first use. Locals may refer to one another in any
// order, but not in a circle.
func (s *scope) local(name string) cty.Value {
	l := s.locals[name]
	switch l.state {
	case settled:
		return l.value
	case underway:
		circle := append(slices.Clone(s.path[slices.Index(s.path, name):]), name)
		s.problems.addf(l.attr.NameRange, "locals refer to one another in a circle: local.%s", strings.Join(circle, " -> local."))
		return cty.DynamicVal
	}
	l.state, l.value = underway, cty.DynamicVal
	s.path = append(s.path, name)
	if v, ok := s.eval(l.attr.Expr, nil); ok {
		l.value = v
		l.bytes = s.measure(v, l.attr.Expr.Range())
	}
	s.path = s.path[:len(s.path)-1]
	l.state = settled
	return l.value
}

// eval gives the value of an expression. It reports false, after saying why,
// when there is none; the value may be unknown if it hangs on a value that was
// wrong.
func (s *scope) eval(e hclsyntax.Expression, of *each) (cty.Value, bool) {
	vars, locals := map[string]cty.Value{}, map[string]cty.Value{}
	w := weigher{scope: s, each: of}
	for _, t := range e.Variables() {
		root := t.RootName()
		if root != "var" && root != "local" {
			continue
		}
		name, ok := second(t)
		if !ok {
			s.problems.addf(t.SourceRange(), "%s must be followed by a name, as %s.size", root, root)
			return cty.NilVal, false
		}
		if !s.reference(t, root, name, vars, locals) {
			return cty.NilVal, false
		}
	}
	ctx := &hcl.EvalContext{Functions: functions, Variables: map[string]cty.Value{"var": cty.ObjectVal(vars), "local": cty.ObjectVal(locals)}}
	if of != nil {
		ctx.Variables["each"] = cty.ObjectVal(map[string]cty.Value{"key": cty.StringVal(of.key), "value": of.value})
	}
	if weight := w.of(e); weight > ExpressionWeight {
		s.problems.limit(position(e.Range()), "the expression might grow beyond %d bytes (ExpressionWeight)", ExpressionWeight)
		return cty.NilVal, false
	}
	v, diags := e.Value(ctx)
	if s.problems.diagnostics(diags) {
		return cty.NilVal, false
	}
	return v, s.measure(v, e.Range()) >= 0
}

// reference puts what var.name or local.name stands for into the maps.
func (s *scope) reference(t hcl.Traversal, root, name string, vars, locals map[string]cty.Value) bool {
	if root == "var" {
		v, ok := s.vars[name]
		if !ok {
			suggest(s.problems.addf(t.SourceRange(), "there is no variable %q", name), name, slices.Sorted(maps.Keys(s.vars)))
			return false
		}
		vars[name] = v
		return true
	}
	if s.locals[name] == nil {
		suggest(s.problems.addf(t.SourceRange(), "there is no local %q", name), name, slices.Sorted(maps.Keys(s.locals)))
		return false
	}
	locals[name] = s.local(name)
	return true
}

// second is the name after the root of a reference.
func second(t hcl.Traversal) (string, bool) {
	if len(t) < 2 {
		return "", false
	}
	switch step := t[1].(type) {
	case hcl.TraverseAttr:
		return step.Name, true
	case hcl.TraverseIndex:
		if step.Key.Type() == cty.String && step.Key.IsKnown() && !step.Key.IsNull() {
			return step.Key.AsString(), true
		}
	}
	return "", false
}

// measure returns the size of a value, or -1 after saying that it is too
// large.
func (s *scope) measure(v cty.Value, at hcl.Range) int64 {
	n := bytesOf(v)
	if n > ValueSizeMax {
		s.problems.limit(position(at), "the value has more than %d bytes (ValueSizeMax), or a number of more than %d bits (NumberBitsMax)", ValueSizeMax, NumberBitsMax)
		return -1
	}
	return n
}

// ordered lists attributes as they stand in the file.
func ordered(attrs hclsyntax.Attributes) []*hclsyntax.Attribute {
	return slices.SortedFunc(maps.Values(attrs), func(a, b *hclsyntax.Attribute) int {
		return a.NameRange.Start.Byte - b.NameRange.Start.Byte
	})
}
