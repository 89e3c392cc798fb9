package main

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

// vmEdit is a command that changes a part of one VM and leaves the rest.
type vmEdit struct {
	use, short, example string
	args                []string // names of its arguments; the first is the VM's
	flags               func(cmd *cobra.Command)
	edit                func(ctx context.Context, cmd *cobra.Command, c *client.Client, vm *api.VM, args []string) error
}

// command reads the VM, edits it, and puts it back if nobody else has changed
// it meanwhile.
func (e *vmEdit) command(a *app) *cobra.Command {
	var ch change
	var w waiting
	cmd := &cobra.Command{
		Use: e.use, Short: e.short, Example: e.example,
		Args: exactly(e.args...), ValidArgsFunction: a.completeNames(vms()),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			ctx, all := cmd.Context(), client.Resource[api.VM](c, api.KindVM)
			vm, _, err := all.Get(ctx, a.tenantName(), args[0], client.ReadOptions{})
			if err != nil {
				return err
			}
			if err := e.edit(ctx, cmd, c, vm, args); err != nil {
				return err
			}
			if err := vm.Validate(); err != nil {
				return api.AsError(err).OnMissing(api.KindVM, api.Key(vm.Tenant, vm.Name))
			}
			var changed *api.VM
			planned, err := ch.do(a, func(o ...client.Option) (err error) {
				changed, err = all.Put(ctx, vm, o...)
				return err
			})
			if err != nil || planned {
				return err
			}
			return a.afterEdit(ctx, c, &w, changed)
		},
	}
	ch.flags(cmd)
	w.flags(cmd)
	if e.flags != nil {
		e.flags(cmd)
	}
	return cmd
}

// afterEdit waits until a running guest has what it can get of the edit, and
// says what waits.
func (a *app) afterEdit(ctx context.Context, c *client.Client, w *waiting, vm *api.VM) error {
	if !w.wait {
		return a.result(vm, "vm %s is changed", clean(vm.Name))
	}
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	row, err := a.waitEdit(ctx, c, vm)
	if err != nil {
		return err
	}
	if a.structured() {
		return a.emit(row)
	}
	if row.state() != api.InstanceRunning {
		a.printf("vm %s is changed; it is %s\n", clean(row.Name), row.state())
		return nil
	}
	a.printf("vm %s is changed%s\n", clean(row.Name), map[bool]string{true: " while it runs"}[len(row.Instance.Pending) == 0])
	for _, p := range row.Instance.Pending {
		a.printf("  waits: %s\n", clean(p))
	}
	return nil
}

// waitEdit blocks until the guest of a VM, if it runs, has the revision.
func (a *app) waitEdit(ctx context.Context, c *client.Client, vm *api.VM) (*vmRow, error) {
	p := a.progress()
	defer p.end()
	var o client.ReadOptions
	for {
		row, index, err := a.pollVM(ctx, c, vm.Tenant, vm.Name, o)
		if err != nil {
			return nil, err
		}
		i := row.Instance
		if i == nil || i.State != api.InstanceRunning || i.SpecRevision >= vm.Modified {
			return row, nil
		}
		if ctx.Err() != nil {
			why := "its node has not answered yet"
			if len(i.Pending) > 0 {
				why = i.Pending[0]
			}
			return nil, api.Errorf(api.CodeUnavailable, "the VM is changed, its guest is not: %s", why).
				On(api.KindVM, api.Key(vm.Tenant, vm.Name)).Do("look again: debvisor vm show %s", vm.Name)
		}
		p.step("vm %s: the guest is being changed", vm.Name)
		o.Index, o.Wait = index, waitRound
	}
}

