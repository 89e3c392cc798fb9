package lint

import (
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"slices"
	"strings"
)

// Docs finds packages without a package comment, and exported identifiers
// without a comment, outside tests. What package main exports is seen by
// nobody and is left alone.
func Docs(files []*File) []Finding {
	var found []Finding
	documented := map[string]bool{}
	for _, f := range goFiles(files) {
		if f.Test() {
			continue
		}
		documented[f.Dir()] = documented[f.Dir()] || f.Syntax.Doc != nil
		if f.Syntax.Name.Name != "main" {
			found = append(found, undocumented(f)...)
		}
	}
	for _, f := range files {
		// The comment may stand in a generated file.
		if _, seen := documented[f.Dir()]; seen && f.Syntax != nil && f.Syntax.Doc != nil && !f.Test() {
			documented[f.Dir()] = true
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(documented)) {
		if !documented[dir] {
			found = append(found, Finding{File: dir, Text: "has no package comment: say what the package is for and who uses it"})
		}
	}
	return found
}

func undocumented(f *File) []Finding {
	const reason = "exported without a comment that states its contract"
	var found []Finding
	for _, decl := range f.Syntax.Decls {
		switch decl := decl.(type) {
		case *ast.FuncDecl:
			if decl.Doc == nil && decl.Name.IsExported() && receiverExported(decl) {
				found = append(found, f.finding(decl.Pos(), "%s is %s", decl.Name.Name, reason))
			}
		case *ast.GenDecl:
			for _, name := range undocumentedNames(decl) {
				found = append(found, f.finding(name.Pos(), "%s is %s", name.Name, reason))
			}
		}
	}
	return found
}

func receiverExported(fn *ast.FuncDecl) bool {
	if fn.Recv == nil {
		return true
	}
	t := fn.Recv.List[0].Type
	for {
		switch inner := t.(type) {
		case *ast.StarExpr:
			t = inner.X
		case *ast.IndexExpr:
			t = inner.X
		case *ast.IndexListExpr:
			t = inner.X
		case *ast.Ident:
			return inner.IsExported()
		default:
			return true
		}
	}
}

// undocumentedNames are the exported names of a declaration for which neither
// the group nor the line has a comment.
func undocumentedNames(decl *ast.GenDecl) []*ast.Ident {
	if decl.Tok == token.IMPORT || decl.Doc != nil && decl.Tok != token.TYPE {
		return nil
	}
	var names []*ast.Ident
	for _, spec := range decl.Specs {
		switch spec := spec.(type) {
		case *ast.TypeSpec:
			single := decl.Doc != nil && !decl.Lparen.IsValid()
			if spec.Doc == nil && spec.Comment == nil && !single && spec.Name.IsExported() {
				names = append(names, spec.Name)
			}
		case *ast.ValueSpec:
			if spec.Doc != nil || spec.Comment != nil {
				continue
			}
			for _, name := range spec.Names {
				if name.IsExported() {
					names = append(names, name)
				}
			}
		}
	}
	return names
}

// Dependencies finds direct requirements of goMod that the table in page does
// not explain, and rows of the table for which there is no requirement.
func Dependencies(goMod, page string) []Finding {
	const name = "docs/dependencies.md"
	required := map[string]bool{}
	for line := range strings.Lines(goMod) {
		fields := strings.Fields(strings.TrimPrefix(line, "require "))
		if len(fields) == 2 && strings.HasPrefix(fields[1], "v") {
			required[fields[0]] = true
		}
	}
	var found []Finding
	explained := map[string]bool{}
	for line := range strings.Lines(page) {
		module, rest, ok := strings.Cut(strings.TrimPrefix(line, "| `"), "` |")
		if !ok || !strings.HasPrefix(line, "| `") {
			continue
		}
		explained[module] = true
		cells := strings.Split(rest, "|")
		if len(cells) < 2 || strings.TrimSpace(cells[0]) == "" || strings.TrimSpace(cells[1]) == "" {
			found = append(found, Finding{File: name, Text: fmt.Sprintf("%s has no reason or no licence", module)})
		}
		if !required[module] {
			found = append(found, Finding{File: name, Text: fmt.Sprintf("%s is no direct requirement in go.mod; remove its row", module)})
		}
	}
	for _, module := range slices.Sorted(maps.Keys(required)) {
		if !explained[module] {
			found = append(found, Finding{File: name, Text: fmt.Sprintf("%s has no row: say why it is needed, and its licence", module)})
		}
	}
	return found
}
