package api

import (
	"strconv"
	"strings"
	"time"
)

// Bounds of a cron expression.
const (
	cronLengthMax = 256
	cronYearsMax  = 9 // 29 February may be eight years away
)

// Cron is a schedule as crontab(5) writes it: minute, hour, day of the month,
// month, day of the week, in UTC. Where both days are restricted, a day that
// either names counts. Sunday is 0 or 7.
type Cron struct {
	minute, hour, day, month, weekday uint64 // bit n: n is in it
	anyDay, anyWeekday                bool
}

// cronField is what one field may hold.
type cronField struct {
	name     string
	min, max int
}

// ParseCron reads an expression of five fields: numbers, ranges, lists and
// steps. An expression that names no day that exists is refused.
func ParseCron(text string) (Cron, error) {
	var c Cron
	fields := strings.Fields(text)
	if len(text) > cronLengthMax || len(fields) != 5 {
		return c, Invalid("cron", "has %d fields", len(fields)).Allow("five: minute, hour, day of the month, month, day of the week; at most %d characters", cronLengthMax)
	}
	limits := []cronField{{"minute", 0, 59}, {"hour", 0, 23}, {"day of the month", 1, 31}, {"month", 1, 12}, {"day of the week", 0, 7}}
	for i, into := range []*uint64{&c.minute, &c.hour, &c.day, &c.month, &c.weekday} {
		bits, err := limits[i].parse(fields[i])
		if err != nil {
			return c, err
		}
		*into = bits
	}
	if c.weekday&(1<<7) != 0 {
		c.weekday |= 1
	}
	c.anyDay, c.anyWeekday = fields[2] == "*", fields[4] == "*"
	if c.Next(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return c, Invalid("cron", "names a day that never comes: day %s of month %s", fields[2], fields[3])
	}
	return c, nil
}

func (f cronField) parse(text string) (bits uint64, err error) {
	wrong := func() error {
		return Invalid("cron", "%s is %q", f.name, CleanText(text, NameLengthMax)).Allow("%d to %d, as 5, 1-5, 1,3 or */2", f.min, f.max)
	}
	for part := range strings.SplitSeq(text, ",") {
		span, stepText, stepped := strings.Cut(part, "/")
		from, to, ok := f.span(span, stepped)
		step := 1
		if stepped && ok {
			step, ok = cronNumber(stepText, 1, f.max)
		}
		if !ok {
			return 0, wrong()
		}
		for n := from; n <= to; n += step {
			bits |= 1 << n
		}
	}
	return bits, nil
}

// span reads "*", "5" or "1-5". A number with a step goes to the end.
func (f cronField) span(text string, stepped bool) (from, to int, ok bool) {
	if text == "*" {
		return f.min, f.max, true
	}
	first, last, ranged := strings.Cut(text, "-")
	if from, ok = cronNumber(first, f.min, f.max); !ok {
		return 0, 0, false
	}
	switch {
	case ranged:
		to, ok = cronNumber(last, from, f.max)
	case stepped:
		to = f.max
	default:
		to = from
	}
	return from, to, ok
}

func cronNumber(text string, low, high int) (int, bool) {
	n, err := strconv.ParseUint(text, 10, 8)
	return int(n), err == nil && int(n) >= low && int(n) <= high
}

func (c Cron) dayMatches(t time.Time) bool {
	if c.month&(1<<t.Month()) == 0 {
		return false
	}
	day, weekday := c.day&(1<<t.Day()) != 0, c.weekday&(1<<t.Weekday()) != 0
	if c.anyDay || c.anyWeekday {
		return day && weekday
	}
	return day || weekday
}

// Next is the first minute after t that matches; zero: there is none for years.
func (c Cron) Next(t time.Time) time.Time {
	t = t.UTC().Truncate(time.Minute).Add(time.Minute)
	for end := t.AddDate(cronYearsMax, 0, 0); t.Before(end); {
		switch {
		case !c.dayMatches(t):
			t = time.Date(t.Year(), t.Month(), t.Day()+1, 0, 0, 0, 0, time.UTC)
		case c.hour&(1<<t.Hour()) == 0:
			t = t.Truncate(time.Hour).Add(time.Hour)
		case c.minute&(1<<t.Minute()) == 0:
			t = t.Add(time.Minute)
		default:
			return t
		}
	}
	return time.Time{}
}

// Last is the last minute not after t that matches; zero: there was none for
// years.
func (c Cron) Last(t time.Time) time.Time {
	t = t.UTC().Truncate(time.Minute)
	for end := t.AddDate(-cronYearsMax, 0, 0); t.After(end); {
		switch {
		case !c.dayMatches(t):
			t = time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, time.UTC).Add(-time.Minute)
		case c.hour&(1<<t.Hour()) == 0:
			t = t.Truncate(time.Hour).Add(-time.Minute)
		case c.minute&(1<<t.Minute()) == 0:
			t = t.Add(-time.Minute)
		default:
			return t
		}
	}
	return time.Time{}
}
