package api_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
)

func at(t testing.TB, text string) time.Time {
	t.Helper()
	out, err := time.Parse("2006-01-02 15:04", text)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestCronNamesTheSlots(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ cron, from, next, last string }{
		{"0 3 * * *", "2026-11-24 03:00", "2026-11-25 03:00", "2026-11-24 03:00"},
		{"*/15 9-17 * * 1-5", "2026-11-27 17:50", "2026-11-30 09:00", "2026-11-27 17:45"}, // over a weekend
		{"30 4 1,15 * 5", "2026-11-16 00:00", "2026-11-20 04:30", "2026-11-15 04:30"},     // either day counts
		{"0 0 29 2 *", "2026-11-24 00:00", "2028-02-29 00:00", "2024-02-29 00:00"},
		{"0 12 * * 7", "2026-11-24 00:00", "2026-11-29 12:00", "2026-11-22 12:00"},
		{"59 23 31 12 *", "2026-12-31 23:59", "2027-12-31 23:59", "2026-12-31 23:59"},
		{"5/20 * * * *", "2026-11-24 10:26", "2026-11-24 10:45", "2026-11-24 10:25"},
	} {
		parsed, err := api.ParseCron(c.cron)
		if err != nil {
			t.Fatalf("%q: %v", c.cron, err)
		}
		if got := parsed.Next(at(t, c.from)); !got.Equal(at(t, c.next)) {
			t.Errorf("%q after %s: %v, want %s", c.cron, c.from, got, c.next)
		}
		if got := parsed.Last(at(t, c.from)); !got.Equal(at(t, c.last)) {
			t.Errorf("%q up to %s: %v, want %s", c.cron, c.from, got, c.last)
		}
	}
}

func TestBadCronIsRefused(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "* * * *", "60 * * * *", "*/0 * * * *", "0 0 30 2 *", "0 0 31 4 *", "5-1 * * * *", "a * * * *", "-1 * * * *",
		"1,,2 * * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "* * * * * *", "*/x * * * *", strings.Repeat("1,", 200) + "1 * * * *"} {
		if _, err := api.ParseCron(text); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%q: %v, want invalid", text, err)
		}
	}
}

func FuzzCron(f *testing.F) {
	f.Add("*/15 9-17 1,2 * 1-5", int64(1_790_000_000))
	f.Fuzz(func(t *testing.T, text string, seconds int64) {
		c, err := api.ParseCron(text)
		if err != nil {
			return
		}
		now := time.Unix(seconds%4_000_000_000, 0)
		next := c.Next(now)
		if next.IsZero() || !next.After(now) || !c.Last(next).Equal(next) || c.Last(next.Add(-time.Nanosecond)).After(now) {
			t.Errorf("%q after %v: %v, last %v", text, now, next, c.Last(next))
		}
	})
}

func TestRetentionKeepsTheNewestOfEachPeriod(t *testing.T) {
	t.Parallel()
	var slots []time.Time
	for hour := range 24 * 40 { // every hour of forty days
		slots = append(slots, at(t, "2026-10-16 00:00").Add(time.Duration(hour)*time.Hour))
	}
	for _, c := range []struct {
		name     string
		schedule api.SnapshotSchedule
		kept     []string
	}{
		{"last", api.SnapshotSchedule{KeepLast: 3}, []string{"2026-11-24 21:00", "2026-11-24 22:00", "2026-11-24 23:00"}},
		{"hourly and daily", api.SnapshotSchedule{KeepHourly: 2, KeepDaily: 3}, []string{"2026-11-22 23:00", "2026-11-23 23:00", "2026-11-24 22:00", "2026-11-24 23:00"}},
		{"weekly", api.SnapshotSchedule{KeepWeekly: 3}, []string{"2026-11-15 23:00", "2026-11-22 23:00", "2026-11-24 23:00"}}, // Sundays
		{"monthly", api.SnapshotSchedule{KeepMonthly: 5}, []string{"2026-10-31 23:00", "2026-11-24 23:00"}},
	} {
		surplus := c.schedule.Surplus(slots)
		var kept []string
		for _, s := range slots {
			if !slices.ContainsFunc(surplus, s.Equal) {
				kept = append(kept, s.Format("2006-01-02 15:04"))
			}
		}
		if !slices.Equal(kept, c.kept) {
			t.Errorf("%s keeps %v, want %v", c.name, kept, c.kept)
		}
	}
}