func setVMCommand(a *app) *cobra.Command {
	var set api.VM
	var memory, memoryMax, topology string
	e := vmEdit{
		use: "set NAME", short: "Change a VM and, as far as that works, its running guest",
		example: "  debvisor vm set web --cpus 4 --memory 2GiB\n  debvisor vm set web --cpus-max 8 --memory-max 8GiB --plan",
		args:    []string{"NAME"},
		flags: func(cmd *cobra.Command) {
			s := cmd.Flags()
			s.IntVar(&set.CPUs, "cpus", 0, "virtual CPUs")
			s.IntVar(&set.CPUsMax, "cpus-max", 0, "up to which CPUs can be added while the guest runs; 0: none")
			s.StringVar(&set.CPUModel, "cpu-model", "", "empty: the cluster's baseline; host; x86-64-v2; or a model that nodes list")
			s.StringVar(&topology, "cpu-topology", "", "SOCKETS:CORES:THREADS that make cpus-max, or empty")
			s.StringVar(&memory, "memory", "", "memory, as 2GiB")
			s.StringVar(&memoryMax, "memory-max", "", "up to which memory can be given while the guest runs; 0: no more")
			s.StringVar(&set.Machine, "machine", "", "q35 (default) or i440fx")
			s.StringVar(&set.Firmware, "firmware", "", "bios (default) or uefi")
			s.BoolVar(&set.TPM, "tpm", false, "a virtual TPM 2.0")
			s.StringVar(&set.RNG, "rng", "", "random source: on (default) or off")
			s.StringVar(&set.Description, "description", "", "for people")
			s.IntVar(&set.Priority, "priority", 0, "higher first when hosts are scarce")
			fixed := func(values ...string) cobra.CompletionFunc {
				return cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)
			}
			_ = cmd.RegisterFlagCompletionFunc("machine", fixed(api.MachineQ35, api.MachineI440FX))
			_ = cmd.RegisterFlagCompletionFunc("firmware", fixed("bios", "uefi"))
			_ = cmd.RegisterFlagCompletionFunc("rng", fixed(api.On, api.Off))
		},
	}
	e.edit = func(_ context.Context, cmd *cobra.Command, _ *client.Client, vm *api.VM, _ []string) error {
		given := func(flag string) bool { return cmd.Flags().Changed(flag) }
		var errs [3]error
		if given("memory") {
			vm.MemoryBytes, errs[0] = sizeFlag("memory", memory)
		}
		if given("memory-max") {
			vm.MemoryMax, errs[1] = sizeFlag("memory-max", memoryMax)
		}
		if given("cpu-topology") {
			vm.CPUTopology, errs[2] = parseTopology(topology)
		}
		for _, f := range []struct {
			flag string
			set  func()
		}{
			{"cpus", func() { vm.CPUs = set.CPUs }}, {"cpus-max", func() { vm.CPUsMax = set.CPUsMax }},
			{"cpu-model", func() { vm.CPUModel = set.CPUModel }}, {"machine", func() { vm.Machine = set.Machine }},
			{"firmware", func() { vm.Firmware = set.Firmware }}, {"tpm", func() { vm.TPM = set.TPM }}, {"rng", func() { vm.RNG = set.RNG }},
			{"description", func() { vm.Description = set.Description }}, {"priority", func() { vm.Priority = set.Priority }},
		} {
			if given(f.flag) {
				f.set()
			}
		}
		return errors.Join(errs[:]...)
	}
	return e.command(a)
}

func parseTopology(text string) (t api.CPUTopology, err error) {
	if text == "" {
		return t, nil
	}
	parts := strings.Split(text, ":")
	var n [3]int
	for i, p := range parts {
		if i < len(n) {
			n[i] = smallNumber(p)
		}
	}
	if len(parts) != len(n) || slices.Contains(n[:], 0) {
		return t, &usageError{err: api.Invalid("--cpu-topology", "is %q", text).Allow("SOCKETS:CORES:THREADS, as 1:4:2")}
	}
	return api.CPUTopology{Sockets: n[0], Cores: n[1], Threads: n[2]}, nil
}

// smallNumber is a positive number of at most four digits, or 0.
func smallNumber(s string) int {
	n := 0
	if s == "" || len(s) > 4 {
		return 0
	}
	for _, r := range s {
		if r < '0' || r > '9' {
			return 0
		}
		n = n*10 + int(r-'0')
	}
	return n
}
