package spec_test

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/spec"
	"github.com/google/go-cmp/cmp"
)

func parse(text string, o ...spec.Options) (*spec.Set, error) {
	o = append(o, spec.Options{})
	return spec.Parse([]spec.File{{Name: "f.hcl", Data: []byte(text)}}, o[0])
}

func mustParse(t testing.TB, text string, o ...spec.Options) *spec.Set {
	t.Helper()
	set, err := parse(text, o...)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return set
}

const fullVM = `
vm "web" {
  labels = { app = "shop", "example.org/n" = 7 }
  description = "d"
  power = "off"
  cpus = "2"
  memory = 1024 * 1024 * 64
  firmware = "uefi"
  ha = "lease"
  priority = -5
  boot {
    kernel = "k"
    initrd = "i"
    args = "a=b"
  }
  disk "root" {
    image = "tiny"
    size = "1GiB"
    pool = "fast"
    bus = "scsi"
    cache = "writeback"
  }
  disk "data" {
    volume = "data"
    read_only = true
  }
  nic {
    network = "lan"
    mac = "52:54:00:00:00:01"
  }
  nic { network = "wan" }
  cloud_init {
    hostname = "h"
    packages = ["nginx"]
    network = "version: 2"
    commands = [["a", "b"], ["c"]]
    user "ops" {
      ssh_keys = ["k"]
      sudo = true
      password_hash = "$6$x"
    }
    file "/etc/motd" {
      content = "hi\n"
      mode = "0644"
    }
  }
  placement {
    strategy = "pack"
    node = "n1"
    nodes = { a = "b" }
    affinity = { c = "d" }
    anti_affinity = { e = "f" }
  }
}`

func TestAVMHasEveryFieldOfItsBlock(t *testing.T) {
	t.Parallel()
	set := mustParse(t, fullVM)
	want := &api.VM{
		Meta:        api.Meta{Name: "web", Tenant: "default", Labels: map[string]string{"app": "shop", "example.org/n": "7"}},
		Description: "d", Power: "off", CPUs: 2, MemoryBytes: 64 * api.MiB, Firmware: "uefi", HA: "lease", Priority: -5,
		Boot: &api.DirectBoot{Kernel: "k", Initrd: "i", Args: "a=b"},
		Disks: []api.Disk{{Name: "root", Image: "tiny", SizeBytes: api.GiB, Pool: "fast", Bus: "scsi", Cache: "writeback"},
			{Name: "data", Volume: "data", ReadOnly: true}},
		NICs: []api.NIC{{Network: "lan", MAC: "52:54:00:00:00:01"}, {Network: "wan"}},
		CloudInit: &api.CloudInit{Hostname: "h", Packages: []string{"nginx"}, Network: "version: 2", Commands: [][]string{{"a", "b"}, {"c"}},
			Users: []api.CloudInitUser{{Name: "ops", SSHKeys: []string{"k"}, Sudo: true, PasswordHash: "$6$x"}},
			Files: []api.CloudInitFile{{Path: "/etc/motd", Content: "hi\n", Mode: "0644"}}},
		Placement: api.Placement{Strategy: "pack", Node: "n1", Nodes: map[string]string{"a": "b"},
			Affinity: map[string]string{"c": "d"}, AntiAffinity: map[string]string{"e": "f"}},
	}
	if diff := cmp.Diff(api.Object(want), set.Objects[0].Value); diff != "" {
		t.Error(diff)
	}
	if o := set.Objects[0]; o.Kind != "vm" || o.Key != "default/web" || o.At.String() != "f.hcl:2:1" {
		t.Errorf("%s %s at %s", o.Kind, o.Key, o.At)
	}
}

