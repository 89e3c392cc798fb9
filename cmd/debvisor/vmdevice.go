package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

// deviceCommand groups the commands of one family of a VM's devices.
func deviceCommand(name, short, example string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, Example: "  debvisor vm " + name + " " + example}
	cmd.AddCommand(commands...)
	return cmd
}

func diskCommand(a *app) *cobra.Command {
	return deviceCommand("disk", "Disks of a VM", "attach web data --size 20GiB", attachDiskCommand(a), detachDiskCommand(a), limitDiskCommand(a), listDisksCommand(a))
}

// limitFlags are the bounds of a disk's speed.
type limitFlags struct {
	limits                api.IOLimits
	readBytes, writeBytes string
}

func (f *limitFlags) flags(cmd *cobra.Command) {
	s := cmd.Flags()
	s.Int64Var(&f.limits.ReadIOPSMax, "read-iops-max", 0, "reads a second; 0: no limit")
	s.Int64Var(&f.limits.WriteIOPSMax, "write-iops-max", 0, "writes a second; 0: no limit")
	s.StringVar(&f.readBytes, "read-bytes-max", "", "bytes read a second, as 100MiB; 0: no limit")
	s.StringVar(&f.writeBytes, "write-bytes-max", "", "bytes written a second, as 100MiB; 0: no limit")
}

// set changes the limits that were given.
func (f *limitFlags) set(cmd *cobra.Command, to *api.IOLimits) (err error) {
	given := cmd.Flags().Changed
	if given("read-iops-max") {
		to.ReadIOPSMax = f.limits.ReadIOPSMax
	}
	if given("write-iops-max") {
		to.WriteIOPSMax = f.limits.WriteIOPSMax
	}
	if given("read-bytes-max") {
		if to.ReadBytesPerSecondMax, err = sizeFlag("read-bytes-max", f.readBytes); err != nil {
			return err
		}
	}
	if given("write-bytes-max") {
		to.WriteBytesPerSecondMax, err = sizeFlag("write-bytes-max", f.writeBytes)
	}
	return err
}

func attachDiskCommand(a *app) *cobra.Command {
	var d api.Disk
	var size string
	var limits limitFlags
	e := vmEdit{
		use: "attach VM DISK", short: "Give a VM one more disk, in its running guest too", args: []string{"VM", "DISK"},
		example: "  debvisor vm disk attach web data --size 20GiB\n  debvisor vm disk attach web logs --volume logs --bus scsi",
		flags: func(cmd *cobra.Command) {
			s := cmd.Flags()
			s.StringVar(&d.Volume, "volume", "", "volume that it is; else one is made")
			s.StringVar(&size, "size", "", "size of the volume to be made, as 20GiB")
			s.StringVar(&d.Pool, "pool", "", "pool of the volume to be made (default local)")
			s.StringVar(&d.Image, "image", "", "image that the volume to be made starts as")
			s.StringVar(&d.Bus, "bus", "", "virtio (default), scsi or sata")
			s.StringVar(&d.Cache, "cache", "", "none (default), writeback or writethrough")
			s.StringVar(&d.Discard, "discard", "", "of discarded blocks: unmap (default) or ignore")
			s.StringVar(&d.Serial, "serial", "", "that the guest sees")
			s.IntVar(&d.BootOrder, "boot-order", 0, "1 first")
			s.BoolVar(&d.ReadOnly, "read-only", false, "the guest cannot write to it")
			limits.flags(cmd)
			_ = cmd.RegisterFlagCompletionFunc("volume", a.completeNames(volumes()))
			_ = cmd.RegisterFlagCompletionFunc("pool", a.completeNames(pools()))
			_ = cmd.RegisterFlagCompletionFunc("image", a.completeNames(images()))
		},
	}
	e.edit = func(_ context.Context, cmd *cobra.Command, _ *client.Client, vm *api.VM, args []string) (err error) {
		d.Name = args[1]
		if slices.ContainsFunc(vm.Disks, func(have api.Disk) bool { return have.Name == d.Name }) {
			return api.Errorf(api.CodeConflict, "has a disk %s already", d.Name).On(api.KindVM, api.Key(vm.Tenant, vm.Name)).
				Do("look at them: debvisor vm disk list %s", vm.Name)
		}
		if d.SizeBytes, err = sizeFlag("size", size); err != nil {
			return err
		}
		vm.Disks = append(vm.Disks, d)
		return limits.set(cmd, &vm.Disks[len(vm.Disks)-1].IOLimits)
	}
	return e.command(a)
}

