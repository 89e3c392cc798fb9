package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/debvisor/debvisor/api"
)

// source is what package api declares, by name.
type source struct {
	fset   *token.FileSet
	docs   map[string]string // of structs
	types  map[string]*ast.StructType
	values []constant
}

type constant struct{ typ, value, comment string }

func readAPI(dir string) (*source, error) {
	s := &source{fset: token.NewFileSet(), docs: map[string]string{}, types: map[string]*ast.StructType{}}
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		file, err := parser.ParseFile(s.fset, filepath.Base(name), text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		for _, decl := range file.Decls {
			if decl, ok := decl.(*ast.GenDecl); ok {
				s.add(decl)
			}
		}
	}
	return s, nil
}

func (s *source) add(decl *ast.GenDecl) {
	for _, spec := range decl.Specs {
		switch spec := spec.(type) {
		case *ast.TypeSpec:
			fields, ok := spec.Type.(*ast.StructType)
			if !ok || !spec.Name.IsExported() {
				continue
			}
			doc := spec.Doc
			if doc == nil {
				doc = decl.Doc
			}
			s.types[spec.Name.Name] = fields
			s.docs[spec.Name.Name] = doc.Text()
		case *ast.ValueSpec:
			typ, named := spec.Type.(*ast.Ident)
			if decl.Tok != token.CONST || !named || len(spec.Values) != 1 {
				continue
			}
			if literal, ok := spec.Values[0].(*ast.BasicLit); ok {
				value, _ := strconv.Unquote(literal.Value)
				s.values = append(s.values, constant{typ.Name, value, oneLine(spec.Comment.Text())})
			}
		}
	}
}

// page is the whole reference.
func (s *source) page() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString("<!-- Written by make generate from the comments in api; do not edit. -->\n\n# Objects\n\n" +
		"Every kind of object that the HTTP API, HCL files and the command line know, in the order in\n" +
		"which a file that declares several of them is applied. Fields have the names they have in JSON.\n")
	b.WriteString("\n| kind | path | key | users may edit it |\n|---|---|---|---|\n")
	for _, kind := range api.Kinds() {
		fmt.Fprintf(&b, "| [%s](#%s) | `/v1/%s` | %s | %s |\n", kind.Name, kind.Name, kind.Plural, keyOf(kind), yes(kind.UserEdits))
	}
	fmt.Fprintf(&b, "\n## Every object\n\n%s\n", s.docs["Meta"])
	s.table(&b, "Meta")
	shown := []string{"Meta"}
	for _, kind := range api.Kinds() {
		name, err := s.typeOf(kind)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "\n## %s\n\n%s\n", kind.Name, s.docs[name])
		shown = append(shown, name)
		s.table(&b, name)
		for _, part := range s.parts(name) {
			if slices.Contains(shown, part) || part == "Error" {
				continue
			}
			shown = append(shown, part)
			fmt.Fprintf(&b, "\n### %s\n\n%s\n", part, s.docs[part])
			s.table(&b, part)
		}
	}
	fmt.Fprintf(&b, "\n## Errors\n\n%s\n", s.docs["Error"])
	s.table(&b, "Error")
	b.WriteString("\n| code | what it tells a client |\n|---|---|\n")
	for _, v := range s.values {
		if v.typ == "Code" {
			fmt.Fprintf(&b, "| `%s` | %s |\n", v.value, v.comment)
		}
	}
	return b.Bytes(), nil
}

// typeOf finds the struct of a kind: api_key is APIKey.
func (s *source) typeOf(kind api.Kind) (string, error) {
	for name := range s.types {
		if strings.EqualFold(name, strings.ReplaceAll(kind.Name, "_", "")) {
			return name, nil
		}
	}
	return "", fmt.Errorf("no struct in api is named after kind %s", kind.Name)
}

// table lists the fields of a struct; those of Meta are described once.
func (s *source) table(b *bytes.Buffer, name string) {
	b.WriteString("| field | type | |\n|---|---|---|\n")
	for _, field := range s.types[name].Fields.List {
		if len(field.Names) == 0 || field.Tag == nil {
			continue
		}
		tag, _ := strconv.Unquote(field.Tag.Value)
		key, _, _ := strings.Cut(reflect.StructTag(tag).Get("json"), ",")
		if key == "-" {
			continue
		}
		comment := oneLine(field.Doc.Text() + " " + field.Comment.Text())
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", key, s.typeText(field.Type), strings.ReplaceAll(comment, "|", `\|`))
	}
}

// parts are the structs that a struct holds, directly or in others, in order.
func (s *source) parts(name string) []string {
	var parts []string
	for _, field := range s.types[name].Fields.List {
		if len(field.Names) == 0 {
			continue // Meta
		}
		ast.Inspect(field.Type, func(n ast.Node) bool {
			id, ok := n.(*ast.Ident)
			if ok && s.types[id.Name] != nil && id.Name != name && !slices.Contains(parts, id.Name) {
				parts = append(parts, id.Name)
				parts = append(parts, s.parts(id.Name)...)
			}
			return true
		})
	}
	return parts
}

// typeText is a Go type in the words of JSON.
func (s *source) typeText(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return s.typeText(e.X)
	case *ast.ArrayType:
		if id, ok := e.Elt.(*ast.Ident); ok && id.Name == "byte" {
			return "base64"
		}
		return "list of " + s.typeText(e.Elt)
	case *ast.MapType:
		return "map of " + s.typeText(e.Value)
	}
	var b bytes.Buffer
	_ = printer.Fprint(&b, s.fset, e)
	switch text := b.String(); {
	case text == "time.Time":
		return "time (RFC 3339)"
	case text == "time.Duration":
		return "nanoseconds"
	case text == "json.RawMessage":
		return "any JSON"
	case text == "bool":
		return "boolean"
	case text == "Code":
		return "code, see [errors](#errors)"
	case strings.HasPrefix(text, "int"), strings.HasPrefix(text, "uint"):
		return "integer"
	case strings.HasPrefix(text, "float"):
		return "number"
	default:
		return text
	}
}

func keyOf(kind api.Kind) string {
	if kind.TenantScope {
		return "tenant/name"
	}
	return "name"
}

func yes(is bool) string {
	if is {
		return "yes"
	}
	return "no"
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
