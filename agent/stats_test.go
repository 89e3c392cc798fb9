package agent

import (
	"fmt"
	"math"
	"testing"
	"time"
	"unsafe"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// second is a moment of the tests.
func second(n int) time.Time { return time.Unix(1_000_000, 0).Add(time.Duration(n) * time.Second) }

func domainAt(n int) plugins.DomainCounters {
	v := int64(n)
	return plugins.DomainCounters{ID: "a", CPUTime: time.Duration(n) * time.Second / 2, MemoryBytes: 1 << 30, MemoryRSSBytes: 1 << 29,
		Disks: []plugins.DiskCounters{{Name: "vda", Reads: 10 * v, ReadBytes: 4096 * v, ReadTime: time.Duration(10*v) * 2 * time.Millisecond}},
		NICs:  []plugins.NICCounters{{Name: "vnet0", ReceivedBytes: 100 * v, SentBytes: 50 * v, ReceivedPackets: v, SentDropped: v}}}
}

func near(a, b float64) bool { return math.Abs(a-b) <= 1e-3*max(1, math.Abs(b)) }

func TestRatesAreOfTheLastInterval(t *testing.T) {
	t.Parallel()
	var s stats
	for n := 0; n <= 60; n += 5 {
		s.take(second(n), 0, plugins.Sample{Domains: []plugins.DomainCounters{domainAt(n)}})
	}
	g := s.guests["a"]
	now := g.now.vm()
	if !near(now.CPUPercent, 50) || !near(now.DiskReadRate, 4096) || !near(now.DiskReadsRate, 10) || !near(now.DiskReadLatency, 2) ||
		!near(now.NetReceiveRate, 100) || !near(now.NetSendRate, 50) || !near(now.NetDropsRate, 1) || now.MemoryBytes != 1<<30 || now.DiskWriteLatency != 0 {
		t.Errorf("got %+v", now)
	}
	if len(g.disks) != 1 || !near(g.disks[0].ReadsRate, 10) || len(g.nics) != 1 || !near(g.nics[0].ReceivePacketsRate, 1) {
		t.Errorf("devices: %+v, %+v", g.disks, g.nics)
	}
	points := g.past.window(second(60), api.StatsQuery{Window: time.Hour, Step: 10 * time.Second})
	if len(points) != 6 {
		t.Fatalf("%d points of a minute, want 6", len(points))
	}
	for i, p := range points {
		if v := p.vm(); !near(v.CPUPercent, 50) || !v.At.Equal(second(10*(i+1))) {
			t.Errorf("point %d is %+v", i, v)
		}
	}
	half := g.past.window(second(60), api.StatsQuery{Window: 30 * time.Second, Step: 20 * time.Second})
	if len(half) != 2 || !near(half[1].vm().DiskReadRate, 4096) {
		t.Errorf("the last half minute in steps of 20 s: %+v", half)
	}
}

func TestCountersThatBeginAnewShowNoPeak(t *testing.T) {
	t.Parallel()
	var s stats
	s.take(second(0), 0, plugins.Sample{Domains: []plugins.DomainCounters{domainAt(10_000)}})
	s.take(second(5), 0, plugins.Sample{Domains: []plugins.DomainCounters{domainAt(3)}}) // started again
	if now := s.guests["a"].now.vm(); now.CPUPercent != 0 || now.DiskReadRate != 0 || now.NetReceiveRate != 0 || now.MemoryBytes == 0 {
		t.Errorf("got %+v", now)
	}
	s.take(second(10), 0, plugins.Sample{Domains: []plugins.DomainCounters{domainAt(8)}})
	if now := s.guests["a"].now.vm(); !near(now.CPUPercent, 50) {
		t.Errorf("after that: %+v", now)
	}
	// A disk that is attached has no past, and one that is detached is no fall of the others.
	d := domainAt(13)
	d.Disks = append(d.Disks, plugins.DiskCounters{Name: "vdb", Reads: 1 << 40})
	s.take(second(15), 0, plugins.Sample{Domains: []plugins.DomainCounters{d}})
	if disks := s.guests["a"].disks; len(disks) != 2 || !near(disks[0].ReadsRate, 10) || disks[1].ReadsRate != 0 {
		t.Errorf("a new disk: %+v", disks)
	}
}

func TestTheMachinesShareIsOfAllProcessors(t *testing.T) {
	t.Parallel()
	var s stats
	for n := 0; n <= 10; n += 5 {
		s.take(second(n), 0, plugins.Sample{Node: plugins.NodeCounters{CPUs: 4, CPUBusy: time.Duration(n) * time.Second, CPUTotal: time.Duration(4*n) * time.Second,
			Load: 1.5, MemoryBytes: 100, MemoryAvailableBytes: 40}})
	}
	if now := s.node.now.node(); !near(now.CPUPercent, 25) || now.MemoryUsedBytes != 60 || now.Load != 1.5 {
		t.Errorf("got %+v", now)
	}
}

// TestTheLastHourIsAllThatIsKept runs many guests for more than an hour and
// weighs what is left.
func TestTheLastHourIsAllThatIsKept(t *testing.T) {
	t.Parallel()
	var s stats
	const guests = seriesMax + 10
	sample := plugins.Sample{}
	for i := range guests {
		sample.Domains = append(sample.Domains, plugins.DomainCounters{ID: fmt.Sprint(i)})
	}
	for n := 0; n < 4000; n += 100 {
		s.take(second(n), 0, sample)
	}
	with := 0
	for _, g := range s.guests {
		if len(g.past.points) > 0 {
			with++
		}
	}
	if with != seriesMax || len(s.guests) != guests {
		t.Errorf("%d of %d guests have a past, want %d", with, len(s.guests), seriesMax)
	}
	var r ring
	for n := range 2 * ringPoints {
		r.add(point{at: uint32(n)})
	}
	first, count := uint32(0), 0
	r.each(func(p point) {
		if count == 0 {
			first = p.at
		}
		count++
	})
	if count != ringPoints || first != uint32(ringPoints) {
		t.Errorf("%d points from %d, want %d from %d", count, first, ringPoints, ringPoints)
	}
	if size := int(unsafe.Sizeof(point{})) * ringPoints; size > 20<<10 {
		t.Errorf("the past of one guest takes %d bytes", size)
	}
	// Guests that ended are forgotten once their past is out of the window.
	s.take(second(4000), 0, plugins.Sample{})
	if len(s.guests) != guests {
		t.Errorf("%d guests right after they ended", len(s.guests))
	}
	s.take(second(4000+3601+100), 0, plugins.Sample{})
	if len(s.guests) != 0 {
		t.Errorf("%d guests an hour after they ended", len(s.guests))
	}
}

func TestQueriesAreBounded(t *testing.T) {
	t.Parallel()
	for _, bad := range [][2]string{{"2h", ""}, {"1s", ""}, {"-1h", ""}, {"x", ""}, {"1h", "1s"}, {"1h", "2h"}, {"1h", "abc"}} {
		var q api.StatsQuery
		if err := q.Settle(bad[0], bad[1]); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("window %q, step %q: %v, want CodeInvalid", bad[0], bad[1], err)
		}
	}
	for _, good := range []struct {
		window, step string
		want         time.Duration
	}{{"1h", "", time.Minute}, {"5m", "", 10 * time.Second}, {"1h", "25s", 20 * time.Second}, {"", "", 10 * time.Second}} {
		var q api.StatsQuery
		if err := q.Settle(good.window, good.step); err != nil || q.Step != good.want {
			t.Errorf("window %q, step %q: step %v, want %v: %v", good.window, good.step, q.Step, good.want, err)
		}
	}
}