func detachDiskCommand(a *app) *cobra.Command {
	var remove bool
	e := vmEdit{
		use: "detach VM DISK", short: "Take a disk from a VM, from its running guest too", args: []string{"VM", "DISK"},
		example: "  debvisor vm disk detach web logs",
		flags: func(cmd *cobra.Command) {
			cmd.Flags().BoolVar(&remove, "delete", false, "delete what is on it: a disk that was made with its VM does not outlive the attachment")
		},
	}
	e.edit = func(ctx context.Context, _ *cobra.Command, c *client.Client, vm *api.VM, args []string) error {
		i, err := diskAt(vm, args[1])
		if err != nil {
			return err
		}
		v, _, err := client.Resource[api.Volume](c, api.KindVolume).Get(ctx, vm.Tenant, vm.Disks[i].Volume, client.ReadOptions{})
		if err != nil {
			return err
		}
		if v.OwnerVM != "" && !remove {
			return &usageError{err: fmt.Errorf("volume %s was made for vm %s and is deleted with the detachment; say --delete if that is meant", v.Name, vm.Name)}
		}
		vm.Disks = slices.Delete(vm.Disks, i, i+1)
		return nil
	}
	return e.command(a)
}

func limitDiskCommand(a *app) *cobra.Command {
	var limits limitFlags
	e := vmEdit{
		use: "limit VM DISK", short: "Bound how fast a VM may use a disk", args: []string{"VM", "DISK"},
		example: "  debvisor vm disk limit web data --write-iops-max 500 --write-bytes-max 50MiB",
		flags:   limits.flags,
	}
	e.edit = func(_ context.Context, cmd *cobra.Command, _ *client.Client, vm *api.VM, args []string) error {
		i, err := diskAt(vm, args[1])
		if err != nil {
			return err
		}
		return limits.set(cmd, &vm.Disks[i].IOLimits)
	}
	return e.command(a)
}

func diskAt(vm *api.VM, name string) (int, error) {
	i := slices.IndexFunc(vm.Disks, func(d api.Disk) bool { return d.Name == name })
	if i < 0 {
		var have []string
		for _, d := range vm.Disks {
			have = append(have, d.Name)
		}
		return 0, missingDevice(vm, "disk", name, have)
	}
	return i, nil
}

func missingDevice(vm *api.VM, what, name string, have []string) error {
	return api.Errorf(api.CodeNotFound, "has no %s %s", what, name).On(api.KindVM, api.Key(vm.Tenant, vm.Name)).
		Allow("%s", dash(strings.Join(have, ", ")))
}

func listDisksCommand(a *app) *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use: "list VM", Short: "List the disks and drives of a VM", Example: "  debvisor vm disk list web",
		Args: exactly("VM"), ValidArgsFunction: a.completeNames(vms()),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			var o client.ReadOptions
			seen := uint64(0)
			for {
				vm, answer, err := client.Resource[api.VM](c, api.KindVM).Get(ctx, a.tenantName(), args[0], o)
				if err != nil {
					return err
				}
				if vm.Modified != seen {
					if err := a.showDisks(vm); err != nil || !watch {
						return err
					}
				}
				seen, o.Index, o.Wait = vm.Modified, answer.Index, waitRound
			}
		}),
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show them again after every change")
	return cmd
}

func (a *app) showDisks(vm *api.VM) error {
	if a.structured() {
		return a.emit(map[string]any{"disks": items(vm.Disks), "cdroms": items(vm.CDROMs)})
	}
	t := table{titles: []string{"NAME", "KIND", "VOLUME OR IMAGE", "BUS", "BOOT", "LIMITS"}, rows: diskRows(vm)}
	a.printf("%s", t.render(a.limit()))
	return nil
}

func diskRows(vm *api.VM) [][]string {
	order := func(n int) string {
		if n == 0 {
			return "-"
		}
		return strconv.Itoa(n)
	}
	bus := func(given, otherwise string) string {
		if given == "" {
			return otherwise
		}
		return given
	}
	var rows [][]string
	for _, d := range vm.Disks {
		rows = append(rows, []string{d.Name, "disk", d.Volume, bus(d.Bus, "virtio"), order(d.BootOrder), limitText(d.IOLimits)})
	}
	for _, c := range vm.CDROMs {
		rows = append(rows, []string{c.Name, "cdrom", dash(c.Image), bus(c.Bus, "sata"), order(c.BootOrder), "-"})
	}
	return rows
}

