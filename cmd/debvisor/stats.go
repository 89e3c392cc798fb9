package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

// The course of a value is drawn in blocks of eight heights.
const (
	sparkBlocks = "▁▂▃▄▅▆▇█"
	sparkWidth  = 40
)

// courseFlags are the window and the step of statistics.
type courseFlags struct{ window, step time.Duration }

func (f *courseFlags) flags(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&f.window, "window", 10*time.Minute, "of the past to draw, at most 1h")
	cmd.Flags().DurationVar(&f.step, "step", 0, "that a block covers, at least 10s (default: what fills the line)")
}

// settle gives the line as many points as it has places.
func (f *courseFlags) settle() (window, step time.Duration) {
	if f.step == 0 {
		whole := f.window/sparkWidth + api.StatsResolution - 1
		return f.window, max(api.StatsResolution, whole.Truncate(api.StatsResolution))
	}
	return f.window, f.step
}

// course is one line: a value now, and how it came there.
type course struct {
	name   string
	now    string
	values []float64
	top    float64 // of the scale, at least
}

// render draws lines of at most 80 columns.
func renderCourses(courses []course) string {
	var b strings.Builder
	for _, c := range courses {
		fmt.Fprintf(&b, "%s\n", strings.TrimRight(fmt.Sprintf("%-14s %-22s %s", c.name, c.now, spark(c.values, c.top)), " "))
	}
	return b.String()
}

// spark draws the last values of a course, from zero to the highest of them
// or to top.
func spark(values []float64, top float64) string {
	if extra := len(values) - sparkWidth; extra > 0 {
		values = values[extra:]
	}
	for _, v := range values {
		top = max(top, v)
	}
	blocks := []rune(sparkBlocks)
	var b strings.Builder
	for _, v := range values {
		level := 0
		if top > 0 {
			level = min(len(blocks)-1, int(v/top*float64(len(blocks))))
		}
		b.WriteRune(blocks[max(0, level)])
	}
	return b.String()
}

// courseOf takes one value of each point.
func courseOf[P any](points []P, value func(P) float64) []float64 {
	out := make([]float64, 0, len(points))
	for _, p := range points {
		out = append(out, value(p))
	}
	return out
}

func percent(v float64) string { return fmt.Sprintf("%.1f %%", v) }

// perSecond is a rate of bytes.
func perSecond(v float64) string { return api.FormatSize(int64(v)) + "/s" }

func usedOf(used, total int64) string {
	return api.FormatSize(used) + " of " + api.FormatSize(total)
}

func vmStatsCommand(a *app) *cobra.Command {
	var f courseFlags
	cmd := &cobra.Command{
		Use: "stats NAME", Short: "See what a VM does, and did in the last hour",
		Example: "  debvisor vm stats web\n  debvisor vm stats web --window 1h -o json",
		Args:    exactly("NAME"), ValidArgsFunction: a.completeNames(vms()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			window, step := f.settle()
			s, err := c.VMStats(ctx, a.tenantName(), args[0], window, step)
			if err != nil {
				return err
			}
			if a.structured() {
				return a.emit(s)
			}
			a.printf("%s", vmStatsText(s))
			return nil
		}),
	}
	f.flags(cmd)
	return cmd
}

func vmStatsText(s *api.VMStats) string {
	p, of := s.Points, func(value func(api.VMUsage) float64) []float64 { return courseOf(s.Points, value) }
	n := s.Now
	out := fmt.Sprintf("vm %s on %s, %d CPUs%s\n\n", clean(s.Name), clean(s.Node), s.CPUs, spanText(len(p), s.StepSeconds))
	out += renderCourses([]course{
		{"cpu", percent(n.CPUPercent), of(func(u api.VMUsage) float64 { return u.CPUPercent }), 100},
		{"memory", usedOf(n.MemoryRSSBytes, n.MemoryBytes), of(func(u api.VMUsage) float64 { return float64(u.MemoryRSSBytes) }), float64(n.MemoryBytes)},
		{"disk read", perSecond(n.DiskReadRate), of(func(u api.VMUsage) float64 { return u.DiskReadRate }), 1},
		{"disk write", perSecond(n.DiskWriteRate), of(func(u api.VMUsage) float64 { return u.DiskWriteRate }), 1},
		{"disk reads", fmt.Sprintf("%.0f/s, %.1f ms", n.DiskReadsRate, n.DiskReadLatency), of(func(u api.VMUsage) float64 { return u.DiskReadsRate }), 1},
		{"disk writes", fmt.Sprintf("%.0f/s, %.1f ms", n.DiskWritesRate, n.DiskWriteLatency), of(func(u api.VMUsage) float64 { return u.DiskWritesRate }), 1},
		{"net receive", perSecond(n.NetReceiveRate), of(func(u api.VMUsage) float64 { return u.NetReceiveRate }), 1},
		{"net send", perSecond(n.NetSendRate), of(func(u api.VMUsage) float64 { return u.NetSendRate }), 1},
		{"net drops", fmt.Sprintf("%.1f/s", n.NetDropsRate), of(func(u api.VMUsage) float64 { return u.NetDropsRate }), 1},
	})
	if len(s.Disks)+len(s.NICs) == 0 {
		return out
	}
	t := table{titles: []string{"DEVICE", "READ/RECEIVE", "WRITE/SEND", "OPERATIONS", "LATENCY"}, keep: make([]bool, 5)}
	for _, d := range s.Disks {
		t.rows = append(t.rows, []string{d.Name, perSecond(d.ReadRate), perSecond(d.WriteRate), fmt.Sprintf("%.0f + %.0f/s", d.ReadsRate, d.WritesRate),
			fmt.Sprintf("%.1f, %.1f ms", d.ReadLatency, d.WriteLatency)})
	}
	for _, n := range s.NICs {
		t.rows = append(t.rows, []string{n.Name, perSecond(n.ReceiveRate), perSecond(n.SendRate), fmt.Sprintf("%.0f + %.0f/s", n.ReceivePacketsRate, n.SendPacketsRate), "-"})
	}
	return out + "\n" + t.render(widthDefault)
}

