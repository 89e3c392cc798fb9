// Package lint checks the house rules that gofmt, vet and staticcheck do not
// know: which package may import which, how long a function or file may be,
// what the state machine must not reach, and what has to be documented.
//
// Each check is a function from sources to findings, so that its own test can
// plant a violation and see it caught; the tests of this package also run all
// of them over the whole module.
package lint

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Finding is one violation of a house rule.
type Finding struct {
	File string // slash-separated, relative to the module's root
	Line int    // 0: the whole file or package
	Text string // what was found, and the rule with its reason
}

// String formats the finding as compilers do.
func (f Finding) String() string {
	if f.Line == 0 {
		return f.File + ": " + f.Text
	}
	return fmt.Sprintf("%s:%d: %s", f.File, f.Line, f.Text)
}

// File is one text file of the module.
type File struct {
	Path      string    // slash-separated, relative to the module's root
	Source    []byte    // its bytes
	Generated bool      // carries the standard "Code generated" line
	Syntax    *ast.File // nil unless it is a Go file
	Fset      *token.FileSet
}

// Test reports whether the file is a Go test file.
func (f *File) Test() bool { return strings.HasSuffix(f.Path, "_test.go") }

// Dir is the folder of the file, relative to the module's root.
func (f *File) Dir() string { return path.Dir(f.Path) }

func (f *File) finding(pos token.Pos, format string, args ...any) Finding {
	return Finding{File: f.Path, Line: f.Fset.Position(pos).Line, Text: fmt.Sprintf(format, args...)}
}

// textSuffixes are the kinds of file in which words are checked.
var textSuffixes = []string{".go", ".md", ".sh", ".hcl", ".txt", ".service", ".proto", ".yaml", ".yml", ".mod", ".js", ".ts", ".svelte", ".css", ".html"}

// ignoredFolders hold what is built or downloaded, or inputs of tests.
var ignoredFolders = []string{".git", "bin", "build", "node_modules", "testdata"}

// NewFile parses one file. Text that is not Go is kept as it is; Go that does
// not parse is an error.
func NewFile(name string, source []byte) (*File, error) {
	f := &File{Path: name, Source: source}
	if !strings.HasSuffix(name, ".go") {
		return f, nil
	}
	f.Fset = token.NewFileSet()
	syntax, err := parser.ParseFile(f.Fset, name, source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", name, err)
	}
	f.Syntax = syntax
	f.Generated = ast.IsGenerated(syntax)
	return f, nil
}

// Files reads every text file below root, which is the module's root.
func Files(root string) ([]*File, error) {
	var files []*File
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if slices.Contains(ignoredFolders, entry.Name()) {
				return filepath.SkipDir
			}
			return nil
		}
		if !entry.Type().IsRegular() || !isText(name) {
			return nil
		}
		source, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		f, err := NewFile(filepath.ToSlash(relative), source)
		if err != nil {
			return err
		}
		files = append(files, f)
		return nil
	})
	return files, err
}

func isText(name string) bool {
	base := filepath.Base(name)
	return base == "Makefile" || base == "run" || slices.Contains(textSuffixes, filepath.Ext(base))
}

// Root finds the module's root at or above dir.
func Root(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for {
		source, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && bytes.HasPrefix(source, []byte("module "+Module+"\n")) {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("no go.mod of %s at or above the current folder; run this inside a checkout", Module)
		}
		dir = parent
	}
}

// goFiles are the hand-written Go files among files.
func goFiles(files []*File) []*File {
	return slices.DeleteFunc(slices.Clone(files), func(f *File) bool { return f.Syntax == nil || f.Generated })
}
