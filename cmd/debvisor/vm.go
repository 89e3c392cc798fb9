package main

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

// vmRow is what a user wants of a VM, and what became of it.
type vmRow struct {
	api.VM
	Instance *api.Instance `json:"instance,omitzero"`
}

// stateMigrating is shown for a guest that runs and is being moved.
const stateMigrating = "migrating"

// state is the instance's state, in a word.
func (r *vmRow) state() string {
	switch {
	case r.Instance == nil:
		return api.InstancePending
	case r.Instance.Migration != nil:
		return stateMigrating
	}
	return r.Instance.State
}

func (r *vmRow) node() string {
	if r.Instance == nil {
		return ""
	}
	return r.Instance.Owner
}

// reason is why the VM is not what its user wants, or "".
func (r *vmRow) reason() string {
	switch {
	case r.Instance == nil:
		return "waits for a place"
	case r.Instance.State == api.InstancePending && r.Instance.Decision != nil && r.Instance.Decision.Node == "":
		return r.Instance.Decision.Summary
	}
	return r.Instance.Reason
}

func vms() *noun[vmRow] {
	kind, _ := api.LookupKind(api.KindVM)
	n := &noun[vmRow]{kind: kind, word: kind.Name, many: "virtual machines", watches: []string{api.KindVM, api.KindInstance}}
	n.head = func(row *vmRow) *api.Meta { return &row.Meta }
	n.list, n.get = listVMs, getVM
	n.remove = func(ctx context.Context, c *client.Client, tenant, name string, o ...client.Option) error {
		return client.Resource[api.VM](c, api.KindVM).Delete(ctx, tenant, name, 0, o...)
	}
	of := func(f func(i *api.Instance) string) func(*app, *vmRow) string {
		return func(_ *app, r *vmRow) string {
			if r.Instance == nil {
				return "-"
			}
			return dash(f(r.Instance))
		}
	}
	n.columns = slices.Concat([]column[vmRow]{nameColumn(n.head),
		{title: "STATE", keep: true, value: func(_ *app, r *vmRow) string { return r.state() }},
		{title: "POWER", wide: true, value: func(_ *app, r *vmRow) string { return cmp.Or(r.Power, api.PowerOn) }},
		{title: "NODE", value: func(_ *app, r *vmRow) string { return dash(r.node()) }},
		{title: "CPUS", keep: true, value: func(_ *app, r *vmRow) string { return strconv.Itoa(r.CPUs) }},
		{title: "MEMORY", keep: true, value: func(_ *app, r *vmRow) string { return api.FormatSize(r.MemoryBytes) }},
		{title: "ADDRESS", value: of(func(i *api.Instance) string { return strings.Join(i.Addresses, ",") })},
		{title: "STARTED", wide: true, value: func(a *app, r *vmRow) string {
			if r.Instance == nil {
				return "-"
			}
			return age(a.now(), r.Instance.StartedAt)
		}},
		{title: "ACCELERATION", wide: true, value: of(func(i *api.Instance) string { return i.Acceleration })},
		{title: "RESTARTS", wide: true, value: of(func(i *api.Instance) string { return strconv.FormatUint(i.Restarts, 10) })},
		{title: "NOTE", value: func(_ *app, r *vmRow) string { return r.note() }},
		{title: "LAST SNAPSHOT", wide: true, value: func(a *app, r *vmRow) string { last, _ := snapshotTimes(r, a.now()); return last }},
		{title: "NEXT SNAPSHOT", wide: true, value: func(a *app, r *vmRow) string { _, next := snapshotTimes(r, a.now()); return next }},
		{title: "PENDING", wide: true, value: of(func(i *api.Instance) string { return strings.Join(i.Pending, "; ") })},
		{title: "DRIFT", wide: true, value: of(func(i *api.Instance) string { return strings.Join(i.Drift, "; ") })},
	}, metaColumns(n.head))
	return n
}

// note is what a person should know about the VM at a glance.
func (r *vmRow) note() string {
	switch {
	case r.Instance != nil && r.Instance.Migration != nil:
		return "migrates to " + r.Instance.Migration.To + ": debvisor task get " + r.Instance.Migration.Task
	case r.Instance != nil && len(r.Instance.Drift) > 0:
		return "drift: " + r.Instance.Drift[0]
	case r.Instance != nil && len(r.Instance.Pending) > 0:
		return "pending: " + r.Instance.Pending[0]
	case r.state() == api.InstanceRunning && r.Instance.Simulated:
		return "simulated"
	case r.state() == api.InstanceRunning:
		return "-"
	}
	return dash(r.reason())
}

