package spec_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/spec"
)

func TestEveryExampleOfTheReferenceParses(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/hcl.md")
	if err != nil {
		t.Fatal(err)
	}
	parts, kinds := strings.Split(string(page), "```hcl\n"), map[string]bool{}
	if len(parts) < 10 {
		t.Fatalf("the reference has %d examples", len(parts)-1)
	}
	for i, part := range parts[1:] {
		code, _, ok := strings.Cut(part, "```")
		if !ok {
			t.Fatalf("example %d has no end", i)
		}
		set, err := spec.Parse([]spec.File{{Name: fmt.Sprintf("example-%d.hcl", i), Data: []byte(code)}}, spec.Options{})
		if err != nil {
			t.Errorf("%v\n%s", err, code)
			continue
		}
		for _, o := range set.Objects {
			kinds[o.Kind] = true
		}
	}
	for _, k := range api.Kinds() {
		if k.UserEdits && !kinds[k.Name] {
			t.Errorf("the reference shows no %s", k.Name)
		}
	}
	for _, f := range spec.Functions() {
		if !strings.Contains(string(page), "`"+f+"(") {
			t.Errorf("the reference does not tell of the function %s", f)
		}
	}
}

func TestExamplesParse(t *testing.T) {
	t.Parallel()
	for name, want := range map[string][]string{
		"first-vm": {"vm/default/web"},
		"shop":     {"network/default/lan", "volume/default/orders", "vm/default/web-1", "vm/default/web-2", "vm/default/web-3", "vm/default/db"},
	} {
		path := "../../docs/examples/" + name + ".hcl"
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		set, err := spec.Parse([]spec.File{{Name: path, Data: text}}, spec.Options{Set: spec.SetName(path)})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, o := range set.Objects {
			got = append(got, o.Kind+"/"+o.Key)
		}
		if strings.Join(got, " ") != strings.Join(want, " ") || set.Name != name {
			t.Errorf("%s: set %s with %v, want %v", name, set.Name, got, want)
		}
	}
}
