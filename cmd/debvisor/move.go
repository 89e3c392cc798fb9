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

// movesTimeout is how long the moves of many VMs are waited for.
const movesTimeout = 12 * time.Hour

func drainCommand(a *app) *cobra.Command {
	var args api.DrainArgs
	var ch change
	w := waiting{}
	cmd := &cobra.Command{
		Use: "drain NAME", Short: "Move every running VM off a node, and keep new ones away",
		Long: `Moves every running VM off a node by live migration, the most important first,
and keeps new ones away until "debvisor node undrain". VMs that are off stay
where their disks are. Cancel it as any task: what has moved stays where it is.`,
		Example: "  debvisor node drain node2 --reason 'new memory'\n  debvisor node drain node2 --plan",
		Args:    exactly("NAME"), ValidArgsFunction: a.completeNames(nodes()),
		RunE: a.with(func(ctx context.Context, c *client.Client, names []string) error {
			var action *api.Action
			planned, err := ch.do(a, func(o ...client.Option) (err error) {
				action, err = c.DrainNode(ctx, names[0], args, o...)
				return err
			})
			if err != nil || planned {
				return err
			}
			return a.followTask(ctx, c, &w, action.Task, "node "+clean(names[0])+" is drained")
		}),
	}
	ch.flags(cmd)
	w.flagsFor(cmd, movesTimeout)
	cmd.Flags().StringVar(&args.Reason, "reason", "", "shown with the node while it is in maintenance")
	cmd.Flags().IntVar(&args.Parallel, "parallel", 0, "moves at a time (0: moves_per_node of the cluster's config)")
	return cmd
}

// followTask waits for a task, unless it should not be waited for, and says done.
func (a *app) followTask(ctx context.Context, c *client.Client, w *waiting, task *api.Task, done string) error {
	if !w.wait {
		return a.result(task, "task %s", task.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	ended, err := a.waitTask(ctx, c, task.Name)
	if err != nil {
		return err
	}
	return a.result(ended, "%s: %s", done, clean(ended.Step))
}

func balanceCommand(a *app) *cobra.Command {
	var run, yes bool
	var most, parallel int
	var ch change
	w := waiting{}
	cmd := &cobra.Command{
		Use: "balance", Short: "Propose moves that even out how full the nodes are, and carry them out with --run",
		Long: `Proposes live migrations that even out how full the nodes are, and says of each
what it gains. With --run they are carried out. A VM that is no longer where it
was when a move begins is left out.`,
		Example: "  debvisor balance\n  debvisor balance --run --moves 3",
		Args:    exactly(),
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			b, err := c.ProposeBalance(ctx, most)
			if err != nil {
				return err
			}
			if !run || len(b.Moves) == 0 {
				if a.structured() {
					return a.emit(b)
				}
				a.showBalance(b)
				return nil
			}
			if !ch.plan {
				a.notef("%s", strings.TrimSuffix(a.balanceText(b), "\n"))
			}
			if !yes && !ch.plan {
				if ok, err := a.confirm(fmt.Sprintf("carry out %d moves?", len(b.Moves)), true); err != nil || !ok {
					return err
				}
			}
			var action *api.Action
			planned, err := ch.do(a, func(o ...client.Option) (err error) {
				action, err = c.Balance(ctx, api.BalanceArgs{Moves: b.Moves, Parallel: parallel}, o...)
				return err
			})
			if err != nil || planned {
				return err
			}
			return a.followTask(ctx, c, &w, action.Task, "moves are done")
		}),
	}
	ch.flags(cmd)
	w.flagsFor(cmd, movesTimeout)
	cmd.Flags().BoolVar(&run, "run", false, "carry out the moves")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().IntVar(&most, "moves", 0, fmt.Sprintf("how many moves at most (0: %d)", api.BalanceMovesMax))
	cmd.Flags().IntVar(&parallel, "parallel", 0, "moves that one node takes part in at a time (0: moves_per_node of the cluster's config)")
	return cmd
}

func (a *app) showBalance(b *api.Balance) { a.printf("%s", a.balanceText(b)) }

func (a *app) balanceText(b *api.Balance) string {
	text := clean(b.Summary) + "\n"
	if len(b.Moves) == 0 {
		return text
	}
	for _, m := range b.Moves {
		text += clean(fmt.Sprintf("  vm %s (%s): %s -> %s", m.VM, api.FormatSize(m.MemoryBytes), m.From, m.To)) + "\n"
		for _, part := range strings.Split(m.Reason, "; ") {
			text += "      " + clean(part) + "\n"
		}
	}
	return text
}
