package spec

// snapshotsBlock is the schedule of a VM's snapshots.
func snapshotsBlock() block {
	return block{name: "snapshots", field: "snapshots", attrs: []attribute{
		{name: "every", field: "every_ns", shape: duration}, {name: "cron"},
		{name: "memory", shape: boolean}, {name: "quiesce", shape: boolean},
		{name: "keep_last", shape: integer}, {name: "keep_hourly", shape: integer}, {name: "keep_daily", shape: integer},
		{name: "keep_weekly", shape: integer}, {name: "keep_monthly", shape: integer},
	}}
}
