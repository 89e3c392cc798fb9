package spec

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"

	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
)

// functions are all that an expression may call. Each depends on its arguments
// only.
var functions = map[string]function.Function{
	"ceil":     stdlib.CeilFunc,
	"cidrhost": cidrHost,
	"concat":   stdlib.ConcatFunc,
	"contains": stdlib.ContainsFunc,
	"floor":    stdlib.FloorFunc,
	"format":   safeFormat,
	"join":     stdlib.JoinFunc,
	"keys":     stdlib.KeysFunc,
	"length":   stdlib.LengthFunc,
	"lookup":   stdlib.LookupFunc,
	"lower":    stdlib.LowerFunc,
	"max":      stdlib.MaxFunc,
	"merge":    stdlib.MergeFunc,
	"min":      stdlib.MinFunc,
	"range":    stdlib.RangeFunc,
	"split":    stdlib.SplitFunc,
	"tonumber": stdlib.MakeToFunc(cty.Number),
	"tostring": stdlib.MakeToFunc(cty.String),
	"trim":     stdlib.TrimSpaceFunc,
	"upper":    stdlib.UpperFunc,
	"values":   stdlib.ValuesFunc,
}

// Functions lists the names of the functions that expressions may call.
func Functions() []string { return slices.Sorted(maps.Keys(functions)) }

// wideVerb finds widths and precisions of three digits or more, or given as
// an argument: they would fill memory with blanks.
var wideVerb = regexp.MustCompile(`%[-+ #0]*(\d{3}|\*|\d*\.(\d{3}|\*))|%\[`)

var safeFormat = function.New(&function.Spec{
	Description: "format(text, values...) fills in values as fmt does",
	Params:      []function.Parameter{{Name: "format", Type: cty.String}},
	VarParam:    &function.Parameter{Name: "args", Type: cty.DynamicPseudoType, AllowNull: true},
	Type:        function.StaticReturnType(cty.String),
	Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
		if bad := wideVerb.FindString(args[0].AsString()); bad != "" {
			return cty.NilVal, function.NewArgErrorf(0, "%q: a width or precision has at most two digits", bad)
		}
		return stdlib.FormatFunc.Call(args)
	},
})

var cidrHost = function.New(&function.Spec{
	Description: "cidrhost(prefix, n) is address n of a network",
	Params:      []function.Parameter{{Name: "prefix", Type: cty.String}, {Name: "n", Type: cty.Number}},
	Type:        function.StaticReturnType(cty.String),
	Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
		prefix, err := netip.ParsePrefix(args[0].AsString())
		if err != nil {
			return cty.NilVal, function.NewArgErrorf(0, "%q is not a network, as 10.0.0.0/24", args[0].AsString())
		}
		n, whole := args[1].AsBigFloat().Int64()
		if whole != 0 || n < 0 {
			return cty.NilVal, function.NewArgErrorf(1, "must be a whole number from 0 on")
		}
		address, err := hostAddress(prefix, uint64(n))
		if err != nil {
			return cty.NilVal, function.NewArgError(1, err)
		}
		return cty.StringVal(address.String()), nil
	},
})

// hostAddress adds n to the first address of a network.
func hostAddress(prefix netip.Prefix, n uint64) (netip.Addr, error) {
	prefix = prefix.Masked()
	bytes := prefix.Addr().AsSlice()
	for i, left := len(bytes)-1, n; i >= 0 && left > 0; i-- {
		left += uint64(bytes[i])
		bytes[i] = byte(left)
		left >>= 8
		if i == 0 && left > 0 {
			return netip.Addr{}, fmt.Errorf("%s has no address %d", prefix, n)
		}
	}
	out, _ := netip.AddrFromSlice(bytes)
	if !prefix.Contains(out) {
		return netip.Addr{}, fmt.Errorf("%s has no address %d", prefix, n)
	}
	return out, nil
}