func TestOtherKindsAndTheOrderOfApplying(t *testing.T) {
	t.Parallel()
	set := mustParse(t, `
volume "v" {
  tenant = "shop"
  pool = "fast"
  size = "1.5GiB"
}
network "lan" { bridge = "br0" }
pool "fast" {
  nodes = ["n1"]
  reserve = "10GiB"
}
tenant "shop" { description = "s" }
config "cluster" {
  cpu_overcommit = 2.5
  memory_reserve = "1GiB"
  task_retention = "2d"
  journal_retention = "30d"
  voters = 3
}`, spec.Options{Tenant: "acme"})
	want := []api.Object{
		&api.Config{Meta: api.Meta{Name: "cluster"}, CPUOvercommit: 2.5, MemoryReserve: api.GiB, TaskRetention: 48 * time.Hour, JournalRetention: 720 * time.Hour, Voters: 3},
		&api.Tenant{Meta: api.Meta{Name: "shop"}, Description: "s"},
		&api.Pool{Meta: api.Meta{Name: "fast"}, Driver: "dir", Nodes: []string{"n1"}, ReserveBytes: 10 * api.GiB},
		&api.Network{Meta: api.Meta{Name: "lan", Tenant: "acme"}, Driver: "bridge", Bridge: "br0"},
		&api.Volume{Meta: api.Meta{Name: "v", Tenant: "shop"}, Pool: "fast", SizeBytes: 3 * api.GiB / 2},
	}
	var got []api.Object
	for _, o := range set.Objects {
		got = append(got, o.Value)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestVariablesLocalsAndForEach(t *testing.T) {
	t.Parallel()
	text := `
set = "my-${var.stage}"
variable "stage" { default = "test" }
variable "sizes" {
  type = map(number)
  default = { a = 1 }
}
variable "debug" {
  type = bool
  default = false
}
locals {
  text = join(",", [for k, v in var.sizes : "${k}=${v}"])
  label = local.text == "" ? null : upper(local.text)
}
tenant "t" {
  for_each = var.sizes
  description = "${each.key} ${each.value * 2} ${local["label"]} ${var.debug}"
}
tenant "n" {
  for_each = [for i in range(2) : i]
  name = format("x%02d", each.value)
}`
	describe := func(o ...spec.Options) string {
		set := mustParse(t, text, o...)
		out := set.Name
		for _, o := range set.Objects {
			out += "; " + o.Key + " " + o.Value.(*api.Tenant).Description + o.Value.Head().Labels[spec.ManagedLabel]
		}
		return out
	}
	if got, want := describe(), "my-test; t-a a 2 A=1 falsemy-test; x00 my-test; x01 my-test"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	got := describe(spec.Options{Set: "other", Vars: map[string]string{"stage": "live", "debug": "true", "sizes": "{ b = 2, c = 3 }"}})
	if want := "my-live; t-b b 4 B=2,C=3 truemy-live; t-c c 6 B=2,C=3 truemy-live; x00 my-live; x01 my-live"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFilesOfOneSetShareNames(t *testing.T) {
	t.Parallel()
	set, err := spec.Parse([]spec.File{
		{Name: "a.hcl", Data: []byte(`tenant "a" { description = local.d }`)},
		{Name: "b.hcl", Data: []byte(`locals { d = "shared" }`)},
	}, spec.Options{Set: "s"})
	if err != nil || set.Objects[0].Value.(*api.Tenant).Description != "shared" {
		t.Errorf("%+v, %v", set, err)
	}
}

// mistake is a file and what its error must say.
type mistake struct {
	text string
	want []string
}

// structureMistakes are wrong words, names and fields.
func structureMistakes() map[string]mistake {
	return map[string]mistake{
		"misspelt block":       {`vmm "a" {}`, []string{`f.hcl:1:1: unknown block "vmm"; did you mean "vm"?`}},
		"unknown block":        {`resource "a" "b" {}`, []string{`f.hcl:1:1: unknown block "resource" (allowed: variable, locals, config`}},
		"misspelt attribute":   {"vm \"a\" {\n  memroy = 1\n}", []string{`f.hcl:2:3: unknown attribute "memroy" of vm; did you mean "memory"?`}},
		"misspelt inner block": {"vm \"a\" {\n  disc \"x\" {}\n}", []string{`f.hcl:2:3: unknown block "disc" in vm; did you mean "disk"?`}},
		"misspelt deep":        {"vm \"a\" {\n  cloud_init {\n    user \"u\" {\n      sduo = true\n    }\n  }\n}", []string{`f.hcl:4:7: unknown attribute "sduo" of user; did you mean "sudo"?`}},
		"block as attribute":   {"vm \"a\" {\n  disk = {}\n}", []string{`it is a block: write disk { ... }`}},
		"attribute as block":   {"vm \"a\" {\n  labels {}\n}", []string{`it is an attribute: write labels = { ... }`}},
		"top attribute":        {`sett = "x"`, []string{`f.hcl:1:1: unknown attribute "sett" outside a block; did you mean "set"?`}},
		"tenant where none is": {`pool "a" { tenant = "x" }`, []string{`unknown attribute "tenant" of pool`}},
		"kind of the cluster":  {`node "a" {}`, []string{`unknown block "node"`}},
		"validate":             {"vm \"a\" {\n  cpus = 0\n  memory = \"1KiB\"\n}", []string{"f.hcl:2:10: vm/default/a: cpus: is 0 (allowed: 1 to 1024)", "f.hcl:3:12: vm/default/a: memory: is 1024"}},
		"validate deep":        {"vm \"a\" {\n cpus = 1\n memory = \"1GiB\"\n disk \"r\" {\n  size = 5\n }\n disk \"R\" { size = \"1GiB\" }\n}", []string{"f.hcl:5:10: vm/default/a: disk[0].size: is 5", `f.hcl:7:7: vm/default/a: disk[1].name: "R" is not a DNS label`}},
		"validate missing":     {"network \"a\" {\n}", []string{"f.hcl:1:1: network/default/a: bridge: is \"\""}},
		"validate label":       {"tenant \"a\" {\n  labels = {\n    \"A B\" = \"x\"\n  }\n}", []string{`f.hcl:2:12: tenant/a: labels: label key "A B"`}},
		"bad name":             {`tenant "A" {}`, []string{`f.hcl:1:8: tenant/A: name: "A" is not a DNS label`}},
		"wrong config":         {`config "x" {}`, []string{`f.hcl:1:8: config/x: name: is "x" (allowed: cluster)`}},
		"no name":              {`tenant {}`, []string{`f.hcl:1:1: tenant needs one name`}},
		"two names":            {`tenant "a" "b" {}`, []string{`tenant needs one name`}},
		"nic with a name":      {"vm \"a\" {\n nic \"x\" { network = \"l\" }\n}", []string{`f.hcl:2:6: the block "nic" has no name`}},
		"disk without":         {"vm \"a\" {\n disk { size = 1 }\n}", []string{`disk needs one name, as disk "root"`}},
		"second block":         {"vm \"a\" {\n boot { kernel = \"k\" }\n boot { kernel = \"k\" }\n}", []string{`f.hcl:3:2: a second block "boot"; first at f.hcl:2:2`}},
		"duplicate object":     {"tenant \"a\" {}\ntenant \"a\" {}", []string{`f.hcl:2:8: tenant "a" is declared twice; first at f.hcl:1:1`}},
		"duplicate attribute":  {"tenant \"a\" {\n description = \"x\"\n description = \"y\"\n}", []string{`f.hcl:3:2: attribute redefined`}},
		"duplicate local":      {"locals {\n a = 1\n}\nlocals {\n a = 2\n}", []string{`f.hcl:5:2: local "a" is declared twice; first at f.hcl:2:2`}},
		"duplicate variable":   {"variable \"a\" { default = 1 }\nvariable \"a\" { default = 1 }", []string{`f.hcl:2:10: variable "a" is declared twice`}},
	}
}

// valueMistakes are wrong references, values and calls.
func valueMistakes() map[string]mistake {
	return map[string]mistake{
		"circle":                 {"locals {\n a = local.b\n b = \"x${local.c}\"\n c = local.a\n}", []string{`locals refer to one another in a circle: local.a -> local.b -> local.c -> local.a`}},
		"circle of one":          {"locals {\n a = [local.a]\n}", []string{`circle: local.a -> local.a`}},
		"unknown local":          {"locals { size = 1 }\ntenant \"a\" { description = local.szie }", []string{`f.hcl:2:28: there is no local "szie"; did you mean "size"?`}},
		"unknown variable":       {"variable \"size\" { default = 1 }\ntenant \"a\" { description = var.sise }", []string{`there is no variable "sise"; did you mean "size"?`}},
		"variable without value": {`variable "a" {}`, []string{`f.hcl:1:10: variable "a" has no default and was given no value; give it one, as --var a=VALUE`}},
		"variable attribute":     {`variable "a" { defalt = 1 }`, []string{`unknown attribute "defalt" of a variable; did you mean "default"?`}},
		"variable type":          {"variable \"a\" {\n type = number\n default = \"x\"\n}", []string{`f.hcl:3:12: variable "a": a number is required`}},
		"variable not constant":  {"locals { b = 1 }\nvariable \"a\" { default = local.b }", []string{`must be constant`}},
		"whole local":            {"locals { b = 1 }\ntenant \"a\" { labels = local }", []string{`local must be followed by a name`}},
		"file function":          {`tenant "a" { description = file("/etc/passwd") }`, []string{`f.hcl:1:28: call to unknown function: There is no function named "file"`}},
		"env function":           {`tenant "a" { description = env("HOME") }`, []string{`There is no function named "env"`}},
		"misspelt function":      {`tenant "a" { description = uper("x") }`, []string{`Did you mean "upper"?`}},
		"each outside":           {`tenant "a" { description = each.key }`, []string{`f.hcl:1:28: unknown variable`}},
		"for_each of a text":     {`tenant "a" { for_each = "x" }`, []string{`f.hcl:1:25: for_each: must be a map, or a list of texts`}},
		"for_each twice":         {`tenant "a" { for_each = ["x", "x"] }`, []string{`"x" is twice in the list`}},
		"for_each of objects":    {`tenant "a" { for_each = [{}] }`, []string{`give a map`}},
		"size":                   {"volume \"a\" {\n size = \"10 parsecs\"\n}", []string{`f.hcl:2:9: size "10 parsecs" is not a size`}},
		"fraction":               {"vm \"a\" {\n cpus = 1.5\n}", []string{`f.hcl:2:9: cpus must be a whole number`}},
		"large number":           {"vm \"a\" {\n cpus = 99999999999999999999\n}", []string{`cpus is out of range`}},
		"labels":                 {`tenant "a" { labels = ["x"] }`, []string{`labels must be a map of texts`}},
		"null label":             {`tenant "a" { labels = { a = null } }`, []string{`labels has no value for "a"`}},
		"list":                   {`pool "a" { nodes = "n1" }`, []string{`nodes must be a list of texts`}},
		"commands":               {"vm \"a\" {\n cloud_init {\n  commands = [\"reboot now\"]\n }\n}", []string{`f.hcl:3:14: commands must be a list of commands`}},
		"duration":               {`config "cluster" { task_retention = "soon" }`, []string{`task_retention is "soon"`}},
		"boolean":                {`pool "a" { shared = "maybe" }`, []string{`shared must be true or false`}},
		"set name":               {`set = "My Set"`, []string{`f.hcl:1:7: set: "My Set" is not a DNS label`}},
		"other set":              {"set = \"a\"\ntenant \"x\" { labels = { managed-by = \"b\" } }", []string{`the label "managed-by" is "b", and the set is "a"`}},
		"set given twice":        {"set = \"a\"\nset = \"b\"", []string{`attribute redefined`}},
		"syntax":                 {"vm \"a\" {\n cpus = \n}", []string{`f.hcl:2:`, `invalid expression`}},
		"unclosed":               {"vm \"a\" {\n", []string{`f.hcl:`}},
		"not UTF-8":              {"tenant \"\xff\" {}", []string{`f.hcl:1:`}},
		"escape sequences":       {"tenant \"a\" {\n \"\x1b[31m\" = 1\n}", []string{`f.hcl:2:`}},
		"wide format":            {`tenant "a" { description = format("%999999999d", 1) }`, []string{`at most two digits`}},
		"wide by argument":       {`tenant "a" { description = format("%*d", 999999999, 1) }`, []string{`at most two digits`}},
		"cidrhost":               {`tenant "a" { description = cidrhost("10.0.0.0/30", 4) }`, []string{`10.0.0.0/30 has no address 4`}},
		"cidrhost network":       {`tenant "a" { description = cidrhost("10.0.0.0", 4) }`, []string{`is not a network`}},
	}
}

func TestMistakesNamePlaceAndNearestWord(t *testing.T) {
	t.Parallel()
	cases := structureMistakes()
	maps.Copy(cases, valueMistakes())
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := parse(c.text)
			if err == nil {
				t.Fatal("it was accepted")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want %q in it", err, want)
				}
			}
			if strings.ContainsAny(err.Error(), "\x1b\r") || api.CodeOf(err) != api.CodeInvalid {
				t.Errorf("code %s, %q", api.CodeOf(err), err)
			}
		})
	}
}

