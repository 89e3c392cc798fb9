package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

const (
	topRowsDefault = 20
	topIntervalMin = time.Second
)

// topFlags are how the busiest are shown.
type topFlags struct {
	watch    bool
	interval time.Duration
	rows     int
	by       string
	all      bool
}

// topState is what nodes and VMs do now.
type topState struct {
	Nodes   []api.NodeStats   `json:"nodes"`
	VMs     []api.VMStats     `json:"vms"`
	Missing []api.MissingNode `json:"missing"`
}

// topOrders are by what VMs are ordered, the most first.
func topOrders() map[string]func(api.VMUsage) float64 {
	return map[string]func(api.VMUsage) float64{
		"cpu":     func(u api.VMUsage) float64 { return u.CPUPercent },
		"memory":  func(u api.VMUsage) float64 { return float64(u.MemoryRSSBytes) },
		"disk":    func(u api.VMUsage) float64 { return u.DiskReadRate + u.DiskWriteRate },
		"network": func(u api.VMUsage) float64 { return u.NetReceiveRate + u.NetSendRate },
	}
}

func topCommand(a *app) *cobra.Command {
	var f topFlags
	cmd := &cobra.Command{
		Use: "top", Short: "See what nodes and VMs do now, the busiest first",
		Long: `Shows what every node does, and the busiest VMs. The figures are of the last
seconds and come from the nodes themselves; a node that does not answer is
named.`,
		Example: "  debvisor top --watch\n  debvisor top --by disk -A -o json",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			order := topOrders()[f.by]
			if order == nil {
				return usage(cmd, "--by %q is unknown (allowed: cpu, memory, disk, network)", f.by)
			}
			if f.interval < topIntervalMin || f.rows < 0 {
				return usage(cmd, "--interval must be at least %v and --rows not negative", topIntervalMin)
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			return a.top(cmd.Context(), c, f, order)
		},
	}
	fl := cmd.Flags()
	fl.BoolVarP(&f.watch, "watch", "w", false, "show it again and again")
	fl.DurationVar(&f.interval, "interval", api.StatsInterval, "with --watch: between two looks")
	fl.IntVar(&f.rows, "rows", topRowsDefault, "VMs to show at most; 0 for all")
	fl.StringVar(&f.by, "by", "cpu", "order of the VMs: cpu, memory, disk or network")
	fl.BoolVarP(&f.all, "all-tenants", "A", false, "VMs of every tenant")
	_ = cmd.RegisterFlagCompletionFunc("by", cobra.FixedCompletions([]string{"cpu", "memory", "disk", "network"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *app) top(ctx context.Context, c *client.Client, f topFlags, order func(api.VMUsage) float64) error {
	footer := ""
	if !a.structured() {
		footer = a.simulated(ctx, c)
	}
	for {
		state, err := a.topState(ctx, c, f, order)
		if err != nil {
			return ignoreEnd(ctx, err)
		}
		switch {
		case a.structured() && !f.watch:
			return a.emit(state)
		case a.structured():
			if err := a.emitLine(state); err != nil {
				return err
			}
		default:
			text := topText(a, state, f) + footer
			if f.watch && a.terminal {
				text = "\x1b[H\x1b[2J" + text // to the top, clear
			} else if f.watch {
				text += "\n"
			}
			a.printf("%s", text)
		}
		if !f.watch {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(f.interval):
		}
	}
}

func (a *app) topState(ctx context.Context, c *client.Client, f topFlags, order func(api.VMUsage) float64) (*topState, error) {
	nodes, err := c.NodesStats(ctx)
	if err != nil {
		return nil, err
	}
	tenant := a.tenantName()
	if f.all {
		tenant = "*"
	}
	vms, err := c.VMsStats(ctx, tenant, "")
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(vms.Items, func(a, b api.VMStats) int { return cmp.Compare(order(b.Now), order(a.Now)) })
	if f.rows > 0 {
		vms.Items = vms.Items[:min(f.rows, len(vms.Items))]
	}
	state := &topState{Nodes: nodes.Items, VMs: vms.Items, Missing: nodes.Missing}
	for _, m := range vms.Missing {
		if !slices.ContainsFunc(state.Missing, func(k api.MissingNode) bool { return k.Node == m.Node }) {
			state.Missing = append(state.Missing, m)
		}
	}
	return state, nil
}

func topText(a *app, s *topState, f topFlags) string {
	t := table{titles: []string{"NODE", "VMS", "CPU", "LOAD", "MEMORY", "DISK", "NETWORK"}, keep: []bool{false, true, true, true, true, true, true}}
	for _, n := range s.Nodes {
		u := n.Now
		t.rows = append(t.rows, []string{n.Node, strconv.Itoa(n.VMs), fmt.Sprintf("%.0f %%", u.CPUPercent), fmt.Sprintf("%.1f", u.Load), usedOf(u.MemoryUsedBytes, n.MemoryBytes),
			perSecond(u.DiskReadRate + u.DiskWriteRate), perSecond(u.NetReceiveRate + u.NetSendRate)})
	}
	out := t.render(a.limit()) + "\n"
	t = table{titles: []string{"VM", "NODE", "CPU", "MEMORY", "DISK", "IOPS", "NETWORK"}, keep: []bool{false, false, true, true, true, true, true}}
	for _, v := range s.VMs {
		u, name := v.Now, v.Name
		if f.all {
			name = api.Key(v.Tenant, v.Name)
		}
		t.rows = append(t.rows, []string{name, v.Node, fmt.Sprintf("%.0f %%", u.CPUPercent), api.FormatSize(u.MemoryRSSBytes), perSecond(u.DiskReadRate + u.DiskWriteRate),
			fmt.Sprintf("%.0f", u.DiskReadsRate+u.DiskWritesRate), perSecond(u.NetReceiveRate + u.NetSendRate)})
	}
	if len(s.VMs) == 0 {
		out += "no VM executes\n"
	} else {
		out += t.render(a.limit())
	}
	for _, m := range s.Missing {
		out += fmt.Sprintf("missing: %s: %s\n", clean(m.Node), clean(m.Reason))
	}
	return out
}
