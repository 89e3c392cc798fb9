package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

func tasks() *noun[api.Task] {
	n := nounOf[api.Task](api.KindTask, "tasks")
	n.columns = slices.Concat([]column[api.Task]{nameColumn(n.head),
		{title: "VERB", value: func(_ *app, t *api.Task) string { return t.Verb }},
		{title: "OBJECT", value: func(_ *app, t *api.Task) string { return dash(objectText(t.Kind, t.Object)) }},
		{title: "STATE", keep: true, value: func(_ *app, t *api.Task) string { return t.State }},
		{title: "NODE", value: func(_ *app, t *api.Task) string { return dash(t.Node) }},
		{title: "DONE", keep: true, value: func(_ *app, t *api.Task) string { return fmt.Sprintf("%d %%", t.Percent) }},
		{title: "NOTE", value: func(_ *app, t *api.Task) string {
			if t.Error != nil {
				return t.Error.Error()
			}
			return dash(t.Step)
		}},
		{title: "ATTEMPT", wide: true, value: func(_ *app, t *api.Task) string { return fmt.Sprint(t.Attempt) }},
		{title: "BY", wide: true, value: func(_ *app, t *api.Task) string { return dash(t.By) }},
		{title: "DEADLINE", wide: true, value: func(a *app, t *api.Task) string { return until(a.now(), t.Deadline) }},
	}, metaColumns(n.head))
	return n
}

func objectText(kind, key string) string {
	if kind == "" {
		return ""
	}
	return kind + "/" + key
}

func taskCommand(a *app) *cobra.Command {
	return tasks().command(a, waitTaskCommand(a), cancelTaskCommand(a))
}

func waitTaskCommand(a *app) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "wait NAME", Short: "Wait until a task ends, and show its progress", Example: "  debvisor task wait NAME --timeout 1m",
		Args: exactly("NAME"), ValidArgsFunction: a.completeNames(tasks()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			task, err := a.waitTask(ctx, c, args[0])
			if err != nil {
				return err
			}
			return a.result(task, "task %s: %s", task.Name, task.State)
		}),
	}
	cmd.Flags().DurationVar(&timeout, "timeout", api.TaskDeadlineMax, "how long to wait")
	return cmd
}

func cancelTaskCommand(a *app) *cobra.Command {
	var ch change
	cmd := &cobra.Command{
		Use: "cancel NAME", Short: "Ask a task to end", Example: "  debvisor task cancel NAME",
		Args: exactly("NAME"), ValidArgsFunction: a.completeNames(tasks()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			var task *api.Task
			planned, err := ch.do(a, func(o ...client.Option) (err error) {
				task, err = c.CancelTask(ctx, args[0], o...)
				return err
			})
			if err != nil || planned {
				return err
			}
			return a.result(task, "task %s is asked to end", clean(args[0]))
		}),
	}
	ch.flags(cmd)
	return cmd
}