func TestAllProblemsAreReportedAtOnceUpToTwenty(t *testing.T) {
	t.Parallel()
	_, err := parse("vm \"b\" {\n cpu = 1\n}\ntenant \"A\" {}\nlocals { x = y }\npol \"z\" {}\n")
	e, ok := errors.AsType[*spec.Error](err)
	if !ok || len(e.Problems) != 4 {
		t.Fatalf("got %v", err)
	}
	for i, line := range []int{2, 4, 5, 6} {
		if e.Problems[i].At.Line != line {
			t.Errorf("problem %d is in line %d, want %d", i, e.Problems[i].At.Line, line)
		}
	}
	_, err = parse(strings.Repeat("widget {}\n", 50))
	e, _ = errors.AsType[*spec.Error](err)
	if len(e.Problems) != spec.ProblemsMax || e.Omitted != 30 || !strings.HasSuffix(err.Error(), "\nand 30 more") {
		t.Errorf("%d problems and %d more", len(e.Problems), e.Omitted)
	}
	_, err = parse(`tenant "a" {
  for_each = range(500)
  descripton = ""
}`)
	if e, _ := errors.AsType[*spec.Error](err); len(e.Problems) != 1 || e.Omitted != 0 {
		t.Errorf("one mistake in a for_each is told %d times", len(e.Problems)+e.Omitted)
	}
	if one := api.AsError(err); one.Code != api.CodeInvalid || !strings.HasPrefix(one.Message, "f.hcl:3:3: ") {
		t.Errorf("as an API error: %+v", one)
	}
}

