package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

// vmFlags is a VM as flags describe it. What they cannot say, a file can.
type vmFlags struct {
	vm        api.VM
	memory    string
	image     string
	disk      string
	pool      string
	networks  []string
	firewalls []string
	off       bool
	wait      waiting
}

func createVMCommand(a *app) *cobra.Command {
	f := &vmFlags{}
	return createCommand(a, &creation[api.VM, *api.VM]{
		kind:    api.KindVM,
		example: "  debvisor vm create web --cpus 2 --memory 1GiB --image debian --network lan\n  debvisor vm create idle --cpus 1 --memory 256MiB --off",
		flags:   func(cmd *cobra.Command) { f.flags(a, cmd) },
		build:   func(context.Context, *cobra.Command, *client.Client) (*api.VM, error) { return f.build() },
		then: func(ctx context.Context, c *client.Client, made *api.VM) (any, error) {
			if f.off || !f.wait.wait {
				return made, nil
			}
			ctx, cancel := context.WithTimeout(ctx, f.wait.timeout)
			defer cancel()
			row, err := a.waitVM(ctx, c, made.Tenant, made.Name, api.InstanceRunning)
			if err == nil && !a.structured() {
				a.printf("vm %s is running%s\n", made.Name, onNode(row)+simulatedNote(row))
			}
			return row, err
		},
	})
}

func simulatedNote(r *vmRow) string {
	if r.Instance != nil && r.Instance.Simulated {
		return " (" + simulatedRow + ")"
	}
	return ""
}

func (f *vmFlags) flags(a *app, cmd *cobra.Command) {
	s := cmd.Flags()
	s.IntVar(&f.vm.CPUs, "cpus", 1, "virtual CPUs")
	s.StringVar(&f.memory, "memory", "512MiB", "memory, as 512MiB or 2GiB")
	s.StringVar(&f.vm.Description, "description", "", "for people")
	s.StringVar(&f.image, "image", "", "image that its first disk starts as")
	s.StringVar(&f.disk, "disk", "", "size of its first disk, as 10GiB (default: the image's)")
	s.StringVar(&f.pool, "pool", "", "pool of its first disk (default local)")
	s.StringSliceVar(&f.networks, "network", nil, "network to plug into; may be repeated")
	s.StringSliceVar(&f.firewalls, "firewall", nil, "firewall of its interfaces; may be repeated")
	s.StringVar(&f.vm.Firmware, "firmware", "", "bios (default) or uefi")
	s.StringVar(&f.vm.HA, "ha", "", "when its host is lost: none (default), lease, storage")
	s.StringVar(&f.vm.Placement.Node, "node", "", "run on this node only")
	s.BoolVar(&f.off, "off", false, "do not start it")
	f.wait.flags(cmd)
	_ = cmd.RegisterFlagCompletionFunc("image", a.completeNames(images()))
	_ = cmd.RegisterFlagCompletionFunc("pool", a.completeNames(pools()))
	_ = cmd.RegisterFlagCompletionFunc("network", a.completeNames(networks()))
	_ = cmd.RegisterFlagCompletionFunc("firewall", a.completeNames(firewalls()))
	_ = cmd.RegisterFlagCompletionFunc("node", a.completeNames(nodes()))
	_ = cmd.RegisterFlagCompletionFunc("firmware", cobra.FixedCompletions([]string{"bios", "uefi"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("ha", cobra.FixedCompletions([]string{api.HANone, api.HALease, api.HAStorage}, cobra.ShellCompDirectiveNoFileComp))
}

func (f *vmFlags) build() (*api.VM, error) {
	vm := f.vm
	var err error
	if vm.MemoryBytes, err = sizeFlag("memory", f.memory); err != nil {
		return nil, err
	}
	bytes, err := sizeFlag("disk", f.disk)
	if err != nil {
		return nil, err
	}
	if f.image != "" || bytes > 0 {
		vm.Disks = []api.Disk{{Name: "root", Image: f.image, Pool: f.pool, SizeBytes: bytes}}
	} else if f.pool != "" {
		return nil, &usageError{err: fmt.Errorf("--pool %s needs --image or --disk: there is no disk to put there", f.pool)}
	}
	for _, n := range f.networks {
		vm.NICs = append(vm.NICs, api.NIC{Network: strings.TrimSpace(n), Firewalls: f.firewalls})
	}
	if f.off {
		vm.Power = api.PowerOff
	}
	return &vm, nil
}
