package lint_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/e2e/lint"
)

// checks are those that look at files; Layers looks at packages.
var checks = map[string]func([]*lint.File) []lint.Finding{
	"docs":   lint.Docs,
	"format": lint.Format,
	"names":  lint.Names,
	"purity": lint.Purity,
	"shape":  lint.Shape,
	"sizes":  lint.Sizes,
	"sleeps": lint.Sleeps,
	"words":  lint.Words,
}

func TestModuleKeepsTheHouseRules(t *testing.T) {
	t.Parallel()
	root, err := lint.Root(".")
	if err != nil {
		t.Fatal(err)
	}
	files, err := lint.Files(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 20 {
		t.Fatalf("read only %d files below %s; the check is blind", len(files), root)
	}
	for name, check := range checks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, f := range check(files) {
				t.Error(f)
			}
		})
	}
}

func TestImportsGoDown(t *testing.T) {
	t.Parallel()
	root, err := lint.Root(".")
	if err != nil {
		t.Fatal(err)
	}
	packages, err := lint.Packages(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(packages) < 9 {
		t.Fatalf("go list names only %d packages; the check is blind", len(packages))
	}
	for _, f := range lint.Layers(packages) {
		t.Error(f)
	}
}

// TestRulesGoDown checks the table itself: what a package may import is on a
// lower floor, or is the parent that it extends; api is below everything.
func TestRulesGoDown(t *testing.T) {
	t.Parallel()
	floors := map[string]int{}
	for _, r := range lint.Rules() {
		floors[r.Package] = r.Floor
		if r.Reason == "" {
			t.Errorf("%s: a rule without a reason", r.Package)
		}
	}
	for _, r := range lint.Rules() {
		for _, to := range r.May {
			floor, known := floors[to]
			parent := strings.HasPrefix(r.Package, to+"/")
			if to != "*" && to != "api" && (!known || floor >= r.Floor && !parent) {
				t.Errorf("%s (floor %d) may import %s (floor %d, known %v)", r.Package, r.Floor, to, floor, known)
			}
		}
	}
}

func TestLayersCatchesWhatIsPlanted(t *testing.T) {
	t.Parallel()
	const m = lint.Module + "/"
	tests := []struct {
		name, from, to, want string // want empty: allowed
	}{
		{"down", "agent", m + "fsm", ""},
		{"own unit", "agent/vm", m + "agent", ""},
		{"contract", "plugins/libvirt", m + "plugins", ""},
		{"part of an adapter", "plugins/libvirt", m + "plugins/libvirt/domain", ""},
		{"harness", "e2e/lab", m + "plugins/libvirt", ""},
		{"main", "cmd/debvisor", m + "agent", ""},
		{"standard library", "api", "net/http", ""},
		{"memdb", "fsm", "github.com/hashicorp/go-memdb", ""},
		{"up", "fsm", m + "cluster", "imports cluster"},
		{"sideways", "agent", m + "cluster/control", "imports cluster/control"},
		{"adapters", "plugins/libvirt", m + "plugins/vault", "adapters do not know each other"},
		{"adapter from agent", "agent", m + "plugins/libvirt", "imports plugins/libvirt"},
		{"journal", "cluster", m + "cluster/journal", ""},
		{"child", "cluster", m + "cluster/gossip", "imports cluster/gossip"},
		{"library in api", "api", "github.com/google/uuid", "outside the standard library"},
		{"library in fsm", "fsm", "go.etcd.io/bbolt", "go-memdb"},
		{"harness shipped", "cmd/debvisor", m + "e2e/lab", "imports e2e/lab"},
		{"server in the SDK", "api/client", m + "fsm", "imports fsm"},
		{"unknown", "warehouse", "fmt", "no rule"},
		{"to unknown", "agent", m + "warehouse", "no rule"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			found := lint.Layers([]lint.Package{{ImportPath: m + tt.from, Imports: []string{tt.to}}})
			if tt.want == "" && len(found) > 0 {
				t.Errorf("%s -> %s is refused: %v", tt.from, tt.to, found)
			}
			if tt.want != "" && (len(found) != 1 || !strings.Contains(found[0].Text, tt.want)) {
				t.Errorf("%s -> %s gives %v, want one finding with %q", tt.from, tt.to, found, tt.want)
			}
		})
	}
}

