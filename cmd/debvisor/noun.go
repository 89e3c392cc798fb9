package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

const (
	watchQuiet   = 200 * time.Millisecond // changes that follow each other closely are shown together
	simulatedRow = "simulated hypervisor: no real guest runs"
)

// column is one column of a noun's table.
type column[R any] struct {
	title string
	value func(a *app, row *R) string
	wide  bool // in wide tables and in show only
	keep  bool // never cut
}

// noun is one kind of object on the command line. R is what a row shows: the
// object, or the object with what became of it.
type noun[R any] struct {
	kind    api.Kind
	word    string // as typed: "vm"
	aliases []string
	many    string // for help: "virtual machines"
	columns []column[R]
	watches []string // kinds whose changes change a row; empty: the kind itself

	head   func(row *R) *api.Meta
	list   func(ctx context.Context, c *client.Client, o client.ListOptions) (*client.List[R], error)
	get    func(ctx context.Context, c *client.Client, tenant, name string, o client.ReadOptions) (*R, error)
	remove func(ctx context.Context, c *client.Client, tenant, name string, o ...client.Option) error
}

// object ties a struct to the methods of its pointer.
type object[T any] interface {
	*T
	api.Object
}

// nounOf is the noun of a kind whose rows show the object alone.
func nounOf[T any, P object[T]](kind, many string, columns ...column[T]) *noun[T] {
	k, ok := api.LookupKind(kind)
	if !ok {
		panic("no such kind: " + kind)
	}
	return &noun[T]{
		kind: k, word: k.Name, many: many, columns: columns,
		head: func(row *T) *api.Meta { return P(row).Head() },
		list: func(ctx context.Context, c *client.Client, o client.ListOptions) (*client.List[T], error) {
			return client.Resource[T, P](c, kind).All(ctx, o)
		},
		get: func(ctx context.Context, c *client.Client, tenant, name string, o client.ReadOptions) (*T, error) {
			v, _, err := client.Resource[T, P](c, kind).Get(ctx, tenant, name, o)
			return v, err
		},
		remove: func(ctx context.Context, c *client.Client, tenant, name string, o ...client.Option) error {
			return client.Resource[T, P](c, kind).Delete(ctx, tenant, name, 0, o...)
		},
	}
}

// name is the first column of nearly every noun.
func nameColumn[R any](head func(*R) *api.Meta) column[R] {
	return column[R]{title: "NAME", value: func(_ *app, row *R) string { return head(row).Name }}
}

// metaColumns end every noun's columns.
func metaColumns[R any](head func(*R) *api.Meta) []column[R] {
	return []column[R]{
		{title: "AGE", keep: true, value: func(a *app, row *R) string { return age(a.now(), head(row).CreatedAt) }},
		{title: "LABELS", wide: true, value: func(_ *app, row *R) string { return labelText(head(row).Labels) }},
		{title: "REVISION", wide: true, value: func(_ *app, row *R) string { return fmt.Sprint(head(row).Modified) }},
		{title: "ID", wide: true, value: func(_ *app, row *R) string { return dash(head(row).ID) }},
	}
}

func labelText(labels map[string]string) string {
	var parts []string
	for k, v := range labels {
		parts = append(parts, k+"="+v)
	}
	slices.Sort(parts)
	return dash(strings.Join(parts, ","))
}

// command makes the noun's command with the subcommands list and show, and
// those in extra.
func (n *noun[R]) command(a *app, extra ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: n.word, Aliases: n.aliases, Short: "Work with " + n.many,
		Example: fmt.Sprintf("  debvisor %s list\n  debvisor %s show NAME -o yaml", n.word, n.word),
	}
	cmd.AddCommand(n.listCommand(a), n.showCommand(a))
	cmd.AddCommand(extra...)
	return cmd
}

// selection is what the flags of list choose.
type selection struct {
	labels []string
	all    bool
	watch  bool
	stale  bool
	at     uint64
}

func (s *selection) flags(cmd *cobra.Command, tenantScope bool) {
	f := cmd.Flags()
	f.StringSliceVarP(&s.labels, "label", "l", nil, "only those with this label, as key=value; may be repeated")
	f.BoolVarP(&s.watch, "watch", "w", false, "show the list again whenever it changes")
	f.BoolVar(&s.stale, "stale", false, "what the answering node knows, without asking the leader")
	f.Uint64Var(&s.at, "at", 0, "the list as it was at this index")
	if tenantScope {
		f.BoolVarP(&s.all, "all-tenants", "A", false, "of every tenant")
	}
}

