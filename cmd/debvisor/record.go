package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

const timeLayout = "2006-01-02 15:04:05"

// reference is an object named on the command line as KIND/NAME, or as
// KIND/TENANT/NAME.
type reference struct {
	kind         api.Kind
	tenant, name string
}

func (a *app) reference(cmd *cobra.Command, text string) (reference, error) {
	kindName, rest, ok := strings.Cut(text, "/")
	if !ok || rest == "" {
		return reference{}, usage(cmd, "%q is not KIND/NAME, as vm/web", text)
	}
	kind, ok := api.LookupKind(kindName)
	if !ok {
		return reference{}, usage(cmd, "kind %q is unknown%s", kindName, didYouMean(kindName, kindNames()))
	}
	r := reference{kind: kind, tenant: a.scope(kind), name: rest}
	if tenant, name := api.SplitKey(rest); tenant != "" && kind.TenantScope {
		r.tenant, r.name = tenant, name
	}
	return r, nil
}

func kindNames() []string {
	var names []string
	for _, k := range api.Kinds() {
		names = append(names, k.Name)
	}
	return names
}

// referring is the body of a command about one object.
type referring func(ctx context.Context, c *client.Client, r reference) error

func (a *app) about(f referring) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		r, err := a.reference(cmd, args[0])
		if err != nil {
			return err
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		return f(cmd.Context(), c, r)
	}
}

