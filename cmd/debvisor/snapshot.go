package main

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

// snapshotRow is a snapshot at its place in the tree of its VM.
type snapshotRow struct {
	api.Snapshot
	depth int
}

// snapshotNoun shows the snapshots of one VM.
func snapshotNoun(vm string) *noun[snapshotRow] {
	kind, _ := api.LookupKind(api.KindSnapshot)
	n := &noun[snapshotRow]{kind: kind, word: kind.Name, many: "snapshots"}
	n.head = func(r *snapshotRow) *api.Meta { return &r.Meta }
	n.list = func(ctx context.Context, c *client.Client, o client.ListOptions) (*client.List[snapshotRow], error) {
		list, err := c.Snapshots(ctx, o.Tenant, vm)
		if err != nil {
			return nil, err
		}
		return &client.List[snapshotRow]{Index: list.Index, Items: snapshotTree(list.Items)}, nil
	}
	n.columns = slices.Concat([]column[snapshotRow]{
		{title: "NAME", keep: true, value: func(_ *app, r *snapshotRow) string { return strings.Repeat("  ", r.depth) + r.OwnName() }},
		{title: "STATE", keep: true, value: func(_ *app, r *snapshotRow) string { return r.State }},
		{title: "CURRENT", value: func(_ *app, r *snapshotRow) string { return yes(r.Current) }},
		{title: "MEMORY", value: func(_ *app, r *snapshotRow) string {
			if !r.Memory {
				return "-"
			}
			return cmp.Or(sizeOr(r.SizeBytes), "yes")
		}},
		{title: "QUIESCED", value: func(_ *app, r *snapshotRow) string { return yes(r.Quiesced) }},
		{title: "WHY", value: func(_ *app, r *snapshotRow) string { return r.Why }},
		{title: "BY", wide: true, value: func(_ *app, r *snapshotRow) string { return dash(r.By) }},
		{title: "PARENT", wide: true, value: func(_ *app, r *snapshotRow) string { return dash(r.Parent) }},
		{title: "DISKS", wide: true, value: func(_ *app, r *snapshotRow) string {
			var names []string
			for _, d := range r.Disks {
				names = append(names, d.Name)
			}
			return strings.Join(names, ",")
		}},
		{title: "NOTE", value: func(_ *app, r *snapshotRow) string { return dash(r.Reason) }},
	}, metaColumns(n.head))
	return n
}

func yes(is bool) string {
	if is {
		return "yes"
	}
	return "-"
}

func sizeOr(bytes int64) string {
	if bytes == 0 {
		return ""
	}
	return api.FormatSize(bytes)
}

// snapshotTree orders snapshots so that each follows its parent, siblings by
// the time at which they were taken.
func snapshotTree(all []api.Snapshot) []snapshotRow {
	children, known := map[string][]api.Snapshot{}, map[string]bool{}
	for _, s := range all {
		known[s.OwnName()] = true
	}
	for _, s := range all {
		parent := s.Parent
		if !known[parent] {
			parent = ""
		}
		children[parent] = append(children[parent], s)
	}
	var out []snapshotRow
	var add func(parent string, depth int)
	add = func(parent string, depth int) {
		list := children[parent]
		delete(children, parent)
		slices.SortStableFunc(list, func(a, b api.Snapshot) int { return a.CreatedAt.Compare(b.CreatedAt) })
		for _, s := range list {
			out = append(out, snapshotRow{Snapshot: s, depth: depth})
			add(s.OwnName(), depth+1)
		}
	}
	add("", 0)
	return out
}

func snapshotCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "snapshot", Aliases: []string{"snap"}, Short: "Keep states of a VM, and put it back to them",
		Example: "  debvisor vm snapshot create web before-upgrade\n  debvisor vm snapshot list web\n  debvisor vm snapshot revert web before-upgrade",
	}
	cmd.AddCommand(createSnapshotCommand(a), listSnapshotsCommand(a), showSnapshotCommand(a), revertSnapshotCommand(a), deleteSnapshotCommand(a))
	return cmd
}

