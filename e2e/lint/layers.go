package lint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// Module is the path of the module that is checked.
const Module = "github.com/debvisor/debvisor"

// Rule says what one package may import from this module, and why.
type Rule struct {
	Package string   // relative to the module; "x/*" stands for each folder of x
	Floor   int      // arrows go down
	May     []string // packages of this module; "*": all of a lower floor
	Outside []string // modules that it may import besides the standard library; nil: any, empty: none
	Reason  string
}

// FloorOfTests is above every other floor: nothing may import it.
const FloorOfTests = 6

var nothing = []string{}

// Rules is the house as a table, highest floor first.
func Rules() []Rule {
	return []Rule{
		{"e2e", FloorOfTests, []string{"*"}, nil, "harnesses see everything; nothing that ships may depend on them"},
		{"cmd/debvisor", 5, []string{"*"}, nil, "main wires everything together and is imported by nobody"},

		{"api/httpd", 4, []string{"fsm", "api", "api/authz"}, nil, "the HTTP API reaches the cluster through interfaces that it declares, so it can be tested without one"},
		{"api/grpcd", 4, []string{"fsm", "api", "api/rpc", "api/authz"}, nil, "the gRPC services reach the cluster through interfaces that they declare"},
		{"api/panel", 4, []string{}, nil, "the panel uses the public HTTP API only, so whatever it can do a script can do"},
		{"api/client", 4, []string{"api"}, nil, "the SDK is what users import; it brings no server with it"},
		{"api/spec", 4, []string{"api"}, nil, "files are turned into objects by whoever holds the file, without a cluster"},

		{"cluster/control", 3, []string{"fsm", "api"}, nil, "a controller reads state and proposes; it never touches a machine"},
		{"agent", 3, []string{"fsm", "api", "plugins"}, nil, "an agent knows contracts, not adapters; it never decides placement"},
		{"plugins/outbound", 3, []string{"api"}, nothing, "what guards calls to foreign addresses can reach nothing else, and is handed on as an *http.Client"},
		{"plugins/*", 3, []string{"plugins", "api"}, nil, "adapters do not know each other, nor the cluster they serve"},

		{"cluster", 2, []string{"fsm", "api", "api/rpc", "cluster/journal"}, nil, "Raft carries entries and records and does not know what they mean"},
		{"cluster/gossip", 2, []string{"api"}, nil, "gossip is a hint; it cannot reach what decides"},

		{"fsm", 1, []string{"api"}, []string{"github.com/hashicorp/go-memdb"}, "Apply is a function of state and entry: no live service can be reached from it"},
		{"fsm/fsmtest", 1, []string{"fsm", "api"}, nil, "checks the state machine from outside"},
		{"api/rpc", 1, []string{"api"}, nil, "the shell between nodes carries messages and does not act on them"},
		{"cluster/place", 1, []string{"api"}, nil, "placement is a pure function, so that plan, simulation and the leader agree"},
		{"cluster/journal", 1, []string{"api"}, nil, "the journal stores records; the state machine makes them and never reads them"},
		{"api/authz", 1, []string{"api"}, nil, "a decision depends on policies and request only"},

		{"plugins", 0, []string{"api"}, nothing, "contracts bring no library with them"},
		{"api", 0, []string{}, nothing, "the domain imports the standard library only, so that everything may import it"},
	}
}

// Package is what the layer check needs to know of a package.
type Package struct {
	ImportPath string
	Dir        string
	Standard   bool
	Imports    []string // of files that are not tests
	Module     *struct{ Path string }
}

// systems are those for which the module builds: the server on Linux, the
// client commands on all of them.
var systems = []string{"linux", "darwin", "windows"}

// Packages lists the module's packages below root as `go list` sees them for
// each operating system.
func Packages(root string) ([]Package, error) {
	var all []Package
	for _, system := range systems {
		packages, err := list(root, system)
		if err != nil {
			return nil, err
		}
		all = append(all, packages...)
	}
	return all, nil
}

func list(root, system string) ([]Package, error) {
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Dir,Imports", "./...")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOOS="+system, "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list for %s: %w: %s", system, err, stderr.Bytes())
	}
	var packages []Package
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p Package
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list for %s: %w", system, err)
		}
		packages = append(packages, p)
	}
}

// Layers checks the imports of every package against Rules.
func Layers(packages []Package) []Finding {
	var found []Finding
	for _, p := range packages {
		name, ours := strings.CutPrefix(p.ImportPath, Module+"/")
		if !ours {
			found = append(found, Finding{File: p.ImportPath, Text: "no Go package stands in the module's root"})
			continue
		}
		unit, rule, ok := unitOf(name)
		if !ok {
			found = append(found, Finding{File: name, Text: "no rule says what this package may import; add one to Rules in e2e/lint/layers.go"})
			continue
		}
		for _, imported := range p.Imports {
			if problem := importProblem(unit, rule, imported); problem != "" {
				found = append(found, Finding{File: name, Text: problem + ": " + rule.Reason})
			}
		}
	}
	return dedupe(found)
}

// unitOf finds the rule for a package, and the unit that it belongs to: the
// folder named by the rule, with everything below that has no own rule.
func unitOf(name string) (unit string, rule Rule, ok bool) {
	for _, r := range Rules() {
		u := r.Package
		if parent, found := strings.CutSuffix(u, "/*"); found {
			rest, below := strings.CutPrefix(name, parent+"/")
			if !below {
				continue
			}
			first, _, _ := strings.Cut(rest, "/")
			u = parent + "/" + first
		}
		if (name == u || strings.HasPrefix(name, u+"/")) && len(u) > len(unit) {
			unit, rule, ok = u, r, true
		}
	}
	return unit, rule, ok
}

func importProblem(unit string, rule Rule, imported string) string {
	name, ours := strings.CutPrefix(imported, Module+"/")
	if !ours {
		return outsideProblem(rule, imported)
	}
	to, target, ok := unitOf(name)
	switch {
	case !ok:
		return fmt.Sprintf("imports %s, for which there is no rule", name)
	case to == unit:
		return ""
	case slices.Contains(rule.May, "*") && target.Floor < rule.Floor:
		return ""
	case slices.Contains(rule.May, to):
		return ""
	}
	return fmt.Sprintf("imports %s (floor %d) from floor %d; it may import %s", name, target.Floor, rule.Floor, orNothing(rule.May))
}

func outsideProblem(rule Rule, imported string) string {
	first, _, _ := strings.Cut(imported, "/")
	if rule.Outside == nil || !strings.Contains(first, ".") {
		return ""
	}
	for _, module := range rule.Outside {
		if imported == module || strings.HasPrefix(imported, module+"/") {
			return ""
		}
	}
	return fmt.Sprintf("imports %s; outside the standard library it may import %s", imported, orNothing(rule.Outside))
}

func orNothing(names []string) string {
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, ", ")
}

func dedupe(found []Finding) []Finding {
	var out []Finding
	for _, f := range found {
		if !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	return out
}
