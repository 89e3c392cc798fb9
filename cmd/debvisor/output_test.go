package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// TestOutputIsStable compares what people see with the golden files, and
// checks that it fits 80 columns and cannot steer a terminal.
func TestOutputIsStable(t *testing.T) {
	t.Parallel()
	f := cannedCluster(t)
	for name, args := range map[string]string{
		"vm-list":        "vm list",
		"vm-list-all":    "vm list -A",
		"vm-show":        "vm show web",
		"node-list":      "node list",
		"image-list":     "image list",
		"network-list":   "network list",
		"pool-list":      "pool list",
		"volume-list":    "volume list",
		"tenant-list":    "tenant list",
		"key-list":       "key list",
		"task-list":      "task list",
		"cluster-status": "cluster status",
		"why":            "why vm/web",
		"history":        "history vm/web",
		"diff":           "diff vm/web --from 2h",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := f.command(t, strings.Fields(args)...)
			if got.status != statusDone {
				t.Fatalf("debvisor %s: status %d: %s", args, got.status, got.err)
			}
			golden(t, name, got.out)
			for line := range strings.Lines(got.out) {
				line = strings.TrimSuffix(line, "\n")
				if n := columns(line); n > widthDefault && name != "why" && name != "vm-show" {
					t.Errorf("a line has %d columns: %s", n, line)
				}
				if i := strings.IndexFunc(line, func(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) }); i >= 0 {
					t.Errorf("a line could steer the terminal: %q", line)
				}
			}
		})
	}
}

// TestListingsOfSimulatedGuestsSaySo covers every listing.
func TestListingsOfSimulatedGuestsSaySo(t *testing.T) {
	t.Parallel()
	f := cannedCluster(t)
	for _, noun := range []string{"vm", "node", "image", "network", "pool", "volume", "tenant", "key", "task"} {
		if got := f.command(t, noun, "list"); !strings.Contains(got.out, simulatedRow) {
			t.Errorf("%s list does not say that the hypervisor is simulated:\n%s", noun, got.out)
		}
	}
}

func TestWideTablesCutNothing(t *testing.T) {
	t.Parallel()
	got := cannedCluster(t).command(t, "vm", "list", "-o", "wide")
	for _, want := range []string{longReason, "a-name-that-is-as-long-as-a-dns-label-may-be-0123456789-abcdefg", "REVISION"} {
		if !strings.Contains(got.out, want) {
			t.Errorf("vm list -o wide lacks %q:\n%s", want, got.out)
		}
	}
}

func TestJSONAndYAMLHoldTheSame(t *testing.T) {
	t.Parallel()
	f := cannedCluster(t)
	for _, args := range []string{"vm list", "vm show web", "cluster status", "image list", "why vm/web", "history vm/web", "version"} {
		var fromJSON, fromYAML any
		out := f.command(t, strings.Fields(args+" -o json")...).out
		if err := json.Unmarshal([]byte(out), &fromJSON); err != nil {
			t.Errorf("%s -o json: %v\n%s", args, err, out)
			continue
		}
		if strings.ContainsAny(out, "\x1b\u202e") {
			t.Errorf("%s -o json holds characters that steer a terminal", args)
		}
		out = f.command(t, strings.Fields(args+" -o yaml")...).out
		if err := yaml.Unmarshal([]byte(out), &fromYAML); err != nil {
			t.Errorf("%s -o yaml: %v\n%s", args, err, out)
			continue
		}
		a, errA := json.Marshal(fromJSON)
		b, errB := json.Marshal(fromYAML)
		if errA != nil || errB != nil || string(a) != string(b) {
			t.Errorf("%s: JSON and YAML differ:\n%s\n%s", args, a, b)
		}
	}
}

// TestScriptsFindWhatTheyRelyOn keeps the names that scripts use.
func TestScriptsFindWhatTheyRelyOn(t *testing.T) {
	t.Parallel()
	f := cannedCluster(t)
	var status struct {
		Leader  string            `json:"leader"`
		Members []json.RawMessage `json:"members"`
	}
	if err := json.Unmarshal([]byte(f.command(t, "cluster", "status", "-o", "json").out), &status); err != nil {
		t.Fatal(err)
	}
	if status.Leader != "node1" || len(status.Members) != 2 {
		t.Errorf("cluster status -o json has leader %q and %d members, want node1 and 2", status.Leader, len(status.Members))
	}
	if out := newFakeCluster(t, map[string]any{"GET /v1/vms": list(), "GET /v1/instances": list()}).command(t, "vm", "list", "-o", "json").out; strings.TrimSpace(out) != "[]" {
		t.Errorf("an empty list in JSON is %q, want []", out)
	}
}

func TestTableShrinksTheWidestColumn(t *testing.T) {
	t.Parallel()
	wide := table{titles: []string{"NAME", "KEPT", "NOTE"}, keep: []bool{false, true}}
	wide.rows = [][]string{{"web", strings.Repeat("k", 30), strings.Repeat("n", 60)}}
	for line := range strings.Lines(wide.render(60)) {
		if n := columns(strings.TrimSuffix(line, "\n")); n > 60 {
			t.Errorf("line has %d columns, limit 60: %q", n, line)
		}
	}
	if got := wide.render(60); !strings.Contains(got, strings.Repeat("k", 30)) || !strings.Contains(got, "…") {
		t.Errorf("the kept column was cut, or nothing was:\n%s", got)
	}
}

func TestCleanEscapesWhatSteersATerminal(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain":          "plain",
		"日本語":            "日本語",
		"a\x1b[31mb":     `a\u001b[31mb`,
		"a\u202eb":       `a\u202eb`,
		"a\r\nb":         `a\u000d\u000ab`,
		"a\u0085b":       `a\u0085b`,
		"\U000e0041":     `\U000e0041`,
		"tab\there":      "tab here",
		"bad\xffutf8":    `bad\ufffdutf8`,
		"\u2028line sep": `\u2028line sep`,
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestAgesAreShort(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 119 * time.Minute: "119m", 47 * time.Hour: "47h", 48 * time.Hour: "2d",
	} {
		if got := duration(d); got != want {
			t.Errorf("duration(%v) = %q, want %q", d, got, want)
		}
	}
}
