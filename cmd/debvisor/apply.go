package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
	"github.com/debvisor/debvisor/api/spec"
)

// fileFlags are the flags of commands that read files.
type fileFlags struct {
	files []string
	vars  []string
	set   string
	prune bool
}

func (f *fileFlags) flags(cmd *cobra.Command, prune bool) {
	s := cmd.Flags()
	s.StringArrayVarP(&f.files, "file", "f", nil, "HCL file, directory of such files, or - for the input; may be repeated")
	s.StringArrayVar(&f.vars, "var", nil, "value of a variable, as NAME=VALUE; may be repeated")
	s.StringVar(&f.set, "set", "", "name under which what is applied is remembered (default: the file's name)")
	if prune {
		s.BoolVar(&f.prune, "prune", false, "delete what was applied under this name before and left the file")
	}
	_ = cmd.MarkFlagRequired("file")
	_ = cmd.MarkFlagFilename("file", "hcl")
}

const planLong = `The diff shows what would be created (+), changed (~) and deleted (-), and where
VMs would be placed. docs/hcl.md describes the language of the files.`

func planCommand(a *app) *cobra.Command {
	var f fileFlags
	cmd := &cobra.Command{
		Use: "plan -f FILE", Short: "Show what applying files would change",
		Long:    "Shows what applying files would change, and changes nothing.\n\n" + planLong,
		Example: "  debvisor plan -f shop.hcl\n  debvisor plan -f shop.hcl --prune -o json",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			p, err := a.plan(cmd, c, &f, false)
			if err != nil {
				return err
			}
			return a.showProposal(p)
		},
	}
	f.flags(cmd, true)
	return cmd
}

// applyFlags are the flags of apply and destroy.
type applyFlags struct {
	fileFlags
	change
	waiting
	yes bool
}

func applyCommand(a *app) *cobra.Command {
	var f applyFlags
	cmd := &cobra.Command{
		Use: "apply -f FILE", Short: "Make the cluster what files say",
		Long: `Makes the cluster what files say: shows the plan, asks on a terminal, applies
exactly that plan, and waits until the VMs run. If something that the plan saw
has changed in the meantime, nothing is done. Applied again, it does nothing.
Without a terminal it does not ask.

` + planLong,
		Example: "  debvisor apply -f shop.hcl\n  debvisor apply -f shop.hcl --prune --yes",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.carryOut(cmd, &f, false)
		},
	}
	f.fileFlags.flags(cmd, true)
	f.changeFlags(cmd)
	return cmd
}

func destroyCommand(a *app) *cobra.Command {
	var f applyFlags
	cmd := &cobra.Command{
		Use: "destroy -f FILE", Short: "Delete what files declare",
		Long:    "Deletes what files declare, and what was made for it: VMs before what they\nuse. Shows the plan first and asks on a terminal.",
		Example: "  debvisor destroy -f shop.hcl --plan\n  debvisor destroy -f shop.hcl",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.carryOut(cmd, &f, true)
		},
	}
	f.fileFlags.flags(cmd, false)
	f.changeFlags(cmd)
	return cmd
}

func (f *applyFlags) changeFlags(cmd *cobra.Command) {
	f.change.flags(cmd)
	f.waiting.flags(cmd)
	cmd.Flags().BoolVarP(&f.yes, "yes", "y", false, "do not ask")
}

// proposal is what files would change, as it was planned.
type proposal struct {
	Set         string                 `json:"set,omitzero"`
	Differences []spec.Difference      `json:"-"`
	Changes     []plannedChange        `json:"changes"`
	Placements  []api.PlannedPlacement `json:"placements"`
	Effects     []api.PlannedEffect    `json:"effects,omitzero"`
	apply       api.Apply
	desired     []spec.Object
}

// plannedChange is a difference for programs.
type plannedChange struct {
	Action string            `json:"action"`
	Kind   string            `json:"kind"`
	Key    string            `json:"key"`
	Fields []api.FieldChange `json:"fields,omitzero"`
}