// TestRetentionHoldsForAnySlots: the newest is kept, no more are kept than the
// rules allow, order does not matter, and pruning again takes nothing.
func TestRetentionHoldsForAnySlots(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		dice := rand.New(rand.NewPCG(seed, 7))
		s := api.SnapshotSchedule{KeepLast: dice.IntN(4), KeepHourly: dice.IntN(4), KeepDaily: dice.IntN(4), KeepWeekly: dice.IntN(4), KeepMonthly: dice.IntN(4)}
		most := s.KeepLast + s.KeepHourly + s.KeepDaily + s.KeepWeekly + s.KeepMonthly
		var slots []time.Time
		for range dice.IntN(200) {
			slots = append(slots, time.Unix(1_790_000_000+dice.Int64N(90*24*60)*60, 0))
		}
		surplus := s.Surplus(slots)
		gone := func(t time.Time) bool { return slices.ContainsFunc(surplus, t.Equal) }
		kept := slices.DeleteFunc(slices.Clone(slots), gone)
		if len(kept)+len(surplus) > len(slots) || most > 0 && len(slots) > 0 && len(kept) == 0 {
			t.Fatalf("seed %d: %d kept, %d surplus of %d", seed, len(kept), len(surplus), len(slots))
		}
		unique := map[int64]bool{}
		for _, k := range kept {
			unique[k.Unix()] = true
		}
		if len(unique) > most {
			t.Errorf("seed %d: %d are kept, %d allowed", seed, len(unique), most)
		}
		if most > 0 && len(slots) > 0 && gone(slices.MaxFunc(slots, time.Time.Compare)) {
			t.Errorf("seed %d: the newest is surplus", seed)
		}
		shuffled := slices.Clone(slots)
		dice.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if again := s.Surplus(shuffled); !slices.EqualFunc(again, surplus, time.Time.Equal) {
			t.Errorf("seed %d: the order matters", seed)
		}
		if again := s.Surplus(kept); len(again) > 0 {
			t.Errorf("seed %d: pruning again takes %d", seed, len(again))
		}
	}
}

func TestBadSchedulesAreRefused(t *testing.T) {
	t.Parallel()
	vm := func(s api.SnapshotSchedule) *api.VM {
		return &api.VM{Meta: api.Meta{Name: "web", Tenant: "default"}, CPUs: 1, MemoryBytes: api.GiB, Snapshots: &s}
	}
	if err := vm(api.SnapshotSchedule{Every: time.Hour, KeepLast: 1}).Validate(); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]api.SnapshotSchedule{
		"no time":            {KeepLast: 1},
		"two times":          {Every: time.Hour, Cron: "0 * * * *", KeepLast: 1},
		"too often":          {Every: time.Minute, KeepLast: 1},
		"seconds":            {Every: 5*time.Minute + time.Second, KeepLast: 1},
		"nothing kept":       {Every: time.Hour},
		"less than nothing":  {Every: time.Hour, KeepLast: -1},
		"too many":           {Every: time.Hour, KeepLast: 30, KeepDaily: 31},
		"frozen memory":      {Every: time.Hour, KeepLast: 1, Memory: true, Quiesce: true},
		"a day that is none": {Cron: "0 0 30 2 *", KeepLast: 1},
	} {
		if err := vm(s).Validate(); api.CodeOf(err) != api.CodeInvalid || !strings.Contains(err.Error(), "snapshots.") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
