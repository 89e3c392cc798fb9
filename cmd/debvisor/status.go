package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/debvisor/debvisor/api"
)

// The exit statuses of every command.
const (
	statusDone        = 0
	statusError       = 1
	statusUsage       = 2
	statusNotFound    = 3
	statusConflict    = 4
	statusForbidden   = 5
	statusUnavailable = 6
	statusPoisoned    = 75  // a node's store is damaged: start the node again (EX_TEMPFAIL)
	statusRemoved     = 78  // this node was removed from the cluster (EX_CONFIG)
	statusInterrupted = 130 // by Ctrl-C, as shells count it
)

const statusHelp = `Exit status: 0 done, 1 error, 2 usage, 3 not found, 4 conflict,
5 forbidden, 6 unavailable or outcome unknown.`

// usageError is a command line that cannot be carried out.
type usageError struct {
	err error
	cmd *cobra.Command
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// exitError ends the command with a status after it has said everything.
type exitError struct {
	status int
	err    error // nil: nothing is left to say
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// finish writes the error of a command, if it had one, and returns its exit
// status.
func (a *app) finish(err error) int {
	if err == nil {
		return statusDone
	}
	status := statusOf(err)
	if exit, ok := errors.AsType[*exitError](err); ok && exit.err == nil {
		return status
	}
	fmt.Fprintln(a.errOut, "error: "+describe(err))
	if usage, ok := errors.AsType[*usageError](err); ok && usage.cmd != nil {
		fmt.Fprintf(a.errOut, "usage: %s\nhelp:  %s --help\n", usage.cmd.UseLine(), usage.cmd.CommandPath())
	}
	return status
}

// statusOf maps an error to the exit status of the command.
func statusOf(err error) int {
	if exit, ok := errors.AsType[*exitError](err); ok {
		return exit.status
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return statusUsage
	}
	switch api.CodeOf(err) {
	case "":
		return statusDone
	case api.CodeNotFound, api.CodeGone:
		return statusNotFound
	case api.CodeConflict:
		return statusConflict
	case api.CodeForbidden, api.CodeUnauthenticated:
		return statusForbidden
	case api.CodeNoLeader, api.CodeUnknown, api.CodeUnavailable:
		return statusUnavailable
	}
	if errors.Is(err, context.Canceled) {
		return statusInterrupted
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return statusUnavailable
	}
	return statusError
}

// describe renders an error for a terminal: what a cluster sent may hold
// characters that would change what surrounds it.
func describe(err error) string {
	lines := strings.Split(err.Error(), "\n")
	for i, line := range lines {
		lines[i] = clean(line)
	}
	text := strings.Join(lines, "\n")
	// A node cannot know where a command takes its key from.
	if e, ok := errors.AsType[*api.Error](err); ok && (e.Next == "" || e.Code == api.CodeUnauthenticated) {
		if next := nextStep(e.Code); next != "" {
			text += "; " + next
		}
	}
	return text + requestNote(err)
}

// nextStep is what to do about an error that does not say it itself.
func nextStep(code api.Code) string {
	switch code {
	case api.CodeUnauthenticated:
		return "set DEBVISOR_KEY, or DEBVISOR_KEY_FILE to a file that holds the key"
	case api.CodeUnknown:
		return "it may or may not have happened: look before you repeat it"
	case api.CodeNoLeader:
		return "try again in a few seconds; debvisor doctor shows which nodes answer"
	}
	return ""
}

// usage makes the error of a wrong command line.
func usage(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format, args...), cmd: cmd}
}

// exactly wants n arguments that are called names.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usage(cmd, "%s is missing", names[len(args)])
		case len(args) > len(names):
			return usage(cmd, "%q is one argument too many", args[len(names)])
		}
		return nil
	}
}

// atLeastOne wants one argument or more, called name.
func atLeastOne(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usage(cmd, "%s is missing", name)
		}
		return nil
	}
}

// group is the body of a command that only has subcommands.
func group(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	return unknownCommand(cmd, args[0])
}

func unknownCommand(cmd *cobra.Command, name string) error {
	var names []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
			names = append(names, sub.Aliases...)
		}
	}
	return usage(cmd, "unknown command %q for %q%s", name, cmd.CommandPath(), didYouMean(name, names))
}

// flagError adds the nearest flag to the error about an unknown one.
func flagError(cmd *cobra.Command, err error) error {
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	})
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		if near := nearest(unknown.GetSpecifiedName(), names); near != "" {
			return usage(cmd, "%w; did you mean --%s?", err, near)
		}
	}
	return usage(cmd, "%w", err)
}

func didYouMean(word string, known []string) string {
	if near := nearest(word, known); near != "" {
		return fmt.Sprintf("; did you mean %q?", near)
	}
	return ""
}

// nearest is the known word that looks most like word, or "" when none is
// close.
func nearest(word string, known []string) string {
	best, distance := "", max(2, len(word)/3)+1
	for _, k := range known {
		d := editDistance(strings.ToLower(word), k)
		if len(word) > 2 && strings.HasPrefix(k, strings.ToLower(word)) {
			d = 1
		}
		if d < distance {
			best, distance = k, d
		}
	}
	return best
}

// editDistance counts the insertions, deletions and replacements between two
// words (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// requestNote names the request that failed, for the node's log.
func requestNote(err error) string {
	if e, ok := errors.AsType[*api.Error](err); ok && e.RequestID != "" {
		return "\nrequest ID: " + clean(e.RequestID)
	}
	return ""
}
