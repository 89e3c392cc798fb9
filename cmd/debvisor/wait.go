package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

// How long commands wait for VMs.
const (
	waitDefault = 5 * time.Minute
	noPlaceWait = 15 * time.Second // for a node to have room, when none has
	failedWait  = 30 * time.Second // for the next attempts of a node that failed
	waitRound   = 5 * time.Second  // of one blocking read
)

// waiting is what commands share that wait for what they asked for.
type waiting struct {
	wait    bool
	noWait  bool
	timeout time.Duration
}

func (w *waiting) flags(cmd *cobra.Command) { w.flagsFor(cmd, waitDefault) }

// flagsFor is flags for work that takes up to that long.
func (w *waiting) flagsFor(cmd *cobra.Command, timeout time.Duration) {
	cmd.Flags().BoolVar(&w.wait, "wait", true, "wait until it is so")
	cmd.Flags().BoolVar(&w.noWait, "no-wait", false, "the same as --wait=false")
	cmd.Flags().DurationVar(&w.timeout, "timeout", timeout, "how long to wait")
	before := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		w.wait = w.wait && !w.noWait
		if before != nil {
			return before(cmd, args)
		}
		return nil
	}
}

// waitVM blocks until the VM's instance is in the state, and returns it. A VM
// that finds no place, or that its node cannot start, is an error with the
// reason after a while; so is the end of ctx.
func (a *app) waitVM(ctx context.Context, c *client.Client, tenant, name, state string) (*vmRow, error) {
	p := a.progress()
	defer p.end()
	var o client.ReadOptions
	var stuck time.Time // since when no progress can be expected
	for {
		row, index, err := a.pollVM(ctx, c, tenant, name, o)
		if err != nil {
			return nil, err
		}
		if row.state() == state || state == api.InstanceRunning && row.state() == stateMigrating || state == api.InstanceStopped && row.node() == "" {
			return row, nil
		}
		reason := row.reason()
		p.step("vm %s: %s", name, stateText(row, reason))
		patience := patienceOf(row)
		switch {
		case patience == 0:
			stuck = time.Time{}
		case stuck.IsZero():
			stuck = a.now()
		case a.now().Sub(stuck) > patience:
			return nil, notThere(name, tenant, row, reason)
		}
		if ctx.Err() != nil {
			return nil, notThere(name, tenant, row, reason)
		}
		o.Index, o.Wait = index, waitRound
	}
}

// pollVM reads the VM and its instance; with o.Index it waits for a change of
// any instance after it.
func (a *app) pollVM(ctx context.Context, c *client.Client, tenant, name string, o client.ReadOptions) (*vmRow, uint64, error) {
	instances := client.Resource[api.Instance](c, api.KindInstance)
	// The list is read for its index, so that the wait also ends for an
	// instance that is not there yet.
	list, err := instances.List(ctx, client.ListOptions{ReadOptions: o, Limit: 1})
	if err != nil && ctx.Err() == nil {
		return nil, 0, err
	}
	index := o.Index
	if err == nil {
		index = list.Index
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	defer cancel()
	row, err := getVM(last, c, tenant, name, client.ReadOptions{})
	return row, index, err
}

func stateText(row *vmRow, reason string) string {
	text := row.state() + onNode(row)
	if reason != "" {
		text += ": " + reason
	}
	return text
}

// patienceOf is how long a state without progress is watched; 0 for ever.
func patienceOf(row *vmRow) time.Duration {
	switch {
	case row.Instance == nil:
		return 0
	case row.Instance.State == api.InstancePending && row.Instance.Decision != nil && row.Instance.Decision.Node == "":
		return noPlaceWait
	case row.Instance.State == api.InstanceFailed:
		return failedWait
	}
	return 0
}

func notThere(name, tenant string, row *vmRow, reason string) error {
	e := api.Errorf(api.CodeInternal, "is %s%s: %s", row.state(), onNode(row), reason).On(api.KindVM, api.Key(tenant, name))
	e.Next = fmt.Sprintf("debvisor why vm/%s tells more", name)
	return e
}

// waitTask blocks until the task ends, and fails when the task did.
func (a *app) waitTask(ctx context.Context, c *client.Client, name string) (*api.Task, error) {
	p := a.progress()
	defer p.end()
	task, err := c.WaitTask(ctx, name, func(t *api.Task) {
		p.step("task %s: %s %d %% %s", t.Name, t.State, t.Percent, t.Step)
	})
	if err != nil {
		return nil, err
	}
	switch task.State {
	case api.TaskFailed:
		failure := api.Errorf(api.CodeInternal, "the task failed")
		if task.Error != nil {
			failure = task.Error
		}
		return task, fmt.Errorf("task %s: %w", task.Name, failure)
	case api.TaskCancelled:
		return task, fmt.Errorf("task %s was cancelled", task.Name)
	}
	return task, nil
}