// spanText says what the drawn course covers.
func spanText(points, stepSeconds int) string {
	if points == 0 {
		return "; nothing is remembered of that time"
	}
	step, drawn := time.Duration(stepSeconds)*time.Second, min(points, sparkWidth)
	return fmt.Sprintf("; a block is %v, together %v", step, time.Duration(drawn)*step)
}

func nodeStatsCommand(a *app) *cobra.Command {
	var f courseFlags
	cmd := &cobra.Command{
		Use: "stats NAME", Short: "See what a node does, and did in the last hour",
		Example: "  debvisor node stats node1\n  debvisor node stats node1 --window 1h -o json",
		Args:    exactly("NAME"), ValidArgsFunction: a.completeNames(nodes()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			window, step := f.settle()
			s, err := c.NodeStats(ctx, args[0], window, step)
			if err != nil {
				return err
			}
			if a.structured() {
				return a.emit(s)
			}
			a.printf("%s", nodeStatsText(s))
			return nil
		}),
	}
	f.flags(cmd)
	return cmd
}

func nodeStatsText(s *api.NodeStats) string {
	of := func(value func(api.NodeUsage) float64) []float64 { return courseOf(s.Points, value) }
	n := s.Now
	out := fmt.Sprintf("node %s, %d CPUs, %d VMs execute%s\n\n", clean(s.Node), s.CPUs, s.VMs, spanText(len(s.Points), s.StepSeconds))
	return out + renderCourses([]course{
		{"cpu", percent(n.CPUPercent), of(func(u api.NodeUsage) float64 { return u.CPUPercent }), 100},
		{"load", fmt.Sprintf("%.2f", n.Load), of(func(u api.NodeUsage) float64 { return u.Load }), float64(s.CPUs)},
		{"memory", usedOf(n.MemoryUsedBytes, s.MemoryBytes), of(func(u api.NodeUsage) float64 { return float64(u.MemoryUsedBytes) }), float64(s.MemoryBytes)},
		{"disk read", perSecond(n.DiskReadRate), of(func(u api.NodeUsage) float64 { return u.DiskReadRate }), 1},
		{"disk write", perSecond(n.DiskWriteRate), of(func(u api.NodeUsage) float64 { return u.DiskWriteRate }), 1},
		{"net receive", perSecond(n.NetReceiveRate), of(func(u api.NodeUsage) float64 { return u.NetReceiveRate }), 1},
		{"net send", perSecond(n.NetSendRate), of(func(u api.NodeUsage) float64 { return u.NetSendRate }), 1},
	})
}

func poolStatsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "stats NAME", Short: "See how full a pool is, node by node",
		Example: "  debvisor pool stats local",
		Args:    exactly("NAME"), ValidArgsFunction: a.completeNames(pools()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			s, err := c.PoolStats(ctx, args[0])
			if err != nil {
				return err
			}
			if a.structured() {
				return a.emit(s)
			}
			t := table{titles: []string{"NODE", "USED", "FREE", "TOTAL", "NOTE"}, keep: make([]bool, 5)}
			for _, n := range s.Nodes {
				t.rows = append(t.rows, []string{n.Node, api.FormatSize(n.UsedBytes), api.FormatSize(n.FreeBytes), api.FormatSize(n.TotalBytes), dash(n.Reason)})
			}
			a.printf("pool %s: %s used, %s free\n\n%s", clean(s.Pool), usedOf(s.UsedBytes, s.TotalBytes), api.FormatSize(s.FreeBytes), t.render(a.limit()))
			return nil
		}),
	}
}