// completeSnapshot completes the name of a VM, and then that of one of its
// snapshots.
func (a *app) completeSnapshot(cmd *cobra.Command, given []string, typed string) ([]string, cobra.ShellCompDirective) {
	switch len(given) {
	case 0:
		return a.completeNames(vms())(cmd, given, typed)
	case 1:
		return a.completeNames(ownNames{given[0]})(cmd, given[1:], typed)
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// ownNames completes the own names of the snapshots of a VM.
type ownNames struct{ vm string }

func (o ownNames) names(ctx context.Context, c *client.Client, tenant func(api.Kind) string) ([]string, error) {
	kind, _ := api.LookupKind(api.KindVM)
	list, err := c.Snapshots(ctx, tenant(kind), o.vm)
	if err != nil {
		return nil, err
	}
	var names []string
	for i := range list.Items {
		names = append(names, list.Items[i].OwnName())
	}
	return names, nil
}

// settleSnapshot waits for the task of a verb, if that was asked for.
func (a *app) settleSnapshot(ctx context.Context, c *client.Client, w *waiting, action *api.Action, format string, args ...any) error {
	if !w.wait {
		return a.result(action, "task %s: "+format, append([]any{action.Task.Name}, args...)...)
	}
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	if _, err := a.waitTask(ctx, c, action.Task.Name); err != nil {
		return err
	}
	return a.result(action, format, args...)
}

func createSnapshotCommand(a *app) *cobra.Command {
	var ch change
	var w waiting
	var args api.SnapshotArgs
	cmd := &cobra.Command{
		Use: "create VM [NAME]", Short: "Take a snapshot of a VM",
		Long: `Takes a snapshot of all disks of a VM that its guest may write to, at one
instant. Without more it is as if the power had failed at that instant. With
--quiesce the guest's agent brings its file systems to rest meanwhile; with
--memory a revert continues the guest where it was. Without a NAME it is named
after the time.`,
		Example: "  debvisor vm snapshot create web before-upgrade --quiesce\n  debvisor vm snapshot create web --memory",
		Args:    between(1, 2, "VM", "NAME"), ValidArgsFunction: a.completeNames(vms()),
		RunE: a.with(func(ctx context.Context, c *client.Client, given []string) error {
			args.Name = "at-" + a.now().UTC().Format("20060102-150405")
			if len(given) > 1 {
				args.Name = given[1]
			}
			var action *api.Action
			planned, err := ch.do(a, func(o ...client.Option) (err error) {
				action, err = c.TakeSnapshot(ctx, a.tenantName(), given[0], args, o...)
				return err
			})
			if err != nil || planned {
				return err
			}
			return a.settleSnapshot(ctx, c, &w, action, "snapshot %s of vm %s", clean(args.Name), clean(given[0]))
		}),
	}
	cmd.Flags().BoolVar(&args.Memory, "memory", false, "with the memory of the guest, which must run")
	cmd.Flags().BoolVar(&args.Quiesce, "quiesce", false, "let the guest's agent freeze its file systems meanwhile")
	ch.flags(cmd)
	w.flags(cmd)
	return cmd
}

func listSnapshotsCommand(a *app) *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use: "list VM", Aliases: []string{"ls"}, Short: "List the snapshots of a VM as a tree",
		Example: "  debvisor vm snapshot list web\n  debvisor vm snapshot list web -o wide",
		Args:    exactly("VM"), ValidArgsFunction: a.completeNames(vms()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			n, o := snapshotNoun(args[0]), client.ListOptions{Tenant: a.tenantName()}
			if watch {
				return n.watch(ctx, a, c, o)
			}
			list, err := n.list(ctx, c, o)
			if err != nil {
				return err
			}
			if a.structured() {
				return a.emit(items(list.Items))
			}
			a.printf("%s", n.render(a, list.Items, false))
			return nil
		}),
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show the list again whenever it changes")
	return cmd
}

func showSnapshotCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show VM NAME", Short: "Show one snapshot of a VM",
		Example: "  debvisor vm snapshot show web before-upgrade -o yaml",
		Args:    exactly("VM", "NAME"), ValidArgsFunction: a.completeSnapshot,
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			s, _, err := client.Resource[api.Snapshot](c, api.KindSnapshot).Get(ctx, a.tenantName(), api.SnapshotName(args[0], args[1]), client.ReadOptions{})
			if err != nil {
				return err
			}
			if a.structured() {
				return a.emit(s)
			}
			a.printf("%s", snapshotNoun(args[0]).describe(a, &snapshotRow{Snapshot: *s}))
			return nil
		}),
	}
}

