package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// tree is an object on its way from HCL to its struct, in the names of JSON.
type tree = map[string]any

// decoder makes one object.
type decoder struct {
	*parser
	each   *each
	ranges map[string]hcl.Range // where each field of the tree was written, by its JSON path
	failed bool
}

// meta are the attributes of every object that are no fields of it.
var meta = []string{"for_each", "name"}

// expand makes the objects of a block: one, or one an element of its for_each.
func (p *parser) expand(b *hclsyntax.Block) {
	if len(b.Labels) != 1 {
		p.problems.addf(b.TypeRange, "%s needs one name, as %s \"web\"", b.Type, b.Type)
		return
	}
	list := []*each{nil}
	if a := b.Body.Attributes["for_each"]; a != nil {
		v, ok := p.scope.eval(a.Expr, nil)
		if !ok {
			return
		}
		elements, err := elementsOf(v)
		if err != nil {
			p.problems.addf(a.Expr.Range(), "for_each: %v", err)
			return
		}
		if len(elements) > ForEachMax {
			p.problems.limit(position(a.Expr.Range()), "for_each has %d elements, more than %d (ForEachMax)", len(elements), ForEachMax)
			return
		}
		list = elements
	}
	for _, of := range list {
		if len(p.objects) >= ObjectsMax {
			p.problems.limit(position(b.TypeRange), "more than %d objects (ObjectsMax)", ObjectsMax)
			return
		}
		p.object(b, of)
		if p.problems.tooMuch || p.problems.omitted > 0 {
			return
		}
	}
}

// elementsOf reads a for_each: a map or object, or a list of distinct texts or
// numbers.
func elementsOf(v cty.Value) ([]*each, error) {
	if !v.IsKnown() {
		return nil, nil // the mistake is reported where it was made
	}
	if v.IsNull() || !v.CanIterateElements() {
		return nil, errors.New("must be a map, or a list of texts")
	}
	var out []*each
	keyed := v.Type().IsMapType() || v.Type().IsObjectType()
	seen := map[string]bool{}
	for it := v.ElementIterator(); it.Next(); {
		key, value := it.Element()
		if !keyed {
			key = value
		}
		if !key.IsKnown() {
			return nil, nil
		}
		name, err := decodeText(key)
		if err != nil {
			return nil, fmt.Errorf("an element of the list is no text; give a map to make objects from richer values")
		}
		if seen[name] {
			return nil, fmt.Errorf("%q is twice in the list", name)
		}
		seen[name] = true
		out = append(out, &each{key: name, value: value})
	}
	return out, nil
}

func (p *parser) object(b *hclsyntax.Block, of *each) {
	d := &decoder{parser: p, each: of, ranges: map[string]hcl.Range{}}
	schema := kindBlocks[b.Type]
	t := tree{"name": d.name(b, of)}
	kind, _ := api.LookupKind(b.Type)
	if kind.TenantScope {
		t["tenant"] = p.options.Tenant
	}
	d.body(b.Body, schema, "", t)
	value := NewObject(b.Type)
	if d.failed || !d.into(t, value, b) {
		return
	}
	head := value.Head()
	key := kind.Key(head.Tenant, head.Name)
	if !p.mark(head, d.at("labels", b)) {
		return
	}
	if err := value.Validate(); err != nil {
		d.invalid(b, key, api.AsError(err))
		return
	}
	id := b.Type + "/" + key
	if first, ok := p.seen[id]; ok {
		p.problems.addf(d.at("name", b), "%s %q is declared twice; first at %s", b.Type, key, first)
		return
	}
	at := position(b.DefRange())
	p.seen[id] = at
	p.objects = append(p.objects, Object{Kind: b.Type, Key: key, Value: value, At: at})
}

// name is the name attribute, else the label, with the key of a for_each.
func (d *decoder) name(b *hclsyntax.Block, of *each) string {
	d.ranges["name"] = b.LabelRanges[0]
	if a := b.Body.Attributes["name"]; a != nil {
		d.ranges["name"] = a.Expr.Range()
		v, ok := d.scope.eval(a.Expr, of)
		if !ok || !v.IsKnown() {
			d.failed = true
			return ""
		}
		name, err := decodeText(v)
		if err != nil {
			d.failed = true
			d.problems.addf(a.Expr.Range(), "name: %v", err)
		}
		return name
	}
	if of != nil {
		return b.Labels[0] + "-" + of.key
	}
	return b.Labels[0]
}

