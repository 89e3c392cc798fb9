package api

import "time"

// Limits of statistics.
const (
	StatsWindow      = time.Hour        // that a node remembers
	StatsResolution  = 10 * time.Second // of what it remembers
	StatsInterval    = 5 * time.Second  // between two readings; the last one is as old as this at most
	StatsNodeTimeout = 2 * time.Second  // for one node's part of an answer
)

// NodeUsage is what a machine did over one stretch of time, which ends at At.
type NodeUsage struct {
	At               time.Time `json:"at"`
	CPUPercent       float64   `json:"cpu_percent"` // of all its processors: 100 is all of them
	Load             float64   `json:"load"`        // processes that want to run, over a minute
	MemoryUsedBytes  int64     `json:"memory_used_bytes"`
	DiskReadRate     float64   `json:"disk_read_bytes_per_second"`
	DiskWriteRate    float64   `json:"disk_write_bytes_per_second"`
	DiskReadsRate    float64   `json:"disk_reads_per_second"`
	DiskWritesRate   float64   `json:"disk_writes_per_second"`
	NetReceiveRate   float64   `json:"network_receive_bytes_per_second"`
	NetSendRate      float64   `json:"network_send_bytes_per_second"`
	NetDropsRate     float64   `json:"network_drops_per_second"`
	DiskReadLatency  float64   `json:"disk_read_latency_ms"`
	DiskWriteLatency float64   `json:"disk_write_latency_ms"`
}

// NodeStats is what a node says of its machine.
type NodeStats struct {
	Node        string      `json:"node"`
	CPUs        int         `json:"cpus"`
	MemoryBytes int64       `json:"memory_bytes"`
	VMs         int         `json:"vms"` // that execute here
	Now         NodeUsage   `json:"now"`
	StepSeconds int         `json:"step_seconds,omitzero"`
	Points      []NodeUsage `json:"points,omitzero"` // of the window that was asked for, oldest first
}

// VMUsage is what a guest did over one stretch of time, which ends at At.
type VMUsage struct {
	At               time.Time `json:"at"`
	CPUPercent       float64   `json:"cpu_percent"`      // of one processor: 200 is two of them
	MemoryBytes      int64     `json:"memory_bytes"`     // that the guest has been given
	MemoryRSSBytes   int64     `json:"memory_rss_bytes"` // that it takes of its machine's
	DiskReadRate     float64   `json:"disk_read_bytes_per_second"`
	DiskWriteRate    float64   `json:"disk_write_bytes_per_second"`
	DiskReadsRate    float64   `json:"disk_reads_per_second"`
	DiskWritesRate   float64   `json:"disk_writes_per_second"`
	DiskReadLatency  float64   `json:"disk_read_latency_ms"`
	DiskWriteLatency float64   `json:"disk_write_latency_ms"`
	NetReceiveRate   float64   `json:"network_receive_bytes_per_second"`
	NetSendRate      float64   `json:"network_send_bytes_per_second"`
	NetDropsRate     float64   `json:"network_drops_per_second"`
}

// DiskUsage is what one disk of a guest did.
type DiskUsage struct {
	Name         string  `json:"name"` // as the guest's definition calls it
	ReadRate     float64 `json:"read_bytes_per_second"`
	WriteRate    float64 `json:"write_bytes_per_second"`
	ReadsRate    float64 `json:"reads_per_second"`
	WritesRate   float64 `json:"writes_per_second"`
	ReadLatency  float64 `json:"read_latency_ms"`
	WriteLatency float64 `json:"write_latency_ms"`
}

// NICUsage is what one interface of a guest did, as the guest sees it.
type NICUsage struct {
	Name               string  `json:"name"` // on the machine
	ReceiveRate        float64 `json:"receive_bytes_per_second"`
	SendRate           float64 `json:"send_bytes_per_second"`
	ReceivePacketsRate float64 `json:"receive_packets_per_second"`
	SendPacketsRate    float64 `json:"send_packets_per_second"`
	DropsRate          float64 `json:"drops_per_second"`
}

// VMStats is what the node of a VM says of its guest.
type VMStats struct {
	ID          string      `json:"id"`
	Tenant      string      `json:"tenant"`
	Name        string      `json:"name"`
	Node        string      `json:"node"`
	CPUs        int         `json:"cpus"`
	Now         VMUsage     `json:"now"`
	Disks       []DiskUsage `json:"disks,omitzero"`
	NICs        []NICUsage  `json:"nics,omitzero"`
	StepSeconds int         `json:"step_seconds,omitzero"`
	Points      []VMUsage   `json:"points,omitzero"` // of the window that was asked for, oldest first
}

// PoolUsage is the space of a pool on one node.
type PoolUsage struct {
	Node       string `json:"node"`
	TotalBytes int64  `json:"total_bytes"`
	UsedBytes  int64  `json:"used_bytes"`
	FreeBytes  int64  `json:"free_bytes"`
	Reason     string `json:"reason,omitzero"` // why it cannot be used there
}

// PoolStats is the space of a pool. That of a shared one counts once.
type PoolStats struct {
	Pool       string      `json:"pool"`
	TotalBytes int64       `json:"total_bytes"`
	UsedBytes  int64       `json:"used_bytes"`
	FreeBytes  int64       `json:"free_bytes"`
	Nodes      []PoolUsage `json:"nodes"`
}

// MissingNode is a node that an answer lacks.
type MissingNode struct {
	Node   string `json:"node"`
	Reason string `json:"reason"`
}

// StatsQuery selects the points of an answer.
type StatsQuery struct {
	Window time.Duration `json:"window,omitzero"` // before now; 0: no points
	Step   time.Duration `json:"step,omitzero"`   // that a point covers; 0: what gives 60 points
}

// Settle checks the query and fills it in. window and step are durations as
// people write them, or empty.
func (q *StatsQuery) Settle(window, step string) error {
	for _, f := range []struct {
		name, text string
		min, max   time.Duration
		into       *time.Duration
	}{{"window", window, StatsResolution, StatsWindow, &q.Window}, {"step", step, StatsResolution, StatsWindow, &q.Step}} {
		if f.text == "" {
			continue
		}
		d, err := time.ParseDuration(f.text)
		if err != nil || d < f.min || d > f.max {
			return Invalid(f.name, "is %.32q", f.text).Allow("a duration of %v to %v", f.min, f.max)
		}
		*f.into = d
	}
	if q.Step == 0 {
		q.Step = q.Window / 60
	}
	q.Step = max(StatsResolution, q.Step.Truncate(StatsResolution))
	return nil
}
