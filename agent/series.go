package agent

import (
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// ringPoints is how many points a series remembers.
const ringPoints = int(api.StatsWindow / api.StatsResolution)

// ring keeps the last ringPoints points. It grows with what it holds, so that
// guests that come and go cost little.
type ring struct {
	points []point
	next   int // where the next one goes, once all places are taken
}

func (r *ring) add(p point) {
	if len(r.points) < ringPoints {
		r.points = append(r.points, p)
		return
	}
	r.points[r.next] = p
	r.next = (r.next + 1) % ringPoints
}

// each visits the points, oldest first.
func (r *ring) each(visit func(point)) {
	for i := range r.points {
		visit(r.points[(r.next+i)%len(r.points)])
	}
}

// The values of a remembered point, in the order of its array.
const (
	valueCPU = iota
	valueMemory
	valueRSS
	valueDiskRead
	valueDiskWrite
	valueReads
	valueWrites
	valueReadLatency
	valueWriteLatency
	valueReceive
	valueSend
	valueDrops
	values
)

// valueLoad takes the place of what a machine has no use for.
const valueLoad = valueRSS

// point is a moment in a series: 52 bytes, since there are ringPoints of them
// for each guest.
type point struct {
	at     uint32 // Unix seconds
	values [values]float32
}

// traffic is the sum over the devices of a guest, or of a machine.
type traffic struct {
	disk plugins.DiskCounters
	nic  plugins.NICCounters
}

func trafficOf(disks []plugins.DiskCounters, nics []plugins.NICCounters) (t traffic) {
	for _, d := range disks {
		t.disk.ReadBytes, t.disk.WriteBytes = t.disk.ReadBytes+d.ReadBytes, t.disk.WriteBytes+d.WriteBytes
		t.disk.Reads, t.disk.Writes = t.disk.Reads+d.Reads, t.disk.Writes+d.Writes
		t.disk.ReadTime, t.disk.WriteTime = t.disk.ReadTime+d.ReadTime, t.disk.WriteTime+d.WriteTime
	}
	for _, n := range nics {
		t.nic.ReceivedBytes, t.nic.SentBytes = t.nic.ReceivedBytes+n.ReceivedBytes, t.nic.SentBytes+n.SentBytes
		t.nic.ReceivedDropped, t.nic.SentDropped = t.nic.ReceivedDropped+n.ReceivedDropped, t.nic.SentDropped+n.SentDropped
	}
	return t
}

// rate is how fast a counter grows. One that fell began anew, and how far it
// had come is unknown: that stretch shows nothing, which is better than a peak
// that never was.
func rate[N int64 | time.Duration](now, before N, seconds float64) float64 {
	if now <= before || seconds <= 0 {
		return 0
	}
	return float64(now-before) / seconds
}

// latency is how long one operation took, in milliseconds.
func latency(time, timeBefore time.Duration, count, countBefore int64) float64 {
	if count <= countBefore || time <= timeBefore {
		return 0
	}
	return float64(time-timeBefore) / float64(count-countBefore) / 1e6
}

// fill sets what disks and interfaces did between two readings.
func (p *point) fill(now, before traffic, seconds float64) {
	set := func(i int, v float64) { p.values[i] = float32(v) }
	set(valueDiskRead, rate(now.disk.ReadBytes, before.disk.ReadBytes, seconds))
	set(valueDiskWrite, rate(now.disk.WriteBytes, before.disk.WriteBytes, seconds))
	set(valueReads, rate(now.disk.Reads, before.disk.Reads, seconds))
	set(valueWrites, rate(now.disk.Writes, before.disk.Writes, seconds))
	set(valueReadLatency, latency(now.disk.ReadTime, before.disk.ReadTime, now.disk.Reads, before.disk.Reads))
	set(valueWriteLatency, latency(now.disk.WriteTime, before.disk.WriteTime, now.disk.Writes, before.disk.Writes))
	set(valueReceive, rate(now.nic.ReceivedBytes, before.nic.ReceivedBytes, seconds))
	set(valueSend, rate(now.nic.SentBytes, before.nic.SentBytes, seconds))
	drops := func(n plugins.NICCounters) int64 { return n.ReceivedDropped + n.SentDropped }
	set(valueDrops, rate(drops(now.nic), drops(before.nic), seconds))
}

// domainPoint is what a guest did between two readings.
func domainPoint(at time.Time, now, before plugins.DomainCounters, seconds float64) point {
	p := point{at: uint32(at.Unix())}
	p.values[valueCPU] = float32(rate(now.CPUTime, before.CPUTime, seconds) / float64(time.Second) * 100)
	p.values[valueMemory], p.values[valueRSS] = float32(now.MemoryBytes), float32(now.MemoryRSSBytes)
	p.fill(trafficOf(now.Disks, now.NICs), trafficOf(before.Disks, before.NICs), seconds)
	return p
}

// nodePoint is what the machine did between two readings.
func nodePoint(at time.Time, now, before plugins.NodeCounters, seconds float64) point {
	p := point{at: uint32(at.Unix())}
	if total := now.CPUTotal - before.CPUTotal; total > 0 && now.CPUBusy > before.CPUBusy {
		p.values[valueCPU] = float32(min(100, 100*float64(now.CPUBusy-before.CPUBusy)/float64(total)))
	}
	p.values[valueLoad], p.values[valueMemory] = float32(now.Load), float32(now.MemoryBytes-now.MemoryAvailableBytes)
	p.fill(traffic{now.Disk, now.NIC}, traffic{before.Disk, before.NIC}, seconds)
	return p
}

// window averages the points of a window into steps, each named by its end.
func (r *ring) window(now time.Time, q api.StatsQuery) []point {
	var out []point
	var count float32
	from, step := now.Add(-q.Window).Unix(), max(1, int64(q.Step/time.Second))
	r.each(func(p point) {
		if int64(p.at) <= from {
			return
		}
		end := uint32((int64(p.at) + step - 1) / step * step)
		if len(out) == 0 || out[len(out)-1].at != end {
			out, count = append(out, point{at: end}), 0
		}
		count++
		last := &out[len(out)-1]
		for i := range p.values {
			last.values[i] += (p.values[i] - last.values[i]) / count
		}
	})
	return out
}

func (p point) vm() api.VMUsage {
	v := func(i int) float64 { return float64(p.values[i]) }
	return api.VMUsage{
		At: time.Unix(int64(p.at), 0).UTC(), CPUPercent: v(valueCPU), MemoryBytes: int64(v(valueMemory)), MemoryRSSBytes: int64(v(valueRSS)),
		DiskReadRate: v(valueDiskRead), DiskWriteRate: v(valueDiskWrite), DiskReadsRate: v(valueReads), DiskWritesRate: v(valueWrites),
		DiskReadLatency: v(valueReadLatency), DiskWriteLatency: v(valueWriteLatency),
		NetReceiveRate: v(valueReceive), NetSendRate: v(valueSend), NetDropsRate: v(valueDrops),
	}
}

func (p point) node() api.NodeUsage {
	v := func(i int) float64 { return float64(p.values[i]) }
	return api.NodeUsage{
		At: time.Unix(int64(p.at), 0).UTC(), CPUPercent: v(valueCPU), Load: v(valueLoad), MemoryUsedBytes: int64(v(valueMemory)),
		DiskReadRate: v(valueDiskRead), DiskWriteRate: v(valueDiskWrite), DiskReadsRate: v(valueReads), DiskWritesRate: v(valueWrites),
		DiskReadLatency: v(valueReadLatency), DiskWriteLatency: v(valueWriteLatency),
		NetReceiveRate: v(valueReceive), NetSendRate: v(valueSend), NetDropsRate: v(valueDrops),
	}
}

// devices is what each disk and interface did between two readings. Devices
// are matched by name: one that is new has no past.
func devices(now, before plugins.DomainCounters, seconds float64) (disks []api.DiskUsage, nics []api.NICUsage) {
	for _, d := range now.Disks {
		b := named(before.Disks, d, func(k plugins.DiskCounters) string { return k.Name })
		disks = append(disks, api.DiskUsage{Name: d.Name, ReadRate: rate(d.ReadBytes, b.ReadBytes, seconds), WriteRate: rate(d.WriteBytes, b.WriteBytes, seconds),
			ReadsRate: rate(d.Reads, b.Reads, seconds), WritesRate: rate(d.Writes, b.Writes, seconds),
			ReadLatency: latency(d.ReadTime, b.ReadTime, d.Reads, b.Reads), WriteLatency: latency(d.WriteTime, b.WriteTime, d.Writes, b.Writes)})
	}
	for _, n := range now.NICs {
		b := named(before.NICs, n, func(k plugins.NICCounters) string { return k.Name })
		nics = append(nics, api.NICUsage{Name: n.Name, ReceiveRate: rate(n.ReceivedBytes, b.ReceivedBytes, seconds), SendRate: rate(n.SentBytes, b.SentBytes, seconds),
			ReceivePacketsRate: rate(n.ReceivedPackets, b.ReceivedPackets, seconds), SendPacketsRate: rate(n.SentPackets, b.SentPackets, seconds),
			DropsRate: rate(n.ReceivedDropped+n.SentDropped, b.ReceivedDropped+b.SentDropped, seconds)})
	}
	return disks, nics
}

// named finds what a device had counted before; itself when it is new.
func named[D any](before []D, d D, name func(D) string) D {
	for _, b := range before {
		if name(b) == name(d) {
			return b
		}
	}
	return d
}
