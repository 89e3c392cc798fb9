package spec

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"
)

// Format writes an object as HCL that Parse reads back as the same object,
// without what only the kernel writes. Texts come back in Unicode normal form
// C, as HCL has them. The error names a kind that no file declares.
func Format(kind string, o api.Object) ([]byte, error) {
	schema := kindBlocks[kind]
	if schema == nil {
		return nil, api.Errorf(api.CodeInvalid, "%s objects are not written as HCL", kind)
	}
	t := treeOf(o)
	head := o.Head()
	if schema.attr("tenant") != nil {
		t["tenant"] = head.Tenant
	}
	file := hclwrite.NewEmptyFile()
	body := file.Body().AppendNewBlock(kind, []string{head.Name}).Body()
	writeBody(body, schema, t)
	return hclwrite.Format(file.Bytes()), nil
}

func writeBody(body *hclwrite.Body, schema *block, t tree) {
	for i := range schema.attrs {
		a := &schema.attrs[i]
		if v, ok := t[a.json()]; ok && v != nil {
			body.SetAttributeRaw(a.name, a.shape.tokens(v))
		}
	}
	for i := range schema.blocks {
		b := &schema.blocks[i]
		var list []any
		switch v := t[b.field].(type) {
		case tree:
			if len(v) > 0 || b.field != "placement" {
				list = []any{v}
			}
		case []any:
			list = v
		}
		for _, e := range list {
			inner, _ := e.(tree)
			var names []string
			if b.label != "" {
				names = []string{fmt.Sprint(inner[b.label])}
			}
			body.AppendNewline()
			writeBody(body.AppendNewBlock(b.name, names).Body(), b, inner)
		}
	}
}

// tokens writes a value from JSON in its shape.
func (s shape) tokens(v any) hclwrite.Tokens {
	switch v := v.(type) {
	case json.Number:
		n, err := v.Int64()
		switch {
		case err == nil && s == size:
			return hclwrite.TokensForValue(cty.StringVal(formatSize(n)))
		case err == nil && s == duration:
			return hclwrite.TokensForValue(cty.StringVal(time.Duration(n).String()))
		}
		f, _, err := big.ParseFloat(v.String(), 10, 512, big.ToNearestEven)
		if err != nil {
			return hclwrite.TokensForValue(cty.StringVal(v.String()))
		}
		return hclwrite.TokensForValue(cty.NumberVal(f))
	case tree:
		return labelTokens(v)
	}
	return hclwrite.TokensForValue(toCty(v))
}

// labelTokens puts few labels on one line, and each on its own otherwise.
func labelTokens(labels tree) hclwrite.Tokens {
	var attrs []string
	width := 0
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		name := string(hclwrite.TokensForValue(cty.StringVal(k)).Bytes())
		if hclsyntax.ValidIdentifier(k) && k != "for" {
			name = k
		}
		attr := strings.TrimSpace(name + " = " + string(hclwrite.TokensForValue(cty.StringVal(fmt.Sprint(labels[k]))).Bytes()))
		width += len(attr) + 2
		attrs = append(attrs, attr)
	}
	text := "{ " + strings.Join(attrs, ", ") + " }"
	if width > 56 {
		text = "{\n" + strings.Join(attrs, "\n") + "\n}"
	}
	return hclwrite.Tokens{{Type: hclsyntax.TokenIdent, Bytes: []byte(text)}}
}

func toCty(v any) cty.Value {
	switch v := v.(type) {
	case string:
		return cty.StringVal(v)
	case bool:
		return cty.BoolVal(v)
	case []any:
		list := make([]cty.Value, len(v))
		for i, e := range v {
			list[i] = toCty(e)
		}
		return cty.TupleVal(list)
	}
	return cty.NullVal(cty.String)
}

// formatSize writes bytes exactly, in the largest unit that allows it.
func formatSize(n int64) string {
	for _, u := range []struct {
		name  string
		bytes int64
	}{{"TiB", api.TiB}, {"GiB", api.GiB}, {"MiB", api.MiB}, {"KiB", api.KiB}} {
		if n != 0 && n%u.bytes == 0 {
			return fmt.Sprintf("%d%s", n/u.bytes, u.name)
		}
	}
	return fmt.Sprintf("%d", n)
}
