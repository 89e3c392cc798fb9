package main

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/debvisor/debvisor/fsm"
)

// nodeMetrics reads the figures of a node when somebody asks for them.
type nodeMetrics struct {
	n *node

	leads, term, commit, applied, lastLog, snapshot, contact, fsync *prometheus.Desc
	journal, certificate, nodes, vms, instances, tasks              *prometheus.Desc
}

func newRegistry(n *node) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("debvisor_"+name, help, labels, nil)
	}
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &nodeMetrics{
		n:           n,
		leads:       d("raft_leader", "1 when this node leads."),
		term:        d("raft_term", "Term of Raft."),
		commit:      d("raft_commit_index", "Last entry that is committed."),
		applied:     d("raft_applied_index", "Last entry that this node's state has."),
		lastLog:     d("raft_log_index", "Last entry of this node's log."),
		snapshot:    d("raft_snapshot_index", "Last entry of this node's last snapshot."),
		contact:     d("raft_leader_contact_seconds", "Time since the leader was heard; 0 on the leader."),
		fsync:       d("raft_fsync_p99_seconds", "99th percentile of the writes to the log's disk."),
		journal:     d("journal_last_index", "Last record of this node's journal."),
		certificate: d("certificate_end_timestamp_seconds", "End of this node's certificate."),
		nodes:       d("nodes", "Nodes of the cluster by the state of their lease.", "lease"),
		vms:         d("vms", "Virtual machines that users want, by their power.", "power"),
		instances:   d("instances", "Virtual machines by what became of them.", "state"),
		tasks:       d("tasks", "Tasks by state.", "state"),
	})
	registry.MustRegister(newVMMetrics(n))
	return registry
}

// Describe implements prometheus.Collector.
func (m *nodeMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.leads, m.term, m.commit, m.applied, m.lastLog, m.snapshot, m.contact, m.fsync,
		m.journal, m.certificate, m.nodes, m.vms, m.instances, m.tasks} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (m *nodeMetrics) Collect(out chan<- prometheus.Metric) {
	stats, view := m.n.server.Stats(), m.n.server.State().Read()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	leads := 0.0
	if stats.Leader.ID == stats.Self.ID {
		leads = 1
	}
	gauge(m.leads, leads)
	gauge(m.term, float64(stats.Term))
	gauge(m.commit, float64(stats.Commit))
	gauge(m.applied, float64(stats.Applied))
	gauge(m.lastLog, float64(stats.LastLog))
	gauge(m.snapshot, float64(stats.Snapshot))
	gauge(m.contact, stats.LastContact.Seconds())
	gauge(m.fsync, stats.FsyncP99.Seconds())
	gauge(m.journal, float64(stats.Journal.Last))
	gauge(m.certificate, float64(stats.CertificateTo.Unix()))
	leases, power, states, tasks := map[string]int{}, map[string]int{"on": 0, "off": 0}, map[string]int{}, map[string]int{}
	for n := range fsm.Nodes.All(view) {
		leases[n.Lease]++
	}
	for v := range fsm.VMs.All(view) {
		if v.On() {
			power["on"]++
		} else {
			power["off"]++
		}
	}
	for i := range fsm.Instances.All(view) {
		states[i.State]++
	}
	for t := range fsm.Tasks.All(view) {
		tasks[t.State]++
	}
	for d, counts := range map[*prometheus.Desc]map[string]int{m.nodes: leases, m.vms: power, m.instances: states, m.tasks: tasks} {
		for label, count := range counts {
			gauge(d, float64(count), label)
		}
	}
}