func (s *selection) options(cmd *cobra.Command, tenant string) (client.ListOptions, error) {
	labels, err := parseLabels(cmd, s.labels)
	return client.ListOptions{
		ReadOptions: client.ReadOptions{Stale: s.stale, At: s.at},
		Tenant:      tenant, All: s.all, Labels: labels,
	}, err
}

// parseLabels reads key=value pairs; nil for none.
func parseLabels(cmd *cobra.Command, pairs []string) (map[string]string, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	labels := map[string]string{}
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return nil, usage(cmd, "label %q is not key=value", p)
		}
		labels[k] = v
	}
	return labels, nil
}

func (n *noun[R]) listCommand(a *app) *cobra.Command {
	var s selection
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List " + n.many,
		Example: fmt.Sprintf("  debvisor %s list -o wide\n  debvisor %s list --watch\n  debvisor %s list -o json", n.word, n.word, n.word),
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := s.options(cmd, a.scope(n.kind))
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			if s.watch {
				return n.watch(cmd.Context(), a, c, o)
			}
			list, err := n.list(cmd.Context(), c, o)
			if err != nil {
				return err
			}
			if a.structured() {
				return a.emit(items(list.Items))
			}
			a.printf("%s", n.render(a, list.Items, o.All)+a.simulated(cmd.Context(), c))
			return nil
		},
	}
	s.flags(cmd, n.kind.TenantScope)
	return cmd
}

// items makes the JSON of an empty list "[]" rather than "null".
func items[R any](rows []R) []R {
	if rows == nil {
		return []R{}
	}
	return rows
}

// watch shows the list now and after every change, until ctx ends.
func (n *noun[R]) watch(ctx context.Context, a *app, c *client.Client, o client.ListOptions) error {
	footer := ""
	if !a.structured() {
		footer = a.simulated(ctx, c)
	}
	return n.follow(ctx, c, o, func(rows []R) error {
		if a.structured() {
			return a.emitLine(items(rows))
		}
		text := n.render(a, rows, o.All) + footer
		if a.terminal {
			text = "\x1b[H\x1b[2J" + text // to the top, clear
		} else {
			text += "\n"
		}
		a.printf("%s", text)
		return nil
	})
}

// follow lists now and after every change of a kind that matters.
func (n *noun[R]) follow(ctx context.Context, c *client.Client, o client.ListOptions, show func([]R) error) error {
	list, err := n.list(ctx, c, o)
	if err != nil {
		return err
	}
	if err := show(list.Items); err != nil {
		return err
	}
	changed, failed := make(chan struct{}, 1), make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		failed <- signalChanges(ctx, c, client.EventOptions{After: list.Index, Kinds: n.watched()}, changed)
	}()
	for {
		select {
		case err := <-failed:
			return err
		case <-changed:
		}
		select {
		case err := <-failed:
			return err
		case <-time.After(watchQuiet):
		}
		if list, err = n.list(ctx, c, o); err != nil {
			return ignoreEnd(ctx, err)
		}
		if err := show(list.Items); err != nil {
			return err
		}
	}
}

// signalChanges puts a token into changed for every event, at most one ahead.
func signalChanges(ctx context.Context, c *client.Client, o client.EventOptions, changed chan<- struct{}) error {
	for _, err := range c.Events(ctx, o) {
		if err != nil {
			return err
		}
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	return nil
}

// ignoreEnd drops the error of a request that ended because the command was
// told to.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (n *noun[R]) watched() []string {
	if len(n.watches) > 0 {
		return n.watches
	}
	return []string{n.kind.Name}
}

// limit is how wide a line may be; 0 for any width.
func (a *app) limit() int {
	if a.format == formatWide {
		return 0
	}
	return a.width
}

// render makes the table of rows.
func (n *noun[R]) render(a *app, rows []R, tenants bool) string {
	if len(rows) == 0 {
		return "no " + n.many + "\n"
	}
	var t table
	shown := slices.DeleteFunc(slices.Clone(n.columns), func(c column[R]) bool { return c.wide && a.format != formatWide })
	if tenants {
		shown = slices.Insert(shown, 0, column[R]{title: "TENANT", value: func(_ *app, row *R) string { return n.head(row).Tenant }})
	}
	for _, c := range shown {
		t.titles, t.keep = append(t.titles, c.title), append(t.keep, c.keep)
	}
	for i := range rows {
		var cells []string
		for _, c := range shown {
			cells = append(cells, c.value(a, &rows[i]))
		}
		t.rows = append(t.rows, cells)
	}
	return t.render(a.limit())
}

