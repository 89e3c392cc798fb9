package api

import "time"

// ConfigName is the name of the only row of kind config.
const ConfigName = "cluster"

// Bounds of the cluster's settings.
const (
	OvercommitMax           = 16.0
	TaskRetentionMin        = time.Minute
	TaskRetentionMax        = 90 * 24 * time.Hour
	JournalRetentionMin     = 24 * time.Hour
	JournalRetentionMax     = 10 * 365 * 24 * time.Hour
	VotersMax               = 7
	MovesPerNodeMax         = 32
	defaultMovesPerNode     = 2
	CopiesMax               = 1024
	PercentMax              = 100
	defaultTasksPerNode     = 8
	defaultCopiesPerNode    = 8
	defaultCopiesPerPool    = 4
	defaultPoolWarn         = 80
	defaultPoolFull         = 90
	defaultCPUOvercommit    = 4.0
	defaultMemoryOvercommit = 1.0
	defaultTaskRetention    = 7 * 24 * time.Hour
	defaultJournalRetention = 365 * 24 * time.Hour
)

// Config holds the settings of the whole cluster, in its only row "cluster".
type Config struct {
	Meta
	Region            string        `json:"region,omitzero"`               // name of this region; fixed by init
	ClusterID         string        `json:"cluster_id,omitzero"`           // random UUID; fixed by init
	CPUOvercommit     float64       `json:"cpu_overcommit,omitzero"`       // vCPUs per host CPU; 0 means 4
	MemoryOvercommit  float64       `json:"memory_overcommit,omitzero"`    // guest bytes per host byte; 0 means 1
	MemoryReserve     int64         `json:"memory_reserve_bytes,omitzero"` // kept for each host itself, in bytes
	PlacementStrategy string        `json:"placement_strategy,omitzero"`   // spread (default) or pack
	TaskRetention     time.Duration `json:"task_retention_ns,omitzero"`    // ended tasks are kept this long; 0 means 7 days
	JournalRetention  time.Duration `json:"journal_retention_ns,omitzero"` // the journal and with it history is kept this long; 0 means 365 days
	TasksPerNode      int           `json:"tasks_per_node,omitzero"`       // that one node, or the leader, carries out at a time; 0 means 8
	CopiesPerNode     int           `json:"copies_per_node,omitzero"`      // volumes that one node copies at a time; 0 means 8
	PoolWarnPercent   int           `json:"pool_warn_percent,omitzero"`    // a pool that is used to so much is warned of; 0 means 80
	PoolFullPercent   int           `json:"pool_full_percent,omitzero"`    // one that is used to so much is warned of as nearly full; 0 means 90
	CPUBaseline       string        `json:"cpu_baseline,omitzero"`         // CPU model of guests whose VM names none; empty: the best level of x86-64 that all nodes with KVM can give
	Voters            int           `json:"voters,omitzero"`               // wanted number of voters, odd; 0 means as many as fit, at most 7
	MovesPerNode      int           `json:"moves_per_node,omitzero"`       // live migrations that one node takes part in at a time during a drain or a balancing; 0 means 2
}

// Validate implements Object.
func (c *Config) Validate() error {
	var p problems
	c.check(&p, false)
	if c.Name != ConfigName {
		p.add("name", "is %q", c.Name).Allow("%s", ConfigName)
	}
	for _, f := range []struct {
		field string
		value float64
	}{{"cpu_overcommit", c.CPUOvercommit}, {"memory_overcommit", c.MemoryOvercommit}} {
		if f.value != 0 && !(f.value >= 0.1 && f.value <= OvercommitMax) {
			p.add(f.field, "is %v", f.value).Allow("0.1 to %v", OvercommitMax)
		}
	}
	if c.MemoryReserve < 0 {
		p.add("memory_reserve_bytes", "is %d", c.MemoryReserve).Allow("0 or more")
	}
	checkStrategy(&p, "placement_strategy", c.PlacementStrategy)
	if r := c.TaskRetention; r != 0 && (r < TaskRetentionMin || r > TaskRetentionMax) {
		p.add("task_retention_ns", "is %v", r).Allow("%v to %v", TaskRetentionMin, TaskRetentionMax)
	}
	if r := c.JournalRetention; r != 0 && (r < JournalRetentionMin || r > JournalRetentionMax) {
		p.add("journal_retention_ns", "is %v", r).Allow("%v to %v", JournalRetentionMin, JournalRetentionMax)
	}
	if n := c.TasksPerNode; n < 0 || n > CopiesMax {
		p.add("tasks_per_node", "is %d", n).Allow("0 (the default) to %d", CopiesMax)
	}
	if n := c.CopiesPerNode; n < 0 || n > CopiesMax {
		p.add("copies_per_node", "is %d", n).Allow("0 (the default) to %d", CopiesMax)
	}
	if d := c.WithDefaults(); d.PoolWarnPercent < 1 || d.PoolFullPercent > PercentMax || d.PoolWarnPercent > d.PoolFullPercent {
		p.add("pool_warn_percent", "is %d, and pool_full_percent is %d", d.PoolWarnPercent, d.PoolFullPercent).Allow("1 to %d, the warning first", PercentMax)
	}
	if c.CPUBaseline != "" {
		p.addErr(CheckCPUModel("cpu_baseline", c.CPUBaseline))
	}
	if v := c.Voters; v != 0 && (v < 1 || v > VotersMax || v%2 == 0) {
		p.add("voters", "is %d", v).Allow("1, 3, 5 or 7")
	}
	if m := c.MovesPerNode; m < 0 || m > MovesPerNodeMax {
		p.add("moves_per_node", "is %d", m).Allow("1 to %d, or 0 for %d", MovesPerNodeMax, defaultMovesPerNode)
	}
	return p.err()
}

// WithDefaults returns a copy in which every setting has its effective value.
func (c Config) WithDefaults() Config {
	if c.CPUOvercommit == 0 {
		c.CPUOvercommit = defaultCPUOvercommit
	}
	if c.MemoryOvercommit == 0 {
		c.MemoryOvercommit = defaultMemoryOvercommit
	}
	if c.PlacementStrategy == "" {
		c.PlacementStrategy = StrategySpread
	}
	if c.TaskRetention == 0 {
		c.TaskRetention = defaultTaskRetention
	}
	if c.JournalRetention == 0 {
		c.JournalRetention = defaultJournalRetention
	}
	if c.TasksPerNode == 0 {
		c.TasksPerNode = defaultTasksPerNode
	}
	if c.CopiesPerNode == 0 {
		c.CopiesPerNode = defaultCopiesPerNode
	}
	if c.PoolWarnPercent == 0 {
		c.PoolWarnPercent = defaultPoolWarn
	}
	if c.PoolFullPercent == 0 {
		c.PoolFullPercent = max(defaultPoolFull, c.PoolWarnPercent)
	}
	if c.Voters == 0 {
		c.Voters = VotersMax
	}
	if c.MovesPerNode == 0 {
		c.MovesPerNode = defaultMovesPerNode
	}
	return c
}
