package spec

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// RenderWidth is how many characters a line of a rendered difference has at
// most.
const RenderWidth = 80

const (
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	red    = "\x1b[31m"
	plain  = "\x1b[0m"
)

// RenderDiff writes differences for people: "+" what is created, "~" what is
// updated, "-" what is deleted, then how many of each. What does not change is
// only counted. Characters that could steer a terminal are escaped, and
// password hashes are not shown.
func RenderDiff(diffs []Difference, color bool) string {
	var b strings.Builder
	counts := map[string]int{}
	for _, d := range diffs {
		counts[d.Action]++
		if d.Action == None {
			continue
		}
		sign, paint := signOf(d.Action)
		line(&b, paint, color, fmt.Sprintf("%s %s %s", sign, d.Kind, clean(d.Key)))
		for _, f := range d.Fields {
			name, s := inHCL(d.Kind, f.Field)
			text := fmt.Sprintf("    %s = %s", clean(name), show(s, f.After))
			switch {
			case d.Action == Update && f.Before == nil:
				text = fmt.Sprintf("    + %s = %s", clean(name), show(s, f.After))
			case d.Action == Update && f.After == nil:
				text = fmt.Sprintf("    - %s = %s", clean(name), show(s, f.Before))
			case d.Action == Update:
				text = fmt.Sprintf("    ~ %s = %s -> %s", clean(name), show(s, f.Before), show(s, f.After))
			}
			line(&b, "", color, text)
		}
		b.WriteByte('\n')
	}
	line(&b, "", color, fmt.Sprintf("%d to create, %d to update, %d to delete, %d unchanged.",
		counts[Create], counts[Update], counts[Delete], counts[None]))
	return b.String()
}

func signOf(action string) (sign, paint string) {
	switch action {
	case Create:
		return "+", green
	case Delete:
		return "-", red
	}
	return "~", yellow
}

func line(b *strings.Builder, paint string, color bool, s string) {
	if utf8.RuneCountInString(s) > RenderWidth {
		s = string([]rune(s)[:RenderWidth-1]) + "…"
	}
	if color && paint != "" {
		s = paint + s + plain
	}
	b.WriteString(s + "\n")
}

// show writes a value as it would stand in a file.
func show(s shape, value json.RawMessage) string {
	if s == secret {
		return "(not shown)"
	}
	var n int64
	if (s == size || s == duration) && json.Unmarshal(value, &n) == nil {
		if s == size {
			return formatSize(n)
		}
		return time.Duration(n).String()
	}
	return clean(string(value))
}
