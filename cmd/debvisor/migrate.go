package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

func migrateCommand(a *app) *cobra.Command {
	var args api.MigrateArgs
	var downtime time.Duration
	var bandwidth string
	var ch change
	var w waiting
	cmd := &cobra.Command{
		Use: "migrate NAME", Short: "Move a running VM to another node, without stopping it",
		Long: `Moves a running VM to another node. The guest goes on executing while its memory
is copied, stands still for a moment, and goes on at the destination. Whatever
keeps it from moving is told before anything has moved. Ctrl-C ends the waiting,
not the migration: cancel that with "debvisor task cancel".`,
		Example: "  debvisor vm migrate web\n  debvisor vm migrate web --to node2 --plan\n  debvisor vm migrate db --to node3 --copy-storage --bandwidth-limit 100MiB",
		Args:    exactly("NAME"), ValidArgsFunction: a.completeNames(vms()),
		RunE: a.with(func(ctx context.Context, c *client.Client, names []string) error {
			if bandwidth != "" {
				bytes, err := api.ParseSize(bandwidth)
				if err != nil {
					return &usageError{err: fmt.Errorf("--bandwidth-limit: %w", err)}
				}
				args.BandwidthBytesMax = bytes
			}
			if downtime < 0 || downtime > 0 && downtime < time.Millisecond {
				return &usageError{err: fmt.Errorf("--downtime-limit is %v: 1ms or more is allowed", downtime)}
			}
			args.DowntimeLimitMS = downtime.Milliseconds()
			return a.migrate(ctx, c, &ch, &w, names[0], args)
		}),
	}
	ch.flags(cmd)
	w.flagsFor(cmd, api.MigrationDeadline)
	f := cmd.Flags()
	f.StringVar(&args.Node, "to", "", "destination (default: placement chooses)")
	f.DurationVar(&downtime, "downtime-limit", 0, fmt.Sprintf("longest pause to aim at (0: %dms)", api.DowntimeLimitMSDefault))
	f.StringVar(&bandwidth, "bandwidth-limit", "", "at most so many bytes a second, as 100MiB (default: no limit)")
	f.BoolVar(&args.AutoConverge, "auto-converge", false, "slow the guest down while it changes memory faster than it is copied")
	f.BoolVar(&args.CopyStorage, "copy-storage", false, "copy disks along that only the present node sees")
	_ = cmd.RegisterFlagCompletionFunc("to", a.completeNames(nodes()))
	return cmd
}

func (a *app) migrate(ctx context.Context, c *client.Client, ch *change, w *waiting, name string, args api.MigrateArgs) error {
	var action *api.Action
	planned, err := ch.do(a, func(o ...client.Option) (err error) {
		action, err = c.MigrateVM(ctx, a.tenantName(), name, args, o...)
		return err
	})
	if err != nil || planned {
		return err
	}
	if !w.wait {
		return a.result(action, "vm %s: task %s", clean(name), action.Task.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	if _, err := a.waitTask(ctx, c, action.Task.Name); err != nil {
		return err
	}
	row, err := getVM(ctx, c, a.tenantName(), name, client.ReadOptions{})
	if err != nil {
		return err
	}
	return a.result(row, "vm %s is %s%s", clean(name), row.state(), onNode(row))
}
