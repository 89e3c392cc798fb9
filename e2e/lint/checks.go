package lint

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/format"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Limits of the house style, in lines.
const (
	FileLinesMax     = 600 // a file fits a sitting
	FunctionLinesMax = 70  // a function fits a screen
)

// Sizes finds files and functions that are too long.
func Sizes(files []*File) []Finding {
	var found []Finding
	for _, f := range goFiles(files) {
		if lines := bytes.Count(f.Source, []byte("\n")); lines > FileLinesMax {
			found = append(found, Finding{File: f.Path, Text: fmt.Sprintf("has %d lines; a file has at most %d: split it by meaning", lines, FileLinesMax)})
		}
		for _, decl := range f.Syntax.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			lines := f.Fset.Position(fn.End()).Line - f.Fset.Position(fn.Pos()).Line + 1
			if lines > FunctionLinesMax {
				found = append(found, f.finding(fn.Pos(), "%s has %d lines; a function has at most %d", fn.Name.Name, lines, FunctionLinesMax))
			}
		}
	}
	return found
}

// impureImports reach beyond (state, entry).
var impureImports = []string{"crypto/rand", "math/rand", "math/rand/v2", "net", "os", "syscall", "unsafe"}

// pureImports lie below them and only compute.
var pureImports = []string{"net/netip"}

// impureTime are the functions of package time that read a clock.
var impureTime = []string{"After", "AfterFunc", "NewTicker", "NewTimer", "Now", "Since", "Sleep", "Tick", "Until"}

// Purity finds what must not be reached from Apply: a clock, randomness, the
// machine, or a goroutine, in package fsm.
func Purity(files []*File) []Finding {
	var found []Finding
	for _, f := range goFiles(files) {
		if f.Dir() == "fsm" && !f.Test() {
			found = append(found, impurities(f)...)
		}
	}
	return found
}

func impurities(f *File) []Finding {
	const reason = "Apply is a function of state and entry; take what is needed from the entry"
	var found []Finding
	for _, spec := range f.Syntax.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err == nil && !slices.Contains(pureImports, name) && slices.ContainsFunc(impureImports, func(bad string) bool { return name == bad || strings.HasPrefix(name, bad+"/") }) {
			found = append(found, f.finding(spec.Pos(), "imports %s: %s", name, reason))
		}
	}
	ast.Inspect(f.Syntax, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			found = append(found, f.finding(n.Pos(), "starts a goroutine: %s", reason))
		case *ast.SelectorExpr:
			if from, ok := n.X.(*ast.Ident); ok && from.Name == "time" && slices.Contains(impureTime, n.Sel.Name) {
				found = append(found, f.finding(n.Pos(), "uses time.%s: %s", n.Sel.Name, reason))
			}
		}
		return true
	})
	return found
}

// wordRules are words that have no place in any file. The expressions are
// written so that they do not match themselves.
var wordRules = []struct {
	expr   *regexp.Regexp
	reason string
}{
	{regexp.MustCompile(`\b(T[O]DO|F[I]XME|X[X]X)\b`), "work left undone belongs into an issue"},
	{regexp.MustCompile(`(?i)\bnot (yet )?imp[l]emented\b|\bfor n[o]w\b`), "what is delivered works; what is missing belongs into an issue"},
	{regexp.MustCompile(`/w[o]rk/[a-z.]|\.\./sha[r]ed/`), "a path of one machine means nothing to others"},
}

// Words finds words that have no place in the project.
func Words(files []*File) []Finding {
	var found []Finding
	for _, f := range files {
		if f.Generated {
			continue
		}
		for i, line := range bytes.Split(f.Source, []byte("\n")) {
			for _, rule := range wordRules {
				if word := rule.expr.Find(line); word != nil {
					found = append(found, Finding{File: f.Path, Line: i + 1, Text: fmt.Sprintf("%q: %s", word, rule.reason)})
				}
			}
		}
	}
	return found
}

// emptyNames say nothing about what a package holds.
var emptyNames = []string{"base", "common", "helper", "helpers", "manager", "managers", "misc", "models", "shared", "types", "util", "utils"}

// Names finds packages and folders named after nothing.
func Names(files []*File) []Finding {
	var found []Finding
	for _, f := range goFiles(files) {
		for _, name := range []string{f.Syntax.Name.Name, path.Base(f.Dir())} {
			if slices.Contains(emptyNames, strings.TrimSuffix(name, "_test")) {
				found = append(found, Finding{File: f.Dir(), Text: fmt.Sprintf("package %s: a package is named after the noun or role that it holds", name)})
			}
		}
	}
	return dedupe(found)
}

// Sleeps finds time.Sleep in tests.
func Sleeps(files []*File) []Finding {
	var found []Finding
	for _, f := range goFiles(files) {
		if !f.Test() {
			continue
		}
		ast.Inspect(f.Syntax, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if from, ok := sel.X.(*ast.Ident); ok && from.Name == "time" && sel.Sel.Name == "Sleep" {
				found = append(found, f.finding(n.Pos(), "time.Sleep in a test: wait on a channel, an index, a watch or a deadline"))
			}
			return true
		})
	}
	return found
}

// Format finds files that gofmt would change.
func Format(files []*File) []Finding {
	var found []Finding
	for _, f := range goFiles(files) {
		formatted, err := format.Source(f.Source)
		if err != nil || !bytes.Equal(formatted, f.Source) {
			found = append(found, Finding{File: f.Path, Text: "gofmt differs: run make fmt"})
		}
	}
	return found
}

// Shape finds init functions and dot imports, which hide where things come
// from.
func Shape(files []*File) []Finding {
	var found []Finding
	for _, f := range goFiles(files) {
		for _, spec := range f.Syntax.Imports {
			if spec.Name != nil && spec.Name.Name == "." {
				found = append(found, f.finding(spec.Pos(), "dot import of %s: say where a name comes from", spec.Path.Value))
			}
		}
		for _, decl := range f.Syntax.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				found = append(found, f.finding(fn.Pos(), "func init: what a package needs arrives through New"))
			}
		}
	}
	return found
}
