package main

import (
	"cmp"
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

func growVolumeCommand(a *app) *cobra.Command {
	var ch change
	var w waiting
	var size string
	cmd := &cobra.Command{
		Use: "grow NAME", Short: "Make a volume larger, in a running guest too", Example: "  debvisor volume grow data --size 40GiB",
		Args: exactly("NAME"), ValidArgsFunction: a.completeNames(volumes()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			bytes, err := sizeFlag("size", size)
			if err != nil {
				return err
			}
			all := client.Resource[api.Volume](c, api.KindVolume)
			v, _, err := all.Get(ctx, a.tenantName(), args[0], client.ReadOptions{})
			if err != nil {
				return err
			}
			v.SizeBytes = bytes
			var grown *api.Volume
			planned, err := ch.do(a, func(o ...client.Option) (err error) {
				grown, err = all.Put(ctx, v, o...)
				return err
			})
			if err != nil || planned {
				return err
			}
			return a.afterVolume(ctx, c, &w, grown)
		}),
	}
	ch.flags(cmd)
	w.flags(cmd)
	cmd.Flags().StringVar(&size, "size", "", "size in all, as 40GiB")
	_ = cmd.MarkFlagRequired("size")
	return cmd
}

// cloneFlags are how a clone is made.
type cloneFlags struct{ full, linked bool }

func (f *cloneFlags) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.full, "full", false, "copy everything (the default)")
	cmd.Flags().BoolVar(&f.linked, "linked", false, "share what the source holds: made at once, in the same pool")
	cmd.MarkFlagsMutuallyExclusive("full", "linked")
}

func (f *cloneFlags) mode() string {
	if f.linked {
		return api.CloneLinked
	}
	return api.CloneFull
}

func cloneVolumeCommand(a *app) *cobra.Command {
	var ch change
	var w waiting
	var how cloneFlags
	var size, pool string
	cmd := &cobra.Command{
		Use: "clone SOURCE NAME", Short: "Make a volume from another one, whose VM is off",
		Example: "  debvisor volume clone data copy\n  debvisor volume clone template-root web-root --linked",
		Args:    exactly("SOURCE", "NAME"), ValidArgsFunction: a.completeNames(volumes()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			all := client.Resource[api.Volume](c, api.KindVolume)
			source, _, err := all.Get(ctx, a.tenantName(), args[0], client.ReadOptions{})
			if err != nil {
				return err
			}
			v := &api.Volume{Meta: api.Meta{Name: args[1], Tenant: a.tenantName()}, Pool: cmp.Or(pool, source.Pool), Source: args[0], Clone: how.mode(), Format: source.Format}
			if v.SizeBytes, err = sizeFlag("size", size); err != nil {
				return err
			}
			var made *api.Volume
			planned, err := ch.do(a, func(o ...client.Option) (err error) {
				made, err = all.Put(ctx, v, o...)
				return err
			})
			if err != nil || planned {
				return err
			}
			return a.afterVolume(ctx, c, &w, made)
		}),
	}
	ch.flags(cmd)
	w.flags(cmd)
	how.flags(cmd)
	cmd.Flags().StringVar(&size, "size", "", "size, as 20GiB (default: the source's)")
	cmd.Flags().StringVar(&pool, "pool", "", "pool where it lies (default: the source's)")
	_ = cmd.RegisterFlagCompletionFunc("pool", a.completeNames(pools()))
	return cmd
}

func moveVolumeCommand(a *app) *cobra.Command {
	var ch change
	var w waiting
	var pool string
	cmd := &cobra.Command{
		Use: "move NAME", Short: "Move a volume to another pool, while its guest runs", Example: "  debvisor volume move data --pool fast",
		Long: "Move a volume to another pool, while its guest runs.\n\nThe command waits for the task that does it. Ctrl-C leaves the task at work;\n" +
			"\"debvisor task cancel\" ends it and leaves the volume where it was.",
		Args: exactly("NAME"), ValidArgsFunction: a.completeNames(volumes()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			var task *api.Task
			planned, err := ch.do(a, func(o ...client.Option) (err error) {
				task, err = c.MoveVolume(ctx, a.tenantName(), args[0], pool, o...)
				return err
			})
			if err != nil || planned {
				return err
			}
			if !w.wait {
				return a.result(task, "volume %s: task %s", clean(args[0]), task.Name)
			}
			ctx, cancel := context.WithTimeout(ctx, w.timeout)
			defer cancel()
			if _, err := a.waitTask(ctx, c, task.Name); err != nil {
				return err
			}
			row, err := getVolume(ctx, c, a.tenantName(), args[0], client.ReadOptions{})
			if err != nil {
				return err
			}
			return a.result(row, "volume %s lies in pool %s", clean(row.Name), row.Pool)
		}),
	}
	ch.flags(cmd)
	w.flags(cmd)
	_ = cmd.Flags().Set("timeout", (12 * time.Hour).String())
	cmd.Flags().StringVar(&pool, "pool", "", "pool where it is to lie")
	_ = cmd.MarkFlagRequired("pool")
	_ = cmd.RegisterFlagCompletionFunc("pool", a.completeNames(pools()))
	return cmd
}