func TestOneMistakeIsNotReportedAgainWhereItIsUsed(t *testing.T) {
	t.Parallel()
	_, err := parse(`
locals { a = upper(nonsense) }
vm "a" {
  cpus = local.a
  memory = "${local.a}MiB"
}
tenant "b" { for_each = local.a }`)
	e, _ := errors.AsType[*spec.Error](err)
	if e == nil || len(e.Problems) != 1 || e.Problems[0].At.Line != 2 {
		t.Errorf("got %v", err)
	}
}

func TestGivenVariablesMustBeDeclaredAndOfTheirType(t *testing.T) {
	t.Parallel()
	text := "variable \"list\" {\n type = list(string)\n}\n"
	for value, want := range map[string]string{
		`["a"`:           "wrong",
		`local.x`:        "must be constant",
		`{}`:             `variable "list"`,
		`[upper("a"), 1`: "wrong",
		strings.Repeat("[", 5000) + strings.Repeat("]", 5000): "DepthMax",
		strings.Repeat("x", spec.ValueSizeMax+1):              "ValueSizeMax",
	} {
		_, err := parse(text, spec.Options{Vars: map[string]string{"list": value}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: got %v, want %q", value, err, want)
		}
	}
	_, err := parse(`variable "size" { default = 1 }`, spec.Options{Vars: map[string]string{"sizze\x1b": "1"}})
	if err == nil || !strings.Contains(err.Error(), `did you mean "size"?`) || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("got %v", err)
	}
}

