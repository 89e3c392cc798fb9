package sim

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

var _ plugins.Meter = (*Hypervisor)(nil)

// period is after how long a simulated guest's use of the machine repeats.
const period = 4 * time.Minute

// Sample implements plugins.Meter. What a guest used is computed from its ID
// and its age: the same on every call for the same moment, up and down as work
// goes, and never falling while the guest runs.
func (h *Hypervisor) Sample(ctx context.Context) (plugins.Sample, error) {
	if err := h.usable(ctx); err != nil {
		return plugins.Sample{}, err
	}
	h.mu.Lock()
	records := make([]*record, 0, len(h.domains))
	for _, d := range h.domains {
		if r := d.record.Load(); r != nil && r.executing() && r.Spec.ClusterID == h.config.ClusterID {
			records = append(records, r)
		}
	}
	h.mu.Unlock()
	now := time.Now()
	out := plugins.Sample{Domains: make([]plugins.DomainCounters, 0, len(records))}
	for _, r := range records {
		out.Domains = append(out.Domains, r.counters(now))
	}
	slices.SortFunc(out.Domains, func(a, b plugins.DomainCounters) int { return cmp.Compare(a.ID, b.ID) })
	out.Node = h.machine(now, out.Domains)
	return out, nil
}

// counters is what a guest has used by now.
func (r *record) counters(now time.Time) plugins.DomainCounters {
	sum := sha256.Sum256([]byte(r.Spec.ID))
	share := func(i int) float64 { return float64(binary.BigEndian.Uint16(sum[2*i:])) / math.MaxUint16 } // 0 to 1, its own
	age := max(0, now.Sub(r.StartedAt))
	spent := func(i int) float64 { return wave(age, share(i)) } // seconds, of work of kind i
	d := plugins.DomainCounters{
		ID:             r.Spec.ID,
		CPUTime:        time.Duration((0.02 + 0.6*share(0)) * float64(r.Spec.CPUs) * spent(0) * float64(time.Second)),
		MemoryBytes:    r.Spec.MemoryBytes,
		MemoryRSSBytes: int64(float64(r.Spec.MemoryBytes) * (0.2 + 0.6*share(1))),
	}
	for i := range r.Spec.Disks {
		reads, writes := int64((5+200*share(2))*spent(2)), int64((2+100*share(3))*spent(3))
		d.Disks = append(d.Disks, plugins.DiskCounters{Name: fmt.Sprintf("vd%c", 'a'+i%26), Reads: reads, Writes: writes,
			ReadBytes: reads * 16 * api.KiB, WriteBytes: writes * 8 * api.KiB,
			ReadTime: time.Duration(reads) * 400 * time.Microsecond, WriteTime: time.Duration(writes) * 900 * time.Microsecond})
	}
	for i := range r.Spec.NICs {
		in, out := int64((10+500*share(4))*spent(4)), int64((10+400*share(5))*spent(5))
		d.NICs = append(d.NICs, plugins.NICCounters{Name: fmt.Sprintf("sim%d", i), ReceivedPackets: in, SentPackets: out,
			ReceivedBytes: in * 800, SentBytes: out * 600, ReceivedDropped: in / 100_000})
	}
	return d
}

// wave is the age in seconds, run through faster and slower: the integral of
// 1 + 0.8·sin, with a phase.
func wave(age time.Duration, phase float64) float64 {
	t, omega := age.Seconds(), 2*math.Pi/period.Seconds()
	return t + 0.8/omega*(math.Cos(2*math.Pi*phase)-math.Cos(omega*t+2*math.Pi*phase))
}

// machine is the machine below the guests: what they use, and a little. It
// counts from the epoch, so that it goes on where it was after a restart.
func (h *Hypervisor) machine(now time.Time, domains []plugins.DomainCounters) plugins.NodeCounters {
	n := plugins.NodeCounters{CPUs: h.config.CPUs, MemoryBytes: h.config.MemoryBytes}
	up := time.Duration(now.UnixNano() % int64(1000*time.Hour))
	n.CPUTotal = up * time.Duration(n.CPUs)
	n.CPUBusy = n.CPUTotal / 100
	used := h.config.MemoryBytes / 50
	for _, d := range domains {
		n.CPUBusy += d.CPUTime
		used += d.MemoryRSSBytes
		for _, k := range d.Disks {
			n.Disk.Reads, n.Disk.ReadBytes, n.Disk.ReadTime = n.Disk.Reads+k.Reads, n.Disk.ReadBytes+k.ReadBytes, n.Disk.ReadTime+k.ReadTime
			n.Disk.Writes, n.Disk.WriteBytes, n.Disk.WriteTime = n.Disk.Writes+k.Writes, n.Disk.WriteBytes+k.WriteBytes, n.Disk.WriteTime+k.WriteTime
		}
		for _, k := range d.NICs {
			n.NIC.ReceivedBytes, n.NIC.ReceivedPackets = n.NIC.ReceivedBytes+k.ReceivedBytes, n.NIC.ReceivedPackets+k.ReceivedPackets
			n.NIC.SentBytes, n.NIC.SentPackets = n.NIC.SentBytes+k.SentBytes, n.NIC.SentPackets+k.SentPackets
		}
	}
	n.MemoryAvailableBytes = max(0, n.MemoryBytes-used)
	n.Load = float64(len(domains)) * 0.1
	return n
}