// mark labels the object with the name of its set.
func (p *parser) mark(head *api.Meta, at hcl.Range) bool {
	if p.set == "" {
		return true
	}
	if have, ok := head.Labels[ManagedLabel]; ok && have != p.set {
		p.problems.addf(at, "the label %q is %q, and the set is %q", ManagedLabel, have, p.set).Do("leave the label out, or write set = %q", clean(have))
		return false
	}
	if head.Labels == nil {
		head.Labels = map[string]string{}
	}
	head.Labels[ManagedLabel] = p.set
	return true
}

// body reads attributes and blocks into t. The path ends in a dot or is empty.
func (d *decoder) body(body *hclsyntax.Body, schema *block, path string, t tree) {
	known := schema.names()
	if path == "" {
		known = append(known, meta...)
	}
	for _, a := range ordered(body.Attributes) {
		if path == "" && slices.Contains(meta, a.Name) {
			continue
		}
		as := schema.attr(a.Name)
		if as == nil {
			d.failed = true
			err := d.problems.addf(a.NameRange, "unknown attribute %q of %s", a.Name, schema.name)
			if schema.block(a.Name) != nil {
				err.Message += fmt.Sprintf("; it is a block: write %s { ... } without \"=\"", a.Name)
				continue
			}
			suggest(err, a.Name, known)
			continue
		}
		d.attribute(a, as, path, t)
	}
	for i := range schema.attrs {
		if as := &schema.attrs[i]; as.fallback != "" && t[as.json()] == nil {
			t[as.json()] = as.fallback
		}
	}
	for _, b := range body.Blocks {
		as := schema.block(b.Type)
		if as == nil {
			d.failed = true
			err := d.problems.addf(b.TypeRange, "unknown block %q in %s", b.Type, schema.name)
			if schema.attr(b.Type) != nil {
				err.Message += fmt.Sprintf("; it is an attribute: write %s = { ... }", b.Type)
				continue
			}
			suggest(err, b.Type, known)
			continue
		}
		d.block(b, as, path, t)
	}
}

func (d *decoder) attribute(a *hclsyntax.Attribute, as *attribute, path string, t tree) {
	d.ranges[path+as.json()] = a.Expr.Range()
	v, ok := d.scope.eval(a.Expr, d.each)
	if !ok {
		d.failed = true
		return
	}
	if !v.IsWhollyKnown() {
		d.failed = true // the mistake is reported where it was made
		return
	}
	if v.IsNull() {
		return
	}
	out, err := as.shape.decode(v)
	if err != nil {
		d.failed = true
		d.problems.addf(a.Expr.Range(), "%s %s", a.Name, clean(err.Error()))
		return
	}
	if out != nil {
		t[as.json()] = out
	}
}

func (d *decoder) block(b *hclsyntax.Block, as *block, path string, t tree) {
	inner, at := tree{}, path+as.field
	if as.many {
		list, _ := t[as.field].([]any)
		at = fmt.Sprintf("%s[%d]", at, len(list))
		t[as.field] = append(list, inner)
	} else {
		if t[as.field] != nil {
			d.failed = true
			d.problems.addf(b.TypeRange, "a second block %q; first at %s", b.Type, position(d.ranges[at]))
			return
		}
		t[as.field] = inner
	}
	d.ranges[at] = b.DefRange()
	switch {
	case as.label == "" && len(b.Labels) > 0:
		d.failed = true
		d.problems.addf(b.LabelRanges[0], "the block %q has no name", b.Type)
	case as.label != "" && len(b.Labels) != 1:
		d.failed = true
		d.problems.addf(b.TypeRange, "%s needs one %s, as %s %q", b.Type, as.label, b.Type, "root")
	case as.label != "":
		inner[as.label] = b.Labels[0]
		d.ranges[at+"."+as.label] = b.LabelRanges[0]
	}
	d.body(b.Body, as, at+".", inner)
}

// into fills the struct.
func (d *decoder) into(t tree, value api.Object, b *hclsyntax.Block) bool {
	raw, err := json.Marshal(t)
	if err == nil {
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.DisallowUnknownFields()
		err = dec.Decode(value)
	}
	if err != nil {
		d.problems.addf(b.DefRange(), "%s: %s", b.Type, clean(err.Error()))
		return false
	}
	return true
}

// invalid reports what Validate found, each at the place where the field was
// written, or at the block that lacks it.
func (d *decoder) invalid(b *hclsyntax.Block, key string, err *api.Error) {
	list := err.Details
	if len(list) == 0 {
		list = []*api.Error{err}
	}
	for _, e := range list {
		at := d.at(e.Field, b)
		one := *e
		one.Field, _ = inHCL(b.Type, e.Field)
		d.problems.add(position(at), one.On(b.Type, key))
	}
}

