package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// allowedSkip is the word with which a skipped test names what the machine
// lacks.
const allowedSkip = "requires"

// outputMax bounds what is kept, and shown, of one test's output, in bytes;
// the end of it is kept.
const outputMax = 64 << 10

// event is one line of `go test -json`.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build events
	Test        string
	Output      string
	Elapsed     float64 // seconds
	FailedBuild string
}

// test is a test, or with an empty name a package as a whole.
type test struct {
	name    string
	output  string
	started time.Time
	done    string // pass, fail, skip; empty: has not ended
}

type packageRun struct {
	name  string
	tests map[string]*test
	order []string
	done  bool
}

type skip struct{ group, pkg, test, reason string }

type report struct {
	out      io.Writer
	group    string // the step that runs
	packages map[string]*packageRun
	builds   map[string]string // compiler output by import path
	passed   int
	failed   int
	skips    []skip
	failures []string // names, for the list at the end
}

func newReport(out io.Writer) *report {
	return &report{out: out, packages: map[string]*packageRun{}, builds: map[string]string{}}
}

func (r *report) line(format string, args ...any)    { fmt.Fprintf(r.out, format+"\n", args...) }
func (r *report) section(format string, args ...any) { r.line("\n== "+format, args...) }

// fail counts one failure and shows its output.
func (r *report) fail(name, output string) {
	r.failed++
	r.failures = append(r.failures, name)
	r.line("FAIL  %s", name)
	for line := range strings.Lines(output) {
		r.line("      | %s", strings.TrimRight(line, "\n"))
	}
}

// event adds one line of go test's output; it reports whether a line was
// printed for it.
func (r *report) event(line []byte) bool {
	var e event
	if json.Unmarshal(line, &e) != nil {
		r.line("      %s", line)
		return true
	}
	switch e.Action {
	case "build-output":
		r.builds[e.ImportPath] += e.Output
		return false
	case "build-fail":
		return false
	}
	p := r.pkg(e.Package)
	t := p.test(e.Test)
	switch e.Action {
	case "output":
		t.output += e.Output
		if len(t.output) > outputMax {
			t.output = t.output[len(t.output)-outputMax:]
		}
	case "run":
		t.started = time.Now()
	case "pass", "fail", "skip":
		t.done = e.Action
		if e.Test == "" {
			r.packageDone(p, e)
			return true
		}
	}
	return false
}

func (r *report) pkg(name string) *packageRun {
	p := r.packages[name]
	if p == nil {
		p = &packageRun{name: name, tests: map[string]*test{}}
		r.packages[name] = p
	}
	return p
}

func (p *packageRun) test(name string) *test {
	t := p.tests[name]
	if t == nil {
		t = &test{name: name, started: time.Now()}
		p.tests[name] = t
		p.order = append(p.order, name)
	}
	return t
}

// packageDone counts the tests of a package that has ended.
func (r *report) packageDone(p *packageRun, e event) {
	p.done = true
	passed, failed, skipped := r.passed, r.failed, len(r.skips)
	for _, name := range p.order {
		if name != "" {
			r.testDone(p, p.tests[name])
		}
	}
	name := shortName(p.name)
	if e.Action == "fail" && r.failed == failed {
		r.fail(r.group+" "+name, r.builds[e.FailedBuild]+p.tests[""].output)
	}
	if e.Action == "skip" {
		return // no test files
	}
	word := "ok  "
	if r.failed > failed {
		word = "FAIL"
	}
	count := fmt.Sprintf("%d passed", r.passed-passed)
	if n := r.failed - failed; n > 0 {
		count += fmt.Sprintf(", %d failed", n)
	}
	if n := len(r.skips) - skipped; n > 0 {
		count += fmt.Sprintf(", %d skipped", n)
	}
	r.line("%s  %-44s %6.1f s  %s", word, name, e.Elapsed, count)
}

// testDone counts a test. One with subtests counts only for what its subtests
// do not tell.
func (r *report) testDone(p *packageRun, t *test) {
	if t.done == "" {
		t.done = "fail"
		t.output += "did not finish\n"
	}
	children := map[string]bool{}
	for _, other := range p.tests {
		if strings.HasPrefix(other.name, t.name+"/") {
			children[other.done] = true
		}
	}
	if len(children) > 0 && (t.done != "fail" || children["fail"] || children[""]) {
		return
	}
	switch t.done {
	case "pass":
		r.passed++
	case "fail":
		r.fail(r.group+" "+shortName(p.name)+" "+t.name, t.output)
	case "skip":
		r.skips = append(r.skips, skip{r.group, shortName(p.name), t.name, skipReason(t.output)})
	}
}

// skipReason is what a test said when it was skipped.
func skipReason(output string) string {
	var reason []string
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") {
			reason = append(reason, line)
		}
	}
	if len(reason) == 0 {
		return "no reason given"
	}
	return strings.Join(reason, " ")
}

// endOfRun counts the packages of which go test never told the end.
func (r *report) endOfRun() {
	for _, name := range slices.Sorted(maps.Keys(r.packages)) {
		if p := r.packages[name]; !p.done && name != "" {
			r.packageDone(p, event{Action: "fail"})
		}
	}
	r.packages = map[string]*packageRun{}
	r.builds = map[string]string{}
}

// stillRunning names the tests that run now, innermost only.
func (r *report) stillRunning() {
	var running []string
	for _, name := range slices.Sorted(maps.Keys(r.packages)) {
		p := r.packages[name]
		for _, t := range p.order {
			inner := slices.ContainsFunc(p.order, func(o string) bool { return strings.HasPrefix(o, t+"/") })
			if one := p.tests[t]; t != "" && one.done == "" && !inner {
				running = append(running, fmt.Sprintf("%s %s (%.0f s)", shortName(name), t, time.Since(one.started).Seconds()))
			}
		}
	}
	if len(running) == 0 {
		running = []string{"building"}
	}
	r.line("      still running: %s", strings.Join(running, ", "))
}

// close prints the lists and the last line; it reports whether all is well.
func (r *report) close() bool {
	refused := 0
	if len(r.skips) > 0 {
		r.section("skipped")
		for _, s := range r.skips {
			note := ""
			if !strings.Contains(s.reason, allowedSkip) {
				refused++
				note = "  [refused: the reason does not say what the test " + allowedSkip + "]"
			}
			r.line("      %s %s %s: %s%s", s.group, s.pkg, s.test, s.reason, note)
		}
	}
	if len(r.failures) > 0 {
		r.section("failed")
		for _, name := range r.failures {
			r.line("      %s", name)
		}
	}
	if refused > 0 {
		r.line("\nskipped without saying what the test %s, which counts as failed: %d", allowedSkip, refused)
	}
	if r.passed == 0 && r.failed == 0 {
		r.line("\nnothing ran, which counts as failed")
		r.failed++
	}
	r.line("\n%d passed, %d failed, %d skipped", r.passed, r.failed+refused, len(r.skips)-refused)
	return r.failed+refused == 0
}

func shortName(pkg string) string {
	const module = "github.com/debvisor/debvisor/"
	return strings.TrimPrefix(pkg, module)
}