// plan reads the files, compares them with the cluster and lets the cluster
// check the outcome.
func (a *app) plan(cmd *cobra.Command, c *client.Client, f *fileFlags, destroy bool) (*proposal, error) {
	set, err := a.readFiles(cmd, f)
	if err != nil {
		return nil, err
	}
	have, err := readExisting(cmd.Context(), c, set.Objects, f.prune)
	if err != nil {
		return nil, err
	}
	p := &proposal{Set: set.Name, desired: set.Objects}
	if destroy {
		p.desired, p.Differences = nil, spec.Destroy(set.Objects, have.current)
	} else {
		p.Differences = spec.Diff(set.Objects, have.current)
		if f.prune {
			p.Differences = append(p.Differences, spec.Prune(set.Name, set.Objects, have.list)...)
		}
	}
	if err := p.operations(); err != nil {
		return nil, err
	}
	if len(p.apply.Operations) == 0 {
		return p, nil
	}
	var plan api.Plan
	if _, err := c.Apply(cmd.Context(), &p.apply, client.AsPlan(&plan)); err != nil {
		return nil, err
	}
	p.Placements, p.Effects = plan.Placements, plan.Effects
	return p, nil
}

// readFiles parses the files that belong together.
func (a *app) readFiles(cmd *cobra.Command, f *fileFlags) (*spec.Set, error) {
	o := spec.Options{Vars: map[string]string{}, Tenant: a.tenantName(), Set: f.set}
	for _, v := range f.vars {
		name, value, ok := strings.Cut(v, "=")
		if !ok {
			return nil, usage(cmd, "--var %q is not NAME=VALUE", v)
		}
		o.Vars[name] = value
	}
	if o.Set == "" {
		o.Set = spec.SetName(f.files[0])
	}
	var files []spec.File
	for _, name := range f.files {
		more, err := a.readFile(name)
		if err != nil {
			return nil, err
		}
		files = append(files, more...)
	}
	return spec.Parse(files, o)
}

// readFile reads one file, the .hcl files of a directory, or the input.
func (a *app) readFile(name string) ([]spec.File, error) {
	if name == "-" {
		raw, err := io.ReadAll(io.LimitReader(a.in, spec.FileSizeMax+1))
		if err != nil {
			return nil, fmt.Errorf("read the input: %w", err)
		}
		return []spec.File{{Name: "input", Data: raw}}, nil
	}
	names := []string{name}
	if stat, err := os.Stat(name); err == nil && stat.IsDir() {
		if names, err = filepath.Glob(filepath.Join(name, "*.hcl")); err != nil {
			return nil, fmt.Errorf("list %s: %w", name, err)
		}
		if len(names) == 0 {
			return nil, fmt.Errorf("%s holds no file whose name ends in .hcl", name)
		}
	}
	var files []spec.File
	for _, n := range names {
		file, err := os.Open(n)
		if err != nil {
			return nil, err
		}
		raw, err := io.ReadAll(io.LimitReader(file, spec.FileSizeMax+1))
		if err := errors.Join(err, file.Close()); err != nil {
			return nil, fmt.Errorf("read %s: %w", n, err)
		}
		files = append(files, spec.File{Name: n, Data: raw})
	}
	return files, nil
}

// inventory is what the cluster has of the kinds that matter.
type inventory struct {
	list []spec.Object
	at   map[string]api.Object // by "kind/key"
}

func (e *inventory) current(kind, key string) api.Object { return e.at[kind+"/"+key] }

// readExisting lists the kinds that the files declare, or all of them where
// something may have to be pruned.
func readExisting(ctx context.Context, c *client.Client, desired []spec.Object, all bool) (*inventory, error) {
	e := &inventory{at: map[string]api.Object{}}
	var index uint64
	for _, k := range api.Kinds() {
		declared := slices.ContainsFunc(desired, func(o spec.Object) bool { return o.Kind == k.Name })
		if !k.UserEdits || !declared && !all {
			continue
		}
		o := client.ListOptions{ReadOptions: client.ReadOptions{MinIndex: index}, All: k.TenantScope, Limit: listPage}
		for {
			page, err := c.Objects(ctx, k, o)
			if err != nil {
				return nil, fmt.Errorf("list %s: %w", k.Plural, err)
			}
			for _, raw := range page.Items {
				if err := e.add(k, raw); err != nil {
					return nil, err
				}
			}
			index = max(index, page.Index)
			if o.After = page.Next; o.After == "" {
				break
			}
		}
	}
	return e, nil
}

const listPage = 1000

func (e *inventory) add(k api.Kind, raw json.RawMessage) error {
	v := spec.NewObject(k.Name)
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("decode %s: %w", k.Name, err)
	}
	key := k.Key(v.Head().Tenant, v.Head().Name)
	e.list = append(e.list, spec.Object{Kind: k.Name, Key: key, Value: v})
	e.at[k.Name+"/"+key] = v
	return nil
}