// at finds where a field was written: itself, or the closest part of the
// object around it.
func (d *decoder) at(field string, b *hclsyntax.Block) hcl.Range {
	for field != "" {
		if r, ok := d.ranges[field]; ok {
			return r
		}
		cut := strings.LastIndexAny(field, ".[")
		if cut < 0 {
			break
		}
		field = field[:cut]
	}
	return b.DefRange()
}

// decode turns a known value that is not null into what JSON holds; nil when
// it is as good as left out.
func (s shape) decode(v cty.Value) (any, error) {
	switch s {
	case integer:
		return decodeInteger(v)
	case float:
		return decodeFloat(v)
	case size:
		return decodeSize(v)
	case duration:
		return decodeDuration(v)
	case boolean:
		b, err := convert.Convert(v, cty.Bool)
		if err != nil {
			return nil, errors.New("must be true or false")
		}
		return b.True(), nil
	case labels:
		return decodeLabels(v)
	case texts:
		return decodeTexts(v)
	case argvs:
		return decodeArgvs(v)
	}
	return decodeText(v)
}

func decodeText(v cty.Value) (string, error) {
	out, err := convert.Convert(v, cty.String)
	if err != nil || out.IsNull() || !out.IsKnown() {
		return "", errors.New("must be a text")
	}
	return out.AsString(), nil
}

func decodeInteger(v cty.Value) (any, error) {
	out, err := convert.Convert(v, cty.Number)
	if err != nil || out.AsBigFloat().IsInf() || bytesOf(out) > ValueSizeMax {
		return nil, errors.New("must be a whole number")
	}
	n, accuracy := out.AsBigFloat().Int64()
	if accuracy != 0 {
		if !out.AsBigFloat().IsInt() {
			return nil, errors.New("must be a whole number")
		}
		return nil, errors.New("is out of range")
	}
	return n, nil
}

func decodeFloat(v cty.Value) (any, error) {
	out, err := convert.Convert(v, cty.Number)
	if err != nil {
		return nil, errors.New("must be a number")
	}
	f, _ := out.AsBigFloat().Float64()
	if math.IsInf(f, 0) {
		return nil, errors.New("is out of range")
	}
	return f, nil
}

func decodeSize(v cty.Value) (any, error) {
	if v.Type() != cty.String {
		n, err := decodeInteger(v)
		if err != nil {
			return nil, fmt.Errorf("%w of bytes, or a text as \"512MiB\"", err)
		}
		return n, nil
	}
	n, err := api.ParseSize(v.AsString())
	if err != nil {
		return nil, err // its message begins with the text
	}
	return n, nil
}

// decodeDuration reads what time.ParseDuration reads, and days.
func decodeDuration(v cty.Value) (any, error) {
	s, err := decodeText(v)
	if err != nil {
		return nil, err
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return int64(n) * int64(24*time.Hour), nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return nil, fmt.Errorf("is %q; it must be a time span as \"36h\" or \"7d\"", s)
	}
	return int64(d), nil
}

func decodeLabels(v cty.Value) (any, error) {
	out, err := convert.Convert(v, cty.Map(cty.String))
	if err != nil {
		return nil, errors.New("must be a map of texts, as { app = \"web\" }")
	}
	m := tree{}
	for k, e := range out.AsValueMap() {
		if e.IsNull() {
			return nil, fmt.Errorf("has no value for %q", k)
		}
		m[k] = e.AsString()
	}
	if len(m) == 0 {
		return nil, nil
	}
	return m, nil
}

func decodeTexts(v cty.Value) (any, error) {
	out, err := convert.Convert(v, cty.List(cty.String))
	if err != nil {
		return nil, errors.New("must be a list of texts, as [\"a\", \"b\"]")
	}
	var list []any
	for _, e := range out.AsValueSlice() {
		if e.IsNull() {
			return nil, errors.New("has an element without a value")
		}
		list = append(list, e.AsString())
	}
	if len(list) == 0 {
		return nil, nil
	}
	return list, nil
}

func decodeArgvs(v cty.Value) (any, error) {
	wrong := errors.New("must be a list of commands, each a list of texts, as [[\"systemctl\", \"restart\", \"nginx\"]]")
	if t := v.Type(); !t.IsTupleType() && !t.IsListType() && !t.IsSetType() {
		return nil, wrong
	}
	var list []any
	for it := v.ElementIterator(); it.Next(); {
		_, e := it.Element()
		if e.IsNull() || e.Type().IsPrimitiveType() {
			return nil, wrong
		}
		argv, err := decodeTexts(e)
		if err != nil {
			return nil, wrong
		}
		if argv == nil {
			argv = []any{}
		}
		list = append(list, argv)
	}
	if len(list) == 0 {
		return nil, nil
	}
	return list, nil
}
