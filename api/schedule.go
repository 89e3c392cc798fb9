package api

import (
	"slices"
	"time"
)

// Limits of a schedule of snapshots. Those of one schedule leave room for
// snapshots that people make.
const (
	SnapshotEveryMin = 5 * time.Minute
	SnapshotEveryMax = 366 * 24 * time.Hour
	SnapshotsKeptMax = SnapshotsPerVMMax - 4
)

// SnapshotSchedule says when snapshots of a VM are taken by themselves, and
// which of them are kept. Slots are counted in UTC from the beginning of
// 1970, which was a Thursday: a schedule of a week fires on Thursdays, a cron
// expression on any day. Snapshots that people made are never deleted by it.
type SnapshotSchedule struct {
	Every       time.Duration `json:"every_ns,omitzero"` // between slots; or Cron
	Cron        string        `json:"cron,omitzero"`     // minute, hour, day of the month, month, day of the week
	Memory      bool          `json:"memory,omitzero"`   // of a guest that runs then
	Quiesce     bool          `json:"quiesce,omitzero"`  // where the guest's agent answers
	KeepLast    int           `json:"keep_last,omitzero"`
	KeepHourly  int           `json:"keep_hourly,omitzero"` // the last of each hour, for so many hours that have one
	KeepDaily   int           `json:"keep_daily,omitzero"`
	KeepWeekly  int           `json:"keep_weekly,omitzero"` // weeks begin on Monday
	KeepMonthly int           `json:"keep_monthly,omitzero"`
}

func (s *SnapshotSchedule) check(p *problems, field string) {
	if s == nil {
		return
	}
	at := func(name string) string { return field + "." + name }
	switch {
	case s.Every == 0 && s.Cron == "":
		p.add(at("every_ns"), "is missing").Allow("a time between snapshots, or cron")
	case s.Every != 0 && s.Cron != "":
		p.add(at("cron"), "is given beside every").Allow("one of both")
	case s.Cron != "":
		if _, err := ParseCron(s.Cron); err != nil {
			p.addErr(AsError(err).At(at("cron")))
		}
	case s.Every < SnapshotEveryMin || s.Every > SnapshotEveryMax || s.Every%time.Minute != 0:
		p.add(at("every_ns"), "is %v", s.Every).Allow("whole minutes, %v to %v", SnapshotEveryMin, SnapshotEveryMax)
	}
	if s.Memory && s.Quiesce {
		p.add(at("quiesce"), "does not go with memory").Allow("one of both")
	}
	sum := 0
	for _, k := range s.keeps() {
		if k.count < 0 || k.count > SnapshotsKeptMax {
			p.add(at(k.field), "is %d", k.count).Allow("0 to %d", SnapshotsKeptMax)
			return
		}
		sum += k.count
	}
	if sum < 1 || sum > SnapshotsKeptMax {
		p.add(at("keep_last"), "the snapshots to be kept are %d in all", sum).Allow("1 to %d", SnapshotsKeptMax)
	}
}

// keep is one rule of retention: the newest snapshot of each period, for so
// many periods as have one.
type keep struct {
	field  string
	count  int
	period func(t time.Time) string // nil: each snapshot is its own
}

func (s *SnapshotSchedule) keeps() []keep {
	layout := func(l string) func(time.Time) string { return func(t time.Time) string { return t.Format(l) } }
	monday := func(t time.Time) string {
		return t.AddDate(0, 0, -((int(t.Weekday()) + 6) % 7)).Format(time.DateOnly)
	}
	return []keep{
		{"keep_last", s.KeepLast, nil}, {"keep_hourly", s.KeepHourly, layout("2006-01-02 15")}, {"keep_daily", s.KeepDaily, layout(time.DateOnly)},
		{"keep_weekly", s.KeepWeekly, monday}, {"keep_monthly", s.KeepMonthly, layout("2006-01")},
	}
}

// Surplus lists which of the slots, in any order, the rules of retention do
// not keep, oldest first. Each rule keeps on its own; a slot that one of them
// keeps stays.
func (s *SnapshotSchedule) Surplus(slots []time.Time) []time.Time {
	newest := slices.SortedFunc(slices.Values(slots), func(a, b time.Time) int { return b.Compare(a) })
	kept := make([]bool, len(newest))
	for _, k := range s.keeps() {
		last, left := "", k.count
		for i, t := range newest {
			if left == 0 {
				break
			}
			if k.period != nil {
				p := k.period(t.UTC())
				if p == last {
					continue
				}
				last = p
			}
			kept[i] = true
			left--
		}
	}
	var out []time.Time
	for i := len(newest) - 1; i >= 0; i-- {
		if !kept[i] {
			out = append(out, newest[i])
		}
	}
	return out
}

// Next is the first slot after t; zero: there is none within years.
func (s *SnapshotSchedule) Next(t time.Time) time.Time {
	if s.Cron != "" {
		c, err := ParseCron(s.Cron)
		if err != nil {
			return time.Time{}
		}
		return c.Next(t)
	}
	return s.floor(t).Add(s.Every)
}

// Last is the last slot that is not after t; zero: there was none for years.
func (s *SnapshotSchedule) Last(t time.Time) time.Time {
	if s.Cron == "" {
		return s.floor(t)
	}
	c, err := ParseCron(s.Cron)
	if err != nil {
		return time.Time{}
	}
	return c.Last(t)
}

// floor rounds down to a multiple of Every since 1970.
func (s *SnapshotSchedule) floor(t time.Time) time.Time {
	if s.Every <= 0 {
		return time.Time{}
	}
	seconds := t.Unix()
	step := int64(s.Every / time.Second)
	return time.Unix(seconds-((seconds%step)+step)%step, 0).UTC()
}

// SlotName is the own name of the snapshot of a slot.
func SlotName(slot time.Time) string { return "auto-" + slot.UTC().Format("20060102-1504") }
