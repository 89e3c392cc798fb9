// Package spec turns HCL files into objects and objects into HCL, and tells
// what applying files would change. It holds no state, reads nothing but what
// it is given, and gives the same answer for the same files: the language has
// no access to files, environment, time or chance.
//
// docs/hcl.md describes the language.
package spec

import (
	"fmt"
	"strings"

	"github.com/debvisor/debvisor/api"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// Limits of a set of files. What exceeds one is refused with its name.
const (
	FilesMax         = 100
	FileSizeMax      = 1 << 20  // bytes of one file
	ObjectsMax       = 20000    // objects after for_each
	BlocksMax        = 20000    // blocks of one file, those inside others included
	ForEachMax       = 10000    // elements of one for_each
	LocalsMax        = 1000     // locals, and variables
	DepthMax         = 64       // brackets and templates within one another
	OperatorsMax     = 1000     // operators, dots and template directives in one statement
	ValueSizeMax     = 1 << 20  // bytes of one value
	ExpressionWeight = 16 << 20 // bytes that evaluating one expression might come to
	NumberBitsMax    = 1024     // binary exponent of a number
	ProblemsMax      = 20       // problems that one error names
)

// ManagedLabel marks an object with the name of the set that it was applied
// from. Prune goes by it.
const ManagedLabel = "managed-by"

// File is one HCL file.
type File struct {
	Name string // for messages
	Data []byte
}

// Options are what a set of files is read with.
type Options struct {
	Vars   map[string]string // values of variables, as text; lists and maps in HCL syntax
	Tenant string            // of objects that name none; empty: api.DefaultTenant
	Set    string            // name of the set unless a file says otherwise; empty: objects are not marked
}

// Position is a place in a file; lines and columns count from 1, columns in
// characters.
type Position struct {
	File   string
	Line   int
	Column int
}

// String is "file:line:column".
func (p Position) String() string {
	if p.Line == 0 {
		return clean(p.File)
	}
	return fmt.Sprintf("%s:%d:%d", clean(p.File), p.Line, p.Column)
}

// Object is one object of a file, valid on its own.
type Object struct {
	Kind  string // as api.KindVM
	Key   string // tenant/name, or name
	Value api.Object
	At    Position // of its block; zero unless it comes from a file
}

// Set is what a set of files declares.
type Set struct {
	Name    string   // value of ManagedLabel; empty: objects are not marked
	Objects []Object // in the order in which they are applied: api.Kinds, then as written
}

// Parse reads files that belong together. It reports all problems that it
// finds, at most ProblemsMax, in an *Error; api.CodeOf of it is CodeInvalid,
// or CodeLimit when a limit was exceeded.
func Parse(files []File, o Options) (*Set, error) {
	if o.Tenant == "" {
		o.Tenant = api.DefaultTenant
	}
	p := &parser{options: o, scope: newScope(), set: o.Set, seen: map[string]Position{}}
	if len(files) > FilesMax {
		p.problems.limit(Position{File: files[FilesMax].Name}, "%d files are too many (FilesMax: %d)", len(files), FilesMax)
		return nil, p.problems.err()
	}
	for _, f := range files {
		if body := p.read(f); body != nil {
			p.sort(body)
		}
	}
	if p.problems.tooMuch {
		return nil, p.problems.err()
	}
	p.scope.problems = &p.problems
	p.scope.setVariables(p.variables, o.Vars)
	for _, name := range p.scope.order {
		p.scope.local(name)
	}
	p.checkSet()
	for _, b := range p.blocks {
		p.expand(b)
		if p.problems.tooMuch {
			break
		}
	}
	if err := p.problems.err(); err != nil {
		return nil, err
	}
	return &Set{Name: p.set, Objects: sorted(p.objects)}, nil
}

// SetName makes the name of a set from that of a file or folder:
// "examples/My shop.hcl" becomes "my-shop".
func SetName(path string) string {
	base := path[strings.LastIndexAny(path, `/\`)+1:]
	base = strings.TrimSuffix(strings.ToLower(base), ".hcl")
	var b strings.Builder
	for _, r := range base {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			b.WriteRune(r)
		} else if b.Len() > 0 && !strings.HasSuffix(b.String(), "-") {
			b.WriteByte('-')
		}
	}
	name := strings.Trim(b.String(), "-")
	if name == "" {
		return "files"
	}
	return strings.TrimRight(name[:min(len(name), api.NameLengthMax)], "-")
}

// sorted puts objects in the order of api.Kinds and keeps it otherwise.
func sorted(objects []Object) []Object {
	out := make([]Object, 0, len(objects))
	for _, k := range api.Kinds() {
		for _, o := range objects {
			if o.Kind == k.Name {
				out = append(out, o)
			}
		}
	}
	return out
}

// parser carries one call of Parse.
type parser struct {
	options   Options
	problems  problems
	scope     *scope
	variables []*hclsyntax.Block
	blocks    []*hclsyntax.Block // of objects
	set       string
	setBy     *hclsyntax.Attribute
	objects   []Object
	seen      map[string]Position // kind/key of the objects so far
}