func TestChecksCatchWhatIsPlanted(t *testing.T) {
	t.Parallel()
	long := "// Package x is x.\npackage x\n\nfunc f() {\n" + strings.Repeat("\tprintln()\n", lint.FunctionLinesMax) + "}\n"
	body := func(statement string) string {
		return "// Package x is x.\npackage x\n\nimport \"time\"\n\nfunc f() {\n\t" + statement + "\n}\n"
	}
	const clean = "// Package x is x.\npackage x\n\n// F does.\nfunc F() {}\n"
	tests := []struct {
		check, path, source, want string
	}{
		{"docs", "x/x.go", clean, ""},
		{"docs", "x/x.go", "package x\n", "no package comment"},
		{"docs", "x/x.go", "// Package x is x.\npackage x\n\nfunc F() {}\n", "F is exported"},
		{"docs", "x/x.go", "// Package x is x.\npackage x\n\ntype T struct{}\n", "T is exported"},
		{"docs", "x/x.go", "// Package x is x.\npackage x\n\n// T is.\ntype T struct{}\n\nfunc (T) M() {}\n", "M is exported"},
		{"docs", "x/x.go", "// Package x is x.\npackage x\n\nconst C = 1\n", "C is exported"},
		{"docs", "x/x.go", "// Package x is x.\npackage x\n\ntype t struct{}\n\nfunc (t) M() {}\n", ""},
		{"docs", "x/x.go", "// Package x is x.\npackage x\n\n// Sizes.\nconst (\n\tA = 1\n\tB = 2\n)\n", ""},
		{"docs", "x/x_test.go", "package x_test\n\nfunc TestF() {}\n", ""},
		{"format", "x/x.go", clean, ""},
		{"format", "x/x.go", "package x\nfunc  f( ) { }\n", "gofmt"},
		{"names", "api/util/x.go", "package util\n", "package util"},
		{"names", "api/helpers/x.go", "package y\n", "package helpers"},
		{"names", "api/vm.go", "package api\n", ""},
		{"purity", "fsm/x.go", body("println(time.Now())"), "time.Now"},
		{"purity", "fsm/x.go", body("println(time.Since(time.Time{}))"), "time.Since"},
		{"purity", "fsm/x.go", body("go f()"), "goroutine"},
		{"purity", "fsm/x.go", "package fsm\n\nimport _ \"math/rand/v2\"\n", "math/rand"},
		{"purity", "fsm/x.go", "package fsm\n\nimport _ \"os\"\n", "imports os"},
		{"purity", "fsm/x.go", "package fsm\n\nimport _ \"net/http\"\n", "imports net/http"},
		{"purity", "fsm/x.go", body("println(time.Second)"), ""},
		{"purity", "fsm/x_test.go", body("println(time.Now())"), ""},
		{"purity", "fsm/fsmtest/x.go", body("println(time.Now())"), ""},
		{"purity", "agent/x.go", body("println(time.Now())"), ""},
		{"shape", "x/x.go", "package x\n\nfunc init() {}\n", "func init"},
		{"shape", "x/x.go", "package x\n\nimport . \"fmt\"\n", "dot import"},
		{"shape", "x/x.go", clean, ""},
		{"sizes", "x/x.go", long, "a function has at most"},
		{"sizes", "x/x_test.go", long, "a function has at most"},
		{"sizes", "x/x.go", "// Code generated by x. DO NOT EDIT.\n\n" + long, ""},
		{"sizes", "x/x.go", "package x\n" + strings.Repeat("\n", lint.FileLinesMax), "a file has at most"},
		{"sizes", "x/x.go", clean, ""},
		{"sleeps", "x/x_test.go", body("time.Sleep(1)"), "time.Sleep"},
		{"sleeps", "x/x.go", body("time.Sleep(1)"), ""},
		{"words", "x/x.go", "package x\n\n// TO" + "DO: more\n", "issue"},
		{"words", "docs/x.md", "see /wo" + "rk/place\n", "one machine"},
		{"words", "Makefile", "# FIX" + "ME\n", "issue"},
		{"words", "docs/x.md", "framework/x and XXXXXX\n", ""},
	}
	for _, tt := range tests {
		t.Run(tt.check, func(t *testing.T) {
			t.Parallel()
			f, err := lint.NewFile(tt.path, []byte(tt.source))
			if err != nil {
				t.Fatal(err)
			}
			found := checks[tt.check]([]*lint.File{f})
			caught := slices.ContainsFunc(found, func(f lint.Finding) bool { return strings.Contains(f.String(), tt.want) })
			if tt.want == "" && len(found) > 0 || tt.want != "" && !caught {
				t.Errorf("%s in %s: got %v, want %q\n%s", tt.check, tt.path, found, tt.want, tt.source)
			}
		})
	}
}

func TestDependenciesAreExplained(t *testing.T) {
	t.Parallel()
	root, err := lint.Root(".")
	if err != nil {
		t.Fatal(err)
	}
	goMod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs", "dependencies.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range lint.Dependencies(string(goMod), string(page)) {
		t.Error(f)
	}
	if !strings.Contains(string(goMod), "github.com/hashicorp/raft v") {
		t.Error("go.mod does not name raft; the check is blind")
	}
}

func TestDependenciesCatchesWhatIsPlanted(t *testing.T) {
	t.Parallel()
	const goMod = "require (\n\texample.com/a v1.0.0\n\texample.com/b v1.0.0 // indirect\n)\n"
	for page, want := range map[string]string{
		"| `example.com/a` | why | MIT |\n": "",
		"":                                  "example.com/a has no row",
		"| `example.com/a` |  | MIT |\n":    "no reason",
		"| `example.com/a` | why | MIT |\n| `example.com/b` | indirect | MIT |\n": "example.com/b is no direct",
	} {
		found := lint.Dependencies(goMod, page)
		if want == "" && len(found) > 0 || want != "" && (len(found) != 1 || !strings.Contains(found[0].Text, want)) {
			t.Errorf("%q: got %v, want %q", page, found, want)
		}
	}
}