func (n *noun[R]) showCommand(a *app) *cobra.Command {
	var o client.ReadOptions
	cmd := &cobra.Command{
		Use: "show NAME", Short: "Show one of the " + n.many,
		Example: fmt.Sprintf("  debvisor %s show NAME\n  debvisor %s show NAME -o yaml", n.word, n.word),
		Args:    exactly("NAME"), ValidArgsFunction: a.completeNames(n),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			row, err := n.get(ctx, c, a.scope(n.kind), args[0], o)
			if err != nil {
				return err
			}
			if a.structured() {
				return a.emit(row)
			}
			a.printf("%s", n.describe(a, row)+a.simulated(ctx, c))
			return nil
		}),
	}
	cmd.Flags().Uint64Var(&o.At, "at", 0, "as it was at this index")
	cmd.Flags().BoolVar(&o.Stale, "stale", false, "what the answering node knows, without asking the leader")
	return cmd
}

// describe writes every column of one row on a line of its own.
func (n *noun[R]) describe(a *app, row *R) string {
	var t table
	t.titles = []string{"FIELD", "VALUE"}
	for _, c := range n.columns {
		t.rows = append(t.rows, []string{strings.ToLower(c.title), c.value(a, row)})
	}
	_, rows, _ := strings.Cut(t.render(0), "\n")
	return rows
}

// simulated is the line that listings end with where no guest is real.
func (a *app) simulated(ctx context.Context, c *client.Client) string {
	nodes, err := client.Resource[api.Node](c, api.KindNode).All(ctx, client.ListOptions{ReadOptions: client.ReadOptions{Stale: true}})
	if err != nil {
		return "" // a remark is not worth an error
	}
	for _, node := range nodes.Items {
		if node.Hypervisor.Simulated {
			return simulatedRow + "\n"
		}
	}
	return ""
}

// deleteCommand makes "delete NAME..."; what says what goes with each.
func (n *noun[R]) deleteCommand(a *app, what string) *cobra.Command {
	var yes bool
	change := change{}
	cmd := &cobra.Command{
		Use: "delete NAME...", Aliases: []string{"rm"}, Short: "Delete " + n.many + what,
		Example: fmt.Sprintf("  debvisor %s delete NAME --plan\n  debvisor %s delete NAME", n.word, n.word),
		Args:    atLeastOne("NAME"), ValidArgsFunction: a.completeNames(n),
		RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			if !yes && !change.plan {
				ok, err := a.confirm(fmt.Sprintf("delete %s %s%s?", n.word, clean(strings.Join(args, ", ")), what), true)
				if err != nil || !ok {
					return err
				}
			}
			for _, name := range args {
				planned, err := change.do(a, func(o ...client.Option) error { return n.remove(ctx, c, a.scope(n.kind), name, o...) })
				if err != nil {
					return err
				}
				if !planned {
					a.notef("%s %s deleted", n.word, clean(name))
				}
			}
			return nil
		}),
	}
	change.flags(cmd)
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

// completer lists names for the shell.
type completer interface {
	names(ctx context.Context, c *client.Client, tenant func(api.Kind) string) ([]string, error)
}

func (n *noun[R]) names(ctx context.Context, c *client.Client, tenant func(api.Kind) string) ([]string, error) {
	list, err := n.list(ctx, c, client.ListOptions{ReadOptions: client.ReadOptions{Stale: true}, Tenant: tenant(n.kind)})
	if err != nil {
		return nil, err
	}
	var names []string
	for i := range list.Items {
		names = append(names, n.head(&list.Items[i]).Name)
	}
	return names, nil
}

// completeNames completes arguments and flags with the names of objects. A
// cluster that does not answer soon completes nothing.
func (a *app) completeNames(n completer) cobra.CompletionFunc {
	return func(cmd *cobra.Command, given []string, typed string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		c, err := a.clientWith(completionTimeout)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names, err := n.names(ctx, c, a.scope)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names = slices.DeleteFunc(names, func(s string) bool { return !strings.HasPrefix(s, typed) || slices.Contains(given, s) })
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
