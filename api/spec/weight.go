package spec

import (
	"math/big"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// numberWeight is what a number may take as text, its exponent being bounded.
const numberWeight = 320

// weigher bounds from above what evaluating an expression can come to, in
// bytes, before it is evaluated: a short file could otherwise double a text
// often enough to fill any memory.
type weigher struct {
	scope *scope
	each  *each
	names []named // variables of the for expressions around
}

type named struct {
	name   string
	weight int64
}

// of returns the bound, or anything above ExpressionWeight.
func (w *weigher) of(e hclsyntax.Expression) int64 {
	switch e := e.(type) {
	case *hclsyntax.LiteralValueExpr:
		return bytesOf(e.Val)
	case *hclsyntax.ScopeTraversalExpr:
		return w.reference(e.Traversal)
	case *hclsyntax.RelativeTraversalExpr:
		return w.of(e.Source)
	case *hclsyntax.ParenthesesExpr:
		return w.of(e.Expression)
	case *hclsyntax.TemplateExpr:
		return w.sum(e.Parts)
	case *hclsyntax.TemplateWrapExpr:
		return w.of(e.Wrapped)
	case *hclsyntax.TemplateJoinExpr:
		return w.of(e.Tuple)
	case *hclsyntax.TupleConsExpr:
		return w.sum(e.Exprs)
	case *hclsyntax.ObjectConsExpr:
		total := int64(1)
		for _, item := range e.Items {
			total = plus(total, plus(w.of(item.KeyExpr), w.of(item.ValueExpr)))
		}
		return total
	case *hclsyntax.ObjectConsKeyExpr:
		if name := hcl.ExprAsKeyword(e.Wrapped); name != "" && !e.ForceNonLiteral {
			return int64(len(name)) + 1
		}
		return w.of(e.Wrapped)
	case *hclsyntax.ConditionalExpr:
		return plus(w.of(e.Condition), plus(w.of(e.TrueResult), w.of(e.FalseResult)))
	case *hclsyntax.IndexExpr:
		return plus(w.of(e.Collection), w.of(e.Key))
	case *hclsyntax.SplatExpr:
		return plus(w.of(e.Source), w.of(e.Each))
	case *hclsyntax.AnonSymbolExpr:
		return 1
	case *hclsyntax.BinaryOpExpr:
		return plus(numberWeight, plus(w.of(e.LHS), w.of(e.RHS)))
	case *hclsyntax.UnaryOpExpr:
		return plus(numberWeight, w.of(e.Val))
	case *hclsyntax.FunctionCallExpr:
		return w.call(e)
	case *hclsyntax.ForExpr:
		return w.loop(e)
	}
	return ExpressionWeight + 1 // nothing else stands in the language
}

func (w *weigher) sum(list []hclsyntax.Expression) int64 {
	total := int64(1)
	for _, e := range list {
		total = plus(total, w.of(e))
	}
	return total
}

func (w *weigher) call(e *hclsyntax.FunctionCallExpr) int64 {
	total := plus(w.sum(e.Args), numberWeight)
	switch e.Name {
	case "range":
		return plus(total, 1024*8) // its own limit is 1,024 numbers
	case "join":
		// The first argument stands between all elements of the others.
		if len(e.Args) > 0 {
			return times(plus(w.of(e.Args[0]), 1), total)
		}
	case "format":
		// "%99d" comes to 99 bytes: a format grows at most 25 times.
		if len(e.Args) > 0 {
			return plus(total, times(w.of(e.Args[0]), 25))
		}
	}
	return total
}

// loop weighs a for expression: its body once for each element.
func (w *weigher) loop(e *hclsyntax.ForExpr) int64 {
	n, largest := w.elements(e.CollExpr)
	before := len(w.names)
	w.names = append(w.names, named{e.ValVar, largest})
	if e.KeyVar != "" {
		w.names = append(w.names, named{e.KeyVar, largest})
	}
	body := int64(1)
	for _, part := range []hclsyntax.Expression{e.KeyExpr, e.ValExpr, e.CondExpr} {
		if part != nil {
			body = plus(body, w.of(part))
		}
	}
	w.names = w.names[:before]
	return plus(w.of(e.CollExpr), times(n, body))
}

// elements is how many elements a collection has and the weight of the
// largest with its key. Where that is not known, no collection has more or
// larger elements than it has bytes.
func (w *weigher) elements(e hclsyntax.Expression) (n, largest int64) {
	switch e := e.(type) {
	case *hclsyntax.FunctionCallExpr:
		if e.Name == "range" {
			return 1024, 32
		}
	case *hclsyntax.TupleConsExpr:
		for _, one := range e.Exprs {
			largest = max(largest, w.of(one), 32)
		}
		return int64(len(e.Exprs)), largest
	case *hclsyntax.ScopeTraversalExpr:
		v, ok := w.value(e.Traversal)
		if !ok || len(e.Traversal) > 2 || v.IsNull() || !v.IsKnown() || !v.CanIterateElements() {
			break
		}
		for it := v.ElementIterator(); it.Next(); n++ {
			key, element := it.Element()
			largest = max(largest, bytesOf(key), bytesOf(element))
		}
		return n, largest
	}
	all := w.of(e)
	return all, all
}

func (w *weigher) reference(t hcl.Traversal) int64 {
	root := t.RootName()
	for i := len(w.names) - 1; i >= 0; i-- {
		if w.names[i].name == root {
			return w.names[i].weight
		}
	}
	if v, ok := w.value(t); ok {
		if l := w.scope.locals[nameOf(t)]; root == "local" && l != nil && l.state == settled {
			return max(1, l.bytes)
		}
		return bytesOf(v)
	}
	return 1
}

// value is what a reference to a variable, a local or each begins with.
func (w *weigher) value(t hcl.Traversal) (cty.Value, bool) {
	switch t.RootName() {
	case "var":
		v, ok := w.scope.vars[nameOf(t)]
		return v, ok
	case "local":
		if l := w.scope.locals[nameOf(t)]; l != nil && l.state == settled {
			return l.value, true
		}
	case "each":
		if w.each == nil {
			return cty.NilVal, false
		}
		if nameOf(t) == "key" {
			return cty.StringVal(w.each.key), true
		}
		return w.each.value, true
	}
	return cty.NilVal, false
}

func nameOf(t hcl.Traversal) string {
	name, _ := second(t)
	return name
}

// bytesOf is the size of a value: its texts, and something for each element.
// A number too large to be written out counts as too large a value.
func bytesOf(v cty.Value) int64 {
	if v == cty.NilVal || v.IsNull() || !v.IsKnown() {
		return 1
	}
	t := v.Type()
	switch {
	case t == cty.String:
		return int64(len(v.AsString())) + 1
	case t == cty.Number:
		f := v.AsBigFloat()
		if exponent := f.MantExp(new(big.Float)); f.IsInf() || exponent > NumberBitsMax || exponent < -NumberBitsMax {
			return ExpressionWeight + 1
		}
		return 8
	case v.CanIterateElements():
		total := int64(1)
		for it := v.ElementIterator(); it.Next() && total <= ExpressionWeight; {
			key, element := it.Element()
			if t.IsObjectType() || t.IsMapType() {
				total = plus(total, bytesOf(key))
			}
			total = plus(total, bytesOf(element))
		}
		return total
	}
	return 1
}

// plus and times stop a little above ExpressionWeight instead of overflowing.
func plus(a, b int64) int64 { return min(a+b, ExpressionWeight+1) }

func times(a, b int64) int64 {
	return min(min(a, ExpressionWeight+1)*min(b, ExpressionWeight+1), ExpressionWeight+1)
}
