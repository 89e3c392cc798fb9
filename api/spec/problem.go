package spec

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/debvisor/debvisor/api"
	"github.com/hashicorp/hcl/v2"
)

// Problem is one thing that is wrong with a file.
type Problem struct {
	At  Position
	Err *api.Error // what is wrong; its Message does not repeat the position
}

// Error says everything that is wrong with a set of files, in the order of the
// files' names and lines.
type Error struct {
	Problems []Problem // at most ProblemsMax
	Omitted  int       // problems beyond those
}

// Error writes one line a problem, each beginning "file:line:column: ".
func (e *Error) Error() string {
	var b strings.Builder
	for i, p := range e.Problems {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s: %s", p.At, p.Err.Error())
	}
	if e.Omitted > 0 {
		fmt.Fprintf(&b, "\nand %d more", e.Omitted)
	}
	return b.String()
}

// Unwrap gives the same as an *api.Error, for code that knows only those. The
// positions are in the messages.
func (e *Error) Unwrap() error {
	out := &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("%d problems in the files", len(e.Problems)+e.Omitted)}
	for _, p := range e.Problems {
		one := *p.Err
		one.Message = p.At.String() + ": " + one.Message
		if one.Code == api.CodeLimit {
			out.Code = api.CodeLimit
		}
		out.Details = append(out.Details, &one)
	}
	if len(out.Details) == 1 && e.Omitted == 0 {
		return out.Details[0]
	}
	return out
}

// problems collects what is wrong.
type problems struct {
	list    []Problem
	seen    map[string]bool // one mistake inside a for_each is told once
	omitted int
	tooMuch bool // a limit was exceeded: do not go on
}

func (p *problems) add(at Position, err *api.Error) {
	id := at.String() + err.Error()
	if p.seen[id] {
		return
	}
	if len(p.list) >= ProblemsMax {
		p.omitted++
		return
	}
	if p.seen == nil {
		p.seen = map[string]bool{}
	}
	p.seen[id] = true
	p.list = append(p.list, Problem{At: at, Err: err})
}

func (p *problems) addf(at hcl.Range, format string, args ...any) *api.Error {
	err := api.Errorf(api.CodeInvalid, format, args...)
	p.add(position(at), err)
	return err
}

func (p *problems) limit(at Position, format string, args ...any) {
	p.tooMuch = true
	p.add(at, api.Errorf(api.CodeLimit, format, args...).Do("split the files, or declare less"))
}

// diagnostics takes over what the HCL library found. It reports whether there
// was an error.
func (p *problems) diagnostics(diags hcl.Diagnostics) bool {
	for _, d := range diags {
		if d.Severity != hcl.DiagError {
			continue
		}
		at := Position{}
		if d.Subject != nil {
			at = position(*d.Subject)
		}
		text := strings.TrimSuffix(d.Summary, ".")
		if d.Detail != "" {
			text += ": " + d.Detail
		}
		text = strings.TrimSuffix(strings.Join(strings.Fields(text), " "), ".")
		p.add(at, api.Errorf(api.CodeInvalid, "%s", clean(lowerFirst(text))))
	}
	return diags.HasErrors()
}

func (p *problems) err() error {
	if len(p.list) == 0 {
		return nil
	}
	slices.SortStableFunc(p.list, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.At.File, b.At.File), cmp.Compare(a.At.Line, b.At.Line), cmp.Compare(a.At.Column, b.At.Column))
	})
	return &Error{Problems: p.list, Omitted: p.omitted}
}

func position(r hcl.Range) Position {
	return Position{File: r.Filename, Line: r.Start.Line, Column: r.Start.Column}
}

func lowerFirst(s string) string {
	if len(s) > 1 && s[0] >= 'A' && s[0] <= 'Z' && (s[1] < 'A' || s[1] > 'Z') {
		return strings.ToLower(s[:1]) + s[1:]
	}
	return s
}

// clean escapes what is not printable, so that a text cannot steer the
// terminal that shows it.
func clean(s string) string {
	var b strings.Builder
	for _, r := range s {
		if strconv.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		q := strconv.QuoteRune(r)
		b.WriteString(q[1 : len(q)-1])
	}
	return b.String()
}

// nearest finds the known word that s was probably meant to be, or nothing.
func nearest(s string, known []string) string {
	if len(s) > api.NameLengthMax {
		return ""
	}
	best, at := "", 1+max(1, min(3, len(s)/2))
	for _, k := range known {
		if d := distance(s, k); d < at {
			best, at = k, d
		}
	}
	return best
}

// distance counts the letters to insert, delete, change or swap with their
// neighbour to make b out of a (optimal string alignment).
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			row[j] = min(row[j-1]+1, last[j]+1, last[j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

// suggest adds the nearest known word to err, or the whole list.
func suggest(err *api.Error, given string, known []string) {
	if near := nearest(given, known); near != "" {
		err.Message += fmt.Sprintf("; did you mean %q?", near)
		return
	}
	err.Allowed = strings.Join(known, ", ")
}
