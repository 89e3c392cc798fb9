package agent

import (
	"fmt"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/api"
)

func TestLogsAreSearchedWithinBounds(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	for i := range 500 {
		fmt.Fprintf(&log, "line %d\r\n", i)
	}
	log.WriteString("10%\r50%\r100% done\nbinary \xff\xfe\n" + strings.Repeat("x", 10_000) + "\nlast without an end")
	for _, c := range []struct {
		query     api.LogQuery
		want      []string
		truncated bool
	}{
		{api.LogQuery{Tail: 2, Grep: `^line 4\d\d$`}, []string{"line 498", "line 499"}, true},
		{api.LogQuery{Grep: "done"}, []string{"100% done"}, false},
		{api.LogQuery{Grep: "binary"}, []string{"binary \uFFFD"}, false},
		{api.LogQuery{Tail: 1}, []string{"last without an end"}, true},
		{api.LogQuery{Grep: "(?i)LINE 7$"}, []string{"line 7"}, false},
		{api.LogQuery{Grep: "no such line"}, []string{}, false},
	} {
		got, err := searchLog(t.Context(), strings.NewReader(log.String()), c.query)
		if err != nil || fmt.Sprintf("%q", got.Lines) != fmt.Sprintf("%q", c.want) || got.Truncated != c.truncated {
			t.Errorf("%+v: got %q, %v, want %q, truncated %v: %v", c.query, got.Lines, got.Truncated, c.want, c.truncated, err)
		}
	}
	all, err := searchLog(t.Context(), strings.NewReader(log.String()), api.LogQuery{Tail: api.LogLinesMax, Grep: "x{3}"})
	if err != nil || len(all.Lines) != 3 {
		t.Errorf("a line of 10,000 bytes became %d lines: %v", len(all.Lines), err)
	}
	huge := strings.NewReader(strings.Repeat(strings.Repeat("y", 1000)+"\n", 4000))
	all, err = searchLog(t.Context(), huge, api.LogQuery{Tail: api.LogLinesMax})
	if err != nil || !all.Truncated || len(strings.Join(all.Lines, "")) > api.LogAnswerMax {
		t.Errorf("an answer of %d bytes: %v", len(strings.Join(all.Lines, "")), err)
	}
	for _, bad := range []api.LogQuery{{Grep: "("}, {Grep: `(a{1000}){1000}`}, {Grep: strings.Repeat("a", api.LogPatternMax+1)}, {Tail: -1}, {Tail: api.LogLinesMax + 1}} {
		if _, err := searchLog(t.Context(), strings.NewReader(""), bad); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%.40q, tail %d: %v, want CodeInvalid", bad.Grep, bad.Tail, err)
		}
	}
}