// operations turns the differences into what is sent: each change with the
// revision that the plan saw.
func (p *proposal) operations() error {
	p.apply.Revisions = map[string]uint64{}
	p.Changes, p.Placements = []plannedChange{}, []api.PlannedPlacement{}
	for _, d := range p.Differences {
		if d.Action == spec.None {
			continue
		}
		p.Changes = append(p.Changes, plannedChange{Action: d.Action, Kind: d.Kind, Key: d.Key, Fields: d.Fields})
		var body any = d.After
		op, revision := d.Kind+".put", uint64(0)
		if d.Before != nil {
			revision = d.Before.Head().Modified
		}
		if d.Action == spec.Delete {
			head := d.Before.Head()
			op, body = d.Kind+".delete", deletion{Tenant: head.Tenant, Name: head.Name, Modified: revision}
		}
		raw, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("encode %s %s: %w", d.Kind, d.Key, err)
		}
		p.apply.Operations = append(p.apply.Operations, api.Operation{Op: op, Body: raw})
		p.apply.Revisions[d.Kind+"/"+d.Key] = revision
	}
	return nil
}

// deletion is the body of "<kind>.delete".
type deletion struct {
	Tenant   string `json:"tenant,omitzero"`
	Name     string `json:"name"`
	Modified uint64 `json:"modified"`
}

// showProposal writes the diff and the placements.
func (a *app) showProposal(p *proposal) error {
	if a.structured() {
		return a.emit(p)
	}
	a.printf("%s", spec.RenderDiff(p.Differences, a.color()))
	for i := range p.Effects {
		a.showEffect(&p.Effects[i])
	}
	for _, placement := range p.Placements {
		where := "nowhere yet"
		if placement.Decision.Node != "" {
			where = "on " + placement.Decision.Node
		}
		a.printf("%s\n", clip(clean(fmt.Sprintf("vm %s: %s: %s", placement.VM, where, placement.Decision.Summary)), a.widthOrMore()))
	}
	return nil
}

// carryOut plans, shows, asks, applies and waits.
func (a *app) carryOut(cmd *cobra.Command, f *applyFlags, destroy bool) error {
	ctx := cmd.Context()
	c, err := a.client()
	if err != nil {
		return err
	}
	p, err := a.plan(cmd, c, &f.fileFlags, destroy)
	if err != nil {
		return err
	}
	if len(p.apply.Operations) == 0 {
		return a.result(outcome{Changed: 0}, "nothing to do")
	}
	if f.plan || !a.structured() {
		if err := a.showProposal(p); err != nil || f.plan {
			return err
		}
	}
	if !f.yes {
		if ok, err := a.confirm("do this?", true); err != nil || !ok {
			return err
		}
	}
	var options []client.Option
	if f.requestID != "" {
		options = append(options, client.WithRequestID(f.requestID))
	}
	applied, err := c.Apply(ctx, &p.apply, options...)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	if applied.Task != nil {
		if !f.wait {
			return a.result(applied, "the rest goes on in task %s", applied.Task.Name)
		}
		if _, err := a.waitTask(ctx, c, applied.Task.Name); err != nil {
			return err
		}
	}
	return a.afterApply(ctx, c, p, f.wait)
}

// outcome is what apply and destroy tell programs.
type outcome struct {
	Changed int     `json:"changed"`
	VMs     []vmRow `json:"vms,omitzero"`
}

// afterApply waits for the VMs that changed, and tells what became of them.
func (a *app) afterApply(ctx context.Context, c *client.Client, p *proposal, wait bool) error {
	done := outcome{Changed: len(p.apply.Operations)}
	var problems []error
	for _, d := range p.Differences {
		vm, ok := d.After.(*api.VM)
		if !ok || !wait || d.Action == spec.None || !vm.On() {
			continue
		}
		row, err := a.waitVM(ctx, c, vm.Tenant, vm.Name, api.InstanceRunning)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		done.VMs = append(done.VMs, *row)
		if !a.structured() {
			a.printf("vm %s is running%s%s\n", clean(vm.Name), onNode(row), simulatedNote(row))
		}
	}
	if a.structured() {
		if err := a.emit(done); err != nil {
			return err
		}
	} else if len(problems) == 0 {
		a.printf("done: %d changed\n", done.Changed)
	}
	return errors.Join(problems...)
}
