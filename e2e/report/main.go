// Command report runs the project's checks and tests and says what came of
// them: a line per package while they run, the output of what failed, every
// skipped test with its reason, and at the end one line
//
//	N passed, N failed, N skipped
//
// Its exit status is 0 only if nothing failed, something ran, and every
// skipped test named what the machine lacks: its reason contains the word
// "requires". The steps run in the order in which they are given:
//
//	report -check "go vet ./..." -test "unit: ./..." -test "race: -race ./fsm/..."
//
// A check is any command, split at spaces; it counts as one. A test is a name
// and the arguments of "go test". A package after "!" leaves out what
// "./..." would take in: "unit: ./... !./e2e/...".
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// Exit statuses of the program.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	steps, err := parseSteps(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(exitUsage)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	r := newReport(os.Stdout)
	for _, s := range steps {
		r.run(ctx, s)
	}
	stop()
	if !r.close() {
		os.Exit(exitFailed)
	}
}