func limitText(l api.IOLimits) string {
	var parts []string
	for _, p := range []struct {
		value int64
		text  string
	}{
		{l.ReadIOPSMax, fmt.Sprintf("%d reads/s", l.ReadIOPSMax)}, {l.WriteIOPSMax, fmt.Sprintf("%d writes/s", l.WriteIOPSMax)},
		{l.ReadBytesPerSecondMax, "read " + api.FormatSize(l.ReadBytesPerSecondMax) + "/s"},
		{l.WriteBytesPerSecondMax, "write " + api.FormatSize(l.WriteBytesPerSecondMax) + "/s"},
	} {
		if p.value > 0 {
			parts = append(parts, p.text)
		}
	}
	return dash(strings.Join(parts, ", "))
}

func nicCommand(a *app) *cobra.Command {
	return deviceCommand("nic", "Network interfaces of a VM", "attach web lan", attachNICCommand(a), detachNICCommand(a))
}

func attachNICCommand(a *app) *cobra.Command {
	var n api.NIC
	e := vmEdit{
		use: "attach VM NETWORK", short: "Plug a VM into a network, its running guest too", args: []string{"VM", "NETWORK"},
		example: "  debvisor vm nic attach web lan",
		flags: func(cmd *cobra.Command) {
			cmd.Flags().StringVar(&n.MAC, "mac", "", "its address, as 52:54:00:12:34:56 (default: one is chosen)")
			cmd.Flags().StringVar(&n.Link, "link", "", "up (default) or down")
			cmd.Flags().IntVar(&n.BootOrder, "boot-order", 0, "1 first: boot from the network")
		},
	}
	e.edit = func(_ context.Context, _ *cobra.Command, _ *client.Client, vm *api.VM, args []string) error {
		n.Network = args[1]
		vm.NICs = append(vm.NICs, n)
		return nil
	}
	return e.command(a)
}

func detachNICCommand(a *app) *cobra.Command {
	e := vmEdit{
		use: "detach VM MAC|NETWORK", short: "Unplug a VM from a network, its running guest too", args: []string{"VM", "MAC|NETWORK"},
		example: "  debvisor vm nic detach web lan\n  debvisor vm nic detach web 52:54:00:12:34:56",
	}
	e.edit = func(_ context.Context, _ *cobra.Command, _ *client.Client, vm *api.VM, args []string) error {
		var at []int
		var have []string
		for i, n := range vm.NICs {
			have = append(have, n.MAC+" on "+n.Network)
			if n.MAC == args[1] || n.Network == args[1] {
				at = append(at, i)
			}
		}
		switch len(at) {
		case 0:
			return missingDevice(vm, "interface", args[1], have)
		case 1:
			vm.NICs = slices.Delete(vm.NICs, at[0], at[0]+1)
			return nil
		}
		return &usageError{err: fmt.Errorf("vm %s has %d interfaces on %s: name one by its address: %s", vm.Name, len(at), args[1], strings.Join(have, ", "))}
	}
	return e.command(a)
}

func cdromCommand(a *app) *cobra.Command {
	var drive string
	name := func(cmd *cobra.Command) { cmd.Flags().StringVar(&drive, "drive", "cd", "name of the drive") }
	insert := vmEdit{
		use: "insert VM IMAGE", short: "Put a disc into a drive of a VM", args: []string{"VM", "IMAGE"},
		example: "  debvisor vm cdrom insert web debian-installer", flags: name,
		edit: func(_ context.Context, _ *cobra.Command, _ *client.Client, vm *api.VM, args []string) error {
			if i := driveAt(vm, drive); i >= 0 {
				vm.CDROMs[i].Image = args[1]
				return nil
			}
			vm.CDROMs = append(vm.CDROMs, api.CDROM{Name: drive, Image: args[1]})
			return nil
		},
	}
	eject := vmEdit{
		use: "eject VM", short: "Take the disc out of a drive of a VM", args: []string{"VM"},
		example: "  debvisor vm cdrom eject web", flags: name,
		edit: func(_ context.Context, _ *cobra.Command, _ *client.Client, vm *api.VM, _ []string) error {
			i := driveAt(vm, drive)
			if i < 0 {
				var have []string
				for _, c := range vm.CDROMs {
					have = append(have, c.Name)
				}
				return missingDevice(vm, "drive", drive, have)
			}
			vm.CDROMs[i].Image = ""
			return nil
		},
	}
	return deviceCommand("cdrom", "Discs of a VM", "insert web debian-installer", insert.command(a), eject.command(a))
}

func driveAt(vm *api.VM, name string) int {
	return slices.IndexFunc(vm.CDROMs, func(c api.CDROM) bool { return c.Name == name })
}
