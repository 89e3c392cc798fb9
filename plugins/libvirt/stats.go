package libvirt

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

var _ plugins.Meter = (*Hypervisor)(nil)

// statsWanted are the groups that Sample reads; vcpu, which costs most, is not
// among them.
const statsWanted = libvirt.DomainStatsCPUTotal | libvirt.DomainStatsBalloon | libvirt.DomainStatsInterface | libvirt.DomainStatsBlock

// Sample implements plugins.Meter: one call for all domains. Those of others
// are dropped by what the last listing knew, because asking each for its mark
// would be a call a domain. A guest that is busy with another job is not waited
// for.
func (h *Hypervisor) Sample(ctx context.Context) (plugins.Sample, error) {
	c, err := h.connect(ctx)
	if err != nil {
		return plugins.Sample{}, err
	}
	var records []libvirt.DomainStatsRecord
	err = c.call(ctx, func(l *libvirt.Libvirt) (err error) {
		records, err = l.ConnectGetAllDomainStats(nil, uint32(statsWanted),
			uint32(libvirt.ConnectGetAllDomainsStatsActive|libvirt.ConnectGetAllDomainsStatsNowait))
		return err
	})
	if err != nil {
		return plugins.Sample{}, err
	}
	out := plugins.Sample{Domains: h.counters(records)}
	out.Node, err = readMachine(hostRoot)
	return out, err
}

func (h *Hypervisor) counters(records []libvirt.DomainStatsRecord) []plugins.DomainCounters {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]plugins.DomainCounters, 0, len(records))
	for _, r := range records {
		id := uuid.UUID(r.Dom.UUID).String()
		if _, ours := h.ours[id]; ours {
			out = append(out, domainCounters(id, r.Params))
		}
	}
	slices.SortFunc(out, func(a, b plugins.DomainCounters) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// domainCounters reads the parameters of one domain by their names (virsh
// domstats, libvirt-domain.h). Unknown ones are passed over.
func domainCounters(id string, params []libvirt.TypedParam) plugins.DomainCounters {
	d := plugins.DomainCounters{ID: id}
	for _, p := range params {
		group, rest, _ := strings.Cut(p.Field, ".")
		switch group {
		case "cpu":
			if rest == "time" {
				d.CPUTime = time.Duration(number(p.Value.I))
			}
		case "balloon":
			switch rest {
			case "current":
				d.MemoryBytes = number(p.Value.I) * api.KiB
			case "rss":
				d.MemoryRSSBytes = number(p.Value.I) * api.KiB
			}
		case "block":
			if i, field, ok := numbered(rest, api.DisksMax+1); ok { // and the seed
				d.Disks = grown(d.Disks, i)
				diskParam(&d.Disks[i], field, p.Value.I)
			}
		case "net":
			if i, field, ok := numbered(rest, api.NICsMax); ok {
				d.NICs = grown(d.NICs, i)
				nicParam(&d.NICs[i], field, p.Value.I)
			}
		}
	}
	d.Disks = slices.DeleteFunc(d.Disks, func(k plugins.DiskCounters) bool { return k.Name == "" || k.Name == seedDev })
	return d
}

// numbered cuts "3.rd.bytes" into 3 and "rd.bytes".
func numbered(rest string, limit int) (int, string, bool) {
	index, field, ok := strings.Cut(rest, ".")
	i, err := strconv.Atoi(index)
	return i, field, ok && err == nil && i >= 0 && i < limit
}

func grown[T any](s []T, i int) []T {
	for len(s) <= i {
		var zero T
		s = append(s, zero)
	}
	return s
}

func diskParam(k *plugins.DiskCounters, field string, value any) {
	switch field {
	case "name":
		k.Name, _ = value.(string)
	case "rd.bytes":
		k.ReadBytes = number(value)
	case "rd.reqs":
		k.Reads = number(value)
	case "rd.times":
		k.ReadTime = time.Duration(number(value))
	case "wr.bytes":
		k.WriteBytes = number(value)
	case "wr.reqs":
		k.Writes = number(value)
	case "wr.times":
		k.WriteTime = time.Duration(number(value))
	}
}

func nicParam(k *plugins.NICCounters, field string, value any) {
	switch field {
	case "name":
		k.Name, _ = value.(string)
	case "rx.bytes":
		k.ReceivedBytes = number(value)
	case "rx.pkts":
		k.ReceivedPackets = number(value)
	case "rx.drop":
		k.ReceivedDropped = number(value)
	case "tx.bytes":
		k.SentBytes = number(value)
	case "tx.pkts":
		k.SentPackets = number(value)
	case "tx.drop":
		k.SentDropped = number(value)
	}
}

// number is a parameter's value; what is no count is 0. Counters that went
// wrong in a driver show as negative or above what an int64 holds.
func number(value any) int64 {
	switch v := value.(type) {
	case int32:
		return max(0, int64(v))
	case uint32:
		return int64(v)
	case int64:
		return max(0, v)
	case uint64:
		if v > 1<<62 {
			return 0
		}
		return int64(v)
	}
	return 0
}
