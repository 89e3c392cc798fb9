package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

// change is what the commands that change something share.
type change struct {
	plan      bool
	requestID string
}

func (ch *change) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&ch.plan, "plan", false, "show what would change, and change nothing")
	cmd.Flags().StringVar(&ch.requestID, "request-id", "", "repeat a request of unknown outcome under its ID: it happens once")
}

// do carries out f, or shows its plan.
func (ch *change) do(a *app, f func(o ...client.Option) error) (planned bool, err error) {
	var options []client.Option
	if ch.requestID != "" {
		options = append(options, client.WithRequestID(ch.requestID))
	}
	if !ch.plan {
		return false, f(options...)
	}
	var plan api.Plan
	if err := f(append(options, client.AsPlan(&plan))...); err != nil {
		return true, err
	}
	return true, a.showPlan(&plan)
}

// showPlan writes what a change would do.
func (a *app) showPlan(plan *api.Plan) error {
	if a.structured() {
		return a.emit(plan)
	}
	for i := range plan.Changes {
		a.showChange(&plan.Changes[i])
	}
	for _, e := range plan.Effects {
		a.showEffect(&e)
	}
	for _, p := range plan.Placements {
		where := "nowhere"
		if p.Decision.Node != "" {
			where = p.Decision.Node
		}
		a.printf("  %s\n", clean(fmt.Sprintf("vm %s would run on %s: %s", p.VM, where, p.Decision.Summary)))
	}
	a.printf("%s\n", planSummary(plan.Changes))
	return nil
}

// showEffect says when an edit reaches a guest that runs.
func (a *app) showEffect(e *api.PlannedEffect) {
	for _, part := range []struct {
		when   string
		fields []string
	}{{"while it runs", e.Online}, {"at its next start", e.NextStart}} {
		if len(part.fields) > 0 {
			a.printf("  %s\n", clean(fmt.Sprintf("the guest of vm %s gets %s: %s", e.VM, part.when, strings.Join(part.fields, ", "))))
		}
	}
}

func planSummary(changes []api.Change) string {
	if len(changes) == 0 {
		return "nothing to do"
	}
	count := map[string]int{}
	for i := range changes {
		count[changes[i].Action()]++
	}
	return fmt.Sprintf("plan: %d to create, %d to change, %d to delete", count["create"], count["update"], count["delete"])
}

// Colours of a diff (ECMA-48 SGR).
const (
	colorCreate = "\x1b[32m"
	colorUpdate = "\x1b[33m"
	colorDelete = "\x1b[31m"
	colorEnd    = "\x1b[0m"
)

// showChange writes one row before and after, field by field.
func (a *app) showChange(c *api.Change) {
	mark, color := "~", colorUpdate
	switch c.Action() {
	case "create":
		mark, color = "+", colorCreate
	case "delete":
		mark, color = "-", colorDelete
	}
	a.paint(color, fmt.Sprintf("%s %s %s", mark, c.Kind, c.Key))
	if c.Action() == "delete" {
		return
	}
	for _, f := range fieldChanges(c.Before, c.After) {
		a.paint(color, "    "+fieldText(f))
	}
}

func (a *app) paint(color, line string) {
	line = clean(line)
	if a.color() {
		line = color + line + colorEnd
	}
	a.printf("%s\n", line)
}

func fieldText(f api.FieldChange) string {
	switch {
	case len(f.Before) == 0:
		return fmt.Sprintf("%s: %s", f.Field, f.After)
	case len(f.After) == 0:
		return fmt.Sprintf("%s: %s -> (gone)", f.Field, f.Before)
	}
	return fmt.Sprintf("%s: %s -> %s", f.Field, f.Before, f.After)
}

// bookkeeping are the fields that every write changes.
func bookkeeping() []string {
	return []string{"id", "created", "modified", "created_at", "modified_at"}
}

// fieldChanges compares two JSON objects; either may be absent. Numbers keep
// their digits.
func fieldChanges(before, after json.RawMessage) []api.FieldChange {
	b, a := map[string]json.RawMessage{}, map[string]json.RawMessage{}
	flatten("", before, b)
	flatten("", after, a)
	names := maps.Clone(b)
	maps.Copy(names, a)
	var out []api.FieldChange
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if !bytes.Equal(b[name], a[name]) && !slices.Contains(bookkeeping(), name) {
			out = append(out, api.FieldChange{Field: name, Before: b[name], After: a[name]})
		}
	}
	return out
}

// flatten takes a JSON value apart into its leaves, named as "disks[0].name".
func flatten(name string, raw json.RawMessage, into map[string]json.RawMessage) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		return
	}
	var fields map[string]json.RawMessage
	var list []json.RawMessage
	switch {
	case raw[0] == '{' && json.Unmarshal(raw, &fields) == nil:
		for k, v := range fields {
			flatten(strings.TrimPrefix(name+"."+k, "."), v, into)
		}
	case raw[0] == '[' && json.Unmarshal(raw, &list) == nil:
		for i, v := range list {
			flatten(fmt.Sprintf("%s[%d]", name, i), v, into)
		}
	default:
		into[name] = raw
	}
}