// afterVolume waits until the volume is what its row says.
func (a *app) afterVolume(ctx context.Context, c *client.Client, w *waiting, v *api.Volume) error {
	if !w.wait {
		return a.result(v, "volume %s is asked for", clean(v.Name))
	}
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	row, err := a.waitVolume(ctx, c, v.Tenant, v.Name)
	if err != nil {
		return err
	}
	return a.result(row, "volume %s has %s in pool %s of %s", clean(row.Name), row.size(), row.Pool, row.Replica.Node)
}

// waitVolume blocks until the volume's copy is ready and as large as wanted. One
// whose node gave a reason why not is an error after a while.
func (a *app) waitVolume(ctx context.Context, c *client.Client, tenant, name string) (*volumeRow, error) {
	p := a.progress()
	defer p.end()
	replicas := client.Resource[api.Replica](c, api.KindReplica)
	var o client.ReadOptions
	began := a.now()
	for {
		list, err := replicas.List(ctx, client.ListOptions{ReadOptions: o, Limit: 1}) // for its index
		if err != nil && ctx.Err() == nil {
			return nil, err
		}
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
		row, err := getVolume(last, c, tenant, name, client.ReadOptions{})
		cancel()
		if err != nil {
			return nil, err
		}
		ready := row.state() == api.ReplicaReady
		if ready && row.Replica.SizeBytes >= row.SizeBytes {
			return row, nil
		}
		p.step("volume %s: %s, %s: %s", name, row.state(), row.size(), row.note())
		stuck := row.state() == api.ReplicaFailed || ready && row.Replica.Reason != ""
		if ctx.Err() != nil || stuck && a.now().Sub(began) > failedWait {
			return nil, api.Errorf(api.CodeInternal, "is %s with %s: %s", row.state(), row.size(), row.note()).
				On(api.KindVolume, api.Key(tenant, name)).Do("debvisor volume show %s", name)
		}
		if list != nil {
			o.Index, o.Wait = list.Index, waitRound
		}
	}
}

func cloneVMCommand(a *app) *cobra.Command {
	var ch change
	var w waiting
	var how cloneFlags
	var start bool
	cmd := &cobra.Command{
		Use: "clone SOURCE NAME", Short: "Make a VM like another one that is off: its own identity, addresses and disks",
		Example: "  debvisor vm clone template web1 --linked --start\n  debvisor vm clone web copy",
		Args:    exactly("SOURCE", "NAME"), ValidArgsFunction: a.completeNames(vms()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			all := client.Resource[api.VM](c, api.KindVM)
			source, _, err := all.Get(ctx, a.tenantName(), args[0], client.ReadOptions{})
			if err != nil {
				return err
			}
			v := source.CloneAs(args[1], how.mode())
			if start {
				v.Power = api.PowerOn
			}
			var made *api.VM
			planned, err := ch.do(a, func(o ...client.Option) (err error) {
				made, err = all.Put(ctx, &v, o...)
				return err
			})
			if err != nil || planned {
				return err
			}
			return a.afterClone(ctx, c, &w, made)
		}),
	}
	ch.flags(cmd)
	w.flags(cmd)
	how.flags(cmd)
	cmd.Flags().BoolVar(&start, "start", false, "start it")
	return cmd
}

// afterClone waits until the disks of the clone are made and, if it is to run,
// until it does.
func (a *app) afterClone(ctx context.Context, c *client.Client, w *waiting, vm *api.VM) error {
	if !w.wait {
		return a.result(vm, "vm %s is asked for", clean(vm.Name))
	}
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	for _, d := range vm.Disks {
		if _, err := a.waitVolume(ctx, c, vm.Tenant, d.Volume); err != nil {
			return err
		}
	}
	if !vm.On() {
		return a.result(vm, "vm %s is made and off", clean(vm.Name))
	}
	row, err := a.waitVM(ctx, c, vm.Tenant, vm.Name, api.InstanceRunning)
	if err != nil {
		return err
	}
	return a.result(row, "vm %s is running%s", clean(vm.Name), onNode(row)+simulatedNote(row))
}