// completeReferences completes KIND/NAME.
func (a *app) completeReferences() cobra.CompletionFunc {
	nouns := map[string]completer{
		api.KindVM: vms(), api.KindImage: images(), api.KindNetwork: networks(), api.KindFirewall: firewalls(), api.KindPool: pools(), api.KindVolume: volumes(),
		api.KindTenant: tenants(), api.KindNode: nodes(), api.KindTask: tasks(), api.KindAPIKey: keys(), api.KindRole: roles(),
	}
	return func(cmd *cobra.Command, given []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(given) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		kind, name, cut := strings.Cut(typed, "/")
		if n, ok := nouns[kind]; ok && cut {
			names, directive := a.completeNames(n)(cmd, nil, name)
			for i := range names {
				names[i] = kind + "/" + names[i]
			}
			return names, directive
		}
		var kinds []string
		for _, k := range kindNames() {
			if strings.HasPrefix(k, typed) && nouns[k] != nil {
				kinds = append(kinds, k+"/")
			}
		}
		return kinds, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
}

func eventsCommand(a *app) *cobra.Command {
	var o client.EventOptions
	var labels []string
	var limit int
	cmd := &cobra.Command{
		Use: "events", Short: "Show changes as they happen",
		Long: `Shows changes as they happen, until Ctrl-C. --after shows what happened after an
index first; output that was cut off goes on where it ended with it.`,
		Example: "  debvisor events --kind vm --kind instance\n  debvisor events --after 1200 -o json",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Labels, err = parseLabels(cmd, labels); err != nil {
				return err
			}
			for _, k := range o.Kinds {
				if _, ok := api.LookupKind(k); !ok {
					return usage(cmd, "kind %q is unknown%s", k, didYouMean(k, kindNames()))
				}
			}
			o.Tenant = a.tenant
			c, err := a.client()
			if err != nil {
				return err
			}
			shown := 0
			for record, err := range c.Events(cmd.Context(), o) {
				if err != nil {
					return err
				}
				if err := a.showRecord(record); err != nil {
					return err
				}
				if shown++; limit > 0 && shown == limit {
					break
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.Uint64Var(&o.After, "after", 0, "what happened after this index first")
	f.StringSliceVar(&o.Kinds, "kind", nil, "changes of this kind only; may be repeated")
	f.StringSliceVarP(&labels, "label", "l", nil, "changes of objects with this label only, as key=value")
	f.IntVar(&limit, "limit", 0, "end after so many (default: never)")
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(kindNames(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// showRecord writes one event.
func (a *app) showRecord(r *api.Record) error {
	if a.structured() {
		return a.emitLine(r)
	}
	for i := range r.Changes {
		change := &r.Changes[i]
		line := fmt.Sprintf("%s  %d  %s %s/%s", r.Time.Local().Format(timeLayout), r.Index, change.Action(), change.Kind, change.Key)
		if r.By != "" {
			line += " by " + r.By
		}
		a.printf("%s\n", clip(clean(line), a.widthOrMore()))
		if change.Action() != "update" {
			continue
		}
		for _, f := range fieldChanges(change.Before, change.After) {
			a.printf("    %s\n", clip(clean(fieldText(f)), a.widthOrMore()-4))
		}
	}
	return nil
}

// widthOrMore is the width of a line; without bound for wide output.
func (a *app) widthOrMore() int {
	if a.format == formatWide {
		return 1 << 20
	}
	return a.width
}

func whyCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "why KIND/NAME", Short: "Explain why an object is as it is", Example: "  debvisor why vm/web\n  debvisor why node/node2",
		Args: exactly("KIND/NAME"), ValidArgsFunction: a.completeReferences(),
		RunE: a.about(func(ctx context.Context, c *client.Client, r reference) error {
			why, err := c.Why(ctx, r.kind.Name, r.tenant, r.name)
			if err != nil {
				return err
			}
			if a.structured() {
				return a.emit(why)
			}
			a.printf("%s/%s: %s\n", why.Kind, clean(why.Key), clean(why.Summary))
			for _, f := range why.Facts {
				by := ""
				if f.By != "" {
					by = " (" + f.By + ")"
				}
				at := ""
				if !f.Time.IsZero() {
					at = f.Time.Local().Format(timeLayout) + "  "
				}
				a.printf("  %s%s\n", at, clean(f.Text+by))
			}
			a.showDecision(why.Decision)
			return nil
		}),
	}
}

// showDecision writes the nodes that a placement looked at.
func (a *app) showDecision(d *api.Decision) {
	if d == nil || len(d.Candidates) == 0 {
		return
	}
	t := table{titles: []string{"NODE", "FITS", "SCORE", "REASONS"}, keep: []bool{false, true, true}}
	for _, c := range d.Candidates {
		score := "-"
		if c.Fits {
			score = fmt.Sprintf("%.2f", c.Score)
		}
		t.rows = append(t.rows, []string{c.Node, yesNo(c.Fits), score, strings.Join(c.Reasons, "; ")})
	}
	a.printf("\nplacement looked at %d nodes:\n%s", d.Considered, t.render(a.limit()))
}

func historyCommand(a *app) *cobra.Command {
	var limit int
	var before uint64
	cmd := &cobra.Command{
		Use: "history KIND/NAME", Short: "Show the changes of an object, newest first", Example: "  debvisor history vm/web\n  debvisor history vm/web -o json",
		Args: exactly("KIND/NAME"), ValidArgsFunction: a.completeReferences(),
		RunE: a.about(func(ctx context.Context, c *client.Client, r reference) error {
			list, err := c.History(ctx, r.kind.Name, r.tenant, r.name, before, limit)
			if err != nil {
				return err
			}
			if a.structured() {
				return a.emit(items(list))
			}
			t := table{titles: []string{"INDEX", "TIME", "ACTION", "BY", "WHAT"}, keep: []bool{true, true, true}}
			for _, h := range list {
				t.rows = append(t.rows, []string{fmt.Sprint(h.Index), h.Time.Local().Format(timeLayout), h.Action, dash(h.By), historyText(&h)})
			}
			a.printf("%s", t.render(a.limit()))
			return nil
		}),
	}
	cmd.Flags().IntVar(&limit, "limit", 0, "at most so many")
	cmd.Flags().Uint64Var(&before, "before", 0, "those before this index")
	return cmd
}

func historyText(h *api.HistoryItem) string {
	if h.Action != "update" {
		return h.Op
	}
	var parts []string
	for _, f := range fieldChanges(h.Before, h.After) {
		parts = append(parts, fieldText(f))
	}
	return dash(strings.Join(parts, "; "))
}

func diffCommand(a *app) *cobra.Command {
	var from, to string
	cmd := &cobra.Command{
		Use: "diff KIND/NAME --from WHEN [--to WHEN]", Short: "Compare an object at two points in time",
		Long: `Compares an object at two points in time. WHEN is an index of the log, a time
(2026-05-01T12:00:00Z), or how long ago (2h). Without --to: now.`,
		Example: "  debvisor diff vm/web --from 2h\n  debvisor diff vm/web --from 1200 --to 1300",
		Args:    exactly("KIND/NAME"), ValidArgsFunction: a.completeReferences(),
		RunE: a.about(func(ctx context.Context, c *client.Client, r reference) error {
			diff, err := c.Diff(ctx, r.kind.Name, r.tenant, r.name, from, to)
			if err != nil {
				return err
			}
			if a.structured() {
				return a.emit(diff)
			}
			if len(diff.Fields) == 0 {
				a.printf("%s/%s: no difference between %d and %d\n", diff.Kind, clean(diff.Key), diff.From, diff.To)
				return nil
			}
			a.paint(colorUpdate, fmt.Sprintf("%s %s/%s between %d and %d", diff.Action, diff.Kind, diff.Key, diff.From, diff.To))
			for _, f := range diff.Fields {
				a.paint(fieldColor(f), "    "+fieldText(f))
			}
			return nil
		}),
	}
	cmd.Flags().StringVar(&from, "from", "", "index, time, or how long ago")
	cmd.Flags().StringVar(&to, "to", "", "index, time, or how long ago (default: now)")
	_ = cmd.MarkFlagRequired("from")
	return cmd
}

func fieldColor(f api.FieldChange) string {
	switch {
	case len(f.Before) == 0:
		return colorCreate
	case len(f.After) == 0:
		return colorDelete
	}
	return colorUpdate
}

func revertCommand(a *app) *cobra.Command {
	var to uint64
	var ch change
	cmd := &cobra.Command{
		Use: "revert KIND/NAME --to INDEX", Short: "Make an object what it was at an index",
		Example: "  debvisor history vm/web\n  debvisor revert vm/web --to 1200 --plan\n  debvisor revert vm/web --to 1200",
		Args:    exactly("KIND/NAME"), ValidArgsFunction: a.completeReferences(),
		RunE: a.about(func(ctx context.Context, c *client.Client, r reference) error {
			var applied *api.Applied
			planned, err := ch.do(a, func(o ...client.Option) (err error) {
				applied, err = c.Revert(ctx, r.kind.Name, r.tenant, r.name, to, o...)
				return err
			})
			if err != nil || planned {
				return err
			}
			if applied.Changed == 0 {
				return a.result(applied, "nothing to do: %s/%s is what it was at %d", r.kind.Name, clean(r.name), to)
			}
			return a.result(applied, "%s/%s is what it was at %d", r.kind.Name, clean(r.name), to)
		}),
	}
	ch.flags(cmd)
	cmd.Flags().Uint64Var(&to, "to", 0, "index of the log, as history shows it")
	_ = cmd.MarkFlagRequired("to")
	return cmd
}

func auditCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "Work with the journal of all changes", Example: "  debvisor audit verify\n  debvisor audit list --after 1200"}
	cmd.AddCommand(verifyCommand(a), auditListCommand(a))
	return cmd
}

func verifyCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "verify", Short: "Verify the hash chain of the journal",
		Long: `Has the answering node read its whole journal and compute the hash chain again.
The first record that does not fit is named, and the exit status is 1.`,
		Example: "  debvisor audit verify --addr node2:7443",
		Args:    exactly(),
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			p := a.progress()
			last := time.Time{}
			report, err := c.VerifyAudit(ctx, func(r api.AuditReport) {
				if now := a.now(); a.terminal && now.Sub(last) >= progressEvery {
					last = now
					p.step("%d records verified", r.Records)
				}
			})
			p.end()
			if err != nil {
				return err
			}
			return a.result(report, "the journal is whole: %d records, index %d to %d, head %s", report.Records, report.First, report.Last, report.Head)
		}),
	}
}

func auditListCommand(a *app) *cobra.Command {
	var after uint64
	var limit int
	cmd := &cobra.Command{
		Use: "list", Short: "List the records of the journal", Example: "  debvisor audit list --after 1200 --limit 50",
		Args: exactly(),
		RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
			records, err := c.Audit(ctx, after, limit)
			if err != nil {
				return err
			}
			if a.structured() {
				return a.emit(items(records))
			}
			t := table{titles: []string{"INDEX", "TIME", "OP", "BY", "OUTCOME"}, keep: []bool{true, true}}
			for _, r := range records {
				outcome := fmt.Sprintf("%d changes", len(r.Changes))
				if r.Code != "" {
					outcome = string(r.Code) + ": " + r.Message
				}
				t.rows = append(t.rows, []string{fmt.Sprint(r.Index), r.Time.Local().Format(timeLayout), r.Op, dash(r.By), outcome})
			}
			a.printf("%s", t.render(a.limit()))
			return nil
		}),
	}
	cmd.Flags().Uint64Var(&after, "after", 0, "those after this index")
	cmd.Flags().IntVar(&limit, "limit", 0, "at most so many")
	return cmd
}