func TestLimitsHaveNamesAndActQuickly(t *testing.T) {
	t.Parallel()
	file := func(s string) []spec.File { return []spec.File{{Name: "f.hcl", Data: []byte(s)}} }
	double := "locals {\n a0 = \"xxxxxxxxxxxxxxxx\"\n"
	for i := range 60 {
		double += fmt.Sprintf(" a%d = \"${local.a%d}${local.a%d}\"\n", i+1, i, i)
	}
	square := "locals {\n n0 = 99999999999\n"
	for i := range 60 {
		square += fmt.Sprintf(" n%d = local.n%d * local.n%d\n", i+1, i, i)
	}
	cases := map[string]struct {
		files []spec.File
		want  string
	}{
		"a million blocks":    {file(strings.Repeat("tenant \"a\" {}\n", 1_000_000)), "FileSizeMax"},
		"a file of blocks":    {file(strings.Repeat("t{}\n", 200_000)), "BlocksMax"},
		"files":               {make([]spec.File, spec.FilesMax+1), "FilesMax"},
		"brackets":            {file("locals { a = " + strings.Repeat("[", 500_000)), "DepthMax"},
		"braces":              {file(strings.Repeat("a {", 300_000)), "DepthMax"},
		"templates":           {file("locals { a = " + strings.Repeat(`"${`, 200_000)), "DepthMax"},
		"nots":                {file("locals { a = " + strings.Repeat("!", 1_000_000) + "true }"), "OperatorsMax"},
		"sums":                {file("locals { a = 1" + strings.Repeat("+1", 400_000) + " }"), "OperatorsMax"},
		"conditions":          {file("locals { a = " + strings.Repeat("true?1:", 100_000) + "1 }"), "OperatorsMax"},
		"dots":                {file("locals { a = b" + strings.Repeat(".c", 400_000) + " }"), "OperatorsMax"},
		"directives":          {file("locals { a = \"" + strings.Repeat("%{if true}", 90_000) + "\" }"), "OperatorsMax"},
		"doubling":            {file(double + "}"), "ValueSizeMax"},
		"squaring":            {file(square + "}"), "NumberBitsMax"},
		"a huge number":       {file("locals { a = \"${1e999999999}\" }"), "ExpressionWeight"},
		"loops within loops":  {file("locals { a = [for a in range(1000) : [for b in range(1000) : [for c in range(1000) : 1]]] }"), "ExpressionWeight"},
		"for_each":            {file("locals {\n a = range(1000)\n b = concat(" + strings.Repeat("[for i in local.a : \"${i}\"], ", 11) + "[])\n}\ntenant \"a\" {\n for_each = { for i, x in local.b : i => x }\n}"), "ForEachMax"},
		"objects":             {file("locals {\n a = range(1000)\n}\n" + blocks(21, "tenant \"a%d\" {\n for_each = local.a\n}\n")), "ObjectsMax"},
		"locals":              {file("locals {\n" + blocks(1001, " a%d = 1\n") + "}"), "LocalsMax"},
		"variables":           {file(blocks(1001, "variable \"a%d\" { default = 1 }\n")), "LocalsMax"},
		"a large expression":  {file("variable \"x\" { default = \"" + strings.Repeat("x", 500_000) + "\" }\nlocals { a = \"" + strings.Repeat("${var.x}", 100) + "\" }"), "ExpressionWeight"},
		"joining large texts": {file("variable \"x\" { default = \"" + strings.Repeat("x", 500_000) + "\" }\nlocals { a = join(var.x, range(1000)) }"), "ExpressionWeight"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			_, err := spec.Parse(c.files, spec.Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) || api.CodeOf(err) != api.CodeLimit {
				t.Errorf("code %s: got %.300v, want %s", api.CodeOf(err), err, c.want)
			}
			if took := time.Since(start); took > 30*time.Second {
				t.Errorf("refused after %v", took)
			}
		})
	}
}

func blocks(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

func TestManyObjectsAreReadInReasonableTime(t *testing.T) {
	t.Parallel()
	set := mustParse(t, "locals {\n a = range(1000)\n}\n"+blocks(10, "tenant \"a%d\" {\n for_each = local.a\n description = \"number ${each.value}\"\n}\n"))
	if len(set.Objects) != 10000 {
		t.Errorf("%d objects", len(set.Objects))
	}
}

func TestSetNamesAreLabels(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"shop.hcl": "shop", "/a/b/My Shop.HCL": "my-shop", `c:\x\a_b.hcl`: "a-b", "--": "files", "": "files", "é.hcl": "files",
		strings.Repeat("a", 62) + "-b.hcl": strings.Repeat("a", 62),
	} {
		if got := spec.SetName(path); got != want || api.CheckName("", got) != nil {
			t.Errorf("%q: got %q, want %q", path, got, want)
		}
	}
}
