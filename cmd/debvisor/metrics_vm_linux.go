package main

import (
	"maps"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/debvisor/debvisor/plugins"
)

// metricsVMsMax is of how many VMs of this node the metrics tell, the first by
// tenant and name: a scrape stays below a megabyte.
const metricsVMsMax = 1000

// vmMetrics are the counters of the guests of this node.
type vmMetrics struct {
	n       *node
	took    *prometheus.Desc
	leftOut *prometheus.Desc
	figures []vmFigure
}

// vmFigure is one figure of a guest.
type vmFigure struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(plugins.DomainCounters) float64
}

func newVMMetrics(n *node) *vmMetrics {
	m := &vmMetrics{n: n,
		took:    prometheus.NewDesc("debvisor_stats_read_seconds", "Time that the last reading of all counters took.", nil, nil),
		leftOut: prometheus.NewDesc("debvisor_vm_metrics_left_out", "VMs of this node that the metrics do not tell of.", nil, nil),
	}
	add := func(name, help string, kind prometheus.ValueType, of func(plugins.DomainCounters) float64) {
		m.figures = append(m.figures, vmFigure{prometheus.NewDesc("debvisor_vm_"+name, help, []string{"tenant", "vm"}, nil), kind, of})
	}
	disks := func(of func(plugins.DiskCounters) int64) func(plugins.DomainCounters) float64 {
		return func(d plugins.DomainCounters) float64 { return sum(d.Disks, of) }
	}
	nics := func(of func(plugins.NICCounters) int64) func(plugins.DomainCounters) float64 {
		return func(d plugins.DomainCounters) float64 { return sum(d.NICs, of) }
	}
	const counter, gauge = prometheus.CounterValue, prometheus.GaugeValue
	add("cpu_seconds_total", "Processor time of the guest.", counter, func(d plugins.DomainCounters) float64 { return d.CPUTime.Seconds() })
	add("memory_bytes", "Memory that the guest has been given.", gauge, func(d plugins.DomainCounters) float64 { return float64(d.MemoryBytes) })
	add("memory_rss_bytes", "Memory that the guest takes of the machine's.", gauge, func(d plugins.DomainCounters) float64 { return float64(d.MemoryRSSBytes) })
	add("disk_read_bytes_total", "Bytes read from the guest's disks.", counter, disks(func(k plugins.DiskCounters) int64 { return k.ReadBytes }))
	add("disk_write_bytes_total", "Bytes written to the guest's disks.", counter, disks(func(k plugins.DiskCounters) int64 { return k.WriteBytes }))
	add("disk_reads_total", "Reads of the guest's disks.", counter, disks(func(k plugins.DiskCounters) int64 { return k.Reads }))
	add("disk_writes_total", "Writes of the guest's disks.", counter, disks(func(k plugins.DiskCounters) int64 { return k.Writes }))
	add("network_receive_bytes_total", "Bytes that the guest received.", counter, nics(func(k plugins.NICCounters) int64 { return k.ReceivedBytes }))
	add("network_send_bytes_total", "Bytes that the guest sent.", counter, nics(func(k plugins.NICCounters) int64 { return k.SentBytes }))
	add("network_drops_total", "Packets of the guest that were dropped.", counter, nics(func(k plugins.NICCounters) int64 { return k.ReceivedDropped + k.SentDropped }))
	return m
}

func sum[D any](devices []D, of func(D) int64) (total float64) {
	for _, d := range devices {
		total += float64(of(d))
	}
	return total
}

// Describe implements prometheus.Collector.
func (m *vmMetrics) Describe(out chan<- *prometheus.Desc) {
	out <- m.took
	out <- m.leftOut
	for _, f := range m.figures {
		out <- f.desc
	}
}

// Collect implements prometheus.Collector.
func (m *vmMetrics) Collect(out chan<- prometheus.Metric) {
	if m.n.agent == nil || m.n.config.Witness {
		return
	}
	guests, took := m.n.agent.Counters()
	out <- prometheus.MustNewConstMetric(m.took, prometheus.GaugeValue, took.Seconds())
	out <- prometheus.MustNewConstMetric(m.leftOut, prometheus.GaugeValue, float64(max(0, len(guests)-metricsVMsMax)))
	keys := slices.Sorted(maps.Keys(guests))
	for _, key := range keys[:min(len(keys), metricsVMsMax)] {
		tenant, name, _ := strings.Cut(key, "/")
		for _, f := range m.figures {
			out <- prometheus.MustNewConstMetric(f.desc, f.kind, f.of(guests[key]), tenant, name)
		}
	}
}