func listVMs(ctx context.Context, c *client.Client, o client.ListOptions) (*client.List[vmRow], error) {
	list, err := client.Resource[api.VM](c, api.KindVM).All(ctx, o)
	if err != nil {
		return nil, err
	}
	read := client.ReadOptions{At: o.At, Stale: o.Stale}
	if o.At == 0 {
		read.MinIndex = list.Index
	}
	instances, err := client.Resource[api.Instance](c, api.KindInstance).All(ctx, client.ListOptions{ReadOptions: read})
	if err != nil {
		return nil, err
	}
	byID := make(map[string]*api.Instance, len(instances.Items))
	for i := range instances.Items {
		byID[instances.Items[i].Name] = &instances.Items[i]
	}
	out := &client.List[vmRow]{Index: list.Index}
	for _, vm := range list.Items {
		out.Items = append(out.Items, vmRow{VM: vm, Instance: byID[vm.ID]})
	}
	return out, nil
}

func getVM(ctx context.Context, c *client.Client, tenant, name string, o client.ReadOptions) (*vmRow, error) {
	vm, _, err := client.Resource[api.VM](c, api.KindVM).Get(ctx, tenant, name, o)
	if err != nil {
		return nil, err
	}
	row := &vmRow{VM: *vm}
	instance, _, err := client.Resource[api.Instance](c, api.KindInstance).Get(ctx, "", vm.ID, o)
	if err != nil && api.CodeOf(err) != api.CodeNotFound {
		return nil, err
	}
	row.Instance = instance
	return row, nil
}

func vmCommand(a *app) *cobra.Command {
	n := vms()
	return n.command(a, createVMCommand(a), setVMCommand(a), diskCommand(a), nicCommand(a), cdromCommand(a), cloneVMCommand(a),
		exportVMCommand(a), importVMCommand(a),
		powerCommand(a, power{
			verb: "start", short: "Start VMs", wants: api.InstanceRunning,
			do: func(ctx context.Context, c *client.Client, name string, _ bool, o ...client.Option) (*api.Action, error) {
				return c.StartVM(ctx, a.tenantName(), name, o...)
			},
		}),
		powerCommand(a, power{
			verb: "stop", short: "Stop VMs: ask the guest, or end it with --force", wants: api.InstanceStopped, canForce: true,
			do: func(ctx context.Context, c *client.Client, name string, force bool, o ...client.Option) (*api.Action, error) {
				return c.StopVM(ctx, a.tenantName(), name, force, o...)
			},
		}),
		powerCommand(a, power{
			verb: "restart", short: "Stop and start the guests of VMs", wants: api.InstanceRunning, canForce: true,
			do: func(ctx context.Context, c *client.Client, name string, force bool, o ...client.Option) (*api.Action, error) {
				return c.RestartVM(ctx, a.tenantName(), name, force, o...)
			},
		}),
		migrateCommand(a), n.deleteCommand(a, ", the disks made for them and their snapshots"), snapshotCommand(a), guestCommand(a), consoleCommand(a), logCommand(a), screenshotCommand(a), vmStatsCommand(a))
}

// power is one of the verbs that change whether a guest executes.
type power struct {
	verb, short string
	wants       string // state in which the wait ends
	canForce    bool
	do          func(ctx context.Context, c *client.Client, name string, force bool, o ...client.Option) (*api.Action, error)
}

func powerCommand(a *app, p power) *cobra.Command {
	var ch change
	var force bool
	var w waiting
	cmd := &cobra.Command{
		Use: p.verb + " NAME...", Short: p.short, Example: "  debvisor vm " + p.verb + " web",
		Args: atLeastOne("NAME"), ValidArgsFunction: a.completeNames(vms()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			for _, name := range args {
				var action *api.Action
				planned, err := ch.do(a, func(o ...client.Option) (err error) {
					action, err = p.do(ctx, c, name, force, o...)
					return err
				})
				if err != nil || planned {
					return err
				}
				if err := a.afterAction(ctx, c, &w, name, action, p.wants); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	ch.flags(cmd)
	w.flags(cmd)
	if p.canForce {
		cmd.Flags().BoolVar(&force, "force", false, "end the guest at once, as if its power failed")
	}
	return cmd
}

// afterAction waits for the task of a verb, and for the state that it leads to.
func (a *app) afterAction(ctx context.Context, c *client.Client, w *waiting, name string, action *api.Action, state string) error {
	if !w.wait {
		if action.Task != nil {
			return a.result(action, "vm %s: task %s", clean(name), action.Task.Name)
		}
		return a.result(action, "vm %s: power %s", clean(name), cmp.Or(action.VM.Power, api.PowerOn))
	}
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	if action.Task != nil {
		if _, err := a.waitTask(ctx, c, action.Task.Name); err != nil {
			return err
		}
	}
	row, err := a.waitVM(ctx, c, a.tenantName(), name, state)
	if err != nil {
		return err
	}
	return a.result(row, "vm %s is %s%s", clean(name), row.state(), onNode(row))
}

func onNode(r *vmRow) string {
	if r.node() == "" {
		return ""
	}
	return " on " + r.node()
}
