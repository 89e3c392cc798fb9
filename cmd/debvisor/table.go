package main

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/width"
)

// Bounds of a table's cells, in columns.
const (
	cellGap = 2
	cellMin = 6  // a cell is never cut shorter to make room
	nameMin = 24 // the first cell, by which a person knows the row, gives way last
)

// table is text in columns. Every cell but those of a wide table is cut where
// the line would not fit.
type table struct {
	titles []string
	rows   [][]string
	keep   []bool // by column: never cut
}

// render writes the table into lines of at most limit columns; 0 means that
// there is no limit.
func (t *table) render(limit int) string {
	widths := t.widths()
	if limit > 0 {
		t.shrink(widths, limit)
	}
	var b strings.Builder
	for _, row := range append([][]string{t.titles}, t.rows...) {
		var line strings.Builder
		for i, cell := range row {
			cell = clip(cell, widths[i])
			line.WriteString(cell)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-columns(cell)+cellGap))
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return b.String()
}

func (t *table) widths() []int {
	out := make([]int, len(t.titles))
	for _, row := range append([][]string{t.titles}, t.rows...) {
		for i, cell := range row {
			row[i] = clean(cell)
			out[i] = max(out[i], columns(row[i]))
		}
	}
	return out
}

// shrink takes from the widest column until a line fits.
func (t *table) shrink(widths []int, limit int) {
	total := cellGap * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	for floor := nameMin; total > limit; total-- {
		widest := t.widest(widths, floor)
		if widest < 0 && floor == nameMin {
			floor = cellMin
			widest = t.widest(widths, floor)
		}
		if widest < 0 {
			return
		}
		widths[widest]--
	}
}

// widest is the widest column that may still be cut, or -1.
func (t *table) widest(widths []int, nameFloor int) int {
	widest := -1
	for i, w := range widths {
		floor := cellMin
		if i == 0 {
			floor = nameFloor
		}
		if w > floor && !(i < len(t.keep) && t.keep[i]) && (widest < 0 || w > widths[widest]) {
			widest = i
		}
	}
	return widest
}

// clip cuts s to so many columns, with a mark that something is missing.
func clip(s string, limit int) string {
	if columns(s) <= limit {
		return s
	}
	used := 0
	for i, r := range s {
		if used+runeColumns(r) > limit-1 {
			return s[:i] + "…"
		}
		used += runeColumns(r)
	}
	return s
}

// columns is how many columns a terminal needs for s.
func columns(s string) int {
	n := 0
	for _, r := range s {
		n += runeColumns(r)
	}
	return n
}

func runeColumns(r rune) int {
	if unicode.In(r, unicode.Mn, unicode.Me) {
		return 0
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	}
	return 1
}

// clean makes text safe for one line of a terminal: control characters, and
// those that change the direction of what follows, become escapes.
func clean(s string) string {
	safe := func(r rune) bool {
		return r >= ' ' && r < 0x7f || r >= 0xa0 && r != utf8.RuneError && !unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co)
	}
	if strings.IndexFunc(s, func(r rune) bool { return !safe(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case safe(r):
			b.WriteRune(r)
		case r == '\t':
			b.WriteByte(' ')
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// dash is s, or a dash where a cell would be empty.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// age is the time since t in its largest unit, as "3d".
func age(now, t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return duration(now.Sub(t))
}

func duration(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/day)
}

// until is how long it takes to t, or that it passed.
func until(now, t time.Time) string {
	switch {
	case t.IsZero():
		return "never"
	case !now.Before(t):
		return "expired"
	}
	return "in " + duration(t.Sub(now))
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