func revertSnapshotCommand(a *app) *cobra.Command {
	var ch change
	var w waiting
	var sure, safe bool
	cmd := &cobra.Command{
		Use: "revert VM NAME", Short: "Put a VM back to a snapshot",
		Long: `Puts the disks and the definition of a VM back to what they were at a snapshot.
A running guest is ended first. It goes on from its memory if that was kept, and
is started otherwise if the VM's power is on. What was written since is lost,
unless --safety keeps it in another snapshot.`,
		Example: "  debvisor vm snapshot revert web before-upgrade --plan\n  debvisor vm snapshot revert web before-upgrade --safety",
		Args:    exactly("VM", "NAME"), ValidArgsFunction: a.completeSnapshot,
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			if !sure && !ch.plan {
				ok, err := a.confirm("revert vm "+clean(args[0])+" to snapshot "+clean(args[1])+"? what was written since is lost", true)
				if err != nil || !ok {
					return err
				}
			}
			safety := ""
			if safe {
				safety = "before-revert-" + a.now().UTC().Format("20060102-150405")
			}
			var action *api.Action
			planned, err := ch.do(a, func(o ...client.Option) (err error) {
				action, err = c.RevertSnapshot(ctx, a.tenantName(), args[0], args[1], safety, o...)
				return err
			})
			if err != nil || planned {
				return err
			}
			return a.settleSnapshot(ctx, c, &w, action, "vm %s is what it was at snapshot %s", clean(args[0]), clean(args[1]))
		}),
	}
	cmd.Flags().BoolVar(&safe, "safety", false, "take a snapshot of the disks before")
	cmd.Flags().BoolVarP(&sure, "yes", "y", false, "do not ask")
	ch.flags(cmd)
	w.flags(cmd)
	return cmd
}

func deleteSnapshotCommand(a *app) *cobra.Command {
	var ch change
	var w waiting
	var sure bool
	cmd := &cobra.Command{
		Use: "delete VM NAME...", Aliases: []string{"rm"}, Short: "Delete snapshots of a VM; those that descend from them stay",
		Example: "  debvisor vm snapshot delete web before-upgrade",
		Args:    atLeast(2, "VM", "NAME"), ValidArgsFunction: a.completeSnapshot,
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			if !sure && !ch.plan {
				ok, err := a.confirm("delete of vm "+clean(args[0])+" snapshot "+clean(strings.Join(args[1:], ", "))+"?", true)
				if err != nil || !ok {
					return err
				}
			}
			for _, name := range args[1:] {
				var action *api.Action
				planned, err := ch.do(a, func(o ...client.Option) (err error) {
					action, err = c.DeleteSnapshot(ctx, a.tenantName(), args[0], name, o...)
					return err
				})
				if err != nil {
					return err
				}
				if planned {
					continue
				}
				if err := a.settleSnapshot(ctx, c, &w, action, "snapshot %s of vm %s deleted", clean(name), clean(args[0])); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	cmd.Flags().BoolVarP(&sure, "yes", "y", false, "do not ask")
	ch.flags(cmd)
	w.flags(cmd)
	return cmd
}

// snapshotTimes tells when the schedule of a VM fired last and will fire next.
func snapshotTimes(r *vmRow, now time.Time) (last, next string) {
	if r.Snapshots == nil {
		return "-", "-"
	}
	last = "never"
	if r.Instance == nil {
		return last, "once the VM has a node"
	}
	base := now
	if slot := r.Instance.SnapshotSlot; !slot.IsZero() {
		last, base = slot.Format(time.RFC3339), slot
	}
	due := r.Snapshots.Next(base)
	if due.IsZero() {
		return last, "never"
	}
	if !due.After(now) {
		return last, "now"
	}
	return last, due.Format(time.RFC3339)
}

// between wants from least to most arguments, with those names.
func between(least, most int, names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > least && len(args) <= most {
			return nil
		}
		return exactly(names[:least]...)(cmd, args)
	}
}

// atLeast wants so many arguments or more; the names are those of the first.
func atLeast(least int, names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		return exactly(names...)(cmd, args[:min(len(args), least)])
	}
}
